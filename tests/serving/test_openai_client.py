"""OpenAI's own client, unmodified: chats, streams and errors."""

import threading

import openai
import pytest

from tests.serving.running import LABELS, PROMPT, running


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def test_models_are_listed_by_the_names_of_their_runs(client):
    assert [model.id for model in client.models.list()] == ["topic", "pair", "plain"]
    assert client.models.retrieve("plain").owned_by == "layerbridge"


def test_a_chat_is_what_generate_gives_for_the_rendered_text(client, bridges):
    answer = client.chat.completions.create(model="topic", messages=user("ශ්‍රී ලංකාව"), max_tokens=12)
    bridge = bridges["topic"]
    source = bridge.render("ශ්‍රී ලංකාව")
    assert source == PROMPT.format(text="ශ්‍රී ලංකාව")
    assert answer.choices[0].message.content == bridge.generate([source], max_new_tokens=12)[0]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == bridge.count_source_tokens([source])[0]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_answers_and_errors_have_the_ids_that_the_client_shows(client):
    ids = [client.chat.completions.create(model="topic", messages=user("x"), max_tokens=2)._request_id]
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="topic", messages=user(""))
    ids.append(found.value.request_id)
    assert all(one.startswith("req_") for one in ids)
    assert ids[0] != ids[1]


def test_other_messages_are_read_by_the_llm_before_the_configured_prompt(client, bridges):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "sat on "}, {"type": "text", "text": "the mat"}]},
    ]
    fields = {"layerbridge": {"raw": True}}
    answer = client.chat.completions.create(model="pair", messages=messages, max_tokens=8, extra_body=fields)
    wanted = bridges["pair"].generate(["the cat\nsat on the mat"], prompts=["be brief\none\none two"], max_new_tokens=8)
    assert answer.choices[0].message.content == wanted[0]


def test_fields_fill_a_prompt_with_several(client, bridges):
    bridge = bridges["pair"]
    source = bridge.render({"premise": "the cat", "hypothesis": "the mat"})
    wanted = bridge.generate([source], max_new_tokens=8)[0]
    one_open = {"layerbridge": {"fields": {"hypothesis": "the mat"}}}
    none_open = {"layerbridge": {"fields": {"hypothesis": "the mat", "premise": "the cat"}}}
    ask = client.chat.completions.create
    answer = ask(model="pair", messages=user("the cat"), max_tokens=8, extra_body=one_open)
    assert answer.choices[0].message.content == wanted
    answer = ask(model="pair", messages=user(""), max_tokens=8, extra_body=none_open)
    assert answer.choices[0].message.content == wanted
    for wrong, words in (
        ({}, "has 2 fields"),
        ({"layerbridge": {"fields": {"premis": "x"}}}, "Unknown field 'premis'"),
        (none_open, "fills the whole prompt"),
        ({"layerbridge": {"raw": True, "fields": {"premise": "x"}}}, "both raw and fields"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            ask(model="pair", messages=user("the cat"), extra_body=wrong)


STREAMED = [
    {},
    {"stop": ["a"]},
    {"stop": "t"},
    {"temperature": 1.3, "seed": 5},
    {"temperature": 1.0, "top_p": 0.8, "seed": 6},
]


@pytest.mark.parametrize("options", STREAMED, ids=str)
@pytest.mark.parametrize("text", ["the cat", "Habari ya asubuhi", "ශ්‍රී ලංකාව"])
def test_a_chats_stream_is_the_whole_answer(client, text, options):
    asked = {"model": "topic", "messages": user(text), "max_tokens": 40, **options}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for stop in [options["stop"]] if isinstance(options.get("stop"), str) else options.get("stop", []):
        assert stop not in whole.choices[0].message.content


def test_completions_stream_several_prompts_side_by_side(client, bridges):
    texts = ["the cat", "Habari ya asubuhi", "ශ්‍රී"]
    asked = {"model": "plain", "prompt": texts, "max_tokens": 20}
    whole = client.completions.create(**asked)
    assert [choice.text for choice in whole.choices] == bridges["plain"].generate(texts, max_new_tokens=20)
    streamed = ["", "", ""]
    for chunk in client.completions.create(stream=True, **asked):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in whole.choices]


def test_the_default_is_greedy_and_a_seed_repeats_a_sample(client):
    def ask(**options):
        answer = client.completions.create(model="plain", prompt="the cat", max_tokens=20, **options)
        return answer.choices[0].text

    assert ask() == ask() == ask(temperature=0)
    assert ask(temperature=1.5, seed=3) == ask(temperature=1.5, seed=3) != ask(temperature=1.5, seed=4)


def test_length_and_stop_are_told_apart(client):
    def ask(**options):
        return client.completions.create(model="plain", prompt="the cat", **options).choices[0]

    long = ask(max_tokens=30)
    short = ask(max_tokens=2)
    assert short.finish_reason == "length"
    cut = ask(max_tokens=30, stop=long.text[4:6])
    assert cut.finish_reason == "stop"
    assert cut.text == long.text[: long.text.find(long.text[4:6])]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"extra_body": {"max_token": 5}}, "max_token"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"extra_body": {"layerbridge": {"rw": True}}}, "layerbridge.rw"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_change_the_answer_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="topic", messages=user("the cat"), **options)
    assert found.value.param == param
    assert found.value.type == "invalid_request_error"
    assert param.rpartition(".")[2] in found.value.message


def test_what_changes_nothing_is_ignored(client):
    asked = {"model": "topic", "messages": user("the cat"), "max_tokens": 5}
    plain = client.chat.completions.create(**asked)
    harmless = {
        "user": "me", "store": False, "metadata": {"a": "b"}, "n": 1, "presence_penalty": 0, "tools": [],
        "logprobs": False, "response_format": {"type": "text"}, "service_tier": "auto", "parallel_tool_calls": True,
        "frequency_penalty": 0.0,
    }  # fmt: skip
    assert client.chat.completions.create(**asked, **harmless).choices[0].message == plain.choices[0].message


def test_errors_are_those_that_the_client_knows(client, bridges):
    with pytest.raises(openai.NotFoundError, match=r"Unknown model 'topik'\. Did you mean 'topic'") as found:
        client.chat.completions.create(model="topik", messages=user("x"))
    assert found.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="topic", input="x")
    with pytest.raises(openai.BadRequestError, match="There is no text for the encoder"):
        client.chat.completions.create(model="topic", messages=user("  "))
    with pytest.raises(openai.BadRequestError, match=r"6\d\d encoder tokens; at most 512") as found:
        client.completions.create(model="plain", prompt="b" * 600, stream=True)
    assert found.value.code == "context_length_exceeded"
    with running(bridges, api_key="a-secret-key") as guarded:
        wrong = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="another-key", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="another API key"):
            wrong.models.list()
        right = wrong.with_options(api_key="a-secret-key")
        assert len(right.models.list().data) == 3
        assert right.completions.create(model="plain", prompt="one", max_tokens=2).choices


def test_a_failure_within_a_stream_reaches_the_client(bridges):
    with running(bridges, request_seconds=0.5) as slow:
        client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="any", max_retries=0)
        bridge = bridges["plain"]
        step = bridge.llm.forward

        def dawdle(*arguments, **options):
            import time

            time.sleep(0.1)
            return step(*arguments, **options)

        bridge.llm.forward = dawdle
        try:
            with pytest.raises(openai.APIError, match=r"more than 0\.5 seconds"):
                list(client.completions.create(model="plain", prompt="the cat", max_tokens=500, stream=True))
            with pytest.raises(openai.APIStatusError) as found:
                client.completions.create(model="plain", prompt="the cat", max_tokens=500)
            assert found.value.status_code == 504
        finally:
            bridge.llm.forward = step


def test_the_client_passes_over_signs_of_life(bridges, endless, monkeypatch):
    monkeypatch.setattr("layerbridge.serving.answers.WAITING_SECONDS", 0.005)  # a token takes 0.03
    with running(bridges) as server:
        asked = {"model": "plain", "prompt": "the cat", "max_tokens": 10}
        wanted = server.post("/v1/completions", asked).json()["choices"][0]["text"]
        body = server.post("/v1/completions", asked | {"stream": True}).text
        assert ": waiting\n\n" in body
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        chunks = list(client.completions.create(stream=True, **asked))
        assert "".join(chunk.choices[0].text for chunk in chunks) == wanted


def test_labels_get_the_probabilities_of_classify(served, bridges):
    texts = ["the cat", "ශ්‍රී ලංකාව"]
    found = served.post("/v1/classify", {"model": "topic", "texts": texts}).json()
    wanted = bridges["topic"].classify([bridges["topic"].render(text) for text in texts], LABELS)
    for row, one in zip(found["data"], wanted, strict=True):
        assert row["label"] == one.label
        assert row["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    own = served.post("/v1/classify", {"model": "plain", "texts": "one", "labels": ["yes", "no"]}).json()
    assert set(own["data"][0]["probabilities"]) == {"yes", "no"}
    refused = served.post("/v1/classify", {"model": "plain", "texts": "one"})
    assert refused.status_code == 400
    assert "give labels" in refused.json()["error"]["message"]


def test_inspecting_shows_each_tokens_layers(served, bridges):
    found = served.post("/v1/inspect", {"model": "topic", "texts": ["the cat", "one two three"]}).json()
    bridge = bridges["topic"]
    for row, text in zip(found["data"], ["the cat", "one two three"], strict=True):
        (wanted,) = bridge.layer_weights([bridge.render(text)])
        assert row["text"] == bridge.render(text)
        assert row["tokens"] == list(wanted.tokens)
        assert found["layers"] == list(wanted.layers)
        for ours, theirs in zip(row["weights"], wanted.weights.tolist(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_large_answers_are_made_beside_the_event_loop(served, monkeypatch):
    from layerbridge.serving import app

    inspected, where = app._inspected, []

    def noted(*arguments, **options):
        where.append(threading.current_thread())
        return inspected(*arguments, **options)

    monkeypatch.setattr(app, "_inspected", noted)
    found = served.post("/v1/inspect", {"model": "topic", "texts": ["the cat"] * 32, "pieces": True})
    assert found.headers["content-type"] == "application/json"
    assert len(found.json()["data"]) == 32
    assert [thread.name.startswith("asyncio_") for thread in where] == [True]
