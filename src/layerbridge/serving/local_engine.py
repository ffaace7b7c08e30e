"""The engine that answers with bridges in this process: texts that arrive together share a batch.

Its thread writes one token of each batch of answers in turn; classifying is one pass and is done at once. While answers
are written, such passes get half of the time at most, so that many of them hold no stream up.
"""

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from layerbridge.model.bridge import Bridge
from layerbridge.model.classification import not_numbers
from layerbridge.model.decoding import Decoding, RowOptions
from layerbridge.model.generation import max_positions
from layerbridge.serving.bridge_engine import BridgeEngine, Observer, tell_all
from layerbridge.serving.engine import Began, Ended, Event, Reading, Scored, Writing, Wrote
from layerbridge.serving.errors import ApiError
from layerbridge.serving.limits import Limits
from layerbridge.serving.waiting_line import Row


class LocalEngine(BridgeEngine):
    """Answers of bridges in this process (`layerbridge.serving.engine.Engine`).

    Args:
        bridges: by the id that requests give.
        limits: of batches, queue and tokens.
        observer: of batches and tokens.
    """

    def __init__(self, bridges: Mapping[str, Bridge], limits: Limits, observer: Observer | None = None) -> None:
        super().__init__(bridges, limits, observer)
        self._going: list[tuple[Decoding, list[Row]]] = []
        self._turns = 0  # since a batch of answers began
        self._owed = 0.0  # seconds that classifying and inspecting took from those whose answers are written
        self.start()

    @property
    def num_writing(self) -> int:
        """How many answers are being written."""
        return sum(len(decoding.rows) for decoding, _ in tuple(self._going))

    async def generate(self, model: str, texts: Sequence[Reading], how: Writing) -> AsyncIterator[Event]:
        """Yield what is written for each text as it comes."""
        events = self._told(
            self._put(model, [{"kind": "generate", "reading": reading, "writing": how} for reading in texts])
        )
        try:
            async for event in events:
                assert isinstance(event, Began | Wrote | Ended)
                yield event
        finally:
            await events.aclose()

    async def classify(self, model: str, texts: Sequence[Reading], labels: Sequence[str]) -> Scored:
        """Return the probabilities of labels for each text."""
        rows = [{"kind": "classify", "reading": reading, "labels": tuple(labels)} for reading in texts]
        found, num_tokens = await self._told_once(self._put(model, rows))
        return Scored([found[number] for number in range(len(texts))], num_tokens)

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    @property
    def _busy(self) -> bool:
        return bool(self._going)

    def _held_back(self) -> Collection[str]:
        if not self._going:
            return ()
        limits = self._limits
        held = [] if self._owed <= 0 else ["classify", "inspect"]
        positions = sum(len(decoding.rows) * max(row.cost for row in rows) for decoding, rows in self._going)
        full = len(self._going) >= limits.max_batches or positions >= limits.writing_tokens
        if full or self._turns < limits.gather_steps:
            held.append("generate")
        return held

    def _max_positions(self, model: str) -> int | None:
        return max_positions(self._bridges[model].llm)

    def _took(self, kind: str, seconds: float) -> None:
        if self._going and kind != "generate":
            self._owed += seconds

    def _answer(self, rows: list[Row]) -> None:
        first = rows[0]
        bridge = self._bridges[first.model]
        if first.kind == "generate":
            tokens = [row.tokens for row in rows if row.tokens is not None]
            inputs = bridge.processor.batch([one.source for one in tokens], [one.prompt for one in tokens])
            decoding = Decoding(bridge, inputs, [_options(row.writing) for row in rows])
            self._going.append((decoding, rows))
            self._turns = 0
            for row in rows:
                self._began(row)
            return
        texts = [row.reading.source for row in rows]
        prompts = [row.reading.prompt or "" for row in rows] if first.reading.prompt is not None else None
        found = bridge.classify(texts, first.labels, prompts=prompts, max_source_tokens=self._limits.max_source_tokens)
        for row, one in zip(rows, found, strict=True):
            self._began(row)
            row.tell((row.number, [one.probabilities[label] for label in first.labels]))

    def _advance(self) -> None:
        began = time.monotonic()
        self._turns += 1
        for one in list(self._going):
            decoding, rows = one
            decoding.drop({index for index, row in enumerate(rows) if row.cancelled})
            try:
                self._write(decoding, rows)
            except Exception as error:
                tell_all([rows[index] for index in decoding.rows], self._failure(error))
                decoding.drop(list(decoding.rows))
            if not decoding.rows:
                self._going.remove(one)
        self._owed = max(0.0, self._owed - (time.monotonic() - began)) if self._going else 0.0

    def _write(self, decoding: Decoding, rows: list[Row]) -> None:
        """Write one token of each answer of a batch."""
        written = decoding.step()
        if self._observer and written:
            self._observer.tokens(written=len(written))
        for one in written:
            row = rows[one.row]
            if one.text:
                row.tell(Wrote(row.number, one.text))
            if one.finish == "failed":
                row.tell(self._failure(not_numbers(row.reading.source, "tokens after")))
            elif one.finish:
                row.tell(Ended(row.number, one.finish, one.num_tokens))

    def _give_up(self, error: ApiError) -> None:
        for _, rows in self._going:
            tell_all(rows, error)
        self._going = []


def _options(writing: Writing | None) -> RowOptions:
    assert writing is not None, "rows that are generated say how"
    return RowOptions(**vars(writing))
