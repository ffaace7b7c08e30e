"""Reads the corpora into two files: aligned rows and single-language documents.

`rows.jsonl`       {"source": "ntrex", "text": {"en": "...", "hi": "...", ...}}
`documents.jsonl`  {"source": "books", "lang": "en", "text": "..."}

A row is one sentence in two or more languages. Only corpora whose licence lets weights
be shared are read; no file of a benchmark is.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

from pretraining.clean import has_words, markdown_lines, normalise, plain_line, scraped_line
from pretraining.languages import LANGUAGES, NON_ENGLISH
from pretraining.made import is_made, of_files, save_folder

Row = tuple[str, dict[str, str]]
Document = tuple[str, str, str]

ARCHIVES = ("course_docs", "general_text", "tatoeba", "storybooks", "ntrex128", "books_en")
MIN_LETTERS = 10
"""Shorter lines (table cells, file names) say nothing about meaning."""
MAX_LINE_CHARS = 1200
BOOK_PIECE_CHARS = 1500

log = logging.getLogger(__name__)


def build_corpus(data: Path, work: Path) -> tuple[Path, Path]:
    """Writes rows and documents under `work` once; returns their paths."""
    rows_path, documents_path = work / "rows.jsonl", work / "documents.jsonl"
    inputs = {name: of_files(data / f"{name}.tar.xz") for name in ARCHIVES}
    read = inputs | {"flores_v1": of_files(*_flores_files(data / "flores_v1"))}
    last = rows_path if documents_path.exists() else documents_path
    if is_made("corpus", rows_path, {"plan": {}, "inputs": read}, last=last):
        return rows_path, documents_path
    raw = work / "raw"
    if not is_made("unpacked archives", raw, {"plan": {}, "inputs": inputs}):
        save_folder(raw, lambda folder: _unpack(data, folder))
    counts: dict[str, int] = defaultdict(int)
    rows_path.unlink(missing_ok=True)  # beside new documents, rows of before would be taken for what the note tells of
    _write_json_lines(
        documents_path,
        ({"source": s, "lang": lang, "text": t} for s, lang, t in _distinct_documents(raw, counts)),
    )
    _write_json_lines(rows_path, ({"source": s, "text": text} for s, text in _distinct_rows(raw, data, counts)))
    for name, count in sorted(counts.items()):
        log.info("corpus %-28s %7d", name, count)
    return rows_path, documents_path


def read_json_lines(path: Path) -> Iterator[dict]:
    """The records of a JSON-lines file, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _write_json_lines(path: Path, records: Iterable[dict]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)


def _unpack(data: Path, raw: Path) -> None:
    for name in ARCHIVES:
        with tarfile.open(data / f"{name}.tar.xz") as archive:
            archive.extractall(raw, filter="data")


def _distinct_rows(raw: Path, data: Path, counts: dict[str, int]) -> Iterator[Row]:
    """Rows without repeats of the first language's line and without untranslated lines."""
    seen: set[str] = set()
    for source, text in _all_rows(raw, data):
        pivot = text.get("en") or next(iter(text.values()), "")
        if pivot in seen or not has_words(pivot, min_letters=MIN_LETTERS):
            continue
        seen.add(pivot)
        kept = {
            lang: line
            for lang, line in text.items()
            if (lang == "en" or line != text.get("en"))
            and len(line) <= MAX_LINE_CHARS
            and has_words(line, min_letters=4)
        }
        if len(kept) >= 2:
            counts[f"rows {source}"] += 1
            for lang in kept:
                counts[f"lines {lang}"] += 1
            yield source, kept


def _all_rows(raw: Path, data: Path) -> Iterator[Row]:
    yield from _ntrex_rows(raw / "ntrex128")
    yield from _flores_rows(data / "flores_v1")
    yield from _tatoeba_rows(raw / "tatoeba")
    yield from _xquad_rows(raw / "general_text")
    yield from _storybook_rows(raw / "storybooks")
    yield from _course_rows(raw / "ms_docs")


def _lines(path: Path) -> list[str]:
    return [normalise(line) for line in path.read_text(encoding="utf-8").split("\n")]


def _ntrex_rows(folder: Path) -> Iterator[Row]:
    by_lang = {
        lang: _lines(folder / f"newstest2019-{'src' if lang == 'en' else 'ref'}.{codes.ntrex}.txt")
        for lang, codes in LANGUAGES.items()
    }
    for lines in zip(*by_lang.values(), strict=False):
        yield "ntrex", dict(zip(by_lang, lines, strict=True))


def _flores_rows(folder: Path) -> Iterator[Row]:
    files = _flores_files(folder)
    for english_path, other_path in zip(files[::2], files[1::2], strict=True):
        lang = other_path.suffix[1:]
        for english, other in zip(_lines(english_path), _lines(other_path), strict=False):
            yield "flores_v1", {"en": english, lang: other}


def _flores_files(folder: Path) -> list[Path]:
    """English, its Sinhala or Nepali, the next English."""
    return [
        folder / f"wikipedia.{split}.{lang}-en.{side}"
        for lang in ("si", "ne")
        for split in ("dev", "devtest", "test")
        for side in ("en", lang)
    ]


def _tatoeba_rows(folder: Path) -> Iterator[Row]:
    by_english: dict[str, dict[str, str]] = {}
    for lang in NON_ENGLISH:
        if (code := LANGUAGES[lang].tatoeba) is None:
            continue
        stem = folder / f"tatoeba.{code}-eng"
        for english, other in zip(_lines(Path(f"{stem}.eng")), _lines(Path(f"{stem}.{code}")), strict=False):
            by_english.setdefault(english, {"en": english})[lang] = other
    for text in by_english.values():
        yield "tatoeba", text


def _xquad_rows(folder: Path) -> Iterator[Row]:
    by_lang = {path.parent.name: _lines(path) for path in sorted(folder.glob("*/xquad.txt"))}
    by_lang = {lang: lines for lang, lines in by_lang.items() if len(lines) == len(by_lang["en"])}
    for lines in zip(*by_lang.values(), strict=True):
        yield "xquad", dict(zip(by_lang, lines, strict=True))


def _storybook_rows(folder: Path) -> Iterator[Row]:
    """Pages of the stories; there is no English edition, so these join other languages."""
    pages: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for lang in NON_ENGLISH:
        for path in sorted((folder / lang).glob("[0-9]*.md")):
            blocks = path.read_text(encoding="utf-8").split("\n##")
            for number, block in enumerate(blocks):
                pages[path.name[:4], number][lang] = normalise(" ".join(plain_line(line) for line in block.split("\n")))
    for text in pages.values():
        yield "storybooks", text


def _course_rows(folder: Path) -> Iterator[Row]:
    for course in sorted(path for path in folder.iterdir() if path.is_dir()):
        for english_path in sorted((course / "en").rglob("*.md")):
            english = markdown_lines(english_path.read_text(encoding="utf-8"))
            rows = [{"en": line} for line in english]
            for lang in NON_ENGLISH:
                edition = course / ("zh-CN" if lang == "zh" and (course / "zh-CN").exists() else lang)
                path = edition / english_path.relative_to(course / "en")
                if path.exists():
                    other = markdown_lines(path.read_text(encoding="utf-8"))
                    for here, there in _align(english, other):
                        rows[here][lang] = other[there]
            yield from (("course_docs", row) for row in rows)


def _align(english: list[str], other: list[str]) -> Iterator[tuple[int, int]]:
    """Line pairs of two editions of a file, none where their lengths differ by more than two.

    With unequal counts, runs of at least four lines are matched whose lengths agree, the
    other edition's scaled by the usual ratio.
    """
    if len(english) == len(other):
        yield from zip(range(len(english)), range(len(other)), strict=True)
    elif abs(len(english) - len(other)) <= 2:
        shorter = min(len(english), len(other))
        ratio = [len(b) / max(1, len(a)) for a, b in zip(english, other, strict=False)]
        usual = sorted(ratio)[len(ratio) // 2] if ratio else 1.0
        shapes = [[round(len(x) / scale / 12) for x in lines] for lines, scale in ((english, 1.0), (other, usual))]
        for block in SequenceMatcher(None, *shapes, autojunk=False).get_matching_blocks():
            if block.size >= min(4, shorter):
                for step in range(block.size):
                    yield block.a + step, block.b + step


def _distinct_documents(raw: Path, counts: dict[str, int]) -> Iterator[Document]:
    seen: set[tuple[str, str]] = set()
    for source, lang, text in _all_documents(raw):
        key = (lang, text[:200])
        if key in seen or not has_words(text, min_letters=MIN_LETTERS):
            continue
        seen.add(key)
        counts[f"documents {source}.{'en' if lang == 'en' else 'other'}"] += 1
        yield source, lang, text


def _all_documents(raw: Path) -> Iterator[Document]:
    for lang in LANGUAGES:
        for path in sorted((raw / "general_text" / lang).glob("*.txt")):
            for line in path.read_text(encoding="utf-8").split("\n"):
                yield path.stem, lang, scraped_line(line)
    for path in sorted((raw / "ms_docs").glob("*/en/**/*.md")):
        yield "course_docs", "en", "\n".join(markdown_lines(path.read_text(encoding="utf-8")))
    for path in sorted((raw / "tatoeba").glob("tatoeba.*-eng.eng")):
        for line in _lines(path):
            yield "tatoeba", "en", line
    for line in _lines(raw / "ntrex128" / "newstest2019-src.eng.txt"):
        yield "ntrex", "en", line
    for path in sorted((raw / "books_en").rglob("*.md")):
        yield from (("books", "en", piece) for piece in _book_pieces(path))


def _book_pieces(path: Path) -> Iterator[str]:
    """Runs of whole paragraphs of about `BOOK_PIECE_CHARS` characters."""
    piece: list[str] = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        if paragraph.startswith("#") or not (line := plain_line(paragraph.replace("\n", " "))):
            continue
        piece.append(line)
        if sum(map(len, piece)) >= BOOK_PIECE_CHARS:
            yield "\n".join(piece)
            piece = []
