"""Answers while they are written, as server-sent events; and what happens when the client leaves."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from layerbridge.serving.errors import ApiError, out_of_time

logger = logging.getLogger("layerbridge.serving")

GRACE_SECONDS = 1.0
"""After a request's deadline, for the event that says so."""

T = TypeVar("T")


class ClientLeft(Exception):  # noqa: N818 - nothing failed
    """The client closed its connection before there was an answer."""


class EventStream(StreamingResponse):
    """Server-sent events that are closed whatever happens.

    Args:
        events: each is one `data:` line.
        close: called at the end, also where the client left before the first event.
        deadline: of the request; a client that reads no more is left shortly after it.
    """

    def __init__(
        self, events: AsyncIterator[bytes], close: Callable[[], Awaitable[None]], deadline: "Deadline"
    ) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._close, self._deadline = close, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        try:
            async with asyncio.timeout_at(self._deadline.end + GRACE_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.info("a client did not read its stream in time; its connection is closed")
        finally:
            await self._close()


def event(data: Mapping[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def failed(error: ApiError) -> bytes:
    """Return the event that ends a stream whose answer failed; OpenAI's client raises it."""
    return b"data: " + error.encoded() + b"\n\n"


DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"
"""A comment, which clients pass over."""


class Deadline:
    """The end of a request's time.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = asyncio.get_running_loop().time() + seconds
        """On the event loop's clock."""

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Return what is awaited.

        Raises:
            ApiError: 504, when the time is over.
        """
        try:
            async with asyncio.timeout_at(self.end):
                return await work
        except TimeoutError:
            raise out_of_time(self.seconds) from None


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what is awaited; it is cancelled when the client leaves.

    Raises:
        ClientLeft: when it does.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
