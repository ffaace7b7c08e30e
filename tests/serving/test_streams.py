"""Streams end, whoever stops first."""

import asyncio

import pytest

from layerbridge.serving import answers, streams
from layerbridge.serving.answers import Answers
from layerbridge.serving.engine import Began, Ended, Wrote
from layerbridge.serving.errors import ApiError, queue_full
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


class Events:
    """Events of an engine, told one by one; closed, it says so."""

    def __init__(self):
        self.queue, self.closed = asyncio.Queue(), False

    async def told(self):
        try:
            while True:
                one = await self.queue.get()
                if isinstance(one, Exception):
                    raise one
                yield one
        finally:
            self.closed = True


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(answers, "WAITING_SECONDS", 0.01)


def stream_of(events, *, seconds=60.0):
    return Answers("m", events.told(), number=1, chat=False, deadline=Deadline(seconds))


def test_a_stream_shows_that_it_is_there_while_it_waits(impatient):
    async def run():
        events = Events()
        answer = stream_of(events)
        await answer.begin()  # though nothing has begun
        chunks = answer.chunks(with_usage=False)
        assert [await anext(chunks) for _ in range(3)] == [streams.WAITING] * 3
        events.queue.put_nowait(Began(0, 5))
        events.queue.put_nowait(Wrote(0, "one"))
        found = await anext(chunks)
        while found == streams.WAITING:
            found = await anext(chunks)
        assert b'"text":"one"' in found
        assert await anext(chunks) == streams.WAITING, "between tokens too"
        events.queue.put_nowait(Ended(0, "stop", 1))
        left = [chunk async for chunk in chunks if chunk != streams.WAITING]
        assert left[-1] == streams.DONE
        assert len(left) == 2
        await answer.close()
        assert events.closed

    asyncio.run(run())


def test_failures_before_a_place_are_raised_and_later_ones_told(impatient):
    async def run(*, late):
        events = Events()
        answer = stream_of(events)
        if not late:
            events.queue.put_nowait(queue_full(1, 1, 1))
        await answer.begin()
        chunks = answer.chunks(with_usage=False)
        assert await anext(chunks) == streams.WAITING
        events.queue.put_nowait(queue_full(1, 1, 1))
        left = [chunk async for chunk in chunks if chunk != streams.WAITING]
        await answer.close()
        return left

    with pytest.raises(ApiError) as found:
        asyncio.run(run(late=False))
    assert found.value.status == 429
    assert asyncio.run(run(late=True)) == [streams.failed(queue_full(1, 1, 1))]


@pytest.mark.parametrize("patience", [0.01, 60], ids=["its stream waits", "it has not begun"])
def test_a_client_that_leaves_while_it_waits_gives_its_place_back(monkeypatch, patience):
    monkeypatch.setattr(answers, "WAITING_SECONDS", patience)

    async def run():
        events = Events()
        answer = stream_of(events)
        beginning = asyncio.ensure_future(answer.begin())
        await asyncio.sleep(0.05)
        assert not events.closed
        if patience < 1:
            assert await anext(answer.chunks(with_usage=False)) == streams.WAITING
            await answer.close()
        else:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
        assert events.closed

    asyncio.run(run())


def test_a_deadline_ends_a_stream_that_waits(impatient):
    async def run():
        answer = stream_of(Events(), seconds=0.1)
        await answer.begin()
        left = [chunk async for chunk in answer.chunks(with_usage=False)]
        assert left[0] == streams.WAITING
        assert b"more than 0.1 seconds" in left[-1]

    asyncio.run(run())
