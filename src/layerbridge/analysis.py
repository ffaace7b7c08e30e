"""What several runs, put together, say: what the evaluation room works out and the report draws. No torch here.

Fractions are 0 to 1, probabilities of tests are two-sided, intervals are 95 %. An `Analysis` is also a JSON file, so a
report can be drawn again, or drawn elsewhere, without the runs.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from layerbridge.atomic import replace_text
from layerbridge.results import Method, Record, Versions, parse_record, read_body

FORMAT = "layerbridge-analysis"
FORMAT_VERSION = 1

WEIGHTS_FILE = "layer_weights.json"
WEIGHTS_FORMAT = "layerbridge-layer-weights"
WEIGHTS_VERSION = 1


class Accuracy(Record):
    """One set-up on one language or average."""

    mean: float
    """Over seeds."""
    low: float
    high: float
    """95 % bootstrap interval."""
    by_seed: tuple[float, ...]
    """In the order of the set-up's seeds."""
    unreadable: float
    """Fraction of answers that could not be read (counted wrong), mean over seeds."""


class Difference(Record):
    """A set-up minus the reference set-up, on the same rows."""

    mean: float
    low: float
    high: float
    p_bootstrap: float
    """Paired bootstrap over rows and seeds."""
    p_bootstrap_holm: float | None = None
    """Adjusted over the task's unseen languages (Holm); None: an average."""
    p_mcnemar: float | None = None
    """Exact McNemar, of several pairs of runs by Rüger's rule; None: an average."""
    p_mcnemar_holm: float | None = None
    wins: int = Field(ge=0)
    """Rows that only this set-up got right, summed over seeds."""
    losses: int = Field(ge=0)
    """Rows that only the reference got right, summed over seeds."""
    detectable: float | None
    """The smallest true difference that is shown with 80 % power at the 5 % level, before adjustment: of one pair of
    runs on one language by McNemar's test, else by the bootstrap. At most 1; None: the two never disagreed, or always
    alike, which does not tell."""


class SetUp(Record):
    """One column: one run, or several that differ in the seed alone."""

    name: str
    """Unique within the task; what the runs' names have in common."""
    group: Literal["bridge", "layer_sweep", "baseline"]
    fusion: str
    """The fusion's name, or the baseline's."""
    layer: int | None = None
    """Of the layer sweep: which layer alone."""
    seeds: tuple[int | None, ...]
    runs: tuple[str, ...]
    trained_parameters: int | None = None


class LanguageRow(Record):
    """One language."""

    code: str
    name: str
    """In English; the code itself where no table knows it."""
    script: str | None
    """ISO 15924."""
    direction: Literal["ltr", "rtl"]
    resource: int | None
    """Class 0 to 5 of Joshi et al. 2020 (arXiv 2004.09095); None: not known."""
    seen: bool | None
    """In training, by any set-up; None: unknown of all."""
    n: int
    majority: float
    """Accuracy of always giving the most frequent answer."""
    accuracies: dict[str, Accuracy]
    """Set-up name -> accuracy; a set-up without this language is missing."""
    differences: dict[str, Difference]
    """Set-up name -> difference to the reference; the reference itself is missing."""


class AverageRow(Record):
    """A macro average: every language weighs the same."""

    name: Literal["average", "zero-shot average"]
    languages: tuple[str, ...]
    n: int
    """Rows of all its languages together."""
    majority: float
    accuracies: dict[str, Accuracy]
    differences: dict[str, Difference]


class TaskAnalysis(Record):
    """One task, read one way."""

    task: str
    task_version: int
    split: str
    limit: int | None
    """Rows per language, the first ones; None: all."""
    method: Method
    encoder: str | None = None
    """Of the bridges, which all have the same frozen models; None: there is no bridge."""
    llm: str | None = None
    reference: str | None
    """Name of the set-up that differences are to; None: baselines alone, while bridges are read otherwise."""
    set_ups: tuple[SetUp, ...]
    languages: tuple[LanguageRow, ...]
    averages: tuple[AverageRow, ...]
    parallel: bool
    """Whether the languages have the same rows, which the bootstrap of an average then resamples together."""
    notes: tuple[str, ...] = ()
    """What a reader must know beside the numbers, such as texts that were cut."""


class Claim(Record):
    """One sentence's worth: a set-up against the reference, on an average."""

    task: str
    method: Method
    set_up: str
    reference: str
    average: Literal["average", "zero-shot average"]
    num_languages: int
    num_seeds: int
    """Trainings on the side that has fewer; a baseline of one run has no seed and is no such side."""
    difference: Difference
    p_holm: float | None = None
    """The bootstrap's, adjusted over all claims but the first (Holm); None: the first, which is chosen beforehand."""


class TokenWeights(Record):
    """A text as its encoder tokens, each with its layer weights."""

    language: str
    text: str
    """As the encoder read it."""
    tokens: tuple[str, ...]
    """As the encoder's tokenizer spells them, its markers (such as U+2581) kept."""
    weights: tuple[tuple[float, ...], ...]
    """A token's weights over the layers, summing to one."""


class LanguageWeights(Record):
    """Layer weights of one language, averaged over tokens."""

    num_tokens: int
    mean: tuple[float, ...]


class LayerWeights(Record):
    """Which layers a run's fusion draws on: layer_weights.json."""

    run: str
    fusion: str
    seed: int | None
    task: str
    checkpoint_sha256: str = ""
    layer_numbers: tuple[int, ...]
    languages: dict[str, LanguageWeights]
    sentences: tuple[TokenWeights, ...]


class SetUpWeights(Record):
    """Layer weights of one run of a set-up, for the report."""

    set_up: str
    weights: LayerWeights


class Point(Record):
    """Of a curve."""

    step: int
    value: float


class LearningCurve(Record):
    """One run's training."""

    task: str
    set_up: str
    run: str
    seed: int | None
    train_loss: tuple[Point, ...]
    dev_accuracy: tuple[Point, ...]
    """0 to 1; empty without dev rows or answers."""
    selected_step: int | None = None


class Origin(Record):
    """Where one run's numbers came from."""

    task: str
    set_up: str
    run: str
    seed: int | None
    checkpoint_sha256: str
    config_sha256: str
    data_sha256: dict[str, str]
    """Language code -> hash of the rows evaluated."""
    data_source: tuple[str, ...]
    train_rows: int | None = None
    train_source: str | None = None
    train_sha256: str | None = None
    steps: int | None = None
    seconds: float | None = None
    """Of training, of the last call."""
    encoder: str | None = None
    llm: str | None = None
    versions: Versions
    machine: str | None = None


class Analysis(Record):
    """Everything that a report shows."""

    title: str
    """Empty: the page makes one."""
    command: str | None = None
    """What to type to get the same."""
    created: AwareDatetime
    claims: tuple[Claim, ...]
    """The main one first."""
    tasks: tuple[TaskAnalysis, ...] = Field(min_length=1)
    """One for each task and method."""
    weights: tuple[SetUpWeights, ...] = ()
    curves: tuple[LearningCurve, ...] = ()
    origins: tuple[Origin, ...] = ()
    notes: tuple[str, ...] = ()
    """Of the whole, such as tasks left out for want of data or jobs that are not done; told before the claims."""


def write_analysis(analysis: Analysis, path: str | Path) -> None:
    """Write analysis.json in one step."""
    data = {"format": FORMAT, "version": FORMAT_VERSION} | analysis.model_dump(mode="json")
    replace_text(Path(path), json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_analysis(path: str | Path) -> Analysis:
    """Read analysis.json.

    Raises:
        DataError: no such file, not JSON, or not this format.
    """
    body = _read(Path(path), FORMAT, FORMAT_VERSION, "`layerbridge report RUN...` writes one.")
    return parse_record(Analysis, body, where=str(path))


def write_weights(weights: LayerWeights, path: str | Path) -> None:
    """Write layer_weights.json in one step."""
    data = {"format": WEIGHTS_FORMAT, "version": WEIGHTS_VERSION} | weights.model_dump(mode="json")
    replace_text(Path(path), json.dumps(data, ensure_ascii=False) + "\n")


def read_weights(path: str | Path) -> LayerWeights:
    """Read layer_weights.json.

    Raises:
        DataError: no such file, not JSON, or not this format.
    """
    body = _read(Path(path), WEIGHTS_FORMAT, WEIGHTS_VERSION, "`layerbridge evaluate RUN` writes it.")
    return parse_record(LayerWeights, body, where=str(path))


def _read(path: Path, wanted: str, version: int, advice: str) -> dict[str, Any]:
    return read_body(path, wanted, version, missing=f"No file at {path}. {advice}", advice=advice)
