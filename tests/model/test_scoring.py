"""One pass for scores and greedy text: the same answers as `score` and `generate` apart, on every pair."""

import itertools

import pytest
import torch

from layerbridge.config import PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import scoring
from layerbridge.model.generation import _generate, generation_options
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
    passes = counted(bridge)
    bridge.answer(TEXTS, ANSWERS, max_new_tokens=4)
    assert len(passes["encoder"]) == 1
    prefix, *steps, answers = passes["llm"]
    assert prefix[0] == len(TEXTS)
    assert [length for _, length in steps] == [1] * 3
    assert answers == (len(TEXTS) * len(ANSWERS), max(map(len, bridge.processor.answer_ids(ANSWERS))) - 1)


def test_ended_rows_are_not_decoded_further(tiny_models, counted):
    bridge = make(tiny_models)
    first_B = greedy_ids(bridge, 1)[:, 0].tolist()
    bridge.llm.generation_config.eos_token_id = first_B[0]
    left = len(TEXTS) - first_B.count(first_B[0])
    assert left, "the rows are too much alike for this test"
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
