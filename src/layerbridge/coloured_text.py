"""A text cut into pieces, each with the layer weights of its encoder tokens. No drawing here.

Tokens are not where letters are: they carry markers (U+2581, `##`, byte-level alphabets), are bytes, unknown, or
spelt after a normalisation, and they end inside what a reader sees as one letter. So the tokens' characters are
aligned with the text's, and where a boundary between tokens would cut a letter the tokens become one piece, its
weights their mean. Whatever the tokens, the pieces' texts joined are the text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import NamedTuple

from layerbridge.analysis import TokenWeights

SPACE = "▁"
MAX_EFFORT = 2_000_000
"""Steps of the exact alignment; what would take more is aligned in one walk, which is less exact."""
_ALIKE, _SKIPPED, _LOOK_AHEAD = 3, 16, 400
"""Of that walk: characters that are looked for, from how many places of the tokens, how far ahead in the text."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[[A-Z]+\d*\]|__\w+__|[a-z]{3}_[A-Z][a-z]{3}")
_UNKNOWN = ("<unk>", "[UNK]", "<|unk|>")

_ZWNJ, _ZWJ = "\u200c", "\u200d"
_CLINGING = frozenset("\u0e33\u0eb3")
"""Thai and Lao AM: letters by category, but half of each stands on the letter before."""
_VIRAMA = 9
"""Canonical combining class of the signs that join a letter to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of the text that takes one colour."""

    text: str
    """Its characters, white space before it included; empty: a token that stands for no text."""
    tokens: tuple[str, ...]
    """As the tokenizer spells them; empty: text that the encoder did not read, as it was cut."""
    weights: tuple[float, ...]
    """Over the layers, mean of the tokens; empty without tokens."""

    @property
    def lead(self) -> str:
        """White space before the letters, drawn without colour."""
        length = len(self.text) - len(self.text.lstrip())
        if 0 < length < len(self.text) and clings(" ", self.text[length]):
            length -= 1  # a mark without a letter stands on the space
        return self.text[:length]

    @property
    def body(self) -> str:
        """The letters."""
        return self.text[len(self.lead) :]

    @property
    def is_special(self) -> bool:
        """Whether it stands for no text and is no mere marker: an end token, say."""
        return not self.text and any(token.strip(SPACE) for token in self.tokens)

    def mean_layer(self, layer_numbers: Sequence[int]) -> float:
        """Return the weighted mean of the layers' numbers: where in the encoder it draws from."""
        return sum(weight * number for weight, number in zip(self.weights, layer_numbers, strict=True))


class _Letter(NamedTuple):
    """A character that tokens spell, and which of them: several where it is made of byte tokens."""

    character: str
    first: int
    last: int


_Owner = tuple[int, int] | None
"""First and last token of a character of the text; None: the encoder did not read it."""


def clings(before: str, after: str) -> bool:
    """Return whether a cut between two characters would break a letter.

    Combining marks, joiners and skin tones belong to what is before them; what follows a virama or a zero-width joiner
    belongs to it; so do Hangul's conjoining jamo and the halves of a flag. There is always a cut before white space.
    """
    if after.isspace():
        return False
    if unicodedata.category(after)[0] == "M" or after in _CLINGING or after in (_ZWJ, _ZWNJ):
        return True
    if before == _ZWJ or unicodedata.combining(before) == _VIRAMA:
        return True
    is_jamo = "\u1160" <= after <= "\u11ff" or "\ud7b0" <= after <= "\ud7ff"
    is_flag = "\U0001f1e6" <= before <= "\U0001f1ff" and "\U0001f1e6" <= after <= "\U0001f1ff"
    is_tone = "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f"
    return is_jamo or is_flag or is_tone


def cut(sentence: TokenWeights) -> list[Piece]:
    """Return a text as pieces, in its order; their texts joined are the text, and each token is in one of them."""
    text, tokens = sentence.text, sentence.tokens
    letters = _letters(tokens)
    lone = _lone_spaces(letters)
    owners = _owners(text, letters, lone)
    pieces: list[Piece] = []

    def put(part: str, first: int, stop: int) -> None:
        rows = sentence.weights[first:stop]
        mean = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else ()
        pieces.append(Piece(text=part, tokens=tokens[first:stop], weights=mean))

    used = 0
    for start, stop in _parts(text, owners):
        own = [owner for owner in owners[start:stop] if owner]
        if not own:
            put(text[start:stop], used, used)
            continue
        first = own[0][0]
        while first > used and first - 1 not in lone and not _is_opaque(tokens[first - 1]):
            first -= 1  # a token whose letters were found nowhere joins what follows it
        for token in range(used, first):
            put("", token, token + 1)
        used = max(last for _, last in own) + 1
        put(text[start:stop], first, used)
    for token in range(used, len(tokens)):
        put("", token, token + 1)
    return pieces


def _parts(text: str, owners: Sequence[_Owner]) -> list[tuple[int, int]]:
    """Return start and stop of the shortest parts of the text that neither split a token nor a letter."""
    parts = []
    start, reached = 0, -1
    for i, owner in enumerate(owners):
        reached = max(reached, owner[1]) if owner else reached
        if i + 1 < len(text):
            following = owners[i + 1]
            is_same = following[0] <= reached if owner and following else owner is following
            if is_same or clings(text[i], text[i + 1]):
                continue
        parts.append((start, i + 1))
        start = i + 1
    return parts


def _lone_spaces(letters: Sequence[_Letter]) -> set[int]:
    """Return the tokens that spell white space alone, such as a U+2581 before a word that is in no other token."""
    spaces = {letter.first for letter in letters if letter.character.isspace()}
    return spaces - {k for letter in letters if not letter.character.isspace() for k in (letter.first, letter.last)}


def _owners(text: str, letters: Sequence[_Letter], lone: set[int]) -> list[_Owner]:
    """Return the tokens of each character, never going back; by alignment, as tokenizers normalise."""
    ours = [(folded, i) for i, character in enumerate(text) for folded in _fold(character)]
    theirs = [(folded, letter) for letter in letters for folded in _fold(letter.character)]
    owners: list[_Owner] = [None] * len(text)

    def own(at: int, letter: _Letter) -> None:
        i, before = ours[at][1], owners[ours[at][1]]
        owners[i] = (before[0], max(before[1], letter.last)) if before else (letter.first, letter.last)

    at = there = 0
    for block in _blocks([folded for folded, _ in ours], [folded for folded, _ in theirs]):
        gap, candidates = block[0] - at, block[1] - there
        for k in range(gap if candidates else 0):  # spelt otherwise, or unknown: shared out in proportion
            own(at + k, theirs[there + k * candidates // gap][1])
        for k in range(block[2]):
            own(block[0] + k, theirs[block[1] + k][1])
        at, there = block[0] + block[2], block[1] + block[2]
    _fill(text, owners, lone)
    return owners


def _fill(text: str, owners: list[_Owner], lone: set[int]) -> None:
    """Give white space to its own token or the one after it, and what a tokenizer dropped to the one before it."""
    owned = [i for i, owner in enumerate(owners) if owner]
    if not owned:
        return
    following: _Owner = None
    for i in range(owned[-1], -1, -1):
        if owners[i] is None and (text[i].isspace() or i < owned[0]):
            token = following[0] if following else 0
            token -= text[i].isspace() and token - 1 in lone
            owners[i] = (token, token) if following else None
        following = owners[i] or following
    tail = text[owned[-1] + 1 :]
    is_cut = any(unicodedata.category(character)[0] not in "MCZ" for character in tail)
    before: _Owner = None
    for i in range(owned[-1] + 1 if is_cut else len(text.rstrip())):
        if owners[i] is None and before:
            owners[i] = (before[1], before[1])
        before = owners[i]


def _blocks(ours: list[str], theirs: list[str]) -> list[tuple[int, int, int]]:
    if ours == theirs:
        return [(0, 0, len(ours))]
    if _effort(ours, theirs) > MAX_EFFORT:
        return _blocks_in_order("".join(ours), "".join(theirs))
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in blocks]


def _effort(ours: list[str], theirs: list[str]) -> int:
    """Return about how many steps `SequenceMatcher` takes: pairs of equal characters, once for each that differs.

    A text of a few letters over and over, with unknown ones between, would otherwise keep a server busy for minutes.
    """
    here, there = Counter(ours), Counter(theirs)
    pairs = sum(count * there[character] for character, count in here.items())
    return pairs * (1 + sum(((here - there) + (there - here)).values()))


def _blocks_in_order(ours: str, theirs: str) -> list[tuple[int, int, int]]:
    """Return blocks by walking both once: after a difference, the next few characters are looked for further on."""
    blocks = []
    at = there = 0
    while at < len(ours) and there < len(theirs):
        length = 0
        while at + length < len(ours) and there + length < len(theirs) and ours[at + length] == theirs[there + length]:
            length += 1
        if length:
            blocks.append((at, there, length))
        at, there = _meet(ours, theirs, at + length, there + length)
    return [*blocks, (len(ours), len(theirs), 0)]


def _meet(ours: str, theirs: str, at: int, there: int) -> tuple[int, int]:
    """Return the nearest places from these on at which both go on alike; both ends where there are none."""
    best = len(ours), len(theirs)
    nearest = len(ours) + len(theirs)
    for other in range(there, min(there + _SKIPPED, len(theirs))):
        here = ours.find(theirs[other : other + _ALIKE], at, at + _LOOK_AHEAD)
        if here >= 0 and here + other < nearest:
            best, nearest = (here, other), here + other
    return best


def _fold(character: str) -> str:
    """Return a character as most tokenizers' normalisations leave it alike; nothing for white space."""
    return "".join(unicodedata.normalize("NFKD", character).casefold().split())


def _letters(tokens: Sequence[str]) -> list[_Letter]:
    """Return the characters that the tokens spell, in order; one that is unknown or no UTF-8 is U+FFFD."""
    family = _family(tokens)
    spelt = [b"" if _is_opaque(token) and token not in _UNKNOWN else _spell(token, family) for token in tokens]
    data = [(byte, index) for index, part in enumerate(spelt) for byte in part]
    letters = []
    at = 0
    while at < len(data):
        first = data[at][0]
        length = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        try:
            character = bytes(byte for byte, _ in data[at : at + length]).decode()
        except UnicodeDecodeError:
            character, length = "\ufffd", 1
        letters.append(_Letter(character, data[at][1], data[min(at + length, len(data)) - 1][1]))
        at += length
    return letters


def _spell(token: str, family: str) -> bytes:
    if token in _UNKNOWN:
        return "\ufffd".encode()
    byte = _BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    if family == "bytes":
        return bytes(_byte_alphabet()[character] for character in token)
    if family == "wordpiece":
        token = token.removeprefix("##") or token
    return token.replace(SPACE, " ").encode("utf-8", "replace")


def _family(tokens: Sequence[str]) -> str:
    """Return which way of spelling tokens this is: `sentencepiece`, `bytes` (GPT-2's alphabet) or `wordpiece`."""
    plain = [token for token in tokens if not _is_opaque(token) and not _BYTE.fullmatch(token)]
    if any(SPACE in token for token in plain):
        return "sentencepiece"
    if all(character in _byte_alphabet() for token in plain for character in token):
        try:
            bytes(_byte_alphabet()[character] for token in plain for character in token).decode()
            return "bytes"
        except UnicodeDecodeError:
            pass
    return "wordpiece"


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(rest)}


def _is_opaque(token: str) -> bool:
    """Return whether a token is no spelling: special, a language tag, or unknown."""
    return not _BYTE.fullmatch(token) and _SPECIAL.fullmatch(token) is not None
