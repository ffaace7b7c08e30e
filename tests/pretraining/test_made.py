"""What a stage's output was made of, and that only whole outputs count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("anyascii")

from pretraining.bag import BagPlan, train_weights
from pretraining.made import Made, is_made, of_arrays, of_files, of_tokenizer, save_array, save_arrays, save_folder
from pretraining.pairs import CODES, SOURCES, Lines

from tests import tiny

MADE: Made = {"plan": {"steps": 10, "shares": {"topic": 0.5}, "seed": 0}, "inputs": {"lines": "a" * 64}}
PLAN = BagPlan(steps=2, pairs=4, english_share=1.0, others_share=0.0)


class KilledError(Exception):
    pass


@pytest.fixture
def lines() -> Lines:
    """Eight English documents, and four rows in English and Hindi."""
    rng = np.random.default_rng(0)
    langs = [*["en"] * 8, *["en", "hi"] * 4]
    return Lines(
        tokens=rng.integers(4, 20, 16 * len(langs)).astype(np.uint16),
        starts_N=np.arange(0, 16 * len(langs) + 1, 16),
        rows_N=np.array([*[-1] * 8, *np.repeat(range(4), 2)], dtype=np.int32),
        langs_N=np.array([CODES.index(lang) for lang in langs], dtype=np.int8),
        sources_N=np.array([SOURCES.index(s) for s in [*["documents"] * 8, *["ntrex"] * 8]], dtype=np.int8),
    )


def test_an_output_made_of_the_same_things_is_there_and_is_left_alone(tmp_path: Path) -> None:
    assert not is_made("bags", tmp_path / "bag.npy", MADE)
    assert not is_made("bags", tmp_path / "bag.npy", MADE), "the note alone is no output"
    (tmp_path / "bag.npy").write_text("embeddings")
    note = (tmp_path / "bag.npy.made.json").read_bytes()
    assert is_made("bags", tmp_path / "bag.npy", MADE)
    assert (tmp_path / "bag.npy").read_text() == "embeddings"
    assert (tmp_path / "bag.npy.made.json").read_bytes() == note


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"plan": {**MADE["plan"], "seed": 1}}, "plan.seed was 0, now 1"),
        ({"plan": {**MADE["plan"], "shares": {"topic": 0.25}}}, "plan.shares.topic was 0.5, now 0.25"),
        ({"plan": {"steps": 10, "seed": 0}}, 'plan.shares was {"topic": 0.5}, now null'),
        ({"plan": {**MADE["plan"], "pairs": 4}}, "plan.pairs was null, now 4"),
        ({"inputs": {"lines": "b" * 64}}, f'inputs.lines was "{"a" * 64}", now "{"b" * 64}"'),
    ],
)
def test_an_output_made_of_something_else_is_refused_with_what_differs_and_what_to_do(
    now: dict, difference: str, tmp_path: Path
) -> None:
    is_made("bags", tmp_path / "bag.npy", MADE)
    for name in ("lines.npz", "bag.npy", "weighted.npy", "encoder", "llm"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as error:
        is_made("bags", tmp_path / "bag.npy", MADE | now)
    assert str(error.value) == (
        f"bags: {tmp_path / 'bag.npy'} was made otherwise: {difference}. "
        "Delete bag.npy and what goes with it (weighted.npy, encoder), or take another --work."
    )


def test_an_output_of_which_nobody_knows_what_made_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llm_instructed").touch()
    with pytest.raises(ValueError) as error:
        is_made("instructions", tmp_path / "llm_instructed", MADE)
    assert str(error.value) == (
        f"instructions: {tmp_path / 'llm_instructed'} has no llm_instructed.made.json that says what made it. "
        "Delete llm_instructed, or take another --work."
    )


def test_an_output_that_was_deleted_may_be_made_of_something_else(tmp_path: Path) -> None:
    other = MADE | {"plan": {"seed": 1}}
    is_made("bags", tmp_path / "bag.npy", MADE)
    (tmp_path / "bag.npy").touch()
    (tmp_path / "bag.npy").unlink()
    assert not is_made("bags", tmp_path / "bag.npy", other)
    (tmp_path / "bag.npy").touch()
    assert is_made("bags", tmp_path / "bag.npy", other)


def test_a_folder_without_the_file_that_is_written_last_is_not_finished(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert not is_made("encoder", folder, MADE, last=folder / "training.json")
    (folder / "training.json").touch()
    assert is_made("encoder", folder, MADE, last=folder / "training.json")


@pytest.mark.parametrize("change", ["steps", "seed", "lines", "embeddings"])
def test_a_training_refuses_the_output_of_another_plan_or_of_other_inputs(
    change: str, lines: Lines, tmp_path: Path
) -> None:
    start_VE = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    made = {"lines": lines, "embeddings_VE": start_VE, "plan": PLAN}
    train_weights(**made, out=tmp_path / "weighted.npy")
    bytes_before = (tmp_path / "weighted.npy").read_bytes()
    train_weights(**made, out=tmp_path / "weighted.npy")
    other = {
        "steps": {"plan": replace(PLAN, steps=3)},
        "seed": {"plan": replace(PLAN, seed=1)},
        "lines": {"lines": lines._replace(rows_N=lines.rows_N[::-1])},
        "embeddings": {"embeddings_VE": start_VE * 2},
    }[change]
    with pytest.raises(ValueError, match=rf"^weights of pieces: .* was made otherwise: \w+\.{change} was .*Delete"):
        train_weights(**made | other, out=tmp_path / "weighted.npy")
    assert (tmp_path / "weighted.npy").read_bytes() == bytes_before


@pytest.mark.parametrize("written", ["array", "arrays", "folder"])
def test_what_a_kill_left_half_written_is_not_taken_for_a_result(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill runs no clean-up: what was written so far stays, under its other name."""
    out = tmp_path / "output"
    save = {
        "array": lambda: save_array(out, np.arange(3)),
        "arrays": lambda: save_arrays(out, tokens=np.arange(3)),
        "folder": lambda: save_folder(out, fill),
    }[written]

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "one").touch()
        if is_killed:
            raise KilledError
        (folder / "two").touch()

    def half(file: object, *_: object, **__: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KilledError

    is_killed = True
    with monkeypatch.context() as patch:
        for name in ("save", "savez"):
            patch.setattr(np, name, half)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KilledError):
            save()
    assert list(tmp_path.glob(".*partial")), "else this test says nothing"
    assert not out.exists()
    assert not is_made("stage", out, MADE)
    is_killed = False
    save()
    assert is_made("stage", out, MADE)
    if written == "folder":
        assert {path.name for path in out.iterdir()} == {"one", "two"}
    elif written == "array":
        assert np.load(out).tolist() == [0, 1, 2]
    else:
        with np.load(out) as arrays:
            assert arrays["tokens"].tolist() == [0, 1, 2]


def test_fingerprints_tell_values_types_shapes_and_order_apart_but_not_memory_layouts(tmp_path: Path) -> None:
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    others = [table + 1, table.astype(np.int64), table.reshape(3, 2), table[::-1]]
    assert len({of_arrays(other) for other in [table, *others]}) == 5
    assert of_arrays(table) == of_arrays(np.asfortranarray(table))
    assert of_arrays(table, table + 1) != of_arrays(table + 1, table)
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a"), two.write_text("b")
    before = of_files(one, two)
    one.write_text("b"), two.write_text("a")
    assert of_files(one, two) != before


def test_a_tokenizers_fingerprint_does_not_hang_on_its_last_call() -> None:
    tokenizer, other = tiny.tokenizer(ends_texts=False), tiny.tokenizer(ends_texts=True)
    before = of_tokenizer(tokenizer)
    tokenizer(["one", "one two three"], padding=True, truncation=True, max_length=2)
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"] is not None
    assert of_tokenizer(tokenizer) == before == of_tokenizer(tiny.tokenizer(ends_texts=False))
    assert of_tokenizer(other) != before
