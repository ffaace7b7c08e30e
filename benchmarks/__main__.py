"""Run every measurement, one after the other, and print what was wanted, what was seen, and whether it holds.

    python -m benchmarks                      # all; results in benchmarks/results/NAME.json
    python -m benchmarks fusion memory        # some
    python -m benchmarks --quick              # smallest sizes: shows that all of them run, measures nothing
    python -m benchmarks --write-docs         # put the results that are there into docs/performance.md

Each runs in a process of its own, on as many threads as torch takes by itself. The exit status is 1 where one did not
come to its end or a check does not hold, but for `--quick`, whose checks mean nothing. An example row of the table:

    | memory | last_layer: growth of the slope, 4 -> 16 layers | <= 1.05 | 1.000 | yes |
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PERFORMANCE = HERE.parent / "docs" / "performance.md"
QUICK_RESULTS = Path("runs") / "benchmarks" / "quick"
"""Where `--quick` leaves its files: they are no results."""

BENCHMARKS: dict[str, str] = {
    "roofline": "what the machine allows",
    "fusion": "1: the Transformer Softmax against the published module",
    "training_step": "2: a training step against the bare work and the published pipeline",
    "cached_features": "3: the second epoch from the cache",
    "scoring": "4: scoring all answers",
    "memory": "5: peak memory",
    "two_processes": "6: two processes",
    "work_size": "7: the cost of an example as the work grows",
    "serving": "8: a server that batches against one that does not, and its memory",
    "annotation": "9: a corpus annotated and killed, and rows a second",
}
"""Name of the module -> the claim it is about."""

BLOCK = re.compile(r"(?<=<!-- measured: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def run(name: str, out: Path, options: Sequence[str]) -> bool:
    """Run one measurement in a process of its own; return whether it came to its end."""
    print(f"\n== {name}: claim {BENCHMARKS[name]}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *options]
    return subprocess.run(command, check=False, cwd=HERE.parent).returncode == 0


def read(name: str, folder: Path) -> dict[str, Any]:
    """Return a result, or nothing where there is none."""
    path = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def verdicts(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each check of each result."""
    for name in names:
        for one in read(name, folder).get("checks", []):
            holds = "yes" if one["holds"] else "**no**"
            yield {"benchmark": name, "what": one["name"], "wanted": one["wanted"], "seen": one["seen"], "holds": holds}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; of their columns those whose values are lists or mappings are left out."""
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list)]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def described(name: str, folder: Path) -> str:
    """Return a result as Markdown: its tables, its checks, and where it was measured."""
    found = read(name, folder)
    if not found:
        return f"Not measured yet: `python -m benchmarks.{name}`.\n"
    parts = [f"{title}:\n\n{table(rows)}" for title, rows in found.get("tables", {}).items() if rows]
    checks = [{key: row[key] for key in ("what", "wanted", "seen", "holds")} for row in verdicts(folder, [name])]
    if checks:
        parts.append(table(checks))
    machine = found["machine"]
    place = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    parts.append(f"`python -m benchmarks.{name}`; {place}; {versions}.")
    return "\n\n".join(parts) + "\n"


def with_results(text: str, folder: Path = RESULTS) -> str:
    """Return a document with every block `<!-- measured: NAME -->` ... `<!-- end -->` filled from the results."""

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        rows = list(verdicts(folder, list(BENCHMARKS))) if name == "all" else []
        body = table(rows) + "\n" if rows else described(name, folder) if name != "all" else "Not measured yet.\n"
        return f"{name}{found[2]}\n{body}\n"

    return BLOCK.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="by default all")
    parser.add_argument("--quick", action="store_true", help="smallest sizes: shows that it runs, measures nothing")
    parser.add_argument(
        "--data",
        default=os.environ.get("LAYERBRIDGE_DATA"),
        help="folder with xnli/dev-LANG.tsv; by default $LAYERBRIDGE_DATA",
    )
    parser.add_argument("--results", type=Path, help=f"where results go; by default {RESULTS.relative_to(HERE.parent)}")
    parser.add_argument("--write-docs", action="store_true", help="run nothing; write results into docs/performance.md")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    folder: Path = (args.results or (QUICK_RESULTS if args.quick else RESULTS)).resolve()
    if args.write_docs:
        text = PERFORMANCE.read_text(encoding="utf-8")
        PERFORMANCE.write_text(with_results(text, folder), encoding="utf-8")
        return
    options = [*(["--quick"] if args.quick else []), *(["--data", str(Path(args.data).resolve())] if args.data else [])]
    names = args.names or list(BENCHMARKS)
    failed = [name for name in names if not run(name, folder / f"{name}.json", options)]
    rows = list(verdicts(folder, [name for name in names if name not in failed]))
    if rows:
        print("\n" + table(rows))
    if args.quick:
        print("\nSmallest sizes: all of it runs, and these figures mean nothing.")
    if failed:
        sys.exit(f"Did not come to their end: {', '.join(failed)}.")
    missed = sum(row["holds"] != "yes" for row in rows)
    if missed and not args.quick:
        sys.exit(f"{missed} of {len(rows)} checks do not hold.")


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else ("yes" if value else "no")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.01 or abs(value) >= 1e6 else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
