"""How the LM is taught: which rows a step reads, what carries the loss, that only inputs and seed matter."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pretraining.card import write_llm_card  # noqa: E402
from pretraining.instruction_rows import KINDS, Instruction, instruction_rows  # noqa: E402
from pretraining.instructions import InstructionPlan, accuracies, draw_rows, train_instructions  # noqa: E402

from pretraining import instructions  # noqa: E402
from tests import tiny  # noqa: E402

PLAN = InstructionPlan(steps=4, epochs=2, batch=8, seed=3)
BASE_FIGURES = {
    "plan": {"num_layers": 2, "width": 32, "steps": 10, "batch": 2, "window": 16, "seed": 0},
    "train_tokens": 1_000,
    "held_out_tokens": 100,
    "held_out_loss": 4.0,
    "held_out_perplexity": 54.6,
    "history": [{"step": 10, "loss": 4.0, "seconds": 60.0}],
}


@pytest.fixture(scope="module")
def few_rows() -> tuple[list[Instruction], list[Instruction]]:
    """Ten rows of each kind to train on and three held out."""
    train, held_out = instruction_rows()
    return tuple(
        [row for kind in KINDS for row in [row for row in part if row.kind == kind][:count]]
        for part, count in ((train, 10), (held_out, 3))
    )


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(ends_texts=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(BASE_FIGURES), encoding="utf-8")
    return folder


@pytest.fixture
def trained(base, tokenizer, few_rows, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(instructions, "instruction_rows", lambda seed: few_rows)
    train_instructions(base, tokenizer, PLAN, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def model(base):
    return transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def test_every_epoch_reads_each_kind_by_its_share():
    train, _ = instruction_rows()
    plan = InstructionPlan(epochs=3, steps=100)
    epochs = list(draw_rows(train, plan))
    assert sum(map(len, epochs)) == plan.steps * plan.batch
    for rows in epochs:
        counts = Counter(row.kind for row in rows)
        for kind, share in plan.shares.items():
            assert abs(counts[kind] - share / sum(plan.shares.values()) * len(rows)) <= 1


def test_no_row_is_read_twice_before_all_of_its_kind_are_read_once(few_rows):
    counts = Counter(
        row for rows in draw_rows(few_rows[0], InstructionPlan(steps=50, epochs=4, batch=8)) for row in rows
    )
    for kind in KINDS:
        times = [counts[row] for row in few_rows[0] if row.kind == kind]
        assert max(times) - min(times) <= 1


def test_the_default_plan_names_every_kind_and_its_shares_add_up_to_one():
    plan = InstructionPlan()
    assert set(plan.shares) == set(KINDS)
    assert sum(plan.shares.values()) == pytest.approx(1)


def test_batches_hold_every_row_once_and_rows_of_like_length(few_rows, tokenizer):
    rows = few_rows[0] * 5
    plan = InstructionPlan(batch=8)
    batches = list(instructions._batches(tokenizer, rows, plan, random.Random(0)))
    assert sum(map(len, batches)) == len(rows)
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    assert padded < 1.2 * sum(len(row) for batch in batches for row in batch)


@torch.inference_mode()
def test_losses_equal_those_of_whole_logits_row_by_row(few_rows, tokenizer, model):
    rows = [instructions._tokens(tokenizer, row, prompted=at % 2 == 0) for at, row in enumerate(few_rows[0][::4])]
    answers, texts = [], []
    for row in rows:
        ids_1W = torch.tensor([row.read + row.answer])
        logs_WV = model(ids_1W).logits[0].log_softmax(-1)
        losses_W = -logs_WV[:-1].gather(1, ids_1W[0, 1:, None])[:, 0]
        answers.append(losses_W[len(row.read) - 1 :].sum())
        texts += [losses_W[: len(row.read) - 1]] * row.learns_text
    found_answers, found_text = instructions._losses(model, rows, tokenizer.pad_token_id)
    torch.testing.assert_close(found_answers, torch.stack(answers), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_text, torch.cat(texts).mean(), rtol=1e-4, atol=1e-4)


def test_generated_rows_teach_their_answers_alone(few_rows, tokenizer, model):
    rows = [
        instructions._tokens(tokenizer, row, prompted=False) for row in few_rows[0] if not KINDS[row.kind].is_written
    ]
    assert rows
    assert float(instructions._losses(model, rows, tokenizer.pad_token_id)[1]) == 0


@torch.inference_mode()
def test_accuracy_is_the_share_of_rows_whose_answer_is_the_most_probable(few_rows, tokenizer, model):
    found = accuracies(model, tokenizer, few_rows[1], batch=2)
    assert set(found) == set(KINDS)
    for kind in KINDS:
        rows = [row for row in few_rows[1] if row.kind == kind]
        right = sum(_best_answer(model, tokenizer, row) == row.answer for row in rows)
        assert found[kind] == pytest.approx(right / len(rows), abs=1e-4)


def _best_answer(model, tokenizer, row: Instruction) -> str | None:
    """Of the kind's answers, or what greedy decoding writes before the end."""
    read, _ = row.bare()
    ids = [tokenizer.bos_token_id, *tokenizer(read, add_special_tokens=False).input_ids]
    if not KINDS[row.kind].answers:
        wanted = [*tokenizer(row.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for token in wanted:
            if int(model(torch.tensor([ids])).logits[0, -1].argmax()) != token:
                return None
            ids.append(token)
        return row.answer

    def log_probability(answer: str) -> float:
        end = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logs = model(torch.tensor([ids + end])).logits[0].log_softmax(-1)
        return sum(float(logs[len(ids) - 1 + at, token]) for at, token in enumerate(end))

    return max(KINDS[row.kind].answers, key=log_probability)


def test_training_gives_the_same_bits_again_and_others_with_another_seed(base, tokenizer, trained, tmp_path):
    def weights(plan: InstructionPlan, name: str) -> bytes:
        train_instructions(base, tokenizer, plan, tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = (trained / "model.safetensors").read_bytes()
    assert weights(PLAN, "again") == first
    assert weights(InstructionPlan(steps=4, epochs=2, batch=8, seed=4), "other") != first
    assert (base / "model.safetensors").read_bytes() != first


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("killed_at", "saved"), [(6, 5), (9, 8)], ids=["in an epoch", "at the end of one"])
def test_training_that_was_killed_ends_with_the_same_bytes(
    killed_at, saved, base, tokenizer, few_rows, tmp_path, monkeypatch
):
    """Of 12 steps in three epochs; at step 9 the second epoch's look at the held-out rows is done or not."""
    monkeypatch.setattr(instructions, "instruction_rows", lambda seed: few_rows)
    monkeypatch.setattr(instructions, "SAVE_EVERY", saved)
    plan = InstructionPlan(steps=12, epochs=3, batch=8, seed=3)
    train_instructions(base, tokenizer, plan, tmp_path / "whole")
    real, steps = torch.optim.AdamW.step, []

    def step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == killed_at:
            raise KilledError
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KilledError):
        train_instructions(base, tokenizer, plan, tmp_path / "cut")
    train_instructions(base, tokenizer, plan, tmp_path / "cut")
    assert len(steps) == killed_at + 12 - saved, "it begins where it last wrote, not from the start"
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    figures = [json.loads((folder / "training.json").read_text())["instructions"] for folder in (cut, whole)]
    one, two = ([row | {"seconds": 0} for row in part["history"]] for part in figures)
    assert one == two
    assert not list(tmp_path.glob("*.progress"))


def test_training_goes_where_the_other_trainings_go(base, tokenizer, few_rows, tmp_path, monkeypatch):
    """The `meta` device stands for a GPU: tensors on it have a place and no values."""
    monkeypatch.setattr(instructions, "instruction_rows", lambda seed: few_rows)
    monkeypatch.setattr(instructions, "training_device", lambda: torch.device("meta"))
    places = []

    def run(model, *_):
        rows = [instructions._tokens(tokenizer, row, prompted=False) for row in few_rows[0][:2]]
        real = instructions._padded
        with monkeypatch.context() as patch:
            patch.setattr(instructions, "_padded", lambda *args: places.append(args[-1].type) or real(*args))
            with pytest.raises((RuntimeError, NotImplementedError)):  # which tokens have a loss is a value
                instructions._losses(model, rows, tokenizer.pad_token_id)
        places.extend(tensor.device.type for tensor in real(rows, tokenizer.pad_token_id, model.device))
        places.extend(parameter.device.type for parameter in model.parameters())
        raise KilledError

    monkeypatch.setattr(instructions, "_run", run)
    with pytest.raises(KilledError):
        train_instructions(base, tokenizer, PLAN, tmp_path / "out")
    assert len(places) > 4
    assert set(places) == {"meta"}


def test_training_leaves_the_number_of_threads_as_it_was(base, tokenizer, few_rows, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(instructions, "instruction_rows", lambda seed: few_rows)
    monkeypatch.setattr(instructions, "_run", lambda *_: used.append(torch.get_num_threads()) or [])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_instructions(base, tokenizer, PLAN, tmp_path / "out")
        assert (used, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_training_json_keeps_the_base_figures_and_has_every_kind_each_epoch(trained):
    figures = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert {key: figures[key] for key in BASE_FIGURES} == BASE_FIGURES
    found = figures["instructions"]
    assert found["plan"]["shares"] == PLAN.shares
    assert found["rows"] == dict.fromkeys(KINDS, 10)
    assert found["held_out_rows"] == dict.fromkeys(KINDS, 3)
    assert [set(row["accuracy"]) for row in found["history"]] == [set(KINDS)] * PLAN.epochs


def test_the_card_shows_the_accuracy_of_every_kind(trained, tmp_path):
    write_llm_card(trained, tmp_path, parameters=1_000_000, vocabulary=320)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    accuracy = json.loads((trained / "training.json").read_text())["instructions"]["history"][-1]["accuracy"]
    for kind, right in accuracy.items():
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {kind.replace('_', ' ')} |")]
        assert line.endswith(f"| 3 | {right:.0%} |")
    assert "{" not in card
    assert "CC BY-SA 4.0" in card
