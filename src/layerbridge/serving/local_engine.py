"""The engine that answers with bridges in this process: one thread owns them; texts that arrive together share a batch.

The thread takes turns: it lets in what waits, within the batch's rows and tokens, then writes one token of each batch
of answers. Classifying and inspecting are one pass each and are done at once. A batch that fails is tried again a
text at a time, so that only the text that it fails for gets the error.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from layerbridge.errors import LayerbridgeError, is_out_of_memory
from layerbridge.model.bridge import Bridge
from layerbridge.model.decoding import Decoding, RowOptions
from layerbridge.serving.engine import Began, Ended, Event, Reading, Scored, ServedModel, Weighed, Writing, Wrote
from layerbridge.serving.errors import ApiError, bad_request, internal, shutting_down
from layerbridge.serving.limits import Limits
from layerbridge.serving.waiting_line import Row, Tokens, WaitingLine

logger = logging.getLogger("layerbridge.serving")


class Observer(Protocol):
    """Who is told what the engine does, from its thread."""

    def batch(self, kind: str, rows: int) -> None:
        """A batch was begun."""

    def tokens(self, *, read: int = 0, written: int = 0) -> None:
        """Tokens were read or written."""


class LocalEngine:
    """Answers of bridges in this process (`layerbridge.serving.engine.Engine`).

    Args:
        bridges: by the id that requests give.
        limits: of batches, queue and tokens.
        observer: of batches and tokens.
    """

    def __init__(self, bridges: Mapping[str, Bridge], limits: Limits, observer: Observer | None = None) -> None:
        self._bridges = dict(bridges)
        self._limits = limits
        self._observer = observer
        self._models = {name: _served(name, bridge) for name, bridge in bridges.items()}
        self._line = WaitingLine(limits)
        self._going: list[tuple[Decoding, list[Row]]] = []
        self._turns = 0  # since a batch of answers began
        self._thread = threading.Thread(target=self._work, name="layerbridge-engine", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------------------------------
    # What routes call

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._line.closed

    @property
    def num_waiting(self) -> int:
        """How many texts wait."""
        return len(self._line)

    @property
    def num_writing(self) -> int:
        """How many answers are being written."""
        return sum(len(decoding.rows) for decoding, _ in tuple(self._going))

    async def generate(self, model: str, texts: Sequence[Reading], how: Writing) -> AsyncIterator[Event]:
        """Yield what is written for each text as it comes."""
        rows = [{"kind": "generate", "reading": reading, "writing": how} for reading in texts]
        events = self._ask(model, rows)
        try:
            async for event in events:
                assert isinstance(event, Began | Wrote | Ended)
                yield event
        finally:
            await events.aclose()

    async def classify(self, model: str, texts: Sequence[Reading], labels: Sequence[str]) -> Scored:
        """Return the probabilities of labels for each text."""
        rows = [{"kind": "classify", "reading": reading, "labels": tuple(labels)} for reading in texts]
        found, num_tokens = await self._ask_once(model, rows)
        return Scored([found[number] for number in range(len(texts))], num_tokens)

    async def inspect(self, model: str, texts: Sequence[Reading]) -> tuple[list[Weighed], int]:
        """Return layer weights by token, and how many encoder tokens there were."""
        found, num_tokens = await self._ask_once(model, [{"kind": "inspect", "reading": reading} for reading in texts])
        return [found[number] for number in range(len(texts))], num_tokens

    async def close(self) -> None:
        """Give up what is unfinished and end the thread."""
        for row in self._line.close():
            row.tell(shutting_down())
        await asyncio.to_thread(self._thread.join)

    async def _ask_once(self, model: str, rows: list[dict[str, Any]]) -> tuple[dict[int, Any], int]:
        found: dict[int, Any] = {}
        num_tokens = 0
        events = self._ask(model, rows)
        try:
            async for event in events:
                if isinstance(event, Began):
                    num_tokens += event.prompt_tokens
                else:
                    number, found[number] = event
        finally:
            await events.aclose()
        return found, num_tokens

    async def _ask(self, model: str, wanted: list[dict[str, Any]]) -> AsyncGenerator[Any, None]:
        """Put rows into the line and yield what the thread tells; leaving takes them back."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[object]()

        def tell(event: object) -> None:
            try:
                loop.call_soon_threadsafe(told.put_nowait, event)
            except RuntimeError:  # the loop has ended, and nobody waits
                self._line.cancel(rows)

        rows = [Row(model=model, number=number, tell=tell, **one) for number, one in enumerate(wanted)]
        self._line.put(rows)
        left = len(rows)
        try:
            while left:
                event = await told.get()
                if isinstance(event, Exception):
                    raise event
                left -= not isinstance(event, Began | Wrote)
                yield event
        finally:
            if left:
                self._line.cancel(rows)

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _work(self) -> None:
        while not self._line.closed:
            if not self._going:
                self._line.wait()
            try:
                self._turn()
            except Exception:  # our own mistake: answered, logged, and the thread goes on
                logger.exception("the engine's turn failed")
                for _, rows in self._going:
                    _tell_all(rows, internal())
                self._going = []
        for _, rows in self._going:
            _tell_all(rows, shutting_down())
        self._going = []

    def _turn(self) -> None:
        gathered = not self._going or self._turns >= self._limits.gather_steps * len(self._going)
        may_generate = gathered and len(self._going) < self._limits.max_batches
        batch = self._line.take(self._prepare, may_generate=may_generate)
        if batch:
            self._turns = 0 if batch[0].kind == "generate" else self._turns
            self._begin(batch)
        self._turns += 1
        for one in list(self._going):
            decoding, rows = one
            decoding.drop({index for index, row in enumerate(rows) if row.cancelled})
            try:
                self._write(decoding, rows)
            except Exception as error:
                _tell_all([rows[index] for index in decoding.rows], _told(error))
                decoding.drop(list(decoding.rows))
            if not decoding.rows:
                self._going.remove(one)

    def _prepare(self, row: Row) -> bool:
        """Give a row its tokens; tell it what is wrong and return False where it cannot be read."""
        processor, limits = self._bridges[row.model].processor, self._limits
        text = row.reading.source
        try:
            num_source = processor.count_source_tokens([text])[0]
            limit = processor.source_limit(limits.max_source_tokens)
            if num_source > limit:
                raise _too_long("text", num_source, limit, "encoder")
            prompts = None if row.reading.prompt is None else [row.reading.prompt]
            (source,), (prompt,) = processor.source_ids([text], limit), processor.prompt_ids([text], prompts)
            if len(prompt) > limits.max_prompt_tokens:
                raise _too_long("LLM's text", len(prompt), limits.max_prompt_tokens, "LLM")
        except Exception as error:
            row.tell(_told(error))
            return False
        row.tokens = Tokens(source, prompt)
        return True

    def _begin(self, rows: list[Row]) -> None:
        """Begin a batch; one that fails is begun again in halves, so that most rows still share theirs."""
        try:
            self._answer(rows)
        except Exception as error:
            if len(rows) == 1:
                rows[0].tell(_told(error))
                return
            logger.info("a batch of %d texts failed (%s); its halves are tried", len(rows), type(error).__name__)
            self._begin(rows[: len(rows) // 2])
            self._begin(rows[len(rows) // 2 :])

    def _answer(self, rows: list[Row]) -> None:
        first = rows[0]
        bridge = self._bridges[first.model]
        tokens = [row.tokens for row in rows if row.tokens is not None]
        if self._observer:
            self._observer.batch(first.kind, len(rows))
        if first.kind == "generate":
            inputs = bridge.processor.batch([one.source for one in tokens], [one.prompt for one in tokens])
            decoding = Decoding(bridge, inputs, [_options(row.writing) for row in rows])
            self._going.append((decoding, rows))
        texts = [row.reading.source for row in rows]
        results: list[object] = []
        if first.kind == "classify":
            prompts = [row.reading.prompt or "" for row in rows] if first.reading.prompt is not None else None
            found = bridge.classify(
                texts, first.labels, prompts=prompts, max_source_tokens=self._limits.max_source_tokens
            )
            results = [[one.probabilities[label] for label in first.labels] for one in found]
        if first.kind == "inspect":
            weighed = bridge.layer_weights(texts, max_source_tokens=self._limits.max_source_tokens)
            results = [Weighed(list(one.tokens), one.weights.tolist()) for one in weighed]
        for row, one in zip(rows, tokens, strict=True):
            read = len(one.source) + (0 if first.kind == "inspect" else len(one.prompt))
            row.tell(Began(row.number, read))
            if self._observer:
                self._observer.tokens(read=read)
        for row, result in zip(rows, results, strict=False):
            row.tell((row.number, result))

    def _write(self, decoding: Decoding, rows: list[Row]) -> None:
        """Write one token of each answer of a batch."""
        written = decoding.step()
        if self._observer and written:
            self._observer.tokens(written=len(written))
        for one in written:
            row = rows[one.row]
            if one.text:
                row.tell(Wrote(row.number, one.text))
            if one.finish:
                row.tell(Ended(row.number, one.finish, one.num_tokens))


def _served(name: str, bridge: Bridge) -> ServedModel:
    about = bridge.trained_on or {}
    return ServedModel(
        id=name,
        created=int(time.time()),
        encoder_prompt=about.get("encoder_prompt"),
        prompt=bridge.config.prompt.text,
        answers=tuple(about.get("answers") or ()),
        layers=tuple(bridge.encoder.layer_numbers),
        fusion=bridge.config.fusion.name,
    )


def _options(writing: Writing | None) -> RowOptions:
    assert writing is not None, "rows that are generated say how"
    return RowOptions(**vars(writing))


def _too_long(what: str, found: int, limit: int, whose: str) -> ApiError:
    return bad_request(
        f"The {what} has {found} {whose} tokens; at most {limit} are taken. Divide it.", code="context_length_exceeded"
    )


def _told(error: Exception) -> ApiError:
    """Return what a client is told about a failure."""
    if isinstance(error, ApiError):
        return error
    no_memory = is_out_of_memory(error) or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    if isinstance(error, LayerbridgeError) and not no_memory:
        return bad_request(str(error))
    logger.error("an answer failed", exc_info=error)
    if no_memory:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return ApiError(503, "The server has no memory for this request now. Ask for less.", code="out_of_memory")
    return internal()


def _tell_all(rows: Sequence[Row], error: ApiError) -> None:
    for row in rows:
        row.tell(error)
