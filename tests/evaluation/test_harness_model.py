"""lm-evaluation-harness's requests: what a bridge answers to each, in batches, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from layerbridge.config import BridgeConfig, build_config
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.harness.marks import mark
from layerbridge.evaluation.harness.model import BridgeLM, generation_arguments
from layerbridge.model.bridge import Bridge


def tiny_bridge(tiny_models):
    config = {
        "encoder": tiny_models["mt5"],
        "llm": tiny_models["llama"],
        "fusion": {"name": "transformer_softmax", "feedforward_width": 16},
        "prompt": {"text": "\nTopic:"},
    }
    return Bridge.build(build_config(BridgeConfig, config, where="test"), seed=0)


@pytest.fixture(scope="module")
def bridge(tiny_models):
    return tiny_bridge(tiny_models)


@pytest.fixture(scope="module")
def model(bridge):
    return BridgeLM(bridge, batch_size=4)


def request(kind, context, argument, *, task="t", document=0):
    return Instance(kind, {}, (context, argument), 0, metadata=(task, document, 1))


def scored(context, *answers, **place):
    return [request("loglikelihood", context, answer, **place) for answer in answers]


def alone(bridge, text, answer, prompt):
    """Log p(answer, end | text) by the training loss of that one row: no cache, no batch."""
    inputs = bridge.processor([text], answers=[answer], prompts=None if prompt is None else [prompt])
    with torch.inference_mode():
        return -bridge.loss(inputs, num_items=1).item()


CONTEXTS = [("the cat sat", None), ("habari ya asubuhi", "\nAnswer:"), ("one", "two three " * 4), ("one two", None)]
ANSWERS = (" positive", "negative", " one two three")


def test_a_log_likelihood_is_that_of_the_answer_and_its_end_tokenised_as_in_training(model, bridge):
    asked = [(text, prompt, answer) for text, prompt in CONTEXTS for answer in ANSWERS]
    requests = [
        request("loglikelihood", mark(text) + (prompt or ""), answer, document=number // len(ANSWERS))
        for number, (text, prompt, answer) in enumerate(asked)
    ]
    for (text, prompt, answer), (found, _) in zip(asked, model.loglikelihood(requests), strict=True):
        assert found == pytest.approx(alone(bridge, text, answer.strip(), prompt), abs=1e-4)


def test_a_log_likelihood_is_exactly_what_score_returns(model, bridge):
    found = model.loglikelihood(scored("the cat sat", "positive", "negative"))
    assert [value for value, _ in found] == bridge.score(["the cat sat"], ["positive", "negative"])[0].tolist()


@pytest.fixture(scope="module")
def one_by_one(bridge):
    """Requests of several documents and prompts, and what each gives alone."""
    requests = [
        request("loglikelihood", mark(text) + (prompt or ""), answer, document=number)
        for number, (text, prompt) in enumerate(CONTEXTS)
        for answer in ANSWERS
    ]
    model = BridgeLM(bridge)
    return requests, [model.loglikelihood([one], disable_tqdm=True)[0] for one in requests]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(len(CONTEXTS) * len(ANSWERS))), batch_size=st.integers(1, 5))
def test_batched_in_any_order_equals_one_by_one(bridge, one_by_one, order, batch_size):
    model = BridgeLM(bridge, batch_size=batch_size)
    requests, single = one_by_one
    found = model.loglikelihood([requests[index] for index in order], disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([single[index][0] for index in order], abs=1e-4)
    assert [greedy for _, greedy in found] == [single[index][1] for index in order]


def test_answers_of_one_context_share_a_pass(model, bridge, monkeypatch):
    passes = []
    answer = Bridge.answer

    def count(self, texts, *rest, **more):
        passes.append(len(texts))
        return answer(self, texts, *rest, **more)

    monkeypatch.setattr(Bridge, "answer", count)
    requests = [r for n in range(10) for r in scored(f"the cat {n}", "positive", "negative", document=n)]
    model.loglikelihood(requests + requests[:4])
    assert passes == [4, 4, 2]


def test_an_answer_is_greedy_exactly_if_it_is_what_the_bridge_writes(tiny_models):
    bridge = tiny_bridge(tiny_models)
    optimizer = torch.optim.Adam(bridge.trained_parameters().values(), lr=1e-2)
    for _ in range(150):
        loss = bridge.loss(bridge.processor(["the cat", "one two"], answers=["positive", "one"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    written = bridge.generate(["the cat", "one two"])
    assert written == ["positive", "one"]
    requests = scored("the cat", " positive", "one", "positive one", "posit") + scored("one two", "positive", "one")
    found = [greedy for _, greedy in BridgeLM(bridge).loglikelihood(requests)]
    assert found == [True, False, False, False, False, True]


@pytest.mark.parametrize("options", [{"until": ["e", "\n"]}, {"until": "a", "do_sample": False}, {"until": [""]}, {}])
def test_generate_until_is_generate_with_stop(model, bridge, options):
    until = options.get("until", [])
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    requests, expected = [], []
    for number, (text, prompt) in enumerate(CONTEXTS):
        longest = 5 + number % 2
        given = {**options, "max_gen_toks": longest}
        requests.append(request("generate_until", mark(text) + (prompt or ""), given, document=number))
        prompts = None if prompt is None else [prompt]
        expected += bridge.generate([text], prompts=prompts, stop=stop, max_new_tokens=longest)
    assert any(expected)
    assert model.generate_until(requests) == expected


def test_generation_options_become_the_bridges_own():
    assert generation_arguments({"until": "x"}, 9) == {"max_new_tokens": 9, "stop": ["x"], "temperature": 0.0}
    found = generation_arguments({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3}, 9)
    assert found == {"max_new_tokens": 3, "stop": [], "temperature": 0.7, "top_p": 0.9}
    assert generation_arguments({"do_sample": True}, 9)["temperature"] == 1.0
    with pytest.raises(ConfigError, match=r"option 'repetition_penalty' of the task is none of a bridge.*max_gen_toks"):
        generation_arguments({"repetition_penalty": 1.1}, 9)


def test_what_a_bridge_has_no_answer_to_is_refused_by_task_and_document(model, bridge):
    with pytest.raises(DataError, match=r"Task t, document 7: The context is empty"):
        model.loglikelihood(scored("", "x", document=7))
    with pytest.raises(DataError, match=r"Task t, document 7: Text stands before <encoder>"):
        model.generate_until([request("generate_until", "x" + mark("y"), {}, document=7)])
    with pytest.raises(DataError, match=r"Task t, document 0: the answer ' ' is empty"):
        model.loglikelihood(scored("x", " "))
    with pytest.raises(ConfigError, match=r"Task 't' asks for the probability of a text on its own.*--model hf"):
        model.loglikelihood_rolling([request("loglikelihood_rolling", "x", "")])
    with pytest.raises(ConfigError, match="prompt.style chat"):
        model.apply_chat_template([])
    with pytest.raises(ConfigError, match="batch_size is 'auto'; wanted a number"):
        BridgeLM(bridge, batch_size="auto")


def test_a_log_probability_that_is_not_finite_is_refused(model, monkeypatch):
    monkeypatch.setattr(Bridge, "answer", lambda *_, **__: (torch.tensor([[float("nan"), -1.0]]), ["x"]))
    with pytest.raises(DataError, match=r"document 0: the log-probability of 'a' is nan.*float32"):
        model.loglikelihood(scored("x", "a", "b"))


def test_cut_texts_are_counted_by_task(bridge):
    model = BridgeLM(bridge, max_source_tokens=5)
    with pytest.warns(UserWarning, match="longer than 5 encoder tokens"):
        model.loglikelihood(scored("one " * 9, "a", "b", task="long") + scored("one", "a", task="short"))
    assert dict(model.truncated) == {"long": 1}
