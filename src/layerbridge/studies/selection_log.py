"""The log of a choice between set-ups: selection.json, and the same as a table to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field

from layerbridge.analysis import Accuracy, Difference
from layerbridge.atomic import replace_text
from layerbridge.errors import DataError
from layerbridge.results import Method, Record, parse_record, read_body

FORMAT = "layerbridge-selection"
FORMAT_VERSION = 1
SELECTION_FILE = "selection.json"
TABLE_FILE = "selection.md"


class Candidate(Record):
    """One set-up that could be chosen."""

    set_up: str
    rank: int | None
    """1 is chosen; None: too few of the reference's seeds, so it is not ranked."""
    fusion: str
    seeds: tuple[int | None, ...]
    trained_parameters: int | None
    accuracy: Accuracy
    """On the average that the rule ranks by."""
    difference: Difference | None
    """To the reference, on the same average; None: it is the reference."""
    p_holm: float | None
    """The bootstrap's p, adjusted over all ranked set-ups (Holm)."""
    english: Accuracy | None
    beside: dict[str, Accuracy] = Field(default_factory=dict)
    """Other tasks -> accuracy on their average, which the rule does not read."""
    checkpoints: dict[str, str]
    """Run -> sha256 of its checkpoint."""


class StudyOrigin(Record):
    """A study whose results were read, from its study.json."""

    study: str
    pair: str
    definition_sha256: str
    set_ups: dict[str, str] = Field(default_factory=dict)
    """Set-up -> hash of its definition."""


class Report(Record):
    """A folder of results that a choice was compared with."""

    name: str
    """Of the folder."""
    results: int
    """How many it held."""
    checked_at: AwareDatetime
    """When they were compared, which may be after the choice."""


class Selection(Record):
    """A choice, and all that it rests on."""

    rule: str
    task: str
    task_version: int
    split: str
    limit: int | None
    method: Method
    average: str
    languages: tuple[str, ...]
    """Of the average."""
    n: int
    """Rows of all its languages together."""
    data_sha256: dict[str, str]
    """Language code -> hash of the rows that were read."""
    majority: float
    reference: str
    encoder: str | None
    llm: str | None
    candidates: tuple[Candidate, ...]
    """Best first, then those that are not ranked."""
    studies: tuple[StudyOrigin, ...]
    reports_checked: int
    """Results of reports whose splits were compared with these; none in common, or there would be no selection."""
    reports: tuple[Report, ...] = ()
    """The folders that they are in. Logs of before there were names have none."""
    command: str | None
    """What was typed to choose."""
    results_created: AwareDatetime
    """When the newest of the results was made."""
    chosen_at: AwareDatetime
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Candidate:
        """The set-up that the rule chooses."""
        return self.candidates[0]


BESIDE_THE_CHOICE = {"chosen_at", "command", "notes", "studies", "reports_checked", "reports"}
"""Keys of a selection that may be others for the same choice."""


def write_selection(selection: Selection, folder: Path) -> Selection:
    """Write selection.json and selection.md.

    The same choice on the same results keeps the date and the command that it was made with, and the reports that it
    was compared with before; those of now are added. One of the same name and number of results is entered once, with
    its latest date. Another choice has only the reports of now.

    Returns:
        What the files hold.
    """
    path = folder / SELECTION_FILE
    if path.is_file():
        before = read_selection(path)
        if selection.model_dump(exclude=BESIDE_THE_CHOICE) == before.model_dump(exclude=BESIDE_THE_CHOICE):
            kept = {"chosen_at": before.chosen_at, "command": before.command}
            selection = selection.model_copy(update=kept | _reports(before, selection))
    data = {"format": FORMAT, "version": FORMAT_VERSION, "chosen": selection.chosen.set_up}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data | selection.model_dump(mode="json"), indent=1, ensure_ascii=False)
    replace_text(path, text + "\n")
    replace_text(folder / TABLE_FILE, to_markdown(selection))
    return selection


def _reports(before: Selection, now: Selection) -> dict[str, Any]:
    """Return what a selection says of reports when those of now are added to those of before."""
    again = {(report.name, report.results) for report in now.reports}
    stay = tuple(report for report in before.reports if (report.name, report.results) not in again)
    unnamed = before.reports_checked - sum(report.results for report in before.reports)
    reports = (*stay, *now.reports)
    return {"reports": reports, "reports_checked": unnamed + sum(report.results for report in reports)}


def read_selection(path: Path) -> Selection:
    """Read selection.json.

    Raises:
        DataError: no such file, not JSON, not this format, or a choice that is not the first of its candidates.
    """
    advice = "`layerbridge select STUDY...` writes it."
    body = read_body(path, FORMAT, FORMAT_VERSION, missing=f"No selection at {path}. {advice}", advice=advice)
    chosen = body.pop("chosen", None)
    selection = parse_record(Selection, body, where=str(path))
    if chosen != selection.chosen.set_up:
        raise DataError(f"{path}: chosen is {chosen!r}, and the first candidate {selection.chosen.set_up!r}. {advice}")
    return selection


def to_markdown(selection: Selection) -> str:
    """Return a selection as Markdown: the choice and its rule, the ranking in percent and points, the origin."""
    first = selection.candidates[0]
    limit = f", the first {selection.limit} rows a language" if selection.limit else ""
    beside = sorted({task for item in selection.candidates for task in item.beside})
    headings = ["rank", "set-up", "seeds", _heading(selection), f"minus {selection.reference}", "95 % interval", "p"]
    headings += ["p (Holm)", "English", *beside]
    rows = [_row(item, beside) for item in selection.candidates]
    hashes = sorted({sha256[:12] for sha256 in selection.data_sha256.values()})
    lines = [
        f"# Chosen: {first.set_up}",
        "",
        f"Rule: {selection.rule}. Chosen at {selection.chosen_at.isoformat()} from results of "
        f"{selection.results_created.isoformat()} and before.",
        "",
        f"Task {selection.task} (version {selection.task_version}), split **{selection.split}**{limit}, accuracy % by "
        f"{selection.method}; {selection.n} rows in {len(selection.languages)} languages "
        f"({' '.join(selection.languages)}); majority {100 * selection.majority:.1f}; encoder {selection.encoder}, LLM "
        f"{selection.llm}.",
        "",
        _line(headings),
        _line(["---:", "---", *["---:"] * (len(headings) - 2)]),
        *map(_line, rows),
        "",
        *(f"- {note}" for note in selection.notes),
        *(
            f"- Study {study.study}, pair {study.pair}: definition sha256 `{study.definition_sha256[:12]}`."
            for study in selection.studies
        ),
        f"- Rows, sha256 by language: {', '.join(f'`{sha256}`' for sha256 in hashes)}.",
        f"- Checkpoints of {first.set_up}: "
        + ", ".join(f"{run} `{sha256[:12]}`" for run, sha256 in sorted(first.checkpoints.items()))
        + f". All hashes whole: `{SELECTION_FILE}`.",
        f"- {_check(selection)}",
    ]
    command = ["", f"    {selection.command}"] if selection.command else []
    return "\n".join([*lines, *command]) + "\n"


def _check(selection: Selection) -> str:
    if not selection.reports_checked:
        return "Not compared with results that are reported; `--report FOLDER` does it, also afterwards."
    unnamed = selection.reports_checked - sum(report.results for report in selection.reports)
    counts = [str(unnamed)] if unnamed else []
    counts += [f"{report.results} of {report.name} ({report.checked_at.isoformat()})" for report in selection.reports]
    return (
        f"Reported results that were compared with these: {', '.join(counts)}; none is of a split that was read here."
    )


def _heading(selection: Selection) -> str:
    kind = "zero-shot mean" if selection.average == "zero-shot average" else "mean"
    return f"{kind} of {len(selection.languages)}"


def _row(item: Candidate, beside: Sequence[str]) -> list[str]:
    by, seeds = item.difference, len(set(item.seeds))
    difference = ["", "", "", ""]
    if by is not None:
        points = [f"{100 * value:+.1f}" for value in (by.mean, by.low, by.high)]
        holm = "" if item.p_holm is None else _p(item.p_holm)
        difference = [points[0], f"{points[1]} to {points[2]}", _p(by.p_bootstrap), holm]
    accuracies = [item.accuracy, item.english, *(item.beside.get(task) for task in beside)]
    shown = ["" if found is None else f"{100 * found.mean:.1f}" for found in accuracies]
    return ["" if item.rank is None else str(item.rank), item.set_up, str(seeds), shown[0], *difference, *shown[1:]]


def _p(value: float) -> str:
    return f"{value:.4f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
