"""Rows as token ids: what the processor gives batch by batch, tokenised once, padded by any number of workers."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.config import PromptConfig, TrainingConfig
from layerbridge.data.example import Example
from layerbridge.errors import DataError
from layerbridge.model.processor import BridgeProcessor
from layerbridge.model.splice import IGNORED
from layerbridge.training import token_rows
from layerbridge.training.batches import BatchLoader, SharedBatches
from layerbridge.training.length_groups import RandomOrder
from layerbridge.training.token_rows import TokenRows, collate
from tests import tiny

PROMPTS = {
    "none": PromptConfig(),
    "the same for all": PromptConfig(text="Answer:"),
    "with the text": PromptConfig(text="Answer:", llm_reads_text=True, max_text_tokens=12),
}


def processor(prompt="none") -> BridgeProcessor:
    return BridgeProcessor(tiny.tokenizer(ends_texts=True), tiny.tokenizer(ends_texts=False), PROMPTS[prompt])


def examples(texts, answers=("positive", "no")):
    return [
        Example(id=str(number), language="en", text=text, answer=answers[number % len(answers)])
        for number, text in enumerate(texts)
    ]


def same(batch, other):
    return batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.filterwarnings("ignore:.*LLM reads only|Texts longer")
@pytest.mark.parametrize("prompt", PROMPTS)
@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(st.text("cat sමල", min_size=1, max_size=40), min_size=1, max_size=9),
    limit=st.integers(2, 30),
    most=st.integers(2, 6),
    data=st.data(),
)
def test_rows_give_the_batches_that_the_processor_gives(prompt, texts, limit, most, data):
    reads = processor(prompt)
    rows = examples(texts, ("one two three", "no"))
    training = TrainingConfig(max_source_tokens=limit, max_answer_tokens=most)
    tokens = TokenRows(rows, reads, training)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    wanted = reads(
        [rows[i].text for i in chosen],
        answers=[rows[i].answer for i in chosen],
        max_source_tokens=limit,
        max_answer_tokens=most,
    ).tensors()
    assert same(collate([tokens[i] for i in chosen], reads), wanted)
    uncut = reads.count_source_tokens(texts)
    assert tokens.num_cut_texts == sum(length > limit for length in uncut)
    assert tokens.source_lengths == [min(length, limit) for length in uncut]


def test_every_text_is_tokenised_once_and_few_at_a_time(monkeypatch):
    monkeypatch.setattr(token_rows, "TEXTS_AT_ONCE", 4)
    reads = processor()
    asked = []
    original = reads.source_ids

    def counted(texts, limit):
        asked.append(list(texts))
        return original(texts, limit)

    monkeypatch.setattr(reads, "source_ids", counted)
    texts = [f"the cat {i}" for i in range(10)]
    TokenRows(examples(texts), reads, TrainingConfig())
    assert [len(part) for part in asked] == [4, 4, 2]
    assert [text for part in asked for text in part] == texts


def test_long_texts_are_counted_few_at_a_time(monkeypatch):
    monkeypatch.setattr(token_rows, "TEXTS_AT_ONCE", 4)
    reads = processor()
    asked = []
    original = reads.count_source_tokens

    def counted(texts):
        asked.append(len(texts))
        return original(texts)

    monkeypatch.setattr(reads, "count_source_tokens", counted)
    texts = ["the cat sat on the mat", "cat"] * 5
    tokens = TokenRows(examples(texts), reads, TrainingConfig(max_source_tokens=4))
    assert asked == [2, 2, 1]
    assert tokens.num_cut_texts == 5


def test_a_filler_has_nothing_to_count_and_goes_through_both_models():
    reads = processor()
    tokens = TokenRows(examples(["the cat", "one two"]), reads, TrainingConfig())
    batch, filler = collate([tokens[1]], reads), collate([tokens[-2]], reads)
    assert torch.equal(filler.pop("unlearned"), batch["labels"])
    assert (filler.pop("labels") == IGNORED).all()
    assert torch.equal(filler["source_ids"], batch["source_ids"])


def test_any_number_of_workers_gives_the_same_batches(monkeypatch, capfd):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    reads = processor()
    tokens = TokenRows(examples([f"the cat {'mat ' * (i % 7)}{i}" for i in range(50)]), reads, TrainingConfig())
    found = []
    for num_workers in (0, 1, 2):
        batches = SharedBatches(
            RandomOrder(50, seed=3), tokens.source_lengths, batch_size=8, micro_batch_size=4
        )  # fmt: skip
        loader = BatchLoader(
            tokens, batches, collate=lambda rows: collate(rows, reads), num_workers=num_workers
        )  # fmt: skip
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
        found.append(epochs)
    assert not same(found[0][0][0], found[0][1][0]), "epochs differ in order"
    for epochs in found[1:]:
        for ours, theirs in zip(epochs, found[0], strict=True):
            assert len(ours) == len(theirs) == 13
            assert all(same(batch, other) for batch, other in zip(ours, theirs, strict=True))
    assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err, "no warning of a forked tokenizer"
    assert "TOKENIZERS_PARALLELISM" not in os.environ, "said to the workers alone"


def test_a_text_of_no_tokens_stops_before_training():
    with pytest.raises(DataError, match="tokenises to nothing"):
        TokenRows(examples(["the cat"], ("",)), processor(), TrainingConfig())
