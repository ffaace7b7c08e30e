"""Turns Markdown and scraped lines into plain sentences."""

from __future__ import annotations

import re
import unicodedata

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"^[ \t>]*(```|~~~).*?^[ \t>]*\1[^\n]*$", re.DOTALL | re.MULTILINE)
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_TAG = re.compile(r"</?[A-Za-z][^>]*>")
_URL = re.compile(r"(https?://|www\.)\S+")
_LINE_MARK = re.compile(r"^\s*(?:[>#*+|-]+|\d+[.)]|\[[ xX!A-Z]*\])\s*")
_EMPHASIS = re.compile(r"[*`_~|]+|\[!\w+\]")
_FOOTNOTE = re.compile(r"\[\d+\]")
_WIKI = re.compile(r"'{2,}|\[\[|\]\]|\{\{|\}\}|\*\*|==+")
_DISCLAIMER = "Co-op Translator"


def normalise(text: str) -> str:
    """NFKC with runs of white space made one space: what the encoder's tokenizer sees."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()


def has_words(text: str, *, min_letters: int) -> bool:
    """Whether at least `min_letters` characters are letters (or their vowel signs)."""
    return sum(unicodedata.category(char)[0] in "LM" for char in text) >= min_letters


def plain_line(line: str) -> str:
    """One Markdown line without marks, links, HTML and addresses."""
    line = _LINK.sub(r"\1", _IMAGE.sub(" ", line))
    line = _URL.sub(" ", _TAG.sub(" ", line))
    previous = None
    while previous != line:
        previous, line = line, _LINE_MARK.sub("", line)
    return normalise(_EMPHASIS.sub(" ", line))


def markdown_lines(text: str) -> list[str]:
    """The non-empty plain lines of a Markdown file.

    Code fences and comments go, and so does the translator's disclaimer, which always
    stands last and names the tool (its heading and rule go with it).
    """
    text = _FENCE.sub("\n", _COMMENT.sub("\n", text))
    if (end := text.rfind(_DISCLAIMER)) > max(0, len(text) - 2500):
        text = text[: text.rfind("\n\n", 0, end) + 1] if "\n\n" in text[:end] else ""
        text = re.sub(r"(\n\s*(\*\*[^\n]*|-{3,}|#+[^\n]*))?\s*$", "", text)
    lines = (plain_line(line) for line in text.split("\n"))
    return [line for line in lines if has_words(line, min_letters=2)]


def scraped_line(line: str) -> str:
    """A sentence of Wikipedia or of a sentence collection without leftover markup."""
    return normalise(_URL.sub(" ", _WIKI.sub(" ", _FOOTNOTE.sub("", line))))
