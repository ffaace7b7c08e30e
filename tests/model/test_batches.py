"""Any number of texts: asked in batches by a budget, answered in their order, and refused with their numbers."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import LLMConfig, PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.batches import as_list, ask_in_batches
from layerbridge.model.llm_reader import LLMReader
from layerbridge.model.processor import BridgeProcessor
from tests.model.test_bridge import TEXTS, make


class Words:
    """Counts words as a processor counts tokens."""

    prompt = PromptConfig()
    count_read_tokens = BridgeProcessor.count_read_tokens

    def prompt_ids(self, texts, prompts=None):
        return [prompt.split() for prompt in prompts or [""] * len(texts)]

    def count_source_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def source_limit(self, max_source_tokens):
        return max_source_tokens


def ask(texts, prompts=None, *, limit=50, tokens=4096, size=256, room=None):
    """Return answers, each its text and prompt, and the batches they were asked in."""
    batches = []

    def answer(some, their_prompts):
        batches.append(some)
        longest = max(min(len(text.split()), limit) for text in some)
        if room is not None and len(some) * longest > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [(text, prompt) for text, prompt in zip(some, their_prompts or [None] * len(some), strict=True)]

    found = ask_in_batches(
        Words(), answer, texts, prompts, max_source_tokens=limit, batch_tokens=tokens, batch_size=size
    )
    return found, batches


some_texts = st.lists(st.integers(1, 30).map(lambda n: " ".join(["w"] * n)), min_size=1, max_size=40).map(
    lambda texts: [f"{text} {number}" for number, text in enumerate(texts)]
)


@given(some_texts, st.integers(1, 100), st.integers(1, 12), st.booleans())
def test_answers_come_in_the_order_of_the_texts_with_their_own_prompts(texts, tokens, size, prompted):
    prompts = [f"p {text}" for text in texts] if prompted else None
    found, batches = ask(texts, prompts, tokens=tokens, size=size)
    assert found == list(zip(texts, prompts or [None] * len(texts), strict=True))
    assert sum(map(len, batches)) == len(texts)
    for batch in batches:
        read = [len(text.split()) * (2 if prompted else 1) + prompted for text in batch]
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(read) <= tokens
        assert batch == [text for text in texts if text in batch]


def test_what_fits_one_batch_is_asked_in_one_in_its_order():
    texts = ["a", "a b c d", "a b"]
    assert ask(texts)[1] == [texts]
    assert ask(texts * 200, tokens=None)[1] == [texts * 200]


@pytest.mark.filterwarnings("ignore:Memory ran out")
def test_nothing_is_lost_when_memory_runs_out():
    texts = [f"{'w ' * (number % 7)}{number}" for number in range(40)]
    found, batches = ask(texts, room=20)
    assert [text for text, _ in found] == texts
    assert len(batches) > 10
    with pytest.raises(ConfigError, match=r"one text of 9 tokens alone\. Lower max_source_tokens \(now 9\), or load"):
        ask(["w " * 20], limit=9, room=5)


def test_cut_texts_count_as_far_as_they_are_read():
    long = ["w " * 90] * 4
    assert [len(batch) for batch in ask(long, limit=10, tokens=40)[1]] == [4]
    assert [len(batch) for batch in ask(long, limit=100, tokens=40)[1]] == [1] * 4


def test_what_is_no_list_of_texts_is_refused_with_its_place():
    with pytest.raises(DataError, match=r"Got one str for texts, 'cat'; wanted a list. Put it in brackets: \[text\]"):
        as_list("cat", "texts")
    with pytest.raises(DataError, match="Got one bytes for texts"):
        as_list(b"cat", "texts")
    with pytest.raises(DataError, match=r"Got one str for texts, 'x{39}\.\.\.; wanted"):
        as_list("x" * 10**6, "texts")
    with pytest.raises(DataError, match="Number 2 of 3 labels is None, a NoneType; wanted text"):
        as_list(["a", None, "b"], "labels")
    with pytest.raises(DataError, match=r"Number 1 of 1 texts holds half a character \(U\+D800\)"):
        as_list(["a\ud800"], "texts")
    assert as_list(("a", "b"), "texts") == ["a", "b"]


def test_budgets_and_lists_that_cannot_be_are_refused_with_their_numbers():
    with pytest.raises(DataError, match="Got no texts"):
        ask([])
    with pytest.raises(DataError, match="Got 2 texts and 1 prompts"):
        ask(["a", "b"], ["p"])
    with pytest.raises(DataError, match="Got one str for prompts"):
        ask(["a", "b"], "pq")
    with pytest.raises(ConfigError, match="batch_tokens is 0 and batch_size 256; wanted at least 1"):
        ask(["a"], tokens=0)
    with pytest.raises(DataError, match=r"Text 3 of 4 \(''\) tokenises to nothing"):
        ask(["a", "a b", "", "c"], tokens=1)


# --- through a bridge ------------------------------------------------------------------------------------------------

MANY = [" ".join(words) for words in itertools.product(TEXTS[:3], ("cat", "one two", "ශ්‍රී"))] + TEXTS
BUDGETS = [{"batch_tokens": 1}, {"batch_tokens": 60}, {"batch_size": 3}, {"batch_tokens": None}, {}]


@pytest.mark.parametrize("llm", ["llama", "gemma3", "gpt2"])
def test_greedy_text_is_that_of_each_text_alone_whatever_the_budget(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    prompts = [f"one {'two ' * (number % 4)}" for number in range(len(MANY))]
    alone = [bridge.generate([text], max_new_tokens=6)[0] for text in MANY]
    asked = [
        bridge.generate([text], prompts=[prompt], max_new_tokens=6)[0]
        for text, prompt in zip(MANY, prompts, strict=True)
    ]
    assert alone != asked
    for budget in BUDGETS:
        assert bridge.generate(MANY, max_new_tokens=6, **budget) == alone
        assert bridge.generate(MANY, prompts=prompts, max_new_tokens=6, **budget) == asked


@pytest.mark.parametrize(
    "prompt",
    [
        PromptConfig(),
        PromptConfig(text="one two three"),
        PromptConfig(text="one", llm_reads_text=True),
        PromptConfig(text="one", style="chat"),
    ],
    ids=["none", "text", "the text itself", "chat"],
)
@pytest.mark.parametrize("prompts", [None, ["cat", "one two three", "", "no no no no"]])
@pytest.mark.filterwarnings("ignore:Texts longer")
def test_counted_is_what_encoder_and_llm_read(tiny_models, prompt, prompts):
    processor = make(tiny_models, llm="llama-chat", prompt=prompt).processor
    inputs = processor(TEXTS, prompts=prompts, max_source_tokens=9)
    read = inputs.source_mask.sum(dim=1) + inputs.prompt_mask.sum(dim=1)
    assert processor.count_read_tokens(TEXTS, prompts, 9) == read.tolist()


@pytest.mark.parametrize(
    "prompt", [PromptConfig(), PromptConfig(text="one two"), PromptConfig(text="one", style="chat")]
)
@pytest.mark.parametrize("prompts", [None, ["cat", "one two three", "", "no no no no"]])
@pytest.mark.parametrize("limit", [2, 9, 500])
@pytest.mark.filterwarnings("ignore:Texts longer")
def test_counted_is_what_the_llm_alone_reads(tiny_models, prompt, prompts, limit):
    """Its text is cut, and read once: with the prompt and not beside it."""
    processor = LLMReader.build(LLMConfig(name=tiny_models["llama-chat"]), prompt, device="cpu").processor
    inputs = processor(TEXTS, prompts=prompts, max_source_tokens=limit)
    assert processor.count_read_tokens(TEXTS, prompts, limit) == inputs.prompt_mask.sum(dim=1).tolist()


def test_one_text_that_does_not_fit_is_answered_with_all_that_makes_it_smaller(tiny_models, monkeypatch):
    bridge = make(tiny_models)

    def no_room(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(bridge.llm, "generate", no_room)
    with pytest.raises(ConfigError, match=r"Lower max_source_tokens \(now 512\) or max_new_tokens \(now 7\), or load"):
        bridge.generate(["cat"], max_new_tokens=7)
    monkeypatch.setattr(bridge, "score", no_room)
    with pytest.raises(ConfigError, match=r"Lower max_source_tokens \(now 512\), or load"):
        bridge.classify(["cat"], ["yes", "no"])


def test_a_seed_draws_what_it_drew_for_one_batch(tiny_models):
    """Rows of a batch draw one after the other, so a batch that fits the budget must keep the texts' order."""
    bridge = make(tiny_models)
    options = {"temperature": 1.5, "seed": 3, "max_new_tokens": 8}
    as_one = bridge.generate(TEXTS, **options, batch_tokens=None)
    assert bridge.generate(TEXTS, **options) == as_one
    divided = bridge.generate(TEXTS, **options, batch_size=2)
    assert divided == bridge.generate(TEXTS, **options, batch_size=2)
    assert divided != as_one  # another batch draws other numbers


def test_a_lone_text_is_never_read_letter_by_letter(tiny_models):
    bridge = make(tiny_models)
    asks = [
        bridge.generate,
        bridge.layer_weights,
        lambda texts: bridge.classify(texts, ["yes", "no"]),
        lambda texts: bridge.score(texts, ["yes", "no"]),
        lambda texts: bridge.answer(texts, ["yes", "no"]),
    ]
    for asked in asks:
        with pytest.raises(DataError, match="Got one str for texts, 'cat'; wanted a list"):
            asked("cat")
    with pytest.raises(DataError, match="Got one str for answers, 'yes'"):
        bridge.score(["cat"], "yes")
    with_prompts = [
        bridge.generate,
        lambda texts, prompts: bridge.classify(texts, ["yes", "no"], prompts=prompts),
        lambda texts, prompts: bridge.score(texts, ["yes", "no"], prompts=prompts),
        lambda texts, prompts: bridge.answer(texts, ["yes", "no"], prompts=prompts),
    ]
    for asked in with_prompts:
        with pytest.raises(DataError, match="Got one str for prompts, 'no'; wanted a list"):
            asked(["cat", "mat"], prompts="no")
        with pytest.raises(DataError, match="Number 2 of 2 prompts is None, a NoneType; wanted text"):
            asked(["cat", "mat"], prompts=["no", None])
    with pytest.raises(DataError, match=r"Number 1 of 1 texts is \['cat'\], a list; wanted text"):
        next(bridge.stream(["cat"]))
    with pytest.raises(DataError, match="Number 1 of 1 prompts is 7, a int; wanted text"):
        next(bridge.stream("cat", prompt=7))
