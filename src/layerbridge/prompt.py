"""Prompts: a template such as `Review: {text} Label: ` and the fields of a row -> a text."""

import string
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from layerbridge.errors import ConfigError, DataError, nearest


def prompt_fields(template: str) -> tuple[str, ...]:
    """Return the fields that a template names, in order, each once.

    Raises:
        ConfigError: unbalanced braces, an unnamed field, a conversion or format, or no field at all.
    """
    names: dict[str, None] = {}
    for _, name in _pieces(template):
        if name is not None:
            names[name] = None
    if not names:
        raise ConfigError(
            f"encoder_prompt {template!r} names no field. Wanted at least one column in braces, such as "
            f"'Text: {{text}} '."
        )
    return tuple(names)


def render_prompt(template: str, fields: Mapping[str, Any] | str) -> str:
    """Put fields into a template. A bare text stands for the one field of a template that has one.

    Raises:
        DataError: a field is missing, empty, or no text.
    """
    if isinstance(fields, str):
        wanted = prompt_fields(template)
        if len(wanted) != 1:
            raise DataError(
                f"Found one text, but the prompt has {len(wanted)} fields ({', '.join(wanted)}). Give each by name."
            )
        fields = {wanted[0]: fields}
    return "".join(part.text for part in prompt_parts(template, fields))


class Part(NamedTuple):
    """A stretch of a filled prompt."""

    text: str
    field: str | None
    """Whose text it is; None: the template's own words."""


def prompt_parts(template: str, fields: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return a filled template part by part; their texts joined are what `render_prompt` returns.

    Raises:
        DataError: a field is missing, empty, or no text.
    """
    parts = []
    for literal, name in _pieces(template):
        if literal:
            parts.append(Part(literal, None))
        if name is not None:
            parts.append(Part(_field_text(fields, name), name))
    return tuple(parts)


@cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"encoder_prompt {template!r}: {error}. Write a literal brace twice.") from None
    for _, name, form, conversion in pieces:
        if name is not None and (not name or form or conversion):
            found = "{" + (name or "") + ("!" + conversion if conversion else "") + (":" + form if form else "") + "}"
            raise ConfigError(
                f"encoder_prompt {template!r}: found {found!r}, wanted a plain column name in braces, such "
                f"as '{{text}}'."
            )
    return tuple((literal, name) for literal, name, _, _ in pieces)


def _field_text(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        guess = nearest(name, fields)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise DataError(f"no field {name!r} among {', '.join(map(repr, fields)) or 'none'}.{hint}")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise DataError(f"field {name!r} holds {type(value).__name__}, wanted text.")
    text = "" if value is None else str(value)
    if not text.strip():
        raise DataError(f"field {name!r} is empty, wanted text. Fill it or drop the row.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON may hold one, and a tokenizer then fails far from here
        half = f"U+{ord(text[error.start]):04X}"
        raise DataError(f"field {name!r} holds half a character ({half}), wanted Unicode text. Mend it.") from None
    return text
