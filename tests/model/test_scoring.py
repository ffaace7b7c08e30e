"""One pass for scores and greedy text: the same answers as `score` and `generate` apart, on every pair."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import scoring
from layerbridge.model.generation import _generate, generation_options
from layerbridge.model.scoring import build_trie
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make

PAIRS = list(itertools.product((*tiny.ENCODERS, *tiny.OTHER_ENCODERS), tiny.LLMS))


@pytest.fixture
def counted(monkeypatch):
    """Count a bridge's passes of the encoder and of its LLM, as (rows, positions)."""

    def count(bridge):
        passes = {"encoder": [], "llm": []}

        def note(model, kind):
            run = model.forward

            def noting(*args, **kwargs):
                given = kwargs.get("inputs_embeds", args[0] if args else None)
                passes[kind].append(tuple(given.shape[:2]))
                return run(*args, **kwargs)

            monkeypatch.setattr(model, "forward", noting)

        note(bridge.encoder, "encoder")
        note(bridge.llm, "llm")
        return passes

    return count


def greedy_ids(bridge, max_new_tokens):
    """The tokens that `generate` decodes."""
    return _generate(bridge, TEXTS, None, 512, generation_options(bridge, max_new_tokens))


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_one_pass_answers_as_score_and_generate_do_apart(tiny_models, encoder, llm):
    bridge = make(tiny_models, encoder, llm, prompt=PromptConfig(text="two three"))
    scores, texts = bridge.score(TEXTS, ANSWERS), bridge.generate(TEXTS, max_new_tokens=12)
    together, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=12)
    torch.testing.assert_close(together, scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.argmax(1), scores.argmax(1))
    assert written == texts
    assert together.dtype == torch.float32


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_rows_that_end_early_leave_the_others_as_they_are(tiny_models, llm):
    """End tokens are chosen so that rows end at different steps, and one of them is no special token."""
    bridge = make(tiny_models, llm=llm)
    ids_BA = greedy_ids(bridge, 10)
    bridge.llm.generation_config.eos_token_id = sorted({int(ids_BA[0, 2]), int(ids_BA[1, 4])})
    texts = bridge.generate(TEXTS, max_new_tokens=10)
    scores, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=10)
    assert written == texts
    torch.testing.assert_close(scores, bridge.score(TEXTS, ANSWERS), atol=1e-4, rtol=1e-4)


TAKES_TRIES = [llm for llm in tiny.LLMS if not llm.startswith("gemma")]  # their window here is shorter than the texts
MANY = ["yes", "yes no", "yes no no", "no", "no yes", "maybe not", "maybe", "yes no no yes"]


@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_answers_side_by_side_score_as_each_after_its_own_prefix(tiny_models, monkeypatch, llm):
    bridge = make(tiny_models, llm=llm, prompt=PromptConfig(text="two three"))
    together = bridge.score(TEXTS, MANY)
    assert scoring._TAKES_TRIES[bridge.llm]
    monkeypatch.setattr(scoring, "_takes_tries", lambda *_: False)
    torch.testing.assert_close(together, bridge.score(TEXTS, MANY), atol=1e-4, rtol=1e-4)
    for column, answer in enumerate(MANY):
        torch.testing.assert_close(together[:, [column]], bridge.score(TEXTS, [answer]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_an_llm_that_takes_no_trie_is_found_out_and_reads_copies(tiny_models, monkeypatch, llm):
    bridge = make(tiny_models, llm=llm)
    wanted = bridge.score(TEXTS, MANY)

    def wrong(reader, rows, cache, first_BV, spliced):
        return scoring._score_copies(reader, rows, cache, first_BV, spliced) + 1

    for broken in (wrong, lambda *_: (_ for _ in ()).throw(ValueError("a 4D mask"))):
        monkeypatch.setattr(scoring, "_TAKES_TRIES", {})
        monkeypatch.setattr(scoring, "_score_trie", broken)
        torch.testing.assert_close(bridge.score(TEXTS, MANY), wanted, atol=1e-4, rtol=1e-4)
        assert list(scoring._TAKES_TRIES.values()) == [False]


def test_beyond_a_sliding_window_answers_read_copies(tiny_models, monkeypatch):
    bridge = make(tiny_models, llm="gemma3")
    wanted = bridge.score(TEXTS, MANY)
    monkeypatch.setattr(bridge.llm.config.get_text_config(), "sliding_window", 3)
    monkeypatch.setattr(scoring, "_score_trie", None)
    assert bridge.score(TEXTS, MANY).shape == wanted.shape


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8))
def test_a_trie_has_each_beginning_once_and_every_answers_path(answers):
    rows = [[*answer, 9] for answer in answers]
    trie = build_trie(rows)
    paths = []
    for node, parent in enumerate(trie.parents):
        assert parent < node
        paths.append((*(paths[parent] if parent >= 0 else ()), trie.tokens[node]))
    assert sorted(paths) == sorted({tuple(row[:end]) for row in rows for end in range(1, len(row))})
    assert [len(path) for path in paths] == trie.depths
    for number, row in enumerate(rows):
        steps = [(paths[node], token) for answer, node, token in trie.steps if answer == number]
        assert steps == [(tuple(row[:end]), row[end]) for end in range(1, len(row))]


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_many_answers_in_several_passes_after_one_prefix(tiny_models, monkeypatch, llm):
    bridge = make(tiny_models, llm=llm)
    scores, texts = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    monkeypatch.setattr(scoring, "MAX_SCORED_LOGITS", 1)
    again, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    torch.testing.assert_close(again, scores, atol=1e-4, rtol=1e-4)
    assert written == texts


def test_the_encoder_and_the_prefix_are_read_once(tiny_models, counted):
    bridge = make(tiny_models)
    bridge.score(TEXTS, ANSWERS)  # finds out whether the LLM takes tries
    passes = counted(bridge)
    bridge.answer(TEXTS, ANSWERS, max_new_tokens=4)
    assert len(passes["encoder"]) == 1
    prefix, *steps, answers = passes["llm"]
    assert prefix[0] == len(TEXTS)
    assert [length for _, length in steps] == [1] * 3
    assert answers == (len(TEXTS), len(build_trie(bridge.processor.answer_ids(ANSWERS)).tokens))


def test_ended_rows_are_not_decoded_further(tiny_models, counted):
    bridge = make(tiny_models)
    first_B = greedy_ids(bridge, 1)[:, 0].tolist()
    bridge.llm.generation_config.eos_token_id = first_B[0]
    left = len(TEXTS) - first_B.count(first_B[0])
    assert left, "the rows are too much alike for this test"
    bridge.score(TEXTS, ANSWERS)
    passes = counted(bridge)
    bridge.answer(TEXTS, ANSWERS, max_new_tokens=2)
    assert passes["llm"][1:-1] == [(left, 1)]


def test_per_row_prompts_reach_both(tiny_models):
    bridge = make(tiny_models)
    prompts = ["two", "three"]
    scores, texts = bridge.answer(["cat", "cat"], ANSWERS, prompts=prompts, max_new_tokens=6)
    torch.testing.assert_close(scores, bridge.score(["cat", "cat"], ANSWERS, prompts=prompts), atol=1e-4, rtol=1e-4)
    assert texts == bridge.generate(["cat", "cat"], prompts=prompts, max_new_tokens=6)


def test_what_cannot_be_answered_is_refused(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    with pytest.raises(DataError, match="Got no answers"):
        bridge.answer(TEXTS, [])
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        bridge.answer(TEXTS, ANSWERS, max_new_tokens=0)
    with pytest.raises(DataError, match="takes 128"):
        bridge.answer(TEXTS, ANSWERS, max_new_tokens=500)
