"""Labels: the softmax of `score`, one by one or together, in every pair; and no label that nobody gave."""

import pytest
import torch

from layerbridge.config import PromptConfig
from layerbridge.errors import ConfigError, DataError
from tests import tiny
from tests.model.test_bridge import ANSWERS, PAIRS, TEXTS, make


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_labels_together_equal_one_by_one_and_the_softmax_of_scores(tiny_models, encoder, llm):
    bridge = make(tiny_models, encoder, llm, prompt=PromptConfig(text="two three"))
    texts = TEXTS * 3
    wanted = torch.cat([bridge.score([text], ANSWERS) for text in texts]).softmax(dim=-1)
    for budget in ({}, {"batch_tokens": 30}, {"batch_size": 5}):
        found = bridge.classify(texts, ANSWERS, **budget)
        probabilities = torch.tensor([list(one.probabilities.values()) for one in found])
        torch.testing.assert_close(probabilities, wanted, atol=1e-4, rtol=1e-3)
        assert all(list(one.probabilities) == ANSWERS for one in found)
        assert [one.label for one in found] == [ANSWERS[best] for best in wanted.argmax(dim=-1)]
        for one in found:
            assert one.probability == one.probabilities[one.label] == max(one.probabilities.values())
            assert sum(one.probabilities.values()) == pytest.approx(1)


def test_the_models_tell_some_texts_apart(tiny_models):
    """Or the test above would pass on answers in the wrong order."""
    labels = {
        one.label for llm in tiny.LLMS for one in make(tiny_models, llm=llm).classify(TEXTS, ["cat", "one", "mat"])
    }
    assert len(labels) > 1


def test_prompts_follow_their_texts_into_batches(tiny_models):
    bridge = make(tiny_models)
    prompts = ["one", "two three", "cat sat", "no"]
    found = bridge.classify(TEXTS, ANSWERS, prompts=prompts, batch_size=1)
    wanted = bridge.score(TEXTS, ANSWERS, prompts=prompts).softmax(dim=-1)
    torch.testing.assert_close(
        torch.tensor([list(one.probabilities.values()) for one in found]), wanted, atol=1e-4, rtol=1e-3
    )


def test_labels_are_those_of_the_task_it_was_trained_on(tiny_models):
    bridge = make(tiny_models)
    bridge.trained_on = {"answers": ANSWERS}
    assert bridge.classify(TEXTS) == bridge.classify(TEXTS, ANSWERS)
    assert list(bridge.classify(["cat"], ["no", "positive"])[0].probabilities) == ["no", "positive"]


@pytest.mark.parametrize("trained_on", [None, {"encoder_prompt": "{text}"}, {"answers": None}])
def test_a_bridge_without_a_set_of_answers_asks_for_labels(tiny_models, trained_on):
    bridge = make(tiny_models)
    bridge.trained_on = trained_on
    with pytest.raises(ConfigError, match=r"Got no labels, .* Give labels, such as labels="):
        bridge.classify(["cat"])


def test_labels_and_texts_that_cannot_be_are_refused(tiny_models):
    bridge = make(tiny_models)
    with pytest.raises(ConfigError, match="list of labels is empty"):
        bridge.classify(["cat"], [])
    with pytest.raises(ConfigError, match="given twice: 'no', 'yes'"):
        bridge.classify(["cat"], ["yes", "no", "no", "maybe", "yes"])
    with pytest.raises(DataError, match="Got one str for labels, 'yes'"):
        bridge.classify(["cat"], "yes")
    with pytest.raises(DataError, match="Got no texts"):
        bridge.classify([], ["yes"])
    with pytest.raises(DataError, match=r"Answer '' \(number 2 of 2\) tokenises to nothing"):
        bridge.classify(["cat"], ["yes", ""])


def test_no_label_is_made_up_where_the_models_overflow(tiny_models):
    bridge = make(tiny_models)
    with torch.no_grad():
        bridge.boundary.fill_(float("nan"))
    with pytest.raises(DataError, match=r"labels of 'the cat' are not numbers.*Load the models in float32"):
        bridge.classify(["the cat"], ["yes", "no"])


def test_a_label_that_cannot_follow_has_no_probability(tiny_models, monkeypatch):
    bridge = make(tiny_models)
    monkeypatch.setattr(bridge, "score", lambda texts, labels, **_: torch.tensor([[-torch.inf, -3.0]] * len(texts)))
    assert bridge.classify(["cat"], ["yes", "no"])[0].probabilities == {"yes": 0.0, "no": 1.0}
