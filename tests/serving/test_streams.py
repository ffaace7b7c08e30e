"""Streams end, whoever stops first."""

import asyncio

import pytest

from layerbridge.serving import streams
from layerbridge.serving.errors import ApiError
from layerbridge.serving.streams import Deadline, EventStream

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def never():
    await asyncio.Event().wait()


async def endless():
    while True:
        yield b"data: x\n\n"
        await asyncio.sleep(0)


def run(send, receive=never, *, seconds=60.0):
    """Send an endless stream; returns how often it was closed."""
    closed = []

    async def close():
        closed.append(True)

    async def serve():
        await EventStream(endless(), close, Deadline(seconds))(SCOPE, receive, send)

    asyncio.run(asyncio.wait_for(serve(), 20))
    return len(closed)


def test_a_client_that_reads_no_more_is_left_after_its_time(monkeypatch):
    monkeypatch.setattr(streams, "GRACE_SECONDS", 0.05)

    async def blocked(message):
        await never()

    assert run(blocked, seconds=0.05) == 1


def test_a_client_that_leaves_ends_its_stream():
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        while len(sent) < 5:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    assert run(send, receive) == 1
    assert len(sent) >= 5


def test_a_client_that_left_before_the_first_event_closes_it_too():
    async def send(message):
        await asyncio.sleep(0)

    async def receive():
        return {"type": "http.disconnect"}

    assert run(send, receive) == 1


def test_a_deadline_is_a_504_that_says_its_seconds():
    async def wait():
        await Deadline(0.02).wait_for(never())

    with pytest.raises(ApiError, match=r"more than 0\.02 seconds") as found:
        asyncio.run(wait())
    assert found.value.status == 504
