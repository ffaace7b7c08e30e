"""MkDocs hook: the keys in reference/recipe.md, from the config classes: values, defaults and docstrings."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from mkdocs.exceptions import PluginError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from layerbridge import config as configs

PAGE = "reference/recipe.md"
PLACE = re.compile(r"<!-- keys -->.*<!-- end -->", flags=re.S)
SOURCE = griffe.load(configs.__name__, search_paths=[str(Path(configs.__file__).parents[1])])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the keys in their place."""
    if page.file.src_uri != PAGE:
        return markdown
    if not PLACE.search(markdown):
        raise PluginError(f"{PAGE} has no place for the keys; wanted {PLACE.pattern}")
    return PLACE.sub(lambda _: keys(), markdown)


def keys() -> str:
    """Return a section for every part of a recipe, and one for what only studies have."""
    parts = ["## The whole\n\n", *_keys(configs.Recipe, "", "")]
    for name, field in configs.Recipe.model_fields.items():
        parts += _part(name, field, level=2)
    translator = configs.TranslatorConfig
    parts += ["## Of a study\n\nA key of a [study](../studies.md), and of no recipe.\n\n### `translator`\n\n"]
    return "".join([*parts, _about(translator), *_keys(translator, "translator.", "translator.")])


def _part(path: str, field: FieldInfo, *, level: int) -> Iterator[str]:
    """Yield the section of a key whose value has keys of its own, and those of its parts."""
    kinds = list(_kinds(field.annotation))
    if not kinds:
        return
    yield f"{'#' * level} `{path}` {{ #{path} }}\n\n"
    shared = _shared_base(kinds)
    if shared is not None:
        yield from (_about(shared), *_keys(shared, f"{path}.", f"{path}."))
    for kind in kinds:
        anchor = path
        if len(kinds) > 1:
            variant = _variant(kind)
            anchor = f"{path}.{variant or kind.__name__}"
            yield f"{'#' * (level + 1)} {f'`{variant}`' if variant else _first_words(kind)} {{ #{anchor} }}\n\n"
        yield from (_about(kind), *_keys(kind, f"{path}.", f"{anchor}.", without=shared, siblings=kinds))
        for inner, inner_field in kind.model_fields.items():
            yield from _part(f"{path}.{inner}", inner_field, level=level + 1)


def _keys(
    kind: type[BaseModel],
    path: str,
    anchor: str,
    *,
    without: type[BaseModel] | None = None,
    siblings: Sequence[type[BaseModel]] = (),
) -> Iterator[str]:
    """Yield a definition a key; `path` stands before its name, `anchor` before that in its address."""
    said = _docstrings(kind, siblings)
    for name, field in kind.model_fields.items():
        if without is not None and name in without.model_fields:
            continue
        has_section = any(True for _ in _kinds(field.annotation))
        values = _values(field.annotation, field.metadata)
        if has_section:
            kinds = list(_kinds(field.annotation))
            about = f"{_first_sentence(kinds[0])} " if len(kinds) == 1 else ""
            values = f"{about}[Keys of its own](#{path}{name})" + (" or nothing" if field.default is None else "")
        default = "" if name == "name" and _variant(kind) else f"; {_default(field)}"
        text = "\n".join(filter(None, (f"{values}{default}.", said.get(name, ""))))
        address = "" if has_section else f" {{ #{anchor}{name} }}"
        yield f"`{path}{name}`{address}\n:   {textwrap.indent(text, '    ').lstrip()}\n\n"


def _about(kind: type[BaseModel]) -> str:
    doc = inspect.cleandoc(kind.__doc__ or "")
    return f"{doc} (`layerbridge.config.{kind.__name__}`)\n\n"


def _first_sentence(kind: type[BaseModel]) -> str:
    return re.split(r"(?<=\.)\s", inspect.cleandoc(kind.__doc__ or ""), maxsplit=1)[0]


def _first_words(kind: type[BaseModel]) -> str:
    return re.split(r"[:(.,]", inspect.cleandoc(kind.__doc__ or ""), maxsplit=1)[0].strip()


def _variant(kind: type[BaseModel]) -> str | None:
    """Return the one name that chooses this kind, if there is one."""
    named = kind.model_fields.get("name")
    names = get_args(named.annotation) if named is not None and get_origin(named.annotation) is Literal else ()
    return names[0] if len(names) == 1 else None


def _kinds(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])


def _shared_base(kinds: list[type[BaseModel]]) -> type[BaseModel] | None:
    """Return the config class that several kinds are made from, if it has keys."""
    common = set.intersection(*(set(kind.__mro__[1:]) for kind in kinds)) if len(kinds) > 1 else set()
    found = [kind for kind in common if issubclass(kind, BaseModel) and kind.model_fields]
    return found[0] if found else None


def _docstrings(kind: type[BaseModel], siblings: Sequence[type[BaseModel]] = ()) -> dict[str, str]:
    """Return the docstrings below the fields, of a class and of those that it is made from.

    A key that several fusions share is described in the first of them (`siblings`, in their order).
    """
    said: dict[str, str] = {}
    for sibling in siblings:
        said = _docstrings(sibling) | said
    for owner in reversed(kind.__mro__):
        if owner.__module__ == configs.__name__:
            for name, member in SOURCE.classes[owner.__name__].attributes.items():
                if member.docstring is not None:
                    said[name] = member.docstring.value
    return said


def _values(annotation: Any, limits: list[Any]) -> str:
    """Return in words what a key may be."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0], list(inner[1:]))
    if origin is Literal:
        return _either([f"`{value}`" for value in inner])
    if origin in (Union, UnionType):
        words = [_values(part, limits) for part in inner if part is not NoneType]
        return _either([*words, *(["nothing"] if NoneType in inner else [])])
    if origin is tuple:
        return f"a list of {_plural(inner[0])}" if inner[-1] is Ellipsis else f"{len(inner)} {_plural(inner[0])}"
    if origin is dict:
        return "a mapping"
    word = {int: "a whole number", float: "a number", str: "text", bool: "`true` or `false`"}.get(annotation, "keys")
    return word + "".join(f", {sign} {bound}" for sign, bound in _bounds(limits))


def _plural(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return _either([f"`{value}`" for value in get_args(kind)])
    return {int: "whole numbers", float: "numbers", str: "texts"}[kind]


def _bounds(limits: list[Any]) -> Iterator[tuple[str, Any]]:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for limit in limits:
        for name, sign in signs.items():
            if getattr(limit, name, None) is not None:
                yield sign, getattr(limit, name)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "no default"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"by default `{value.name}`" if hasattr(value, "name") else "by default theirs"
    if value is None or value in ("", {}):
        return f"by default {'nothing' if value is None else 'empty'}"
    return f"by default `{_in_yaml(value)}`"


def _in_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
