"""The tokens of a text put where its letters are, and each in the field that it is from."""

from collections.abc import Iterator, Sequence

from layerbridge.analysis import TokenWeights
from layerbridge.coloured_text import cut
from layerbridge.serving.engine import Reading, Weighed
from layerbridge.serving.wire import InspectedPiece


def cut_readings(readings: Sequence[Reading], weighed: Sequence[Weighed]) -> list[list[InspectedPiece]]:
    """Return each text in pieces of whole letters and whole tokens (`layerbridge.coloured_text`)."""
    return [list(_cut(reading, one)) for reading, one in zip(readings, weighed, strict=True)]


def _cut(reading: Reading, weighed: Weighed) -> Iterator[InspectedPiece]:
    sentence = TokenWeights(
        language="",
        text=reading.source,
        tokens=tuple(weighed.tokens),
        weights=((),) * len(weighed.tokens),  # they are told by token; here only how many tokens a piece has counts
    )
    fields = [part.field for part in reading.parts for _ in part.text]
    at = 0
    for piece in cut(sentence):
        start, stop = at + len(piece.lead), at + len(piece.text)
        found = [field for field in fields[start:stop] or fields[at:stop] if field is not None]
        yield InspectedPiece(
            text=piece.text, lead=len(piece.lead), tokens=len(piece.tokens), field=found[0] if found else None
        )
        at = stop
