r"""Which part of a harness prompt goes through the encoder: `<encoder>...</encoder>`.

What stands between the marks is the encoder's text, to the character; what follows is the text prompt that the LLM
reads after the soft tokens. Nothing after the marks but white space, or no marks at all: the LLM reads the run's own
prompt. Without marks the whole context goes through the encoder.

A mark that is meant as text has a backslash: `<\encoder>` is read as `<encoder>`, `<\\encoder>` as `<\encoder>`.
"""

import re
from typing import NamedTuple

from layerbridge.errors import DataError

OPENING = "<encoder>"
CLOSING = "</encoder>"
EMPTY_CONTEXT = (
    "The context is empty, so there is nothing for the encoder to read. A bridge has no unconditional text: tasks that "
    "put all their text into the answers, and metrics such as acc_mutual_info, cannot be asked of it."
)
_MARK = re.compile(r"<(\\*)(/?encoder>)")


class Reading(NamedTuple):
    """What a bridge reads of one context."""

    text: str
    """For the encoder."""
    prompt: str | None
    """For the LLM, after the soft tokens; None: the run's own prompt."""


def mark(text: str) -> str:
    """Return a text between marks, its own marks escaped: `read_context(mark(text)).text` is the text again."""
    return OPENING + escape(text) + CLOSING


def escape(text: str) -> str:
    """Return a text whose marks are read as text."""
    return _MARK.sub(r"<\\\1\2", text)


def _unescape(text: str) -> str:
    return _MARK.sub(lambda found: f"<{found[1][1:]}{found[2]}", text)


def read_context(context: str) -> Reading:
    """Return which part of a context the encoder reads and which the LLM.

    Raises:
        DataError: marks that do not pair, more than one marked part, text before it, or nothing to encode.
    """
    marks = [found for found in _MARK.finditer(context) if not found[1]]
    kinds = [found[0] for found in marks]
    if not marks:
        return _checked(context, None, EMPTY_CONTEXT)
    if kinds != [OPENING, CLOSING] * (len(kinds) // 2):
        raise DataError(
            f"The context has {kinds.count(OPENING)} {OPENING} and {kinds.count(CLOSING)} {CLOSING} that do not pair, "
            f"in this order: {' '.join(kinds)}. Close what is opened; a mark that is meant as text is written "
            r"<\encoder> or <\/encoder>."
        )
    if len(marks) > 2:
        raise DataError(
            f"The context has {len(marks) // 2} marked parts; wanted one, for the encoder reads one text. Put all that "
            "it is to read into one mark. For few-shot examples leave the marks out, and the whole context goes "
            "through the encoder; or set num_fewshot to 0."
        )
    before, after = context[: marks[0].start()], context[marks[1].end() :]
    if before.strip():
        raise DataError(
            f"Text stands before {OPENING}: {_shortened(before.strip())!r}. The LLM reads nothing before the soft "
            f"tokens. Move it into the mark or behind {CLOSING}; descriptions, system instructions and few-shot "
            "examples come before, so drop those."
        )
    inside = context[marks[0].end() : marks[1].start()]
    return _checked(inside, after if after.strip() else None, "The marked part is empty; wanted text for the encoder.")


def _checked(text: str, prompt: str | None, if_empty: str) -> Reading:
    if not text.strip():
        raise DataError(if_empty)
    return Reading(_unescape(text), None if prompt is None else _unescape(prompt))


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
