"""Cost of an example as the work grows: 1,000, 10,000 and 100,000 rows, each size in a process of its own.

A tiny mT5 + Llama pair, so that 100,000 rows take minutes: what is measured is everything around the models' own work,
which cannot grow. The rows are English NLI rows with different texts (`nli_en/train.tsv.gz` of the data folder, or
XNLI's dev rows with their number in front). Seconds of each stage, and the peak of the process's memory:

- **read**: the task's files to examples;
- **tokenise**: examples to token ids, as training does once at its start;
- **encode**: the encoder's states of all texts into an empty feature cache, and the cache opened;
- **train**: one epoch without the cache, one without dev rows, one checkpoint; from its first step on;
- **score**: label scoring of all rows through `layerbridge.evaluation.predict.predict`.

Encode, train and score have limits, in processor time: each size against the one before it.
Read and tokenise are reported and have none: a second or less at the smaller sizes, they are mostly their own start.

    python -m benchmarks.work_size
    python -m benchmarks.work_size --sizes 1000 10000

Example row (two cores shared with other work, so no figure to quote):

    {"rows": 10000, "examples_per_second": {"read": 91000.0, "train": 610.3, ...}, "peak_rss_mb": 900}
"""

import argparse
import csv
import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure, pair
from benchmarks.pair import ANSWERS, PROMPT, xnli_rows

STAGES = ("read", "tokenise", "encode", "train", "score")
VOCABULARY = 2_000
"""Token pieces: with 32,000, the softmax over them would be most of so small a pair's work."""
MAX_TOKENS = 32
"""Of a text; the rest is cut, so that the largest size takes minutes."""
FLAT = 0.9
"""Examples a second at a size, at least, of those at the size before it, and of those at any other."""
CHECKED = ("encode", "train", "score")


def different_rows(data: Path, count: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield rows with different texts."""
    path = data / "nli_en" / "train.tsv.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        for number in range(count):
            premise, hypothesis, label, _ = found[number % len(found)]
            again = f"{number // len(found)} " if number >= len(found) else ""
            yield {"text": PROMPT.format(premise=again + premise, hypothesis=hypothesis), "label": ANSWERS[label]}
    else:
        rows = xnli_rows(data, seed=seed)
        for number in range(count):
            row = rows[number % len(rows)]
            yield {"text": f"{number} {row.text}", "label": row.answer}


def write_recipe(folder: Path, arguments: argparse.Namespace, size: int) -> Path:
    """Write rows and a recipe, and return the recipe's path."""
    pair.VOCABULARY = VOCABULARY
    work = arguments.work / f"vocabulary-{VOCABULARY}"
    encoder, llm = pair.build_pair(work, arguments.data, width=arguments.width, layers=arguments.layers)
    rows = folder / f"rows-{size}.jsonl"
    lines = (json.dumps(row) + "\n" for row in different_rows(arguments.data, size, arguments.seed))
    rows.write_text("".join(lines), encoding="utf-8")
    recipe: dict[str, Any] = {
        "name": "work_size",
        "encoder": str(encoder.resolve()),
        "llm": str(llm.resolve()),
        "fusion": {"name": "transformer_softmax", "feedforward_width": 128},
        "task": {
            "name": "nli_rows",
            "files": {"train": rows.name, "test": {"en": rows.name}},
            "encoder_prompt": "{text}",
            "answer_column": "label",
            "answers": list(ANSWERS.values()),
        },
        "training": {
            "epochs": 1,
            "batch_size": arguments.batch_size,
            "eval_every": -(-size // arguments.batch_size),
            "select": "last",
            "group_by_length": True,
            "max_source_tokens": MAX_TOKENS,
        },
        "evaluation": {"methods": ["score"], "max_source_tokens": MAX_TOKENS},
    }
    path = folder / f"recipe-{size}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def go_through(recipe_path: Path) -> dict[str, Any]:
    """Do all stages on one recipe's rows; return their seconds and the peak of this process's memory."""
    from layerbridge.config import load_recipe
    from layerbridge.data.tasks import build_task
    from layerbridge.evaluation.predict import predict
    from layerbridge.model.bridge import Bridge
    from layerbridge.model.features import FeatureStore
    from layerbridge.training.token_rows import TokenRows
    from layerbridge.training.trainer import BridgeTrainer

    recipe = load_recipe(recipe_path)
    task = build_task(recipe.task)
    bridge = Bridge.build(recipe.bridge, seed=0)
    folder = recipe_path.parent / f"{recipe_path.stem}-run"
    moments: list[tuple[str, float, float]] = [("", time.perf_counter(), time.process_time())]

    def ends(stage: str) -> None:
        moments.append((stage, time.perf_counter(), time.process_time()))

    rows, _ = task.load_training(recipe.task, seed=0)
    ends("read")
    tokens = TokenRows(rows.examples, bridge.processor, recipe.training)
    ends("tokenise")
    store = FeatureStore(folder / "cache", bridge.encoder, fingerprint=str(bridge.bases["encoder"]["fingerprint"]))
    plan = store.plan([tokens.source[number].tolist() for number in range(len(tokens))] for _ in range(1))
    for shard in store.missing(plan):
        store.encode(shard)
    store.open(plan)
    ends("encode")
    trainer = BridgeTrainer(
        bridge,
        training=recipe.training,
        train=tokens,
        dev=None,
        answers=task.answers,
        folder=folder,
        progress=False,
    )
    ends("")
    trainer.train()
    ends("train")
    for _ in predict(bridge, task, "en", task.load("en", "test"), recipe.evaluation):
        pass
    ends("score")
    spent = {stage: end - begin for (_, begin, _), (stage, end, _) in itertools.pairwise(moments) if stage}
    worked = {stage: end - begin for (_, _, begin), (stage, _, end) in itertools.pairwise(moments) if stage}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": len(tokens),
        "tokens": sum(tokens.source_lengths),
        "seconds": spent,
        "processor_milliseconds_per_example": {stage: 1e3 * took / len(tokens) for stage, took in worked.items()},
        "examples_per_second": {stage: len(tokens) / seconds for stage, seconds in spent.items()},
        "cache_mb": plan.num_bytes / 1e6,
        "peak_rss_mb": peak / (1e6 if sys.platform == "darwin" else 1e3),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes = [64, 256]
    found = []
    with tempfile.TemporaryDirectory() as made:
        for size in arguments.sizes:
            recipe = write_recipe(Path(made), arguments, size)
            command = [sys.executable, "-m", "benchmarks.work_size", "--go-through", str(recipe)]
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{size} rows failed:\n{done.stderr[-3000:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{size} rows: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    table = [
        {
            "rows": row["rows"],
            **{f"{stage}, examples a second": round(row["examples_per_second"][stage]) for stage in STAGES},
            "peak memory, MB": round(row["peak_rss_mb"]),
        }
        for row in found
    ]
    checks = [
        measure.check(
            f"{stage}: examples a processor second, {after['rows']} rows / {before['rows']}",
            before["processor_milliseconds_per_example"][stage] / after["processor_milliseconds_per_example"][stage],
            at_least=FLAT,
        )
        for before, after in itertools.pairwise(found)
        for stage in CHECKED
    ]
    measure.report(
        "an example costs the same however many there are",
        {"sizes": found, "tables": {"Examples a second": table}, "checks": checks},
        arguments,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--go-through"]:  # the process of one size, which `main` starts
        print(json.dumps(go_through(Path(sys.argv[2]))))
    else:
        main()
