"""Events of an engine to responses in OpenAI's form: whole ones, and streams of chunks."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from layerbridge.serving.engine import Began, Ended, Event, Wrote
from layerbridge.serving.errors import ApiError
from layerbridge.serving.streams import DONE, WAITING, Deadline, event, failed
from layerbridge.serving.wire import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    Completion,
    Finish,
    TextChoice,
    Usage,
)

WAITING_SECONDS = 15.0
"""Without an event, after which a stream begins all the same, and between its signs of life: proxies leave a connection
on which nothing comes, many after 60."""


@dataclass
class _Row:
    text: str = ""
    finish: Finish | None = None
    num_read: int = 0
    num_written: int = 0


class Answers:
    """The answers to one request, as they come.

    Args:
        model: as the request named it.
        events: of the engine, an async generator.
        number: of texts, each with an answer.
        chat: whether it is a chat, or else completions.
        deadline: of the request.
    """

    def __init__(
        self, model: str, events: AsyncIterator[Event], *, number: int, chat: bool, deadline: Deadline
    ) -> None:
        self._about: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._chat, self._events, self._deadline = chat, events, deadline
        self._rows = [_Row() for _ in range(number)]
        self._coming: asyncio.Task[Event] | None = None
        """The next event of a stream, begun and not taken yet."""

    async def close(self) -> None:
        """Leave what is unfinished."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        if isinstance(self._events, AsyncGenerator):
            await self._events.aclose()

    async def begin(self) -> None:
        """Return once the first text has a place in a batch, or has waited for a while.

        Failures that come until then are raised, and so have a status; later ones are events of the stream.
        """
        try:
            await self._wait()
        except BaseException:
            await self.close()
            raise

    async def whole(self) -> ChatCompletion | Completion:
        """Return the response once all answers are whole."""
        try:
            while not self._ended:
                await self._next()
        finally:
            await self.close()
        if self._chat:
            (row,) = self._rows
            choice = ChatChoice(message=ChatMessage(content=row.text), finish_reason=row.finish or "stop")
            return ChatCompletion(choices=[choice], usage=self._usage, **self._about)
        choices = [
            TextChoice(index=index, text=row.text, finish_reason=row.finish or "stop")
            for index, row in enumerate(self._rows)
        ]
        return Completion(choices=choices, usage=self._usage, **self._about)

    async def chunks(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the response as server-sent events, after `begin`."""
        no_usage: dict[str, Any] = {"usage": None} if with_usage else {}
        if self._chat:
            yield self._chunk([self._choice(0, {"role": "assistant", "content": ""}, None)], **no_usage)
        try:
            while not self._ended:
                one = await self._next_or_none()
                if one is None:
                    yield WAITING
                elif isinstance(one, Wrote):
                    yield self._chunk([self._choice(one.row, {"content": one.text}, None)], **no_usage)
                elif isinstance(one, Ended):
                    yield self._chunk([self._choice(one.row, {}, one.finish)], **no_usage)
        except ApiError as error:
            yield failed(error)
            return
        if with_usage:
            yield self._chunk([], usage=self._usage.model_dump())
        yield DONE

    async def _next_or_none(self) -> Event | None:
        """Return the next event, or None where there is none for a while."""
        coming = await self._wait()
        if coming is None:
            return None
        self._coming = None
        return coming.result()

    async def _wait(self) -> asyncio.Task[Event] | None:
        """Return the next event's task once it is done, which stays the next until it is taken; None after a while."""
        coming = self._coming = self._coming or asyncio.ensure_future(self._next())
        done, _ = await asyncio.wait({coming}, timeout=WAITING_SECONDS)
        if not done:
            return None
        coming.result()  # raises what it failed for
        return coming

    async def _next(self) -> Event:
        one = await self._deadline.wait_for(anext(self._events))
        row = self._rows[one.row]
        if isinstance(one, Began):
            row.num_read = one.prompt_tokens
        elif isinstance(one, Wrote):
            row.text += one.text
        else:
            row.finish, row.num_written = one.finish, one.completion_tokens
        return one

    @property
    def _ended(self) -> bool:
        return all(row.finish is not None for row in self._rows)

    @property
    def _usage(self) -> Usage:
        return usage(sum(row.num_read for row in self._rows), sum(row.num_written for row in self._rows))

    def _choice(self, index: int, delta: dict[str, str], finish: Finish | None) -> dict[str, Any]:
        told = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        return {"index": index, **told, "logprobs": None, "finish_reason": finish}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._about, "object": kind, "choices": choices, **more})


def usage(read: int, written: int = 0) -> Usage:
    """Return counted tokens."""
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
