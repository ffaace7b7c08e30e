"""The server ends, whatever its engine is doing."""

import asyncio
import contextlib
import signal
import threading

import pytest

from layerbridge.model import decoding
from layerbridge.serving import bridge_engine
from layerbridge.serving.engine import Reading, Writing
from tests.serving.running import running, wait_until

BODY = {"model": "plain", "prompt": "the cat", "max_tokens": 4}


@pytest.fixture
def stuck(monkeypatch):
    """A pass that does not end before the test does."""
    inside, released = threading.Event(), threading.Event()

    def step(self):
        inside.set()
        released.wait(60)
        return []

    monkeypatch.setattr(decoding.Decoding, "step", step)
    yield inside
    released.set()


def serve_and_end(bridges, stuck, end, **limits):
    """Ask what is never answered and end the server; returns how the asking ended."""
    told = []
    with running(bridges, **limits) as server:

        def ask():
            with contextlib.suppress(Exception):
                told.append(server.post("/v1/completions", BODY).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        assert stuck.wait(20)
        end(server.server)
        wait_until(lambda: server.server.should_exit)  # `running` then sees to it that its thread ends
    asking.join(20)
    assert not asking.is_alive()
    return told


def test_the_end_does_not_wait_for_a_pass_that_does_not_end(bridges, stuck, monkeypatch, caplog):
    monkeypatch.setattr(bridge_engine, "CLOSE_SECONDS", 0.2)
    serve_and_end(bridges, stuck, lambda server: server.end(), shutdown_seconds=0.1)
    assert "the engine's pass did not end within 0.2 seconds" in caplog.text


@pytest.mark.parametrize("shutdown_seconds", [0.0, 1000.0], ids=["the engine", "the answers"])
def test_a_second_signal_waits_for_nothing(bridges, stuck, monkeypatch, shutdown_seconds):
    monkeypatch.setattr(bridge_engine, "CLOSE_SECONDS", 1000)

    def end(server):
        server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: server._ending is not None)
        server.handle_exit(signal.SIGTERM, None)

    serve_and_end(bridges, stuck, end, shutdown_seconds=shutdown_seconds)


def test_a_second_signal_ends_the_closing_too(bridges, stuck, monkeypatch):
    """The first one's answers are done, and the engine, which has begun something else, is being closed."""
    monkeypatch.setattr(bridge_engine, "CLOSE_SECONDS", 1000)
    closing = threading.Event()
    close = bridge_engine.BridgeEngine.close

    async def closed(self):
        closing.set()
        await close(self)

    monkeypatch.setattr(bridge_engine.BridgeEngine, "close", closed)
    with running(bridges) as server:

        async def begin():
            events = server.engine.generate("plain", [Reading(source="the cat")], Writing(max_new_tokens=4))
            await anext(events)

        asyncio.run_coroutine_threadsafe(begin(), server.server._loop)
        assert stuck.wait(20)
        server.server.handle_exit(signal.SIGTERM, None)  # no request runs
        assert closing.wait(20)
        server.server.handle_exit(signal.SIGTERM, None)
