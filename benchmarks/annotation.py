"""A corpus annotated by two workers: rows a second, and the same bytes after three kills as without one.

The embedded pair with a Transformer Softmax, trained for a few steps on English headlines, labels real XNLI hypotheses
in 15 languages: half of the shards JSON lines, half parquet, a bad row in every hundred. `layerbridge annotate` runs
over them as a user starts it, once undisturbed. Then once into another folder, where SIGKILL comes three times at
moments drawn at random: to all of its processes, to one worker, and to the first process alone; each time the same
command is given again. All files of both folders but logs and progress are compared by sha256, and ids are counted.

Rows a second are given with all of the loading, and of one worker once it has loaded: the latter is what a corpus of
any size costs. Each worker has one thread of two, so it is also what one core does here.

    python -m benchmarks.annotation
    python -m benchmarks.annotation --rows 50000      # six times as long

Example row (two busy cores, so no figure to quote):

    {"asked for": "labels", "workers": 2, "rows": 8000, "seconds": 80.0, "rows_per_second": 100.0, ...}
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.pair import xnli_rows

LANGUAGES = ("en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
BAD_EVERY = 100
KILLS = ("all of them", "one worker", "the first process")
WORKERS = 2


def sentences(data: Path, number: int, *, seed: int) -> list[str]:
    """Return the hypotheses of XNLI's dev rows in random order, again from the start if there are too few."""
    found = [
        row.text.rpartition(" Hypothesis: ")[2].removesuffix(" Label: ")
        for language in LANGUAGES
        for row in xnli_rows(data, language, seed=seed)
    ]
    random.Random(seed).shuffle(found)
    return list(itertools.islice(itertools.cycle(found), number))


def write_corpus(folder: Path, texts: Sequence[str], num_shards: int) -> None:
    """Write texts with ids in shards; every hundredth row has no text."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [{"id": index, "text": None if index % BAD_EVERY == 7 else text} for index, text in enumerate(texts)]
    for number in range(num_shards):
        some = rows[len(rows) * number // num_shards : len(rows) * (number + 1) // num_shards]
        if number % 2:
            pq.write_table(pa.Table.from_pylist(some), folder / f"{number:03d}.parquet")
        else:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in some)
            (folder / f"{number:03d}.jsonl").write_text("".join(lines), encoding="utf-8")


def train_run(folder: Path, steps: int) -> None:
    """Train what annotates, as `layerbridge demo` does; without a step it is saved as it starts."""
    from layerbridge.config import BridgeConfig, load_recipe
    from layerbridge.model.bridge import Bridge
    from layerbridge.training.train import train

    if not steps:
        bridge = Bridge.build(BridgeConfig(), device="cpu", seed=0)
        origin = {"task": "headlines", "task_version": 1, "languages": ["en"], "seed": 0}
        bridge.trained_on = origin | {"encoder_prompt": "{text}", "answers": ["World", "Sports"]}
        bridge.save_pretrained(folder)
        return
    recipe = resources.files("layerbridge").joinpath("embedded", "demo.yaml")
    train(load_recipe(str(recipe), [f"training.max_steps={steps}"]), folder, overwrite=True, progress=False)


def start(run: Path, corpus: Path, output: Path, *options: str) -> subprocess.Popen:
    """Start the command in a process group of its own."""
    command = [sys.executable, "-m", "layerbridge.cli", "annotate", str(run), str(corpus), str(output)]
    command += ["--text-column", "text", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def annotate(run: Path, corpus: Path, output: Path, *options: str, here: bool = False) -> float:
    """Let the command come to its end and return the seconds; `here`: in this process, which has all of it loaded."""
    begun = time.perf_counter()
    if here:
        from layerbridge.annotation import annotate as room

        request = room.Request(run=str(run), source=str(corpus), output=str(output), text_column="text")
        room.annotate(room.prepare(request), progress=False)
    elif start(run, corpus, output, *options).wait():
        raise SystemExit("`layerbridge annotate` failed; give the same command by hand to see why.")
    return time.perf_counter() - begun


def kill(process: subprocess.Popen, whom: str) -> bool:
    """Send SIGKILL to some of the command's processes, wait until all are gone; return whether it was at work."""
    first = psutil.Process(process.pid)
    children = first.children(recursive=True) if process.poll() is None else []
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    at_work = process.poll() is None
    if at_work and whom == "one worker" and workers:
        random.choice(workers).kill()
    elif at_work and whom == "the first process":
        first.kill()
    elif at_work:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    gone, alive = psutil.wait_procs(children, timeout=60)
    if alive:
        raise SystemExit(f"{len(alive)} of {len(gone) + len(alive)} processes outlived the kill of {whom}.")
    return at_work


def hashes(output: Path) -> dict[str, str]:
    """Return the sha256 of each file but logs and progress."""
    places = [*(output / "data").rglob("*"), *(output / "rejects").rglob("*"), *output.glob("*.json")]
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in places
        if path.is_file()
    }


def count_ids(output: Path) -> Counter[int]:
    """Return how often each id is in the output, rejects included."""
    found: Counter[int] = Counter()
    for path in [*(output / "data").iterdir(), *(output / "rejects").iterdir()]:
        if path.suffix == ".parquet":
            found.update(pq.read_table(path, columns=["id"]).column("id").to_pylist())
        else:
            found.update(json.loads(line)["id"] for line in path.read_text(encoding="utf-8").split("\n") if line)
    return found


def speed(asked: str, output: Path, seconds: float, workers: int) -> dict[str, Any]:
    """Return a row of the table of speeds."""
    records = [json.loads(path.read_bytes()) for path in (output / "progress").iterdir()]
    rows, tokens = sum(one["rows"] for one in records), sum(one["tokens"] for one in records)
    worked = sum(one["seconds"] for one in records)
    return {
        "asked for": asked,
        "workers": workers,
        "rows": rows,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "rows_per_second_of_a_worker": rows / worked,
        "tokens_per_second_of_a_worker": tokens / worked,
        "tokens_per_row": tokens / rows,
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--generated-rows", type=int, default=1_000, help="of answers in free text, 8 tokens at most")
    parser.add_argument("--steps", type=int, default=20, help="updates that train the bridge")
    args = parser.parse_args()
    workers, kills = WORKERS, KILLS
    if args.quick:
        args.rows, args.shards, args.generated_rows, args.steps = 60, 2, 0, 0
        workers, kills = 1, KILLS[:1]
    room = args.work / "annotation"
    shutil.rmtree(room, ignore_errors=True)
    texts = sentences(args.data, args.rows, seed=args.seed)
    write_corpus(room / "in", texts, args.shards)
    train_run(room / "run", args.steps)

    options = ("--workers", str(workers))
    whole = annotate(room / "run", room / "in", room / "undisturbed", *options, here=args.quick)
    speeds = [speed("labels", room / "undisturbed", whole, workers)]
    draw = random.Random()  # without the seed: no moment of a process is the same twice
    rows = []
    for whom in kills:
        process = start(room / "run", room / "in", room / "killed", *options)
        after = draw.uniform(0.1, 0.35) * whole
        time.sleep(after)
        at_work = kill(process, whom)
        done = len(list((room / "killed").glob("datatrove/completions/*")))
        rows.append({"killed": whom, "after_seconds": after, "at work": at_work, "shards done by then": done})
    annotate(room / "run", room / "in", room / "killed", *options, here=args.quick)
    if args.generated_rows:
        write_corpus(room / "in-generated", texts[: args.generated_rows], workers)
        answer = ("--generate", "--max-new-tokens", "8")
        seconds = annotate(room / "run", room / "in-generated", room / "generated", *options, *answer)
        speeds.append(speed("answers of 8 tokens", room / "generated", seconds, workers))

    wanted, found, ids = hashes(room / "undisturbed"), hashes(room / "killed"), count_ids(room / "killed")
    differing = sum(wanted.get(name) != found.get(name) for name in wanted | found)
    checks = [
        measure.check("kills that came while it was at work", sum(row["at work"] for row in rows), at_least=len(kills)),
        measure.check("files that differ from the undisturbed run's", differing, at_most=0),
        measure.check("rows lost", sum(ids[number] == 0 for number in range(args.rows)), at_most=0),
        measure.check("rows doubled", sum(count > 1 for count in ids.values()), at_most=0),
    ]
    measure.report(
        "a corpus annotated by two workers, killed three times and started again: the same bytes, and rows a second",
        {
            "tables": {"Speed": speeds, "Kills": rows},
            "files": len(wanted),
            "labels": dict(Counter(_labels(room / "undisturbed")).most_common()),
            "checks": checks,
        },
        args,
        threads=1,
    )


def _labels(output: Path) -> list[str]:
    """Return all labels of the JSON lines; one label alone would show little."""
    return [
        json.loads(line)["label"]
        for path in (output / "data").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]


if __name__ == "__main__":
    main()
