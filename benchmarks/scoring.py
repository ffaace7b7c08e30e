"""Label scoring against one bare forward pass, and evaluation against the published one, in one run.

On real XNLI rows in several languages, Transformer Softmax, a bridge that was trained until its greedy texts are
answers (the few rows whose are not are left out and counted), taking turns:

- **bare**: the encoder's forward pass, then the LLM's over `[bos | soft tokens | boundary]` of the same rows in the
  same batches, logits at the last position alone. What both read is made beforehand (soft tokens are random): no
  tokenising, no fusion, no projector.
- **bare_in_chunks**: the same, each batch divided into passes of rows of like length, as ours divides it: what ours
  gains by leaving padding out does not count as a gain here.
- **bare_in_eights**: the same in batches of eight rows in their given order, as a plain user would.
- **score**: `Bridge.score` of all answers, from texts to numbers, in batches of the evaluation's token budget.
- **answer**: `Bridge.answer`, scores and greedy texts, likewise: what `layerbridge evaluate` does.
- **published**: `benchmarks.published_evaluation`, on the same trained model, in float32 and in bfloat16; held against
  ours in float32, in bfloat16, and with everything on: bfloat16, and the encoder's states from the cache, as in a
  study's evaluations (`layerbridge evaluate` by itself keeps no states).

The answers that the limit is checked with are one token each in this pair's tokenizer, so their trie has three nodes. A
longer set, the five answers of the paper's Amazon reviews, is measured too and has no limit: every node of the trie is
one more position that the LLM reads for every row, through all its layers and its head, and the pass that it is held
against reads none of them.

Seconds are median, fastest and slowest of the turns.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --rows 200 --repetitions 7   # half an hour

Example row (two busy cores, so no figure to quote):

    {"answers": "Entailment, Neutral, Contradiction", "nodes": 3, "bare_s": 20.1, "score_s": 22.2,
     "score / bare": 1.0, "score / bare_in_chunks": 1.1, "same_winner": 384, "rows": 384, ...}
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import measure
from benchmarks.pair import ANSWERS, Row, build_pair, xnli_rows
from benchmarks.published_evaluation import MAX_NEW_TOKENS, PublishedEvaluation
from benchmarks.training_step import Models, build_bridge, keep_features
from layerbridge.config import EvaluationConfig
from layerbridge.evaluation.batches import in_batches
from layerbridge.model.bridge import Bridge
from layerbridge.model.chunks import like_length
from layerbridge.model.splice import positions
from layerbridge.model.trie import build_trie

FUSION = "transformer_softmax"
XNLI = tuple(ANSWERS.values())
LONGER = ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive")
"""Those of the paper's Amazon reviews."""
CONFIG = EvaluationConfig(max_new_tokens=32)
TRAIN_ROWS = 1000
"""English rows from here on are trained on; those before are measured."""
LOOK_EVERY = 10
ANSWERED = 0.95
"""Share of greedy texts that must be answers when training ends; rows of the others are left out of what is measured,
whose texts end early. Of many texts a few never settle."""


class BarePass:
    """The two frozen models' own forward passes over some batches, everything that they read made beforehand."""

    def __init__(self, bridge: Bridge, rows: Sequence[Row], batches: Sequence[Sequence[int]]) -> None:
        self.encoder, self.llm = bridge.encoder.model, bridge.llm
        self.read: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        for batch in batches:
            inputs = bridge.processor([rows[index].text for index in batch], max_source_tokens=CONFIG.max_source_tokens)
            lengths_B1 = inputs.source_mask.sum(dim=1, keepdim=True) + 2  # bos, boundary
            longest = int(lengths_B1.max())
            mask_BT = torch.arange(longest) >= longest - lengths_B1
            soft_BTD = 0.02 * torch.randn(*mask_BT.shape, self.llm.config.hidden_size)
            encoder = {"input_ids": inputs.source_ids, "attention_mask": inputs.source_mask.long()}
            llm = {
                "inputs_embeds": soft_BTD.to(self.llm.dtype),
                "attention_mask": mask_BT.long(),
                "position_ids": positions(mask_BT),
            }
            self.read.append((_to_device(encoder), _to_device(llm)))

    def padding(self) -> float:
        """Return the share of padding in what the LLM reads."""
        masks = [llm["attention_mask"] for _, llm in self.read]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Do it."""
        for encoder, llm in self.read:
            self.encoder(**encoder)
            # A place, not a number from the end: the head is then one product, which is quicker.
            last_1 = torch.tensor([llm["attention_mask"].shape[1] - 1], device=measure.DEVICE)
            self.llm(**llm, logits_to_keep=last_1, use_cache=False)


class Ours:
    """A bridge's evaluation of some rows, as `layerbridge.evaluation.predict` does it."""

    def __init__(self, bridge: Bridge, rows: Sequence[Row], answers: Sequence[str] = XNLI) -> None:
        self.bridge, self.answers = bridge, list(answers)
        self.texts = [row.text for row in rows]

    def batches(self) -> list[list[int]]:
        """Return the batches that the token budget makes."""
        return [batch for batch, _ in in_batches(self._lengths(), CONFIG, len)]

    def chunks(self, batch: Sequence[int]) -> list[list[int]]:
        """Return the places in a batch that are read together."""
        lengths = self._lengths()
        return like_length([lengths[index] for index in batch], measure.DEVICE.type)

    def score(self) -> Tensor:
        """Return all log-probabilities (R, N)."""
        found = list(in_batches(self._lengths(), CONFIG, self._score))
        scores_RN = torch.empty(len(self.texts), len(self.answers))
        for batch, scores_BN in found:
            scores_RN[batch] = scores_BN
        return scores_RN

    def answer(self) -> list[str]:
        """Return all greedy texts; the scores come along."""
        written = [""] * len(self.texts)
        for batch, (_, texts) in in_batches(self._lengths(), CONFIG, self._answer):
            for index, text in zip(batch, texts, strict=True):
                written[index] = text.strip()
        return written

    def _lengths(self) -> list[int]:
        limit = self.bridge.source_limit(CONFIG.max_source_tokens)
        return [min(length, limit) for length in self.bridge.count_source_tokens(self.texts)]

    def _score(self, batch: list[int]) -> Tensor:
        return self.bridge.score(
            [self.texts[index] for index in batch], self.answers, max_source_tokens=CONFIG.max_source_tokens
        )

    def _answer(self, batch: list[int]) -> tuple[Tensor, list[str]]:
        return self.bridge.answer(
            [self.texts[index] for index in batch],
            self.answers,
            max_new_tokens=CONFIG.max_new_tokens,
            max_source_tokens=CONFIG.max_source_tokens,
        )


def train(
    bridge: Bridge,
    rows: Sequence[Row],
    measured: Sequence[Row],
    path: Path,
    *,
    max_steps: int,
    learning_rate: float,
    must_answer: bool = True,
) -> None:
    """Train a bridge until its greedy texts of `measured` are answers (`ANSWERED` of them), at two looks in turn.

    What trained is kept at `path`.

    While they are all the same answer it goes on to `max_steps`, and what wrote answers last is kept.

    Raises:
        SystemExit: they were not within `max_steps`, and `must_answer`: an evaluation of such texts would be another.
    """
    parameters = bridge.trained_parameters()
    some = measured[::8]
    if not path.is_file():
        optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate)
        looks_passed, found_good = 0, None
        for step in range(1, max_steps + 1):
            batch = [rows[index % len(rows)] for index in range(8 * step, 8 * step + 8)]
            inputs = bridge.processor([row.text for row in batch], answers=[row.answer for row in batch])
            bridge.train()
            optimizer.zero_grad()
            bridge.loss(inputs.to(measure.DEVICE)).backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            if step % LOOK_EVERY == 0:
                written = Ours(bridge, some).answer()
                if _answered(written) >= ANSWERED:
                    written = Ours(bridge, measured).answer()
                looks_passed = looks_passed + 1 if _answered(written) >= ANSWERED else 0
                found = sum(text in XNLI for text in written)
                print(
                    f"step {step}: {found} of {len(written)} texts are answers, {len(set(written))} different texts",
                    file=sys.stderr,
                )
                if looks_passed >= 2:
                    found_good = {name: tensor.clone() for name, tensor in bridge.trained_state().items()}
                    if len(set(written) & set(XNLI)) > 1:
                        break
        if found_good is None and must_answer:
            raise SystemExit(
                f"After {max_steps} steps the bridge's texts were not yet answers twice in turn, so its evaluation "
                "would measure something else; give --max-steps or --learning-rate another value."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found_good or bridge.trained_state(), path)
    load(bridge, path)


def _answered(written: Sequence[str]) -> float:
    return sum(text in XNLI for text in written) / len(written)


def load(bridge: Bridge, path: Path) -> None:
    """Give a bridge what trained."""
    state = load_file(path)
    with torch.no_grad():
        for name, parameter in bridge.trained_parameters().items():
            parameter.copy_(state[name])
    bridge.eval()


def compare_scoring(
    bridge: Bridge, published: PublishedEvaluation, rows: Sequence[Row], answers: Sequence[str], *, repetitions: int
) -> dict[str, Any]:
    """Return what scoring costs over bare passes, and whether it chooses as scoring each pair alone does."""
    ours = Ours(bridge, rows, answers)
    batches = ours.batches()
    eights = [list(range(len(rows)))[start : start + 8] for start in range(0, len(rows), 8)]
    chunks = [[batch[place] for place in chunk] for batch in batches for chunk in ours.chunks(batch)]
    bare = BarePass(bridge, rows, batches)
    contestants = {
        "score": ours.score,
        "bare": bare,
        "bare_in_chunks": BarePass(bridge, rows, chunks),
        "bare_in_eights": BarePass(bridge, rows, eights),
    }
    found = measure.take_turns(contestants, repetitions=repetitions)
    scores_RN = ours.score().double()
    alone_RN = torch.tensor([[published.log_probability(row.text, answer) for answer in answers] for row in rows])
    best_R2 = alone_RN.double().sort(dim=1, descending=True).values[:, :2]
    return {
        "answers": ", ".join(answers),
        "num_answers": len(answers),
        "nodes": len(build_trie(bridge.processor.answer_ids(answers)).tokens),
        "rows": len(rows),
        "batches": len(batches),
        "padding_of_batches": bare.padding(),
        **{f"{name}_s": statistics.median(seconds) for name, seconds in found.items()},
        "score / bare": _ratio(found["score"], found["bare"]),
        "score / bare_in_chunks": _ratio(found["score"], found["bare_in_chunks"]),
        "score / bare_in_eights": _ratio(found["score"], found["bare_in_eights"]),
        "same_winner": int((scores_RN.argmax(dim=1) == alone_RN.argmax(dim=1)).sum()),
        "different_winners_chosen": len(scores_RN.argmax(dim=1).unique()),
        "max_difference": float((scores_RN - alone_RN).abs().max()),
        "least_lead_of_a_winner": float((best_R2[:, 0] - best_R2[:, 1]).min()),
        "seconds": {name: measure.summary(seconds) for name, seconds in found.items()},
    }


def compare_evaluation(
    bridges: dict[str, Bridge],
    published: dict[str, PublishedEvaluation],
    rows: Sequence[Row],
    *,
    repetitions: int,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Return rows a second of our evaluations and the published ones on the same trained model, texts that agree."""
    ours = {name: Ours(bridge, rows) for name, bridge in bridges.items()}
    contestants: dict[str, Any] = {f"ours {name}": one.answer for name, one in ours.items()}
    for name, one in published.items():
        contestants[f"published {name}"] = lambda one=one: one.write_all(rows, max_new_tokens)
    found = measure.take_turns(contestants, repetitions=repetitions)
    theirs = {name: one.write_all(rows, max_new_tokens) for name, one in published.items()}
    made = []
    for name, one in ours.items():
        before = bridges[name].encoder.num_passes
        texts, seconds = one.answer(), found[f"ours {name}"]
        their_texts, num_tokens = theirs["bfloat16" if bridges[name].llm.dtype == torch.bfloat16 else "float32"]
        made.append(
            {
                "ours": name,
                "encoder_passes": bridges[name].encoder.num_passes - before,
                "rows": len(rows),
                "ours_rows_per_s": len(rows) / statistics.median(seconds),
                **{f"ours / published {kind}": _ratio(found[f"published {kind}"], seconds) for kind in published},
                "texts_that_are_answers": sum(text in XNLI for text in their_texts),
                "different_texts": len(set(their_texts)),
                "mean_generated_tokens": statistics.fmean(num_tokens),
                "same_texts": sum(one == other for one, other in zip(texts, their_texts, strict=True)),
                "seconds": {
                    f"ours {name}": measure.summary(seconds),
                    **{f"published {kind}": measure.summary(found[f"published {kind}"]) for kind in published},
                },
            }
        )
    return made


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over the turns of one turn's ratio."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def _to_device(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(measure.DEVICE) for name, tensor in tensors.items()}


def main() -> None:
    parser: argparse.ArgumentParser = measure.parser(__doc__)
    parser.add_argument("--width", type=int, default=512, help="of encoder and LLM")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "sw", "th", "zh", "ur"])
    parser.add_argument("--rows", type=int, default=32, help="of each language")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=300, help="of training, which ends when its texts are answers")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of that training")
    args = parser.parse_args()
    layers, longest = 8, MAX_NEW_TOKENS
    if args.quick:
        args.width, args.languages, args.rows, args.repetitions, args.max_steps, layers = 64, ["en", "sw"], 8, 2, 20, 2
        longest = CONFIG.max_new_tokens
    by_language = [xnli_rows(args.data, language, seed=args.seed) for language in args.languages]
    rows = list(itertools.chain.from_iterable(some[: args.rows] for some in by_language))
    english = xnli_rows(args.data, "en", seed=args.seed)
    learned = english[min(TRAIN_ROWS, len(english) // 2) :]

    models: Models = build_pair(args.work, args.data, width=args.width, layers=layers)
    made_with = (
        args.width,
        layers,
        args.seed,
        args.max_steps,
        f"{args.learning_rate:g}",
        ANSWERED,
        args.rows,
        *args.languages,
    )
    trained = args.work / f"scoring-{'-'.join(map(str, made_with))}.safetensors"
    bridge = build_bridge(models, FUSION, seed=args.seed)
    train(
        bridge,
        learned,
        rows,
        trained,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        must_answer=not args.quick,
    )
    kept = [row for row, text in zip(rows, Ours(bridge, rows).answer(), strict=True) if text in XNLI]
    left_out, rows = (len(rows) - len(kept), kept) if kept else (0, rows)
    published = PublishedEvaluation(*models, fusion=FUSION, device=measure.DEVICE)
    published.start_like(bridge.trained_parameters())
    scoring = [
        compare_scoring(bridge, published, rows, answers, repetitions=args.repetitions) for answers in (XNLI, LONGER)
    ]
    short = build_bridge(models, FUSION, dtype="bfloat16", seed=args.seed)
    everything_on = build_bridge(models, FUSION, dtype="bfloat16", seed=args.seed)
    for other in (short, everything_on):
        load(other, trained)
    short_published = PublishedEvaluation(*models, fusion=FUSION, dtype=torch.bfloat16, device=measure.DEVICE)
    short_published.start_like(short.trained_parameters())
    with tempfile.TemporaryDirectory(prefix="features-") as cache:
        keep_features(everything_on, Path(cache), [row.text for row in rows], CONFIG.max_source_tokens)
        evaluation = compare_evaluation(
            {"float32": bridge, "bfloat16": short, "bfloat16, features from the cache": everything_on},
            {"float32": published, "bfloat16": short_published},
            rows,
            repetitions=args.repetitions,
            max_new_tokens=longest,
        )
        everything_on.features = None

    first, whole, last = scoring[0], evaluation[0], evaluation[-1]
    no_answers = max(row["rows"] - row["texts_that_are_answers"] for row in evaluation)
    slower = min(last["ours / published float32"], last["ours / published bfloat16"])
    hidden = ("seconds",)
    measure.report(
        "scoring all answers costs at most 1.15x one bare forward pass, and evaluation is 4x the published one",
        {
            "width": args.width,
            "rows_left_out": left_out,
            "scoring": scoring,
            "evaluation": evaluation,
            "tables": {
                "Scoring all answers, float32": [
                    {name: value for name, value in row.items() if name not in hidden} for row in scoring
                ],
                "Scores and greedy texts against the published evaluation": [
                    {name: value for name, value in row.items() if name not in hidden} for row in evaluation
                ],
            },
            "checks": [
                measure.check("score / bare, the same batches", first["score / bare"], at_most=1.15),
                measure.check("score / bare, without padding", first["score / bare_in_chunks"], at_most=1.15),
                *(
                    measure.check(
                        f"rows with another winner than full scoring, {row['num_answers']} answers",
                        row["rows"] - row["same_winner"],
                        at_most=0,
                    )
                    for row in scoring
                ),
                measure.check("different winners chosen", first["different_winners_chosen"], at_least=2),
                measure.check("rows a second, everything on, ours / quickest published", slower, at_least=4),
                measure.check(
                    "rows whose greedy text differs, float32", whole["rows"] - whole["same_texts"], at_most=0
                ),
                measure.check("rows whose published text is no answer", no_answers, at_most=0),
            ],
        },
        args,
    )


if __name__ == "__main__":
    main()
