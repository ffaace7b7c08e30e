"""The engine whose LLM runs, unmodified, in a vLLM of its own: texts are encoded and fused here, and written there.

Shapes: B batch, T LLM positions, D LLM width.

The thread of `BridgeEngine` makes what the LLM reads (bos, soft tokens, boundary and the embeddings of the text) for a
batch at a time. From there each text is a request of its own to vLLM, which batches as it likes. What comes back are
token ids: text, stop strings and ends are made of them here, by the code that does it for an LLM in this process.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerbridge.model.bridge import Bridge
from layerbridge.model.generation import generation_options
from layerbridge.model.row_text import Finish, RowText
from layerbridge.model.splice import splice
from layerbridge.serving.bridge_engine import Asked, BridgeEngine, Observer, no_room, told
from layerbridge.serving.engine import Began, Ended, Event, Reading, Scored, Writing, Wrote
from layerbridge.serving.errors import ApiError, bad_request, shutting_down
from layerbridge.serving.limits import Limits
from layerbridge.serving.upstream import Upstream, broken
from layerbridge.serving.vllm_checks import UpstreamModel
from layerbridge.serving.vllm_requests import (
    CHAT,
    COMPLETIONS,
    NO_LOG_PROBABILITIES,
    chat_body,
    completion_body,
    encode,
    written_tokens,
)
from layerbridge.serving.vllm_scoring import Labels, probabilities, read_labels
from layerbridge.serving.waiting_line import Row


@dataclass(frozen=True, eq=False)
class _Encoded:
    """One text, ready for the LLM."""

    row: Row
    embeds_TD: Tensor
    """On the CPU: the whole prompt, or its soft tokens and boundary where vLLM writes the rest."""
    prompt_tokens: int
    labels: Labels | None = None


class _Places:
    """Rows that are at vLLM or on their way; a row that leaves before it comes has no place either."""

    def __init__(self, freed: Callable[[], None]) -> None:
        self._rows: set[Row] = set()
        self._lock = threading.Lock()
        self._freed = freed

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, row: Row) -> None:
        with self._lock:
            if not row.cancelled:
                self._rows.add(row)

    def leave(self, rows: Sequence[Row]) -> None:
        with self._lock:
            for row in rows:
                row.cancelled = True
            self._rows.difference_update(rows)
        self._freed()


class VllmEngine(BridgeEngine):
    """Answers of an LLM in vLLM (`layerbridge.serving.engine.Engine`).

    Args:
        bridges: by the id that requests give, loaded with `llm_elsewhere`.
        limits: of batches, queue and tokens.
        upstream: where vLLM is; closed with the engine.
        model: what was found there (`layerbridge.serving.vllm_checks.check_upstream`).
        observer: of batches and tokens.
    """

    def __init__(
        self,
        bridges: Mapping[str, Bridge],
        limits: Limits,
        upstream: Upstream,
        model: UpstreamModel,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(bridges, limits, observer)
        self._upstream, self._model = upstream, model
        self._chats = upstream.config.route == "chat"
        self._places = _Places(self._line.look_again)
        self._doing: set[asyncio.Task[None]] = set()
        self._ends = {name: end_tokens(bridge) for name, bridge in bridges.items()}
        upstream.watch()
        self.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests, and vLLM does."""
        return super().ready and self._upstream.healthy

    @property
    def num_writing(self) -> int:
        """How many texts are at vLLM or on their way."""
        return len(self._places)

    async def generate(self, model: str, texts: Sequence[Reading], how: Writing) -> AsyncIterator[Event]:
        """Yield what is written for each text as it comes."""
        asked = self._put(model, [{"kind": "generate", "reading": reading, "writing": how} for reading in texts])
        events = asyncio.Queue[Event | ApiError]()

        async def relay(one: _Encoded) -> None:
            await self._relay(one, how, events.put_nowait)

        async def work() -> None:
            try:
                await self._each(asked, relay)
            except Exception as error:
                events.put_nowait(told(error))

        working, left = asyncio.create_task(work()), len(texts)
        try:
            while left:
                event = await events.get()
                if isinstance(event, ApiError):
                    raise event
                left -= isinstance(event, Ended)
                yield event
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def classify(self, model: str, texts: Sequence[Reading], labels: Sequence[str]) -> Scored:
        """Return the probabilities of labels for each text: the softmax over their log-probabilities."""
        if self._chats:
            raise bad_request(
                "classify is not supported with --engine-route chat, where labels cannot follow the prompt.",
                code="unsupported",
            )
        if not self._model.scores:
            raise bad_request(NO_LOG_PROBABILITIES, code="unsupported")
        rows = [{"kind": "classify", "reading": reading, "labels": tuple(labels)} for reading in texts]
        found: dict[int, list[float]] = {}
        num_tokens = 0

        async def score(one: _Encoded) -> None:
            nonlocal num_tokens
            num_tokens += one.prompt_tokens
            assert one.labels is not None
            found[one.row.number] = await probabilities(self._upstream, self._model.name, one.embeds_TD, one.labels)

        await self._each(self._put(model, rows), score)
        return Scored([found[number] for number in range(len(texts))], num_tokens)

    async def close(self) -> None:
        """Give up what is unfinished and close all connections."""
        await super().close()
        for one in tuple(self._doing):
            one.cancel()
        await asyncio.gather(*self._doing, return_exceptions=True)
        await self._upstream.close()

    async def _each(self, asked: Asked, do: Callable[[_Encoded], Awaitable[None]]) -> None:
        """Do something with each row as soon as it is encoded; the first failure ends all of them and is raised."""
        doing = asyncio.create_task(self._do_each(asked, do))
        self._doing.add(doing)
        try:
            await doing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # the engine is closed, and nobody left
                raise shutting_down() from None
            raise
        finally:
            self._doing.discard(doing)

    async def _do_each(self, asked: Asked, do: Callable[[_Encoded], Awaitable[None]]) -> None:
        async def one_row(one: _Encoded) -> None:
            try:
                await do(one)
            finally:
                self._places.leave([one.row])

        try:
            async with asyncio.TaskGroup() as group:
                async for one in self._told(asked):
                    group.create_task(one_row(one))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self._places.leave(asked.rows)

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _max_positions(self, model: str) -> int | None:
        return self._model.max_tokens

    def _held_back(self) -> Collection[str]:
        return ("generate", "classify") if len(self._places) >= self._limits.max_writing else ()

    def _answer(self, rows: list[Row]) -> None:
        bridge = self._bridges[rows[0].model]
        labels = read_labels(bridge, rows[0].labels) if rows[0].kind == "classify" else None
        prefixes = _read_prefixes(bridge, rows, soft_only=self._chats)
        for row, embeds_TD in zip(rows, prefixes, strict=True):
            wanted = len(embeds_TD) + (row.writing.max_new_tokens if row.writing else labels.longest if labels else 0)
            limit = self._model.max_tokens
            if limit is not None and wanted > limit:
                row.tell(no_room(wanted, limit))
                continue
            self._places.take(row)
            row.tell(_Encoded(row, embeds_TD, self._count(row), labels))

    # ---------------------------------------------------------------------------------------------------------------
    # vLLM

    async def _relay(self, one: _Encoded, how: Writing, tell: Callable[[Event], None]) -> None:
        """Have one text's answer written, and tell what comes."""
        row, bridge = one.row, self._bridges[one.row.model]
        ends = self._ends[row.model]
        text = RowText(bridge.processor.llm_tokenizer, how.stop)

        def body() -> bytes:
            if not self._chats:
                return encode(completion_body(self._model.name, one.embeds_TD, how, ends))
            prompt = bridge.processor.plain_prompt(row.reading.source, row.reading.prompt)
            return encode(chat_body(self._model.name, one.embeds_TD, prompt, how, ends))

        path = CHAT if self._chats else COMPLETIONS
        async with self._upstream.stream(path, await asyncio.to_thread(body)) as choices:
            tell(Began(row.number, one.prompt_tokens))
            finish: Finish | None = None
            async for choice in choices:
                if finish is not None:
                    continue  # what follows the end is read, so that the connection can be used again
                piece, finish = self._write(text, written_tokens(choice), ends, how)
                over_there = choice.get("finish_reason")
                if finish is None and over_there is not None:
                    piece, finish = piece + text.close(), _finish(over_there)
                if piece:
                    tell(Wrote(row.number, piece))
                if finish is not None and over_there is None:
                    break  # a stop string that vLLM has not met yet: it is left, and ends
        if finish is None:
            raise broken("its stream has no finish_reason")
        tell(Ended(row.number, finish, len(text.ids)))

    def _write(
        self, text: RowText, tokens: list[int], ends: Collection[int], how: Writing
    ) -> tuple[str, Finish | None]:
        """Add tokens to a text up to its end."""
        pieces, finish = [], None
        for token in tokens:
            piece, finish = text.write(token, ends=ends, max_new_tokens=how.max_new_tokens)
            pieces.append(piece)
            if finish is not None:
                break
        if self._observer and pieces:
            self._observer.tokens(written=len(pieces))
        return "".join(pieces), finish


def end_tokens(bridge: Bridge) -> frozenset[int]:
    """Return the tokens that end an answer."""
    return frozenset(generation_options(bridge, 1)["generation_config"].eos_token_id)


@torch.no_grad()
def _read_prefixes(bridge: Bridge, rows: Sequence[Row], *, soft_only: bool) -> list[Tensor]:
    """Return what the LLM reads for each row (T, D), on the CPU."""
    bridge.eval()
    tokens = [row.tokens for row in rows if row.tokens is not None]
    inputs = bridge.processor.batch([one.source for one in tokens], [one.prompt for one in tokens]).to(bridge.device)
    pieces = list(bridge.soft_pieces(inputs)) if soft_only else bridge.prefix_pieces(inputs)
    spliced = splice(pieces)
    embeds_BTD, mask_BT = spliced.embeds_BTD.cpu(), spliced.mask_BT.cpu()
    return [embeds_TD[mask_T] for embeds_TD, mask_T in zip(embeds_BTD, mask_BT, strict=True)]


def _finish(reason: object) -> Finish:
    """Return why an answer ended over there where nothing here says so: by a limit or an end token of its own."""
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise broken(f"it ended with finish_reason {str(reason)[:40]!r}")
