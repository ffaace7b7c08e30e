"""Whatever is sent: the right status, OpenAI's form of errors, and a server that lives on."""

import json
import re
import socket
import threading
import time

import httpx
import pytest

from layerbridge.errors import ConfigError
from layerbridge.serving.limits import Limits, is_loopback
from layerbridge.serving.server import build_server_config, load_bridges, model_name, read_key
from tests.serving.running import running

CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}


def said(content, role="user"):
    return {"model": "topic", "messages": [{"role": role, "content": content}]}


TOPIC = said("x")


def error(response, status):
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    return found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"null",
        b'"text"',
        b'{"model": "topic", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b"\x00\x01\x02",
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b'{"model": "topic", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "topic", "messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "topic", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "topic", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"model": "topic", "messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5_000 + b"}",
        b'{"model": "topic", "messages": [{"role": "user", "content": "x"}], "layerbridge": {"fields": {"\\ud8": ""}}}',
    ],
    ids=lambda body: repr(body[:50]),
)
def test_bodies_that_are_no_request_are_400(alive, body):
    response = alive.raw(CHAT, body)
    assert response.status_code in (400, 404), response.text
    error(response, response.status_code)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (CHAT, {}, "model", "model: field required. There is 1 more mistake."),
        (CHAT, {"model": "topic"}, "messages", "messages: field required."),
        (CHAT, TOPIC | {"messages": []}, "messages", "messages: list should have at least 1 item after validation"),
        (CHAT, TOPIC | {"messages": "hello"}, "messages", "messages: input should be a valid list."),
        (CHAT, TOPIC | {"model": 5}, "model", "model: input should be a valid string."),
        (CHAT, TOPIC | {"model": 5, "seed": "x", "top_k": []}, "model", "There are 2 more mistakes."),
        (CHAT, said("x", role="robot"), "messages.0.role", "messages.0.role: input should be 'system', 'developer',"),
        (CHAT, TOPIC | {"messages": [{"role": "user"}]}, "messages", "There is no text for the encoder"),
        (CHAT, said(""), "messages", "There is no text for the encoder"),
        (CHAT, said("x", role="system"), "messages", "There is no text for the encoder"),
        (CHAT, TOPIC | {"messages": [{"role": "user", "content": "x"}] * 257}, "messages", "Got 257 messages"),
        (CHAT, said(5), "messages.0.content", "found a number; wanted text, or a list of parts of type 'text'."),
        (CHAT, said({}), "messages.0.content", "found an object; wanted text, or a list"),
        (CHAT, said([IMAGE]), "messages.0.content", "found a part of type 'image_url' at 0; images, audio and files"),
        (CHAT, said([TEXT, AUDIO]), "messages.0.content", "found a part of type 'input_audio' at 1; images, audio"),
        (CHAT, said([TEXT, 5]), "messages.0.content", "found a number at 1; wanted a part, {'type': 'text', "),
        (CHAT, said([{"text": "x"}]), "messages.0.content", "the part at 0 has no type; wanted {'type': 'text'"),
        (CHAT, said([{"type": "text"}]), "messages.0.content", "the part at 0 has no text; wanted {'type': 'text'"),
        (CHAT, said([{"type": 5, "text": "x"}]), "messages.0.content", "found a number as the type of the part at 0"),
        (CHAT, said([TEXT | {"text": 5}]), "messages.0.content", "found a number in the part at 0; wanted text."),
        (CHAT, said([TEXT | {"x": 5}]), "messages.0.content", "the part at 0 has the unknown field 'x'. Leave it out."),
        (CHAT, TOPIC | {"stream": "often"}, "stream", "stream: input should be a valid boolean"),
        (CHAT, TOPIC | {"max_tokens": True}, "max_tokens", "max_tokens: wanted a number, found true or false."),
        (CHAT, TOPIC | {"stream_options": {}}, "stream_options", "stream_options goes with stream: true."),
        (CHAT, TOPIC | {"stop": 5}, "stop", "stop: found a number; wanted text, or a list of texts."),
        (CHAT, TOPIC | {"stop": ["a", None]}, "stop", "stop: found null at 1; wanted text."),
        (CHAT, TOPIC | {"layerbridge": 5}, "layerbridge", "layerbridge: input should be a valid dictionary"),
        (CHAT, TOPIC | {"layerbridge": {"fields": {"str": 5}}}, "layerbridge.fields.str", "input should be a valid st"),
        ("/v1/completions", {"model": "plain", "prompt": []}, "prompt", "Got 0 texts; wanted 1 to 256."),
        ("/v1/completions", {"model": "plain", "prompt": ["x", ""]}, "prompt[1]", "There is no text for the encoder"),
        ("/v1/completions", {"model": "plain", "prompt": ["x"] * 257}, "prompt", "Got 257 texts"),
        ("/v1/completions", {"model": "plain", "prompt": [1, 2]}, "prompt", "prompt: found token ids; only text is re"),
        ("/v1/completions", {"model": "plain", "prompt": [[1], [2]]}, "prompt", "prompt: found token ids; only text "),
        ("/v1/completions", {"model": "plain", "prompt": ["x", 2]}, "prompt", "prompt: found a number at 1; wanted "),
        ("/v1/completions", {"model": "plain", "prompt": None}, "prompt", "prompt: found null; wanted text, or a li"),
        ("/v1/completions", {"model": "plain", "prompt": True}, "prompt", "prompt: found true; wanted text, or a li"),
        ("/v1/completions", {"model": "plain", "prompt": "x", "suffix": "y"}, "suffix", "suffix is not supported"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": []}, "labels", "Got 0 labels"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": "a"}, "labels", "labels: found text; wanted a l"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": ["a", "a"]}, "labels", "A label is there twice"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": [" "]}, "labels", "A label has 1 characters"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": ["a" * 501]}, "labels", "A label has 501"),
        ("/v1/classify", {"model": "topic", "texts": ["x"], "labels": list(map(str, range(257)))}, "labels", "Got 257"),
        ("/v1/inspect", {"model": "plain", "texts": ["x"] * 33}, "texts", "Got 33 texts; wanted 1 to 32."),
        ("/v1/inspect", {"model": "plain", "texts": [1]}, "texts", "texts: found a number at 0; wanted text."),
        ("/v1/inspect", {"model": "plain", "texts": ["x", "a\ud800"]}, "texts", "found half a character (a lone surr"),
    ],
    ids=lambda value: ascii(value)[:60],
)  # fmt: skip
def test_wrong_fields_are_400_and_named(alive, path, body, param, words):
    found = error(alive.raw(path, json.dumps(body)), 400)
    assert found["param"] == param
    assert words in found["message"]


def test_a_million_characters_are_refused_and_answered(alive):
    long = {"model": "plain", "prompt": "a " * 500_000}
    assert "1000000 characters; at most 50000" in error(alive.post("/v1/completions", long), 400)["message"]
    sinhala = {"model": "plain", "prompt": "ශ" * 1_000_000}
    assert "more than 1048576 bytes" in error(alive.post("/v1/completions", sinhala), 413)["message"]
    within = {"model": "plain", "prompt": "a " * 25_000}
    assert error(alive.post("/v1/completions", within), 400)["code"] == "context_length_exceeded"
    system = [{"role": "system", "content": "one " * 2_000}, {"role": "user", "content": "x"}]
    found = error(alive.post(CHAT, {"model": "plain", "messages": system}), 400)
    assert "LLM tokens; at most 1024" in found["message"]
    stretched = {"model": "plain", "prompt": "one two", "max_tokens": 1024}
    assert "positions of the LLM, which takes 512" in error(alive.post("/v1/completions", stretched), 400)["message"]


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "in chunks"])
def test_huge_bodies_are_413_announced_or_not(alive, chunked):
    def chunks():
        for _ in range(200):
            yield b"x" * 65_536

    body = chunks() if chunked else b"x" * (200 * 65_536)
    assert error(alive.raw(CHAT, body), 413)["code"] == "body_too_large"


@pytest.mark.parametrize("text", ["\0", "a\0b", "￿", "\u202eabc", "𐏿" * 50, "\r\n\t x", "é" * 200, "\ufeff1"])
def test_odd_but_whole_characters_are_answered(alive, text):
    for path, body in (
        ("/v1/completions", {"prompt": text, "max_tokens": 3}),
        (CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 3}),
        ("/v1/classify", {"texts": text, "labels": ["yes", "no"]}),
        ("/v1/inspect", {"texts": text}),
    ):
        assert alive.post(path, {"model": "plain", **body}).status_code == 200


def test_addresses_that_are_none_and_methods_that_are_not_for_them(alive):
    error(alive.get("/v1/nothing"), 404)
    error(alive.get("/v1/models/topic/x"), 404)
    error(alive.get(CHAT), 405)
    error(alive.get("/%00%ff"), 404)
    whole = json.dumps({"model": "plain", "messages": [{"role": "user", "content": "one"}], "max_tokens": 1}).encode()
    assert alive.raw(CHAT, whole).status_code == 200
    assert alive.raw(CHAT, whole, headers={"content-type": "text/plain"}).status_code == 400
    assert httpx.post(alive.url + CHAT, content=whole, timeout=60).status_code == 400, "no type at all"
    assert alive.get("/docs").status_code == 404, "no page that loads scripts from elsewhere"


def test_a_key_is_asked_for_everywhere_but_of_health(bridges):
    with running(bridges, api_key="a-secret-key") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert error(server.get(path), 401)["code"] == "invalid_api_key"
            wrong = {"authorization": "Bearer a-secret-kex"}
            assert error(server.get(path, headers=wrong), 401)["type"] == "authentication_error"
        for header in ("a-secret-key", "Basic a-secret-key", "Bearer", "Bearer \u00e9".encode()):
            error(server.get("/v1/models", headers={"authorization": header}), 401)
        error(server.post(CHAT, {"model": "topic"}), 401)
        error(server.raw(CHAT, b"x" * 5_000_000), 401)
        assert server.get("/healthz").json() == {"status": "ok"}
        assert server.get("/readyz").status_code == 200
        assert server.get("/v1/models", headers={"authorization": "bearer a-secret-key"}).status_code == 200


def test_without_a_key_only_this_machines_names_are_answered(alive):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert error(alive.get("/v1/models", headers={"host": host}), 403)["code"] == "wrong_host"
    for host in ("localhost", "localhost:9", "127.0.0.1:1", "[::1]:5", "127.8.8.8"):
        assert alive.get("/v1/models", headers={"host": host}).status_code == 200


def test_more_requests_at_once_than_let_in_are_429(bridges, endless):
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 400, "stream": True}
    with (
        running(bridges, max_requests=1) as server,
        httpx.stream("POST", server.url + "/v1/completions", json=body) as one,
    ):
        lines = one.iter_lines()  # kept: a stream whose reader is gone is closed
        next(lines)
        found = server.post("/v1/completions", body)
        assert error(found, 429)["type"] == "rate_limit_error"
        assert found.headers["retry-after"] == "1"
        assert server.get("/healthz").status_code == 200
        assert server.get("/metrics").status_code == 200


def test_a_body_that_does_not_come_is_408(bridges):
    with running(bridges, body_seconds=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.server.port), timeout=10) as line:
            head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"
            line.sendall(head.encode())
            assert b"408" in line.recv(1000).split(b"\r\n")[0]
        assert server.get("/readyz").status_code == 200


def test_the_end_lets_running_answers_finish_and_refuses_new_ones(bridges, endless):
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 150, "stream": True}
    with running(bridges) as server:
        wanted = server.post("/v1/completions", body).text
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.server.end()
            refused = server.post("/v1/completions", body)
            assert error(refused, 503)["code"] == "shutting_down"
            assert server.get("/readyz").status_code == 503
            assert server.get("/healthz").status_code == 200
            rest = [first, *lines]
    said = [line.split('"choices":')[1] for line in rest if '"choices":' in line]
    assert said == [line.split('"choices":')[1] for line in wanted.splitlines() if '"choices":' in line]
    assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"


def test_the_end_does_not_wait_longer_than_its_limit(bridges, endless):
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 400}
    statuses = []
    with running(bridges, shutdown_seconds=0.2) as server:

        def ask():
            try:
                statuses.append(server.post("/v1/completions", body).status_code)
            except httpx.HTTPError as failure:
                statuses.append(type(failure).__name__)

        asking = threading.Thread(target=ask)
        asking.start()
        while not server.engine.num_writing:
            time.sleep(0.01)
    asking.join(10)
    assert statuses == [503]


def test_metrics_count_requests_tokens_and_batches(bridges):
    with running(bridges) as server:
        body = {"model": "plain", "prompt": "the cat", "max_tokens": 5, "temperature": 0}
        read = server.post("/v1/completions", body).json()["usage"]
        server.get("/wp-login.php")
        server.get("/v1/models/plain")
        text = server.get("/metrics").text
    for line in (
        'layerbridge_requests_total{route="/v1/completions",status="200"} 1.0',
        'layerbridge_requests_total{route="other",status="404"} 1.0',
        'layerbridge_requests_total{route="/v1/models",status="200"} 1.0',
        "layerbridge_queue_length 0.0",
        'layerbridge_batch_rows_count{kind="generate"} 1.0',
        f'layerbridge_tokens_total{{direction="in"}} {read["prompt_tokens"]:.1f}',
        'layerbridge_request_seconds_count{route="/v1/completions"} 1.0',
    ):
        assert line in text.splitlines(), line


def test_every_response_has_an_id_of_its_own(alive):
    stream = {"model": "plain", "prompt": "the cat", "max_tokens": 2, "stream": True}
    mine = {"x-request-id": "mine"}
    found = [
        alive.get("/healthz", headers=mine),
        alive.get("/"),
        alive.get("/metrics"),
        alive.get("/nowhere", headers=mine),
        alive.get("/v1/models", headers={"host": "evil.example"}),
        alive.raw(CHAT, b"{"),
        alive.raw(CHAT, b"x" * 2_000_000),
        alive.post("/v1/completions", stream),
    ]
    ids = [response.headers.get_list("x-request-id") for response in found]
    assert all(len(one) == 1 and re.fullmatch("req_[0-9a-f]{32}", one[0]) for one in ids), ids
    assert len({one for (one,) in ids}) == len(ids)


@pytest.mark.parametrize("where", ["a route", "the engine"])
def test_the_log_of_a_500_has_the_responses_id(bridges, monkeypatch, caplog, where):
    def fail(*arguments, **options):
        raise RuntimeError("a reason for the log alone")

    target = (
        "layerbridge.serving.app.read_texts" if where == "a route" else "layerbridge.model.bridge.Bridge.layer_weights"
    )
    monkeypatch.setattr(target, fail)
    with running(bridges) as server:
        found = server.post("/v1/inspect", {"model": "plain", "texts": ["x"]})
        assert error(found, 500)["code"] == "internal_error"
        assert "a reason" not in found.text
        assert server.get("/readyz").status_code == 200
    request_id = found.headers["x-request-id"]
    logged = [record for record in caplog.records if request_id in record.getMessage()]
    assert len(logged) == 1, "one line has it"
    assert logged[0].levelname == "ERROR"
    assert "a reason for the log alone" in caplog.text
    assert caplog.text.count("Traceback") == 1


# -------------------------------------------------------------------------------------------------------------------
# Settings


def test_an_open_address_wants_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match=f"host is '{host}', which others.*LAYERBRIDGE_API_KEY"):
            build_server_config(host=host)
        assert build_server_config(host=host, api_key="long-enough").port == 8000
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"):
        assert is_loopback(host)
        assert build_server_config(host=host).api_key is None


def test_keys_are_not_shown_and_not_too_short():
    with pytest.raises(ConfigError, match="3 characters; wanted at least 8") as found:
        build_server_config(api_key="abc")
    assert "abc" not in str(found.value)
    with pytest.raises(ConfigError, match="printable ASCII") as found:
        build_server_config(api_key="clé-secrète")
    assert "secr" not in str(found.value)
    assert "a-secret-key" not in repr(build_server_config(api_key="a-secret-key"))


def test_a_keys_file_is_read_where_nobody_else_can(tmp_path):
    file = tmp_path / "key"
    assert read_key(None, {}) is None
    assert read_key(None, {"LAYERBRIDGE_API_KEY": " from-there \n"}).get_secret_value() == "from-there"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(file, {})
    file.write_text("from-a-file\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(file, {})
    file.chmod(0o600)
    assert read_key(file, {"LAYERBRIDGE_API_KEY": "other"}).get_secret_value() == "from-a-file"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_key(file, {})


def test_limits_are_checked_and_say_their_unit():
    with pytest.raises(ConfigError, match="unknown key 'limits.max_token'. Did you mean"):
        build_server_config(limits={"max_token": 5})
    with pytest.raises(ConfigError, match="default_new_tokens is 128 and max_new_tokens 64"):
        build_server_config(limits={"max_new_tokens": 64})
    assert build_server_config(limits={"max_new_tokens": "256"}).limits.max_new_tokens == 256
    with pytest.raises(ConfigError, match="limits.max_queue"):
        build_server_config(limits={"max_queue": 0})
    assert set(Limits.model_fields) == set(Limits().model_dump())


def test_runs_are_called_as_their_folders_and_share_their_bases(bridges, tmp_path):
    for name in ("topic", "plain"):
        bridges[name].save_pretrained(tmp_path / name / "checkpoint")
    found = load_bridges([str(tmp_path / "topic"), str(tmp_path / "plain" / "checkpoint")], device="cpu")
    assert list(found) == ["topic", "plain"]
    assert found["topic"].llm is found["plain"].llm
    assert found["topic"].encoder.model is found["plain"].encoder.model
    assert found["topic"].fingerprint() == bridges["topic"].fingerprint()
    assert model_name("owner/name") == "owner/name"
    with pytest.raises(ConfigError, match="Two runs are called 'topic'"):
        load_bridges([str(tmp_path / "topic"), str(tmp_path / "topic" / "checkpoint")], device="cpu")
    with pytest.raises(ConfigError, match="Got no run to serve"):
        load_bridges([])
