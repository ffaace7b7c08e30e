"""A training step against the bare work of the two frozen models, and against the published pipeline, in one run.

On the same batches of real XNLI rows in a random order, float32, dropout off, taking turns:

- **bare**: the encoder's forward pass without gradient; the LLM's forward and backward pass down to its input
  embeddings over the same positions, padded as a plain user of transformers pads, logits at answer positions only. No
  fusion, no projector, no splicing, no optimizer, no tokenising.
- **bare_in_K_chunks**: the same, the rows sorted and cut into K passes of like length, and the end token predicted but
  not read: less padding, more passes. The quickest of all bare forms is `strict_bare`, so that what ours gains by
  leaving padding out does not count as a gain.
- **bare_packed**: the same two models' work in our own layout (`layerbridge.model.packing`), and nothing else: what is
  above it is what a bridge costs.
- **ours**: `Bridge.loss`, backward, clip, fused AdamW. Tokenising is done beforehand, as in training: rows are
  tokenised once before the first step (`layerbridge.training.token_rows`), and then only padded. Its time is measured
  too, and `ours_tokenising / bare` is a step that would tokenise every time.
- **published**: `benchmarks.published_pipeline`, tokenising included, fused AdamW too.

Ours and `bare_packed` compute the LLM's last layer, but for its keys and values, at answer positions only
(`layerbridge.model.last_layer`); `bare`, `bare_in_K_chunks` and so `strict_bare` compute it everywhere, as transformers
does.

Ratios are medians over the turns of one turn's ratio, both on the same batch. Then losses of both over the same steps
from the same start, and the second epoch with everything on (length groups, bfloat16, features from the cache) in
examples a second against the published pipeline in float32, which the limit is about, and in bfloat16.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --widths 512 --repetitions 40

Example row of `steps` (processor time of one thread on crowded cores, 3 batches: a hint, no result):

    {"width": 512, "fusion": "transformer_softmax", "bare_ms": 1814.89, "ours_ms": 1412.26, "published_ms": 3712.51,
     "ours / bare": 0.7465, "ours / strict_bare": 0.9007, "ours / bare_packed": 1.1572, "published / ours": 2.8026, ...}
"""

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from benchmarks import measure
from benchmarks.pair import Row, build_pair, xnli_rows
from benchmarks.published_pipeline import FUSION_NAMES, IGNORED, MAX_TOKENS, FusionName, PublishedPipeline
from layerbridge.config import BridgeConfig, TransformerSoftmax
from layerbridge.model.bridge import Bridge
from layerbridge.model.chunks import like_length
from layerbridge.model.features import FeatureStore
from layerbridge.model.packing import pack_rows, packed_logits
from layerbridge.model.processor import BridgeInputs, pad_right
from layerbridge.model.splice import positions
from layerbridge.training.length_groups import LengthGroups

CHUNKS = (2, 4, 8)
Models = tuple[Path, Path]


class BareWork:
    """The two frozen models' own passes over one batch, everything that they read made beforehand.

    Args:
        encoder: as loaded by transformers.
        llm: likewise.
        inputs: the batch.
        num_chunks: passes to divide its rows into, by length.
    """

    def __init__(self, encoder: PreTrainedModel, llm: PreTrainedModel, inputs: BridgeInputs, num_chunks: int = 1):
        self.encoder, self.llm = encoder, llm
        assert inputs.labels is not None
        lengths_B = inputs.source_mask.sum(dim=1)
        order_B = torch.argsort(lengths_B) if num_chunks > 1 else torch.arange(len(lengths_B))
        self.passes: list[dict[str, Any]] = []
        for rows_b in order_B.tensor_split(num_chunks):
            source_s = int(lengths_B[rows_b].max())
            labels = [row_A[row_A != IGNORED].tolist() for row_A in inputs.labels[rows_b]]
            reads_end = 1 if num_chunks == 1 else 0  # whose logits predict nothing
            totals = [int(n) + 1 + len(row) + reads_end for n, row in zip(lengths_B[rows_b], labels, strict=True)]
            mask_bt = torch.arange(max(totals)) >= max(totals) - torch.tensor(totals)[:, None]
            targets_ba = pad_right([row[::-1] for row in labels], IGNORED)[0].flip(1)
            embeds_btD = 0.02 * torch.randn(*mask_bt.shape, llm.config.hidden_size)
            tensors = {
                "ids_bs": inputs.source_ids[rows_b, :source_s],
                "source_mask_bs": inputs.source_mask[rows_b, :source_s].long(),
                "mask_bt": mask_bt.long(),
                "position_ids_bt": positions(mask_bt),
                "targets_ba": targets_ba,
                "embeds_btD": embeds_btD.to(llm.dtype),
            }
            made: dict[str, Any] = {name: tensor.to(measure.DEVICE) for name, tensor in tensors.items()}
            made["embeds_btD"].requires_grad_(True)
            made["keep"] = targets_ba.shape[1] + reads_end
            self.passes.append(made)

    def __call__(self) -> None:
        """Do it."""
        for one in self.passes:
            with torch.no_grad():
                self.encoder(input_ids=one["ids_bs"], attention_mask=one["source_mask_bs"])
            logits_baV = self.llm(
                inputs_embeds=one["embeds_btD"],
                attention_mask=one["mask_bt"],
                position_ids=one["position_ids_bt"],
                logits_to_keep=one["keep"],
                use_cache=False,
            ).logits[:, : one["targets_ba"].shape[1]]
            targets = one["targets_ba"].flatten()
            F.cross_entropy(logits_baV.flatten(0, 1).float(), targets, ignore_index=IGNORED).backward()
            one["embeds_btD"].grad = None


class PackedBareWork:
    """The two frozen models' own passes over one batch in the very layout that our step has, and nothing else.

    Args:
        encoder: as loaded by transformers.
        llm: likewise.
        inputs: the batch.
        bos_id: of the LLM's first token.
    """

    def __init__(self, encoder: PreTrainedModel, llm: PreTrainedModel, inputs: BridgeInputs, bos_id: int) -> None:
        self.encoder, self.llm = encoder, llm
        assert inputs.labels is not None
        lengths = inputs.source_mask.sum(dim=1).tolist()
        self.passes = []
        for chunk in like_length(lengths, measure.DEVICE.type):
            longest = max(lengths[row] for row in chunk)
            self.passes.append((inputs.source_ids[chunk, :longest], inputs.source_mask[chunk, :longest].long()))
        self.rows = pack_rows(inputs.source_mask, inputs.prompt_ids, inputs.prompt_mask, inputs.labels, bos_id=bos_id)
        size = (len(self.rows.ids_T), llm.config.hidden_size)
        self.embeds_TD = (0.02 * torch.randn(size, device=measure.DEVICE)).to(llm.dtype).requires_grad_(True)

    def __call__(self) -> None:
        """Do it."""
        for ids_bs, mask_bs in self.passes:
            with torch.no_grad():
                self.encoder(input_ids=ids_bs, attention_mask=mask_bs)
        logits_AV = packed_logits(self.llm, self.embeds_TD, self.rows.layout, self.rows.before_answers_A)
        F.cross_entropy(logits_AV.float(), self.rows.answers_A).backward()
        self.embeds_TD.grad = None


class OurStep:
    """One training step through layerbridge's public names."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge.train()
        self.parameters = list(bridge.trained_parameters().values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=3e-5, betas=(0.8, 0.999), eps=1e-8, weight_decay=3e-7, fused=True
        )

    def __call__(self, inputs: BridgeInputs) -> Tensor:
        """Learn from one batch and return its loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.bridge.loss(inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.detach()


def build_bridge(models: Models, fusion: FusionName, *, dtype: str = "float32", seed: int = 0) -> Bridge:
    """Return an untrained bridge on the pair, dropout off."""
    encoder, llm = models
    config = BridgeConfig(
        encoder={"name": str(encoder), "dtype": dtype},
        llm={"name": str(llm), "dtype": dtype},
        fusion=TransformerSoftmax(dropout=0.0) if fusion == "transformer_softmax" else {"name": fusion},
    )
    return Bridge.build(config, device=measure.DEVICE, seed=seed)


def build_published(
    models: Models, fusion: FusionName, bridge: Bridge, dtype: torch.dtype = torch.float32
) -> PublishedPipeline:
    """Return the published pipeline, starting where the bridge is."""
    pipeline = PublishedPipeline(*models, fusion=fusion, dtype=dtype, device=measure.DEVICE)
    pipeline.start_like(bridge.trained_parameters())
    return pipeline


def tokenise(bridge: Bridge, batch: Sequence[Row]) -> BridgeInputs:
    """Return a batch as our data workers make it."""
    return bridge.processor(
        [row.text for row in batch],
        answers=[row.answer for row in batch],
        max_source_tokens=MAX_TOKENS,
        max_answer_tokens=MAX_TOKENS,
    )


def compare_steps(
    models: Models, batches: Sequence[Sequence[Row]], fusion: FusionName, *, repetitions: int, seed: int
) -> dict[str, Any]:
    """Return the times of one step of each contestant, and their ratios."""
    bridge = build_bridge(models, fusion, seed=seed)
    pipeline = build_published(models, fusion, bridge)
    ours, optimizer = OurStep(bridge), pipeline.optimizer()
    inputs = [tokenise(bridge, batch).to(measure.DEVICE) for batch in batches]
    texts = [([row.text for row in batch], [row.answer for row in batch]) for batch in batches]
    contestants: dict[str, Callable[[], object]] = {
        "bare": _next([BareWork(pipeline.encoder, pipeline.llm, one) for one in inputs]),
        "ours": _next([lambda one=one: ours(one) for one in inputs]),
        "published": _next([lambda one=one: pipeline.step(*one, optimizer) for one in texts]),
        "tokenising": _next([lambda one=one: tokenise(bridge, one) for one in batches]),
    }
    bos_id = bridge.processor.llm_tokenizer.bos_token_id
    contestants["bare_packed"] = _next([PackedBareWork(pipeline.encoder, pipeline.llm, one, bos_id) for one in inputs])
    counts = [count for count in CHUNKS if count <= min(len(batch) for batch in batches)]
    for count in counts:
        contestants[f"bare_in_{count}_chunks"] = _next(
            [BareWork(pipeline.encoder, pipeline.llm, one, count) for one in inputs]
        )
    found = measure.take_turns(contestants, repetitions=repetitions)
    forms = ["bare", *(f"bare_in_{count}_chunks" for count in counts)]
    strict = min(forms, key=lambda name: statistics.median(found[name]))
    found["ours_tokenising"] = [sum(pair) for pair in zip(found["ours"], found["tokenising"], strict=True)]
    pairs = [("ours", "bare"), ("ours_tokenising", "bare"), ("published", "ours"), ("published", "bare")]
    real = sum(int(one.source_mask.sum()) for one in inputs)
    return {
        "fusion": fusion,
        **{f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in found.items()},
        **{f"{above} / {below}": _ratio(found, above, below) for above, below in pairs},
        "ours / strict_bare": _ratio(found, "ours", strict),
        "ours / bare_packed": _ratio(found, "ours", "bare_packed"),
        "strict_bare": strict,
        "tokens_a_batch": round(real / len(inputs), 1),
        "padding": round(1 - real / sum(one.source_mask.numel() for one in inputs), 3),
        "seconds": {name: measure.summary(values) for name, values in found.items()},
    }


def compare_losses(
    models: Models, batches: Sequence[Sequence[Row]], fusion: FusionName, *, seed: int
) -> dict[str, float | int | str]:
    """Return how far the losses of ours and the published pipeline part, step by step from the same start."""
    bridge = build_bridge(models, fusion, seed=seed)
    pipeline = build_published(models, fusion, bridge)
    ours, optimizer = OurStep(bridge), pipeline.optimizer()
    differences, losses = [], []
    for batch in batches:
        loss = float(ours(tokenise(bridge, batch).to(measure.DEVICE)))
        theirs = float(pipeline.step([row.text for row in batch], [row.answer for row in batch], optimizer))
        differences.append(abs(loss - theirs))
        losses.append(loss)
    return {
        "fusion": fusion,
        "steps": len(batches),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "max_difference": max(differences),
    }


def compare_everything_on(
    models: Models, rows: Sequence[Row], *, batch_size: int, turns: int, seed: int
) -> dict[str, float | int | str]:
    """Return examples a second of our second epoch with everything on, and of the published pipeline."""
    fusion: FusionName = "transformer_softmax"
    bridge = build_bridge(models, fusion, dtype="bfloat16", seed=seed)
    ours = OurStep(bridge)
    lengths = bridge.count_source_tokens([row.text for row in rows])
    groups = LengthGroups(lengths, batch_size=batch_size, seed=seed)
    groups.set_epoch(1)
    order = list(groups)
    grouped = [
        tokenise(bridge, [rows[index] for index in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]
    plain = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    texts = [([row.text for row in batch], [row.answer for row in batch]) for batch in plain]
    contestants: dict[str, Callable[[], object]] = {}
    a_turn = max(1, len(plain) // turns)
    for name, dtype in (("published_float32", torch.float32), ("published_bfloat16", torch.bfloat16)):
        pipeline = build_published(models, fusion, bridge, dtype)
        optimizer = pipeline.optimizer()
        calls = [
            lambda one=one, pipeline=pipeline, optimizer=optimizer: pipeline.step(*one, optimizer) for one in texts
        ]
        contestants[name] = _next(calls, a_turn)
    folder = Path(tempfile.mkdtemp(prefix="features-"))
    try:
        keep_features(bridge, folder, [rows[index].text for index in order])
        before = bridge.encoder.num_passes
        contestants["ours"] = _next([lambda one=one: ours(one.to(measure.DEVICE)) for one in grouped], a_turn)
        found = measure.take_turns(contestants, repetitions=turns)
        encoder_passes = bridge.encoder.num_passes - before
    finally:
        bridge.features = None
        shutil.rmtree(folder, ignore_errors=True)
    rates = {name: a_turn * batch_size / statistics.median(values) for name, values in found.items()}
    return {
        "rows": len(rows),
        "encoder_passes_of_ours": encoder_passes,
        **{f"{name}_examples_a_second": round(rate, 2) for name, rate in rates.items()},
        "ours / published_float32": rates["ours"] / rates["published_float32"],
        "ours / published_bfloat16": rates["ours"] / rates["published_bfloat16"],
    }


def keep_features(bridge: Bridge, folder: Path, texts: Sequence[str], max_source_tokens: int = MAX_TOKENS) -> None:
    """Put the encoder's states of all texts into a cache and let the bridge read them from there."""
    store = FeatureStore(folder, bridge.encoder, fingerprint=str(bridge.bases["encoder"]["fingerprint"]))
    plan = store.plan([bridge.processor.source_ids(list(texts), max_source_tokens)])
    for shard in store.missing(plan):
        store.encode(shard)
    store.open(plan)
    bridge.features = store


def _next(calls: Sequence[Callable[[], object]], count: int = 1) -> Callable[[], None]:
    """Return a function that makes the next `count` of the calls, round and round."""
    turn: Iterator[Callable[[], object]] = itertools.cycle(calls)

    def make() -> None:
        for call in itertools.islice(turn, count):
            call()

    return make


def _ratio(found: dict[str, list[float]], above: str, below: str) -> float:
    return round(statistics.median(a / b for a, b in zip(found[above], found[below], strict=True)), 4)


def main() -> None:
    parser: argparse.ArgumentParser = measure.parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024], help="of encoder and LLM")
    parser.add_argument(
        "--fusions",
        nargs="+",
        choices=FUSION_NAMES,
        default=list(FUSION_NAMES),
        help="at the first width; the claim's first",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8, help="different batches, taken in turn")
    parser.add_argument("--repetitions", type=int, default=16, help="turns; a multiple of --batches is best")
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--epoch-rows", type=int, default=400, help="of the epoch with everything on")
    args = parser.parse_args()
    layers = 8
    if args.quick:
        args.widths, args.batches, args.repetitions, args.curve_steps, args.epoch_rows, layers = [64], 1, 1, 2, 16, 2
        args.fusions = FUSION_NAMES[:1]
    rows = xnli_rows(args.data, seed=args.seed)
    size = args.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows) - size, size)]

    steps, curves = [], []
    for number, width in enumerate(args.widths):
        models = build_pair(args.work, args.data, width=width, layers=layers)
        for fusion in args.fusions if number == 0 else FUSION_NAMES[:1]:
            print(f"width {width}, {fusion}", file=sys.stderr)
            found = compare_steps(models, batches[: args.batches], fusion, repetitions=args.repetitions, seed=args.seed)
            steps.append({"width": width, **found})
            if number == 0:
                found = compare_losses(models, batches[: args.curve_steps], fusion, seed=args.seed)
                curves.append({"width": width, **found})
    models = build_pair(args.work, args.data, width=args.widths[0], layers=layers)
    epoch = compare_everything_on(
        models, rows[: args.epoch_rows], batch_size=size, turns=2 if args.quick else 5, seed=args.seed
    )
    everything = {"width": args.widths[0], **epoch}

    checks = []
    for row in steps:
        if row["fusion"] == "transformer_softmax":
            checks += [
                measure.check(f"width {row['width']}: {ratio}", row[ratio], at_most=1.05)
                for ratio in ("ours / bare", "ours / strict_bare")
            ]
    first = steps[0]
    width = f"width {first['width']}"
    checks += [
        measure.check(f"{width}: published / ours", first["published / ours"], at_least=2.7),
        measure.check(f"{width}: difference of losses", curves[0]["max_difference"], at_most=1e-4),
        measure.check(
            f"{width}: everything on, second epoch, ours in bfloat16 / published in float32",
            epoch["ours / published_float32"],
            at_least=5,
        ),
        measure.check("encoder passes in that epoch", epoch["encoder_passes_of_ours"], at_most=0),
    ]
    shown = ("width", "fusion", "bare_ms", "ours_ms", "published_ms", "ours / bare", "ours / strict_bare")
    columns = (*shown, "ours / bare_packed", "ours_tokenising / bare", "published / ours", "published / bare")
    measure.report(
        "a training step costs at most 1.05x the bare work of the two frozen models",
        {
            "steps": steps,
            "loss_curves": curves,
            "everything_on": everything,
            "tables": {
                "One step, float32, dropout off": [{name: row[name] for name in columns} for row in steps],
                "Losses of both from the same start": curves,
                "Second epoch, everything on": [everything],
            },
            "checks": checks,
        },
        args,
    )


if __name__ == "__main__":
    main()
