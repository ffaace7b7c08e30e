"""A corpus of invented languages, in the files and archives that the real one comes in."""

import tarfile
from pathlib import Path

import numpy as np
from pretraining.languages import LANGUAGES, NON_ENGLISH

CONCEPTS = 40
TOPICS = ("health", "sports", "travel")
Sentence = list[int]


def write_corpus(data: Path) -> None:
    """Writes every archive and folder that `build_corpus` and the yardstick read, a few lines each."""
    rng = np.random.default_rng(0)
    words = {lang: ["".join(rng.choice(list("abdegiklmnoprstu"), 5)) for _ in range(CONCEPTS)] for lang in LANGUAGES}

    def say(lang: str, sentence: Sentence) -> str:
        return " ".join(words[lang][concept] for concept in sentence)

    def sentences(count: int, length: int) -> list[Sentence]:
        return [rng.integers(0, CONCEPTS, length + at % 3).tolist() for at in range(count)]

    def lines(lang: str, meant: list[Sentence]) -> str:
        return "\n".join(say(lang, sentence) for sentence in meant)

    files: dict[str, dict[str, str]] = {
        name: {} for name in ("ntrex128", "tatoeba", "general_text", "storybooks", "course_docs", "books_en")
    }
    news, chat, course = sentences(30, 9), sentences(10, 5), sentences(12, 8)
    for lang, codes in LANGUAGES.items():
        side = "src" if lang == "en" else "ref"
        files["ntrex128"][f"ntrex128/newstest2019-{side}.{codes.ntrex}.txt"] = lines(lang, news)
        spoken = sentences(60 if lang == "en" else 12, 16)
        files["general_text"][f"general_text/{lang}/common_voice.txt"] = lines(lang, spoken)
        files["course_docs"][f"ms_docs/course/{lang}/page.md"] = lines(lang, course)
        if lang != "en":
            files["storybooks"][f"storybooks/{lang}/0001_story.md"] = "\n##".join(map(str, [lines(lang, chat[:2])] * 2))
            if codes.tatoeba is not None:
                stem = f"tatoeba/tatoeba.{codes.tatoeba}-eng"
                files["tatoeba"] |= {f"{stem}.eng": lines("en", chat), f"{stem}.{codes.tatoeba}": lines(lang, chat)}
    files["books_en"]["books_en/novel.md"] = "\n\n".join(say("en", sentence) for sentence in sentences(200, 30))
    for name, texts in files.items():
        _write_archive(data / f"{name}.tar.xz", texts, data / "loose")
    for lang in ("si", "ne"):
        for split in ("dev", "devtest", "test"):
            told = sentences(8, 7)
            for side in ("en", lang):
                _write(data / "flores_v1" / f"wikipedia.{split}.{lang}-en.{side}", lines(side, told))
    asked = {"train": sentences(12, 8), "dev": sentences(9, 8)}
    for lang in ("en", *NON_ENGLISH):
        for split, meant in asked.items():
            rows = [f"{at}\t{TOPICS[at % 3]}\t{say(lang, sentence)}" for at, sentence in enumerate(meant)]
            table = "\n".join(["index_id\tcategory\ttext", *rows]) + "\n"
            _write(data / "sib200" / LANGUAGES[lang].sib200 / f"{split}.tsv", table)


def _write_archive(path: Path, texts: dict[str, str], loose: Path) -> None:
    with tarfile.open(path, "w:xz", preset=0) as archive:
        for name, text in texts.items():
            _write(loose / name, text)
            archive.add(loose / name, name)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
