"""The whole build, on a corpus of invented languages: the same bytes from the same corpus and seed, kills or none."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("anyascii")

from pretraining.bag import BagPlan
from pretraining.build import build_encoder, build_llm
from pretraining.corpus import build_corpus
from pretraining.encoder import EncoderPlan
from pretraining.instruction_rows import KINDS, Instruction, instruction_rows
from pretraining.instructions import InstructionPlan
from pretraining.llm import LlmPlan

from pretraining import bag, encoder, instructions, llm
from tests.pretraining.tiny_corpus import write_corpus

ENCODER = EncoderPlan(
    num_layers=2, width=16, num_heads=2, head_width=8, inner_width=16, ranked_layer=1, steps=8, pairs=6, splits=4,
    windows=2, monolingual=2,
)  # fmt: skip
BAG = BagPlan(steps=12, pairs=12)
LLM = LlmPlan(
    num_layers=1, width=16, num_heads=2, num_key_value_heads=1, inner_width=16, window=16, batch=4, steps=8,
    held_out=0.2,
)  # fmt: skip
INSTRUCTIONS = InstructionPlan(steps=6, epochs=2, batch=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder)
    return folder


@pytest.fixture
def built(data: Path, tmp_path_factory: pytest.TempPathFactory, few_instructions: None) -> Path:
    """A finished build, made once; no test may change it."""
    folder = tmp_path_factory.getbasetemp() / "built"
    if not (folder / "out").exists():
        build(data, folder)
    return folder


@pytest.fixture(autouse=True)
def few_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(seed: int) -> tuple[list[Instruction], list[Instruction]]:
        """Twelve rows of each kind to train on and two held out."""
        train, held_out = instruction_rows(seed)
        return tuple(
            [row for kind in KINDS for row in [row for row in part if row.kind == kind][:count]]
            for part, count in ((train, 12), (held_out, 2))
        )

    monkeypatch.setattr(instructions, "instruction_rows", few)


def build(data: Path, folder: Path, seed: int = 0) -> dict[str, str]:
    """Builds the pair under `folder`; returns the SHA-256 of every published file."""
    work, out = folder / "work", folder / "out"
    work.mkdir(parents=True, exist_ok=True)
    plan, bag_plan = replace(ENCODER, seed=seed), replace(BAG, seed=seed)
    build_encoder(data, work, out, plan, bag_plan, weights_plan=BAG, vocabulary=400, sentences=1000)
    build_llm(data, work, out, replace(LLM, seed=seed), instruction_plan=INSTRUCTIONS, vocabulary=300)
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_a_corpus_and_a_seed_give_the_same_bytes_and_another_seed_gives_others(data: Path, tmp_path: Path) -> None:
    one, two, other = (build(data, tmp_path / name, seed) for name, seed in (("one", 0), ("two", 0), ("other", 1)))
    assert {f"{half}/{name}" for half in ("encoder", "llm") for name in ("model.safetensors", "tokenizer.json")} < set(
        one
    )
    assert one == two
    for half in ("encoder", "llm"):
        assert one[f"{half}/model.safetensors"] != other[f"{half}/model.safetensors"]


class KilledError(Exception):
    pass


def test_a_build_that_is_killed_at_every_write_publishes_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file's first write ends in a kill just before it gets its name; what was written stays beside it."""
    whole = build(data, tmp_path / "whole")
    for stage in (bag, encoder, instructions, llm):
        monkeypatch.setattr(stage, "SAVE_EVERY", 4)
    real_replace, real_unlink, killed = Path.replace, Path.unlink, []
    is_dead = False

    def kill_or_replace(self: Path, target: Path) -> Path:
        nonlocal is_dead
        if target not in killed:
            killed.append(target)
            is_dead = True
            raise KilledError
        return real_replace(self, target)

    def unlink(self: Path, *, missing_ok: bool = False) -> None:
        if not is_dead:  # nobody cleans up after a kill
            real_unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", kill_or_replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    work = tmp_path / "cut" / "work"
    for _ in range(100):
        is_dead = False
        try:
            found = build(data, tmp_path / "cut")
            break
        except KilledError:
            continue
    assert found == whole
    names = {path.relative_to(tmp_path / "cut").as_posix() for path in killed}
    outputs = [
        "raw", "rows.jsonl", "documents.jsonl", "encoder_tokenizer", "encoder_tokenizer.json", "lines.npz",
        "embeddings.npy", "bag.npy", "bag.progress", "weighted.npy", "weighted.progress", "encoder.progress",
        "encoder/training.json", "encoder/probe.json", "llm_tokenizer", "llm_tokens.npz", "llm.progress",
        "llm/training.json", "llm_instructed.progress", "llm_instructed/training.json",
    ]  # fmt: skip
    assert {f"work/{name}" for name in outputs} <= names
    lies = {path.name for path in work.iterdir() if not path.name.startswith(".")}
    assert lies - {path.name for path in killed} == {"encoder", "llm", "llm_instructed"}, "finished by training.json"


def test_a_corpus_that_is_killed_between_its_files_keeps_no_rows_of_another(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents were deleted, and rows of before left lying; the kill comes when the new documents have their name."""
    rows, documents = build_corpus(data, tmp_path)
    wanted = rows.read_bytes()
    rows.write_text("of another corpus", encoding="utf-8")
    documents.unlink()
    real_replace = Path.replace

    def kill_or_replace(self: Path, target: Path) -> Path:
        if target == rows:
            raise KilledError
        return real_replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill_or_replace)
        with pytest.raises(KilledError):
            build_corpus(data, tmp_path)
    assert documents.exists()
    assert not rows.exists()
    build_corpus(data, tmp_path)
    assert rows.read_bytes() == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"^encoder's tokenizer: .*: plan\.seed was 0, now 1\. Delete encoder_tokenizer and .*lines\.npz"),
        ({"bag_steps": 13}, r"^bags: .*: plan\.steps was 12, now 13\. Delete bag\.npy and .*weighted\.npy, encoder"),
        ({"vocabulary": 410}, r"^encoder's tokenizer: .*: plan\.vocabulary was 400, now 410\."),
        ({"steps": 9}, r"^encoder: .*: plan\.steps was 8, now 9\. Delete encoder, or take another --work\."),
        ({"corpus": True}, r"^corpus: .*: inputs\.books_en was .* Delete rows\.jsonl and .*documents\.jsonl, raw"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_build_refuses_outputs_that_other_options_made(
    change: dict, message: str, data: Path, built: Path, tmp_path: Path
) -> None:
    if "corpus" in change:
        data = shutil.copytree(data, tmp_path / "data")
        shutil.copyfile(data / "storybooks.tar.xz", data / "books_en.tar.xz")
    plan = replace(ENCODER, seed=change.get("seed", 0), steps=change.get("steps", ENCODER.steps))
    bag_plan = replace(BAG, steps=change.get("bag_steps", BAG.steps))
    vocabulary = change.get("vocabulary", 400)
    with pytest.raises(ValueError, match=message):
        build_encoder(
            data, built / "work", tmp_path, plan, bag_plan, weights_plan=BAG, vocabulary=vocabulary, sentences=1000
        )


@pytest.mark.parametrize(
    ("plan", "instruction_plan", "message"),
    [
        (replace(LLM, steps=9), INSTRUCTIONS, r"^LM: .*: plan\.steps was 8, now 9\. Delete llm and .*llm_instructed"),
        (LLM, replace(INSTRUCTIONS, steps=7), r"^instructions: .*: plan\.steps was 6, now 7\. Delete llm_instructed,"),
        (replace(LLM, held_out=0.3), INSTRUCTIONS, r"^LM's tokens: .*: plan\.held_out was 0\.2, now 0\.3\. Delete"),
    ],
    ids=["LM", "instructions", "tokens"],
)  # fmt: skip
def test_a_build_of_the_lm_refuses_outputs_that_other_options_made(
    plan: LlmPlan, instruction_plan: InstructionPlan, message: str, data: Path, built: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build_llm(data, built / "work", tmp_path, plan, instruction_plan=instruction_plan, vocabulary=300)


def test_every_output_without_a_note_of_what_made_it_is_refused(data: Path, built: Path, tmp_path: Path) -> None:
    """As those are that an older version of this script left."""
    notes = sorted((built / "work").glob("*.made.json"))
    assert len(notes) == 13
    for note in notes:
        if note.name == "raw.made.json":  # read only when there are no rows
            continue
        work = shutil.copytree(built / "work", tmp_path / note.name / "work", ignore=shutil.ignore_patterns("raw"))
        (work / note.name).unlink()
        with pytest.raises(ValueError, match=f"has no {note.name} that says what made it. Delete"):
            build(data, tmp_path / note.name)
