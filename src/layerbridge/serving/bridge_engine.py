"""What engines that hold bridges have in common: requests become rows that wait, and one thread owns the bridges.

The thread takes turns: it lets in what waits, within the batch's rows and tokens, and has it answered. Inspecting is
one pass and is done at once. A batch that cannot be begun is begun again in halves, so that only the text that it fails
for gets the error.
"""

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from layerbridge.errors import LayerbridgeError, is_out_of_memory
from layerbridge.model.bridge import Bridge
from layerbridge.model.pooling import num_soft_tokens
from layerbridge.serving.engine import Began, Event, Reading, Scored, ServedModel, Weighed, Writing, Wrote
from layerbridge.serving.errors import ApiError, bad_request, internal, shutting_down
from layerbridge.serving.limits import Limits
from layerbridge.serving.waiting_line import Row, Tokens, WaitingLine

logger = logging.getLogger("layerbridge.serving")

CLOSE_SECONDS = 5.0
"""That the thread has to end its pass when the engine is closed."""
POLL_SECONDS = 0.02
"""Between looks at whether it has."""


class Observer(Protocol):
    """Who is told what the engine does, from its thread."""

    def batch(self, kind: str, rows: int) -> None:
        """A batch was begun."""

    def tokens(self, *, read: int = 0, written: int = 0) -> None:
        """Tokens were read or written."""


@dataclass(frozen=True)
class Asked:
    """Rows of one request, and what the thread tells of them."""

    rows: list[Row]
    told: asyncio.Queue[object]


class BridgeEngine(ABC):
    """An engine (`layerbridge.serving.engine.Engine`) whose thread owns bridges. Call `start` once it is built.

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
        self._counted: tuple[tuple[str, tuple[str, ...]] | None, int] = (None, 0)  # labels, and their tokens
        self._broken = False  # set at a failure after which the device answers nothing more
        self._thread = threading.Thread(target=self._work, name="layerbridge-engine", daemon=True)

    # ---------------------------------------------------------------------------------------------------------------
    # What an engine of this kind says

    @property
    def _busy(self) -> bool:
        """Whether the thread has something to do though nothing waits."""
        return False

    def _held_back(self) -> Collection[str]:
        """Return the kinds of rows that are not taken now."""
        return ()

    @abstractmethod
    def _answer(self, rows: list[Row]) -> None:
        """Begin a batch of rows of one kind, `generate` or `classify`."""

    def _took(self, kind: str, seconds: float) -> None:  # noqa: B027 - nothing is the right default
        """Hear how long a batch took to begin, or to be answered in one pass."""

    def _advance(self) -> None:  # noqa: B027
        """Go on with what was begun."""

    def _give_up(self, error: ApiError) -> None:  # noqa: B027
        """Tell everybody whose answer is being written that there is none."""

    @abstractmethod
    def _max_positions(self, model: str) -> int | None:
        """Return how many positions the LLM has; None where that is not known."""

    # ---------------------------------------------------------------------------------------------------------------
    # What routes call

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""
        return self._models

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._line.closed and not self._broken

    @property
    def num_waiting(self) -> int:
        """How many texts wait."""
        return len(self._line)

    @abstractmethod
    def generate(self, model: str, texts: Sequence[Reading], how: Writing) -> AsyncIterator[Event]:
        """Yield what is written for each text as it comes."""

    @abstractmethod
    async def classify(self, model: str, texts: Sequence[Reading], labels: Sequence[str]) -> Scored:
        """Return the probabilities of labels for each text."""

    async def inspect(self, model: str, texts: Sequence[Reading]) -> tuple[list[Weighed], int]:
        """Return layer weights by token, and how many encoder tokens there were."""
        asked = self._put(model, [{"kind": "inspect", "reading": reading} for reading in texts])
        found, num_tokens = await self._told_once(asked)
        return [found[number] for number in range(len(texts))], num_tokens

    async def close(self) -> None:
        """Give up what is unfinished and end the thread; a pass that does not end is left after a few seconds."""
        for row in self._line.close():
            row.tell(shutting_down())
        # Looked at, not joined in another thread: that could not be given up, and the process would wait for it.
        end = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive():
            if time.monotonic() >= end:
                logger.warning("the engine's pass did not end within %g seconds; it is left", CLOSE_SECONDS)
                return
            await asyncio.sleep(POLL_SECONDS)

    def start(self) -> None:
        """Let the thread begin."""
        self._thread.start()

    def _put(self, model: str, wanted: list[dict[str, Any]]) -> Asked:
        """Put rows into the line."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[object]()

        def tell(event: object) -> None:
            try:
                loop.call_soon_threadsafe(told.put_nowait, event)
            except RuntimeError:  # the loop has ended, and nobody waits
                self._line.cancel(rows)

        rows = [Row(model=model, number=number, tell=tell, **one) for number, one in enumerate(wanted)]
        self._line.put(rows)
        return Asked(rows, told)

    async def _told(self, asked: Asked) -> AsyncGenerator[Any, None]:
        """Yield what the thread tells, until each row has got what ends it; leaving takes rows back."""
        left = len(asked.rows)
        try:
            while left:
                event = await asked.told.get()
                if isinstance(event, Exception):
                    raise event
                left -= not isinstance(event, Began | Wrote)
                yield event
        finally:
            if left:
                self._line.cancel(asked.rows)

    async def _told_once(self, asked: Asked) -> tuple[dict[int, Any], int]:
        """Return what each row, answered in one piece, was told, and how many tokens were read."""
        found: dict[int, Any] = {}
        num_tokens = 0
        events = self._told(asked)
        try:
            async for event in events:
                if isinstance(event, Began):
                    num_tokens += event.prompt_tokens
                else:
                    number, found[number] = event
        finally:
            await events.aclose()
        return found, num_tokens

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _work(self) -> None:
        while not self._line.closed:
            if not self._busy:
                self._line.wait(self._held_back)
            try:
                batch = self._line.take(self._prepare, held_back=self._held_back())
                if batch:
                    began = time.monotonic()
                    self._begin(batch)
                    self._took(batch[0].kind, time.monotonic() - began)
                self._advance()
            except Exception:  # our own mistake: answered, logged, and the thread goes on
                logger.exception("the engine's turn failed")
                self._give_up(internal())
        self._give_up(shutting_down())

    def _prepare(self, row: Row) -> bool:
        """Give a row its tokens; tell it what is wrong and return False where it cannot be read."""
        try:
            row.tokens = self._read_tokens(row)
            if row.kind == "classify":
                row.label_tokens = self._count_label_tokens(row)
            if row.writing is not None:
                self._check_room(row, row.tokens, row.writing.max_new_tokens)
        except Exception as error:
            row.tell(self._failure(error))
            return False
        return True

    def _read_tokens(self, row: Row) -> Tokens:
        processor, limits = self._bridges[row.model].processor, self._limits
        text = row.reading.source
        num_source = processor.count_source_tokens([text])[0]
        limit = processor.source_limit(limits.max_source_tokens)
        if num_source > limit:
            raise too_long("text", num_source, limit, "encoder")
        prompts = None if row.reading.prompt is None else [row.reading.prompt]
        (source,), (prompt,) = processor.source_ids([text], limit), processor.prompt_ids([text], prompts)
        if len(prompt) > limits.max_prompt_tokens:
            raise too_long("LLM's text", len(prompt), limits.max_prompt_tokens, "LLM")
        return Tokens(source, prompt)

    def _count_label_tokens(self, row: Row) -> int:
        key = (row.model, row.labels)
        if key != self._counted[0]:  # texts of one request come one after another
            ids = self._bridges[row.model].processor.answer_ids(row.labels)
            self._counted = (key, sum(map(len, ids)))
        found, limit = self._counted[1], self._limits.max_label_tokens
        if found > limit:
            raise bad_request(
                f"The labels have {found} LLM tokens together; at most {limit} are taken. Give fewer or shorter ones.",
                param="labels",
            )
        return found

    def _check_room(self, row: Row, tokens: Tokens, max_new_tokens: int) -> None:
        """Refuse a text and an answer that need more positions than the LLM has, before anybody shares their batch."""
        bridge, limit = self._bridges[row.model], self._max_positions(row.model)
        around = 1 + (bridge.processor.llm_tokenizer.bos_token_id is not None)
        soft = num_soft_tokens(bridge.config.pooling, len(tokens.source))
        wanted = around + soft + len(tokens.prompt) + max_new_tokens
        if limit is not None and wanted > limit:
            raise no_room(wanted, limit)

    def _begin(self, rows: list[Row]) -> None:
        """Begin a batch; one that fails is begun again in halves, so that most rows still share theirs."""
        try:
            if self._observer:
                self._observer.batch(rows[0].kind, len(rows))
            if rows[0].kind == "inspect":
                self._inspect(rows)
            else:
                self._answer(rows)
            return
        except Exception as error:
            if len(rows) == 1:
                rows[0].tell(self._failure(error))
                return
            logger.info("a batch of %d texts failed (%s); its halves are tried", len(rows), type(error).__name__)
        # Outside of `except`: the error holds what the failed batch took of the memory.
        free_memory()
        self._begin(rows[: len(rows) // 2])
        self._begin(rows[len(rows) // 2 :])

    def _failure(self, error: Exception) -> ApiError:
        """Return what a client is told about a failure; after one that breaks the device the engine is not ready."""
        self._broken = self._broken or breaks_device(error)
        return told(error)

    def _inspect(self, rows: list[Row]) -> None:
        bridge = self._bridges[rows[0].model]
        texts = [row.reading.source for row in rows]
        weighed = bridge.layer_weights(texts, max_source_tokens=self._limits.max_source_tokens)
        for row, one in zip(rows, weighed, strict=True):
            self._began(row)
            row.tell((row.number, Weighed(list(one.tokens), one.weights.tolist())))

    def _count(self, row: Row) -> int:
        """Count what is read for a row, and return it."""
        assert row.tokens is not None
        read = len(row.tokens.source) + (0 if row.kind == "inspect" else len(row.tokens.prompt))
        if self._observer:
            self._observer.tokens(read=read)
        return read

    def _began(self, row: Row) -> None:
        """Tell a row that it has a place in a batch."""
        row.tell(Began(row.number, self._count(row)))


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


def too_long(what: str, found: int, limit: int, whose: str) -> ApiError:
    """Return the error for a text that is not cut."""
    return bad_request(
        f"The {what} has {found} {whose} tokens; at most {limit} are taken. Divide it.", code="context_length_exceeded"
    )


def no_room(wanted: int, limit: int) -> ApiError:
    """Return the error for a text and an answer that need more positions than the LLM has."""
    return bad_request(
        f"The text and its answer need {wanted} positions of the LLM, which takes {limit}. Ask for fewer tokens, or "
        "divide the text.",
        code="context_length_exceeded",
    )


def breaks_device(error: Exception) -> bool:
    """Return whether nothing more can be computed on the device after this: a CUDA error other than no memory."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def free_memory() -> None:
    """Give back what torch keeps of a GPU's memory and no tensor holds."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def told(error: Exception) -> ApiError:
    """Return what a client is told about a failure."""
    if isinstance(error, ApiError):
        return error
    no_memory = is_out_of_memory(error) or (error.__cause__ is not None and is_out_of_memory(error.__cause__))
    if isinstance(error, LayerbridgeError) and not no_memory:
        return bad_request(str(error))
    logger.error("an answer failed", exc_info=error)
    if no_memory:
        return ApiError(503, "The server has no memory for this request now. Ask for less.", code="out_of_memory")
    return internal()


def tell_all(rows: Sequence[Row], error: ApiError) -> None:
    """Tell several rows the same failure."""
    for row in rows:
        row.tell(error)
