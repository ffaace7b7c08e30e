"""A client that sends nothing, or half of something, or reads nothing, holds no connection for ever."""

import asyncio
import contextlib
import json
import socket
import threading

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from layerbridge.errors import ConfigError
from layerbridge.serving.server import Server, build_server_config
from tests.serving.running import running, wait_until

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
HALF = HEALTH[:30]
BODY_LEFT_OUT = b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{"


class Closes:
    async def close(self):
        """Nothing is there to close."""


class Gate:
    """An application without a bridge behind it."""

    closing, num_running = False, 0

    def __init__(self, answer):
        self.answer = answer

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/healthz":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            await self.answer(send)


@contextlib.contextmanager
def serving(answer=None, **limits):
    server = Server(Gate(answer), Closes(), build_server_config(port=0, limits=limits))
    started = threading.Event()
    server.on_started = lambda port: started.set()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield server
    finally:
        server.end()
        thread.join(30)
        assert not thread.is_alive()


def connect(server, **options):
    line = socket.socket()
    for name, value in options.items():
        line.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    line.settimeout(20)
    line.connect(("127.0.0.1", server.port))
    return line


def rest(line):
    """Read until the server closes; failing to is a time-out."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while got := line.recv(65_536):
            found += got
    return found


@pytest.mark.parametrize(
    ("sent", "answers"),
    [([], 0), ([HALF], 0), ([HEALTH], 1), ([HEALTH, HALF], 1), ([HEALTH + HALF], 1), ([BODY_LEFT_OUT], 1)],
    ids=["nothing", "half a head", "one request", "one and a half", "pipelined", "no body after the answer"],
)
def test_a_connection_without_a_whole_request_is_closed(sent, answers):
    with serving(header_seconds=0.3) as server, connect(server) as line:
        for part in sent:
            line.sendall(part)
        assert rest(line).count(b"HTTP/1.1 200") == answers
        wait_until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-long: ", BODY_LEFT_OUT])
def test_bytes_that_trickle_in_win_no_time(start):
    with serving(header_seconds=0.3) as server, connect(server) as line:
        line.sendall(start)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                line.sendall(b"x")
                threading.Event().wait(0.05)
        wait_until(lambda: not server.server_state.connections)


def test_a_request_that_takes_long_is_not_cut_off():
    async def slow(send):
        await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"x"})

    with serving(slow, header_seconds=0.1) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/slow").text == "x"


@pytest.mark.parametrize("whole", [True, False], ids=["a whole answer", "a stream given up at its deadline"])
def test_who_reads_nothing_of_an_answer_is_left(whole):
    made = threading.Event()

    async def much(send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**25)]})
        await send({"type": "http.response.body", "body": b"x" * 2**25, "more_body": not whole})
        made.set()

    with serving(much, header_seconds=0.3) as server, connect(server, SO_RCVBUF=4096) as line:
        line.sendall(HEALTH.replace(b"healthz", b"much"))
        assert made.wait(20)
        wait_until(lambda: not server.server_state.connections)


def test_who_reads_slowly_gets_the_whole_answer():
    async def much(send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**21)]})
        await send({"type": "http.response.body", "body": b"x" * 2**21})

    with serving(much, header_seconds=1) as server, connect(server, SO_RCVBUF=2**15) as line:
        line.sendall(HEALTH.replace(b"healthz", b"much"))
        found = 0
        while found < 2**21:
            got = len(line.recv(2**15))
            assert got, f"cut off after {found} bytes"
            found += got
            threading.Event().wait(0.02)


def test_connections_above_the_limit_are_closed_and_their_places_given_back():
    with serving(max_connections=2, max_requests=1) as server:
        with connect(server) as one, connect(server) as two:
            wait_until(lambda: len(server.server_state.connections) == 2)
            with connect(server) as three:
                head, _, body = rest(three).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            for line in (one, two):
                line.sendall(HEALTH)
                assert line.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not server.server_state.connections)
        assert httpx.get(f"http://127.0.0.1:{server.port}/healthz").text == "ok"


def test_there_is_a_connection_for_each_request():
    with pytest.raises(ConfigError, match="max_connections is 640 and max_requests 641; wanted a connection for each"):
        build_server_config(limits={"max_requests": 641})


def test_the_protocol_is_ours_whatever_else_is_installed():
    with serving() as server:
        assert issubclass(server.config.http_protocol_class, H11Protocol)
        assert server.config.http_protocol_class.__module__ == "layerbridge.serving.connection"
        assert server.config.ws_protocol_class is None


def test_a_head_is_bounded():
    with serving() as server, connect(server) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(HEALTH[:-2] + b"x-long: " + b"x" * 200_000)
        assert rest(line).count(b"HTTP/1.1 200") == 0
        wait_until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GARBAGE\r\n\r\n", HEALTH[:-2] + b"x" * 70_000])
def test_what_is_no_http_gets_an_answer_in_openais_form(sent):
    with serving() as server, connect(server) as line:
        line.sendall(sent + b"\r\n\r\n")
        head, _, body = rest(line).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_garbage_after_a_request_ends_its_connection_alone(bridges):
    with running(bridges) as served, connect(served.server) as line:
        line.sendall(HEALTH + b"GARBAGE\r\n\r\n")
        assert rest(line).startswith(b"HTTP/1.1 200")
        assert served.get("/readyz").status_code == 200
