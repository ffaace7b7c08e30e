"""An LLM that runs in vLLM answers as the same LLM in this process does. vLLM is a stand-in here (`fake_vllm`)."""

import contextlib
import json

import httpx
import pytest
import torch

from layerbridge.config import PromptConfig
from layerbridge.model.splice import splice
from layerbridge.serving import vllm_scoring
from layerbridge.serving.server import build_upstream_config, load_bridges
from tests.model.test_bridge import make
from tests.serving.fake_vllm import faking
from tests.serving.running import LABELS, running, wait_until
from tests.serving.test_batching import close_to, content, mixed_requests

TEXTS = ["the cat sat on the mat", "one", "ශ්‍රී ලංකාව positive one two three", "Habari ya asubuhi"]


def at(fake, **more):
    return build_upstream_config({"url": fake.url, **more}, {})


def save(bridges, folder):
    for name, bridge in bridges.items():
        bridge.save_pretrained(folder / name)
    return [str(folder / name) for name in bridges]


@pytest.fixture(scope="session")
def elsewhere(bridges, tmp_path_factory):
    """The bridges of the server in this process, loaded without their LLM."""
    return load_bridges(save(bridges, tmp_path_factory.mktemp("elsewhere")), device="cpu", llm_elsewhere=True)


@pytest.fixture(scope="session")
def fake(tiny_models):
    with faking(tiny_models["llama"]) as found:
        yield found


@pytest.fixture(scope="session")
def through(elsewhere, fake):
    """A server of three runs on one vLLM."""
    with running(elsewhere, upstream=at(fake)) as found:
        yield found


@pytest.fixture
def knobs(fake):
    """The stand-in, as it was after the test."""
    before = dict(vars(fake))
    yield fake
    for name in ("fail", "pause", "endless", "well", "tokens_a_chunk", "knows_token_ids", "knows_logprob_token_ids"):
        setattr(fake, name, before[name])


def greedy(asked):
    """Leave sampling out: vLLM draws from another generator."""
    return [(path, {k: v for k, v in body.items() if k not in ("temperature", "seed")}) for path, body in asked]


def stripped(found):
    """Join a stream's pieces; where they are cut is each engine's own matter."""
    if not isinstance(found, list):
        return found
    deltas = [json.loads('{"choices":' + one)["choices"][0] for one in found]
    text = "".join(one["delta"].get("content", "") if "delta" in one else one["text"] for one in deltas)
    return text, deltas[-1]["finish_reason"]


def test_mixed_requests_are_answered_as_by_the_llm_in_this_process(served, through):
    for path, body in greedy(mixed_requests(24)):
        wanted, found = (stripped(content(server.post(path, body))) for server in (served, through))
        try:
            close_to(found, wanted)
        except AssertionError as error:
            raise AssertionError(f"{path} {body}") from error


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_chunks_of_any_number_of_tokens_say_the_same(served, through, knobs, size):
    knobs.tokens_a_chunk = size
    for stop in ([], ["a", "n"]):
        body = {"model": "plain", "prompt": TEXTS, "max_tokens": 12, "stop": stop}
        assert content(through.post("/v1/completions", body)) == content(served.post("/v1/completions", body))
        body = {"model": "plain", "messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 12, "stop": stop}
        streams = [
            stripped(content(one.post("/v1/chat/completions", body | {"stream": True}))) for one in (through, served)
        ]
        assert streams[0] == streams[1]


def test_usage_counts_the_same_tokens(served, through):
    body = {"model": "plain", "prompt": TEXTS, "max_tokens": 9}
    usages = [one.post("/v1/completions", body).json()["usage"] for one in (served, through)]
    assert usages[0] == usages[1]


@pytest.mark.parametrize("llm", ["llama", "qwen3", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_llm_reads_its_template_where_it_is_wanted(tiny_models, tmp_path, llm, dtype):
    """Of each LLM: shape, dtype, bos (where it has one), soft tokens, boundary, text; scaled as it scales them."""
    whole = make(tiny_models, llm=llm, llm_options={"dtype": dtype}, prompt=PromptConfig(text="one two"))
    (run,) = save({"run": whole}, tmp_path)
    bridges = load_bridges([run], device="cpu", llm_elsewhere=True)
    with (
        faking(tiny_models[llm], dtype=getattr(torch, dtype), max_model_len=128) as fake,
        running(bridges, upstream=at(fake)) as server,
    ):
        found = server.post("/v1/completions", {"model": "run", "prompt": TEXTS, "max_tokens": 5})
        assert found.status_code == 200, found.text
        assert len(fake.prefixes) == len(TEXTS)
        if dtype == "float32":
            assert [one["text"] for one in found.json()["choices"]] == whole.generate(TEXTS, max_new_tokens=5)
        wanted = [splice(whole.prefix_pieces(whole.processor([text]))).embeds_BTD[0] for text in TEXTS]
        bos = whole.processor.llm_tokenizer.bos_token_id
        (text_ids,) = whole.processor.prompt_ids([""])
        for embeds in wanted:
            near = [
                one for one in fake.prefixes if one.shape == embeds.shape and torch.allclose(one, embeds, atol=0.02)
            ]
            assert near
            assert torch.equal(near[0][-len(text_ids) :], fake.embed(text_ids))
            if bos is not None:
                assert torch.equal(near[0][:1], fake.embed([bos]))


def test_all_parameters_arrive(through, knobs):
    knobs.bodies.clear()
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5}
    assert through.post("/v1/completions", body | {"seed": 7, "stop": ["zz"]}).status_code == 200
    (sent,) = knobs.bodies
    del sent["prompt_embeds"]
    assert sent == {
        "model": "tiny-llm", "max_tokens": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 7, "stop": ["zz"],
        "stop_token_ids": [1], "stream": True, "return_token_ids": True,
    }  # fmt: skip


@pytest.mark.parametrize("at_once", [128, 2])
def test_labels_have_the_same_probabilities(served, through, monkeypatch, at_once):
    """Also labels that share beginnings, and more of them than one request may ask for."""
    monkeypatch.setattr(vllm_scoring, "MAX_LOGPROB_TOKEN_IDS", at_once)
    for labels in (LABELS, ["one", "one two", "one two three", "two", "a", "b", "c"]):
        body = {"model": "pair", "texts": TEXTS[:2], "labels": labels, "layerbridge": {"raw": True}}
        wanted, found = (content(server.post("/v1/classify", body)) for server in (served, through))
        close_to(found, wanted)


def test_inspecting_asks_no_llm(served, through, knobs):
    knobs.bodies.clear()
    body = {"model": "plain", "texts": TEXTS}
    close_to(content(through.post("/v1/inspect", body)), content(served.post("/v1/inspect", body)))
    assert knobs.bodies == []


# -------------------------------------------------------------------------------------------------------------------
# Who leaves, and what fails


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer_at_vllm(through, knobs, stream):
    knobs.endless, knobs.pause = True, 0.02
    left = knobs.num_left
    body = {"model": "plain", "prompt": ["the cat", "one"], "max_tokens": 400, "stream": stream}
    with httpx.Client(base_url=through.url, timeout=60) as client:
        if stream:
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()  # kept: its end would close the connection
                next(lines)
                wait_until(lambda: knobs.num_running == 2)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body, timeout=0.5)
    wait_until(lambda: knobs.num_running == 0)
    assert knobs.num_left == left + 2
    wait_until(lambda: through.engine.num_writing == 0)


def test_a_stop_string_ends_the_answer_at_vllm(through, knobs):
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 300, "stop": ["a", "e", "o", "i", " "]}
    assert through.post("/v1/completions", body).status_code == 200
    wait_until(lambda: knobs.num_running == 0)


@pytest.mark.parametrize(
    ("failure", "status", "code", "words"),
    [
        ((400, "too long for this model"), 400, "engine_refused", "too long for this model"),
        ((422, "no such field"), 400, "engine_refused", "no such field"),
        ((401, "Unauthorized"), 502, "engine_key", "does not take this server's key"),
        ((404, "no such model"), 502, "engine_not_found", "no such model or route"),
        ((429, "busy"), 429, "engine_full", "too many requests"),
        ((500, "CUDA error in /opt/secret/place"), 502, "engine_failed", "failed at this request"),
        ((503, "sleeping"), 503, "engine_unavailable", "takes no requests now"),
        ((504, "slow"), 504, "engine_timeout", "took too long"),
        ((301, ""), 502, "engine_failed", "failed"),
        ("cut", 502, "engine_broken", "no whole answer"),
        ("junk", 502, "engine_broken", "no whole answer"),
        ("error-event", 502, "engine_failed", "failed at this request"),
    ],
)
def test_failures_of_vllm_have_the_right_status_and_keep_its_secrets(through, knobs, failure, status, code, words):
    knobs.endless, knobs.fail = True, lambda body: failure
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 20}
    found = through.post("/v1/completions", body)
    assert found.status_code == status
    error = found.json()["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert "secret" not in found.text
    streamed = through.post("/v1/completions", body | {"stream": True})
    if isinstance(failure, tuple):
        assert (streamed.status_code, streamed.json()) == (status, found.json())
    else:
        assert streamed.status_code == 200
        lines = [line for line in streamed.text.splitlines() if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == code
    knobs.fail = None
    assert through.post("/v1/completions", body).status_code == 200


def test_one_text_that_vllm_refuses_fails_its_request_alone(served, through, knobs):
    width = 9
    knobs.fail = lambda body: (400, "this one") if body["max_tokens"] == width else None
    bad = through.post("/v1/completions", {"model": "plain", "prompt": TEXTS, "max_tokens": width})
    assert bad.status_code == 400
    body = {"model": "plain", "prompt": TEXTS, "max_tokens": 10}
    assert content(through.post("/v1/completions", body)) == content(served.post("/v1/completions", body))


def test_an_answer_that_needs_more_positions_than_vllm_takes_is_refused_here(tiny_models, elsewhere):
    with (
        faking(tiny_models["llama"], max_model_len=70) as fake,
        running(elsewhere, upstream=at(fake)) as server,
    ):
        fake.bodies.clear()
        found = server.post("/v1/completions", {"model": "plain", "prompt": "the cat", "max_tokens": 90})
        assert found.status_code == 400
        assert found.json()["error"]["code"] == "context_length_exceeded"
        assert "which takes 70" in found.json()["error"]["message"]
        assert fake.bodies == []


def test_a_vllm_that_is_gone_makes_the_server_unready_and_back_again(tiny_models, elsewhere):
    with faking(tiny_models["llama"]) as fake:
        where = at(fake, health_seconds=0.05)
        with running(elsewhere, upstream=where) as server:
            fake.well = False
            wait_until(lambda: server.get("/readyz").status_code == 503)
            assert server.get("/healthz").status_code == 200
            fake.well = True
            wait_until(lambda: server.get("/readyz").status_code == 200)


def test_a_vllm_that_cannot_be_reached_is_said_with_503(tiny_models, elsewhere):
    with contextlib.ExitStack() as stack:
        fake_context = faking(tiny_models["llama"])
        fake = fake_context.__enter__()
        server = stack.enter_context(running(elsewhere, upstream=at(fake)))
        fake_context.__exit__(None, None, None)
        found = server.post("/v1/completions", {"model": "plain", "prompt": "the cat"})
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "engine_unreachable"
        assert found.headers["retry-after"] == "5"
        assert "127.0.0.1" not in found.text
        assert server.get("/readyz").status_code == 503
        assert server.post("/v1/inspect", {"model": "plain", "texts": "the cat"}).status_code == 200


def test_an_answer_that_takes_too_long_is_ended_at_vllm(tiny_models, elsewhere):
    with (
        faking(tiny_models["llama"], endless=True, pause=0.05) as fake,
        running(elsewhere, upstream=at(fake), request_seconds=0.5) as server,
    ):
        found = server.post("/v1/completions", {"model": "plain", "prompt": "the cat", "max_tokens": 400})
        assert found.status_code == 504
        wait_until(lambda: fake.num_running == 0, seconds=5)


def test_the_end_of_the_server_is_told_to_whoever_still_waits(tiny_models, elsewhere):
    with faking(tiny_models["llama"], endless=True, pause=0.02) as fake:
        with running(elsewhere, upstream=at(fake), shutdown_seconds=0.2) as server:
            body = {"model": "plain", "prompt": "the cat", "max_tokens": 400, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                server.server.end()
                last = [line for line in lines if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        wait_until(lambda: fake.num_running == 0, seconds=5)


def test_no_more_texts_than_the_limit_are_at_vllm_and_none_is_forgotten(tiny_models, elsewhere):
    with (
        faking(tiny_models["llama"], endless=True, pause=0.005) as fake,
        running(elsewhere, upstream=at(fake), max_writing=2, batch_rows=1) as server,
    ):
        most = 0

        def watch(body):
            nonlocal most
            most = max(most, fake.num_running + 1)

        fake.fail = watch
        found = server.post("/v1/completions", {"model": "plain", "prompt": TEXTS * 3, "max_tokens": 5})
        assert found.status_code == 200
        assert len(found.json()["choices"]) == 12
        assert most == 2
        assert server.engine.num_writing == 0


# -------------------------------------------------------------------------------------------------------------------
# Older and other servers


def test_a_vllm_without_given_log_probabilities_serves_all_but_classify(tiny_models, elsewhere):
    with (
        faking(tiny_models["llama"], knows_logprob_token_ids=False) as fake,
        running(elsewhere, upstream=at(fake)) as server,
    ):
        assert server.post("/v1/completions", {"model": "plain", "prompt": "the cat"}).status_code == 200
        found = server.post("/v1/classify", {"model": "topic", "texts": "the cat"})
        assert found.status_code == 400
        assert found.json()["error"]["code"] == "unsupported"
        assert "logprob_token_ids" in found.json()["error"]["message"]


def test_a_vllm_that_sends_no_token_ids_is_not_guessed_at(through, knobs):
    knobs.knows_token_ids = False
    knobs.endless = True
    found = through.post("/v1/completions", {"model": "plain", "prompt": "the cat", "max_tokens": 12})
    assert found.status_code == 502
    assert found.json()["error"]["code"] == "engine_broken"


# -------------------------------------------------------------------------------------------------------------------
# The chat route


def test_the_chat_route_puts_soft_tokens_into_a_users_turn(tiny_models, tmp_path):
    whole = make(tiny_models, llm="llama-chat", prompt=PromptConfig(text="one two", style="chat"))
    (run,) = save({"run": whole}, tmp_path)
    bridges = load_bridges([run], device="cpu", llm_elsewhere=True)
    with (
        faking(tiny_models["llama-chat"]) as fake,
        running(bridges, upstream=at(fake, route="chat")) as server,
    ):
        body = {"model": "run", "messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 6}
        found = server.post("/v1/chat/completions", body)
        assert found.status_code == 200, found.text
        (read,) = fake.prefixes
        soft, boundary = whole.soft_pieces(whole.processor([TEXTS[0]]))
        ids = [
            fake.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in ("<s><|user|>", "\none two<|end|><|assistant|>")
        ]
        wanted = torch.cat([fake.embed(ids[0]), soft.embeds_BTD[0], boundary.embeds_BTD[0], fake.embed(ids[1])])
        torch.testing.assert_close(read, wanted)
        with torch.no_grad():
            tokens = fake.model.generate(inputs_embeds=wanted[None], max_new_tokens=6, do_sample=False)[0]
        text = fake.tokenizer.decode(tokens, skip_special_tokens=True)
        assert found.json()["choices"][0]["message"]["content"] == text
        streamed = stripped(content(server.post("/v1/chat/completions", body | {"stream": True})))
        assert streamed[0] == text
        refused = server.post("/v1/classify", {"model": "run", "texts": "x", "labels": ["a", "b"]})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "unsupported"


def test_chat_style_runs_are_answered_as_trained_by_completions(tiny_models, tmp_path):
    whole = make(tiny_models, llm="llama-chat", prompt=PromptConfig(text="one two", style="chat"))
    (run,) = save({"run": whole}, tmp_path)
    with (
        faking(tiny_models["llama-chat"]) as fake,
        running(load_bridges([run], device="cpu", llm_elsewhere=True), upstream=at(fake)) as server,
    ):
        found = server.post("/v1/completions", {"model": "run", "prompt": TEXTS, "max_tokens": 8})
        assert [one["text"] for one in found.json()["choices"]] == whole.generate(TEXTS, max_new_tokens=8)
