"""Languages: code, name, script, direction and resource class, from `languages.tsv` beside this file.

The 205 languages are those of SIB-200 (arXiv 2309.07445), whose texts and codes are FLORES-200's (arXiv
2207.04672). `code` is ours: ISO 639-1 where there is one, else ISO 639-3, and a script subtag where one
language is there twice. `script` is ISO 15924. `resource` is the class 0 (left behind) to 5 (winners) of
Joshi et al. 2020 (arXiv 2004.09095), or None where the class is not sure: the classes were checked against a
second-hand transcription of their list, not against the list itself. The table is read on first use.
"""

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from layerbridge.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """One row of the table."""

    code: str
    """Ours, such as `si` or `zh-Hant`."""
    flores: str
    """FLORES-200's, such as `sin_Sinh`."""
    name: str
    """In English."""
    script: str
    """ISO 15924."""
    direction: str
    """`ltr` or `rtl`."""
    resource: int | None
    """Class 0 to 5 of Joshi et al. 2020; None where the language is not listed there."""


def language(code: str) -> Language:
    """Return the language with this code, FLORES-200 code or English name, in any case.

    A name may leave out its parenthesis (`Arabic` is `Arabic (Modern Standard)`).

    Raises:
        ConfigError: no such language; names the nearest ones.
    """
    found = _by_any_name().get(str(code).strip().casefold())
    if found is None:
        raise ConfigError(
            f"Unknown language {code!r}.{_near_languages(str(code))} Give a code such as 'si', a FLORES-200 "
            f"code such as 'sin_Sinh', or an English name; `layerbridge tasks show sib200` lists all "
            f"{len(all_languages())}."
        )
    return found


@cache
def all_languages() -> tuple[Language, ...]:
    """Return all languages, in the table's order (by code)."""
    text = resources.files("layerbridge").joinpath("languages.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        Language(
            code=row["code"],
            flores=row["flores"],
            name=row["name"],
            script=row["script"],
            direction=row["direction"],
            resource=int(row["resource"]) if row["resource"] else None,
        )
        for row in rows
    )


def describe(code: str) -> str:
    """Return `Sinhala (si)`, or the code alone where the table does not know it."""
    known = _by_any_name().get(code.casefold())
    return f"{known.name} ({code})" if known else code


def nearest_codes(found: str, codes: Iterable[str], *, count: int = 3) -> list[str]:
    """Return those of `codes` most like `found` by code, FLORES-200 code or English name, best first."""
    known = _by_any_name()
    spellings = {code.casefold(): code for code in codes}
    for item in (known[fold] for fold in list(spellings) if fold in known):
        for spelling in (item.flores, item.name, _base_name(item)):
            spellings.setdefault(spelling.casefold(), spellings[item.code.casefold()])
    hits = difflib.get_close_matches(found.strip().casefold(), spellings, n=4 * count, cutoff=0.6)
    return list(dict.fromkeys(spellings[hit] for hit in hits))[:count]


@cache
def _by_any_name() -> dict[str, Language]:
    names: dict[str, Language] = {}
    # Bare names first: an exact name or code that is the same word overrides. Of several scripts of one
    # language the bare name is the one whose code carries no script.
    for item in sorted(all_languages(), key=lambda item: "-" in item.code, reverse=True):
        names[_base_name(item).casefold()] = item
    for item in all_languages():
        names[item.name.casefold()] = item
    for item in all_languages():
        names[item.flores.casefold()] = item
        names[item.code.casefold()] = item
    return names


def _base_name(item: Language) -> str:
    return item.name.partition(" (")[0]


def _near_languages(found: str) -> str:
    near = nearest_codes(found, (item.code for item in all_languages()))
    return f" Did you mean {' or '.join(describe(code) for code in near)}?" if near else ""
