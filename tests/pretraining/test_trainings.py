"""The pretraining stages on a corpus of a few made-up lines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining.bag import BagPlan, inverse_frequency, train_bag, train_weights
from pretraining.encoder import EncoderPlan, new_encoder, train_encoder
from pretraining.letters import letter_grams
from pretraining.llm import LlmPlan, train_llm
from pretraining.optimiser import PlainState
from pretraining.pairs import CODES, SOURCES, Lines, PairSampler
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pretraining import bag as bag_stage
from pretraining import encoder as encoder_stage
from pretraining import llm as llm_stage

PIECES = 40
ENCODER = EncoderPlan(
    num_layers=3, width=16, num_heads=2, head_width=8, inner_width=16, ranked_layer=2, steps=8, pairs=6, splits=4,
    windows=2, monolingual=2,
)  # fmt: skip
LLM = LlmPlan(num_layers=1, width=16, num_heads=2, num_key_value_heads=1, inner_width=16, window=8, batch=4, steps=8)


class KilledError(Exception):
    pass


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<extra_id_0>", 0.0)]
    pieces += [(f"p{at}", -1.0) for at in range(PIECES - len(pieces))]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)),
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<extra_id_0>"],
    )


@pytest.fixture
def lines() -> Lines:
    """Rows in four languages that differ in nine words each, and documents of two."""
    rng = np.random.default_rng(0)
    first_piece = {lang: 4 + 9 * at for at, lang in enumerate(("en", "hi", "si", "zh"))}
    meaning = [rng.integers(0, 9, 13 + row % 5) for row in range(30)]
    made = [("course_docs", row, lang) for row in range(30) for lang in ("en", "hi", "si", "zh")]
    made += [("documents", -1, lang) for lang in ("en", "hi") for _ in range(60)]
    documents = [rng.integers(0, 9, rng.integers(13, 30)) for _ in made]
    lists = [
        first_piece[lang] + (document if source == "documents" else meaning[row])
        for (source, row, lang), document in zip(made, documents, strict=True)
    ]
    sources, rows, langs = zip(*made, strict=True)
    return Lines(
        tokens=np.concatenate(lists).astype(np.uint16),
        starts_N=np.cumsum([0, *map(len, lists)]),
        rows_N=np.array(rows, dtype=np.int32),
        langs_N=np.array([CODES.index(lang) for lang in langs], dtype=np.int8),
        sources_N=np.array([SOURCES.index(source) for source in sources], dtype=np.int8),
    )


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def embeddings(width: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(PIECES, width)).astype(np.float32)


def test_an_encoder_training_that_was_killed_ends_with_the_same_bytes(
    lines: Lines, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_stage, "SAVE_EVERY", 3)
    looks: list[int] = []

    def measure(model: torch.nn.Module) -> dict:
        assert next(model.parameters()).dtype == torch.float32
        looks.append(1)
        return {"figure": float(sum(p.detach().sum() for p in model.parameters()))}

    train_encoder(lines, tokenizer, embeddings(16), ENCODER, tmp_path / "whole", measure=measure)
    whole = (tmp_path / "whole" / "training.json").read_text()
    real, calls = encoder_stage.encoder_losses, []

    def losses(*args: object, **kwargs: object) -> dict:
        calls.append(1)
        if len(calls) == 6:
            raise KilledError
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_stage, "encoder_losses", losses)
    with pytest.raises(KilledError):
        train_encoder(lines, tokenizer, embeddings(16), ENCODER, tmp_path / "cut", measure=measure)
    assert not (tmp_path / "cut").exists()
    train_encoder(lines, tokenizer, embeddings(16), ENCODER, tmp_path / "cut", measure=measure)
    assert len(calls) == 6 + 8 - 3, "it begins where it last wrote, not from the start"
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    without_time = [line for line in whole.split("\n") if "seconds" not in line]
    assert [
        x for x in (tmp_path / "cut" / "training.json").read_text().split("\n") if "seconds" not in x
    ] == without_time
    assert not list(tmp_path.glob("*.progress"))


def test_an_llm_training_that_was_killed_ends_with_the_same_bytes(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_stage, "SAVE_EVERY", 3)
    stream = np.random.default_rng(0).integers(4, PIECES, 600).astype(np.uint16)
    train_llm(stream, stream[:100], tokenizer, LLM, tmp_path / "whole")
    real, calls = llm_stage.MasterOptimiser.step, []

    def step(self: llm_stage.MasterOptimiser) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise KilledError
        return real(self)

    monkeypatch.setattr(llm_stage.MasterOptimiser, "step", step)
    for _ in range(2):
        try:
            train_llm(stream, stream[:100], tokenizer, LLM, tmp_path / "cut")
        except KilledError:
            assert len(calls) == 6
    assert len(calls) == 6 + 8 - 3
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["bags", "weights"])
def test_a_training_of_bags_that_was_killed_ends_with_the_same_bytes(
    stage: str, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_stage, "SAVE_EVERY", 3)
    plan = BagPlan(steps=8, rate=0.02, pairs=12, english_share=0.3, others_share=0.3)
    start_VE = embeddings(16)
    pieces = [f"▁berl{at % 7}in{at % 5}" for at in range(PIECES)]

    def train(out: Path) -> np.ndarray:
        return (
            train_bag(lines, start_VE, pieces, plan, out)
            if stage == "bags"
            else train_weights(lines, start_VE, plan, out)
        )

    whole_VE = train(tmp_path / "whole.npy")
    real, calls = bag_stage._draw, []

    def draw(*args: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KilledError
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bag_stage, "_draw", draw)
    with pytest.raises(KilledError):
        train(tmp_path / "cut.npy")
    assert not (tmp_path / "cut.npy").exists()
    assert (train(tmp_path / "cut.npy") == whole_VE).all()
    assert len(calls) == 6 + 8 - 3, "it begins where it last wrote, not from the start"
    assert (tmp_path / "cut.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list(tmp_path.glob("*.progress"))


def test_a_training_does_not_go_on_from_another_plans_state(
    lines: Lines, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_stage, "SAVE_EVERY", 2)
    monkeypatch.setattr(encoder_stage.Progress, "finish", lambda self: None)
    train_encoder(lines, tokenizer, embeddings(16), ENCODER, tmp_path / "one")
    (tmp_path / "one.progress").rename(tmp_path / "two.progress")
    with pytest.raises(ValueError, match=r'of another plan.*"seed": 0.*this is.*"seed": 1.*Delete it'):
        train_encoder(lines, tokenizer, embeddings(16), replace(ENCODER, seed=1), tmp_path / "two")


def test_bags_of_a_seed_are_the_same_and_learn_which_lines_are_translations(lines: Lines, tmp_path: Path) -> None:
    plan = BagPlan(steps=400, rate=0.02, pairs=12, english_share=0.2, others_share=0.2)
    pieces = [f"p{at}" for at in range(PIECES)]
    one, two = (train_bag(lines, embeddings(16), pieces, plan, tmp_path / f"{at}.npy") for at in range(2))
    assert (one == two).all()
    assert np.sqrt((one**2).mean()) == pytest.approx(1.0, abs=1e-4)

    def hits(table_VE: np.ndarray) -> float:
        bags = {
            (row, lang): table_VE[lines.tokens[lines.starts_N[n] : lines.starts_N[n + 1]]].mean(0)
            for n, (row, lang) in enumerate(zip(lines.rows_N, lines.langs_N, strict=True))
            if row >= 0
        }
        english, hindi = (np.array([bags[row, CODES.index(lang)] for row in range(30)]) for lang in ("en", "hi"))
        return float(((english @ hindi.T).argmax(1) == np.arange(30)).mean())

    assert hits(one) > 2 * max(hits(embeddings(16)), 0.1)


def test_pieces_that_every_line_has_come_to_count_little(lines: Lines, tmp_path: Path) -> None:
    """A tenth piece of each language goes into every second place."""
    often = np.where(np.arange(len(lines.tokens)) % 2, lines.tokens, 39).astype(np.uint16)
    lines = lines._replace(tokens=often)
    start_V = inverse_frequency(lines, PIECES)
    assert start_V.argmin() == 39
    plan = BagPlan(steps=200, rate=0.02, pairs=12, english_share=0.2, others_share=0.2)
    trained_VE = train_weights(lines, embeddings(16), plan, tmp_path / "weighted.npy")
    lengths_V = np.sqrt((trained_VE**2).mean(1))
    assert lengths_V[4:].argmin() + 4 == 39
    assert (train_weights(lines, embeddings(16), plan, tmp_path / "again.npy") == trained_VE).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_optimiser_goes_on_the_same_whichever_way_its_parameters_lie_in_memory(order: str) -> None:
    """Its fused kernel goes through parameter and moments in the order of the memory."""

    def begin() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        table_VE = torch.nn.Parameter(torch.from_numpy(np.asarray(embeddings(16), order=order).copy(order)))
        assert table_VE.is_contiguous() == (order == "C")
        return table_VE, torch.optim.Adam([table_VE], lr=0.1, fused=True)

    def step(table_VE: torch.nn.Parameter, adam: torch.optim.Optimizer) -> None:
        adam.zero_grad()
        (table_VE**2 * torch.arange(16.0)).sum().backward()
        adam.step()

    whole_VE, whole = begin()
    for at in range(6):
        if at == 3:
            tensors = {name: tensor.clone().contiguous() for name, tensor in PlainState(whole).tensors().items()}
        step(whole_VE, whole)
    cut_VE, cut = begin()
    PlainState(cut).load_tensors(tensors, 3)
    for _ in range(3):
        step(cut_VE, cut)
    assert torch.equal(cut_VE, whole_VE)


def test_a_training_does_not_go_on_from_the_state_of_other_inputs(
    lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_stage, "SAVE_EVERY", 2)
    plan = BagPlan(steps=4, pairs=12)
    with monkeypatch.context() as patch:
        patch.setattr(bag_stage, "_save", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            train_weights(lines, embeddings(16), plan, tmp_path / "weighted.npy")
    with pytest.raises(ValueError, match=r"weighted\.progress is of another plan.*Delete it"):
        train_weights(lines, embeddings(16) + 1, plan, tmp_path / "weighted.npy")


def test_layers_start_as_the_identity(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_encoder(ENCODER, embeddings(16)).eval()
    states = model(input_ids=torch.tensor([[5, 6, 1]]), output_hidden_states=True).hidden_states
    for state in states[1:-1]:
        assert torch.equal(state, states[0])
    assert (states[0][0, 2].norm() < 0.2 * states[0][0, :2].norm(dim=-1)).all(), "the end mark says little"


def test_english_stands_left_in_every_translation_and_parts_make_up_their_document(lines: Lines) -> None:
    sampler = PairSampler(lines, seed=0)
    left, right = sampler.translations(200)
    assert set(left.begins_P) <= set(lines.starts_N[:-1][lines.langs_N == CODES.index("en")])
    row_of = dict(zip(lines.starts_N[:-1], lines.rows_N, strict=True))
    assert [row_of[begin] for begin in left.begins_P] == [row_of[begin] for begin in right.begins_P]
    langs = {int(lines.langs_N[np.searchsorted(lines.starts_N, begin)]) for begin in right.begins_P}
    assert langs == {CODES.index(lang) for lang in ("hi", "si", "zh")}
    first, second = sampler.splits(20, CODES.index("hi"))
    assert (first.begins_P + first.lengths_P == second.begins_P).all()
    assert (np.concatenate([first.lengths_P, second.lengths_P]) > 0).all()
    ends = second.begins_P + second.lengths_P
    assert set(ends) <= set(lines.starts_N[1:][(lines.langs_N == CODES.index("hi")) & (lines.rows_N < 0)])
    assert sampler.other_language(at_least=5) == CODES.index("hi")


def test_pieces_that_sound_alike_share_letters_across_scripts() -> None:
    pieces = ["<pad>", "▁Berlin", "▁Берлин", "▁Βερολίνο", "▁table", "berlin"]
    grams = letter_grams(pieces)
    of = [set(grams.ids[grams.starts_V[v] : grams.starts_V[v + 1]]) for v in range(len(pieces))]
    assert of[0] == set()
    assert of[1] == of[2], "the same letters"
    assert len(of[1] & of[5]) >= 4, "inside a word and at its beginning"
    assert not of[1] & of[4]
    assert len(of[4]) == 0, "what only one piece has is left out"
