"""Small corpora and calls that the tests of annotation share."""

import json
import random
from pathlib import Path
from typing import Any

from layerbridge.annotation.annotate import Report, Request, annotate, prepare

WORDS = ["the", "cat", "sat", "on", "mat", "one", "two", "three", "positive", "neutral", "Habari", "asubuhi", "ලංකාව"]
ANSWERS = ["positive", "negative", "neutral"]
BAD = ['{"id": "b1", "text": ""}', "[1]", '{"id": "b2", "text": NaN}', "nonsense", '{"id": "b3"}']
"""Lines that are rejected, each for another reason."""


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def lines(count: int, seed: int) -> list[str]:
    return [
        json.dumps({"id": f"{seed}-{number}", "text": text}, ensure_ascii=number % 2 == 0)
        for number, text in enumerate(texts(count, seed))
    ]


def write_corpus(folder: Path, *, shards: int, rows: int, bad: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        some = lines(rows, number)
        if bad:
            some[rows // 2 : rows // 2] = BAD
        (folder / f"shard-{number}.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")
    return folder


def call(run: Any, source: Any, output: Any, *, progress: bool = False, **request: Any) -> Report:
    """Annotate; options of rows are given beside those of the request."""
    known = Request.__dataclass_fields__
    options = {name: request.pop(name) for name in list(request) if name not in known}
    return annotate(
        prepare(Request(run=str(run), source=str(source), output=str(output), options=options, **request)),
        progress=progress,
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def files(output: Path) -> dict[str, bytes]:
    """Return what an annotation wrote, without what depends on time: logs, progress and locks."""
    places = [*(output / "data").rglob("*"), *(output / "rejects").rglob("*"), output / "annotation.json"]
    places += [output / "summary.json"] if (output / "summary.json").exists() else []
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in places if path.is_file()}
