"""Forms that a request's texts may have: one text or several, a message's parts, fields of a prompt.

They are looked at before pydantic does. It tries each member of a union and tells the same mistake once for each, by
the names of Python's types; and it notes every wrong element of a list, half a million of them for one body.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_FIELDS = 64
"""Fields of an object inside a request. Each one that is wrong is noted, so there have to be few."""

_NUMBERS = "found token ids; only text is read. Send the text itself"
_MEDIA = "images, audio and files are not read. Send text alone"


def _refuse_many(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"has {len(value)} fields; wanted at most {MAX_FIELDS}")
    return value


class Bounded(BaseModel):
    """An object inside a request."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, data: Any) -> Any:
        return _refuse_many(data)


class TextPart(Bounded):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: str


def _check_text(value: Any, where: str = "") -> None:
    """Refuse what is no text; half a character (a lone surrogate) is none."""
    if not isinstance(value, str):
        raise ValueError(f"found {_kind(value)}{where}; wanted text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"found half a character (a lone surrogate){where}; wanted whole ones") from None


def _check_texts(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"found {_kind(value)}; wanted a list of texts")
    for index, one in enumerate(value):
        _check_text(one, f" at {index}")
    return value


def _check_text_or_texts(value: Any) -> Any:
    if isinstance(value, list):
        return _check_texts(value)
    if not isinstance(value, str):
        raise ValueError(f"found {_kind(value)}; wanted text, or a list of texts")
    _check_text(value)
    return value


def _check_prompt(value: Any) -> Any:
    """OpenAI's own service takes token ids here, so they are named as what they are."""
    first = value[0] if isinstance(value, list) and value else None
    inner = first[0] if isinstance(first, list) and first else first
    if isinstance(inner, int) and not isinstance(inner, bool):
        raise ValueError(_NUMBERS)
    return _check_text_or_texts(value)


def _check_content(value: Any) -> Any:
    if not isinstance(value, list):
        if not isinstance(value, str):
            raise ValueError(f"found {_kind(value)}; wanted text, or a list of parts of type 'text'")
        _check_text(value)
        return value
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise ValueError(f"found {_kind(part)} at {index}; wanted a part, {{'type': 'text', 'text': ...}}")
        kind = part.get("type")
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"found a part of type {kind[:40]!r} at {index}; {_MEDIA}")
        if kind is None or "text" not in part:
            missing = "type" if kind is None else "text"
            raise ValueError(f"the part at {index} has no {missing}; wanted {{'type': 'text', 'text': ...}}")
        _check_text(kind, f" as the type of the part at {index}")
        _check_text(part["text"], f" in the part at {index}")
        unknown = next((name for name in part if name not in TextPart.model_fields), None)
        if unknown is not None:
            raise ValueError(f"the part at {index} has the unknown field {unknown[:40]!r}. Leave it out")
    return value


def _kind(value: Any) -> str:
    """Return what a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "something else")


_List = Annotated[list[str], Field(fail_fast=True)]

Texts = Annotated[_List, BeforeValidator(_check_texts)]
TextOrTexts = Annotated[str | _List, BeforeValidator(_check_text_or_texts)]
Prompt = Annotated[str | _List, BeforeValidator(_check_prompt)]
"""As `TextOrTexts`; token ids, which OpenAI's service takes here, are refused by that name."""
Content = Annotated[str | Annotated[list[TextPart], Field(fail_fast=True)], BeforeValidator(_check_content)]
"""Of a message."""
Fields = Annotated[dict[str, str], BeforeValidator(_refuse_many)]
"""Of a prompt, by name."""
