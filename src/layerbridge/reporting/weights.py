"""Layer weights of a set-up's runs, put together: by language, by script, and as coloured sentences."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from layerbridge.analysis import Analysis, LayerWeights, TokenWeights
from layerbridge.colour import shade
from layerbridge.coloured_text import Piece, cut
from layerbridge.languages import all_languages
from layerbridge.reporting.tables import Cell, Column, Row, Table
from layerbridge.reporting.views import slug
from layerbridge.reporting.wording import percent, script_name, set_up_name, task_name

ALL = 1 - 1e-6
"""A weight above this leaves nothing to the other layers."""
GLOBAL = ("global_softmax", "global_softmax_published", "layer_mean")
"""Fusions that give every token the same weights; whether languages agree does not tell, where there is one."""
NUM_TEXTS = 32
"""Of each language, whose tokens a mean is over."""
MIN_SPAN = 1.0
"""Layers that the colours of a text span at least, so that they do not blow up what is next to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """What one set-up's runs on one task draw on."""

    key: str
    set_up: str
    task: str
    layer_numbers: tuple[int, ...]
    runs: tuple[LayerWeights, ...]
    by_language: dict[str, tuple[float, ...]]
    """Code -> mean weights over tokens, then over runs."""
    by_script: dict[str, tuple[float, ...]]
    """ISO 15924 -> the same over all tokens of the script's languages."""

    @property
    def is_global(self) -> bool:
        """Whether all tokens of a run have the same weights."""
        return all(run.fusion in GLOBAL for run in self.runs)

    @property
    def is_one_layer(self) -> bool:
        """Whether nothing is mixed."""
        return all(max(mean) > ALL for mean in self.by_language.values())

    @property
    def title(self) -> str:
        """Set-up and task for readers."""
        return f"{set_up_name(self.set_up)}, {task_name(self.task)}"

    def by_run(self) -> list[tuple[float, ...]]:
        """Return each run's weights, mean over languages."""
        return [_mean([found.mean for found in run.languages.values()]) for run in self.runs]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColouredPiece:
    """A piece with its looks."""

    piece: Piece
    colour: str
    """`#rrggbb`; empty: not read, or special."""
    says: str
    """Its tokens and their weights in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColouredText:
    """A sentence ready to be drawn."""

    code: str
    language: str
    """Its name; empty: not known."""
    direction: str
    """`ltr`, `rtl`, or `auto` where no table knows the language."""
    text: str
    pieces: tuple[ColouredPiece, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColouredTexts:
    """Sentences of one run with the scale that they share."""

    title: str
    run: str
    low: float
    """Layer number of the palest colour."""
    high: float
    texts: tuple[ColouredText, ...]


def mixtures(analysis: Analysis) -> list[Mixture]:
    """Return the layer weights of each task and set-up, in the analysis' order; several seeds are one."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[LayerWeights]] = {}
    for item in analysis.weights:
        key = (item.weights.task, item.set_up, item.weights.layer_numbers)
        if item.weights.languages:
            groups.setdefault(key, []).append(item.weights)
    return [
        Mixture(
            key=slug(task, set_up, "weights"),
            set_up=set_up,
            task=task,
            layer_numbers=numbers,
            runs=tuple(runs),
            by_language=_by_language(runs),
            by_script=_by_script(runs),
        )
        for (task, set_up, numbers), runs in groups.items()
    ]


def weights_table(mixture: Mixture) -> Table:
    """Return languages x layers, in percent, then scripts x layers."""
    first = Column(heading="language", parts=("language or script",), is_text=True)
    layers = [Column(heading=str(n), group="layer", parts=(str(n),)) for n in mixture.layer_numbers]
    rows = [(language_name(code), mean, False) for code, mean in mixture.by_language.items()]
    rows += [(f"script {script_name(script)}", mean, True) for script, mean in mixture.by_script.items()]
    return Table(
        key=mixture.key,
        title=f"{mixture.title}: layer weights, percent",
        columns=(first, *layers),
        rows=tuple(
            Row(
                cells=(Cell(text=name, values=(name,)), *(Cell(text=percent(w), values=(w,)) for w in mean)),
                is_average=is_script,
            )
            for name, mean, is_script in rows
        ),
        caption=(
            f"Means over the tokens of the first {NUM_TEXTS} texts of each language, and over {len(mixture.runs)} "
            f"run{'' if len(mixture.runs) == 1 else 's'}.",
        ),
    )


def colour_texts(sentences: Sequence[TokenWeights], numbers: Sequence[int], *, title: str, run: str) -> ColouredTexts:
    """Return sentences with each piece coloured by the weighted mean of its layers' numbers.

    The mean, not the strongest layer: where weights are spread out the strongest flips between neighbours from token
    to token, and a text flickers over nothing. The scale spans what these texts use, and is told beside them.
    """
    pieces = [cut(sentence) for sentence in sentences]
    means = [p.mean_layer(numbers) for parts in pieces for p in parts if p.weights and p.body]
    low, high = scale(means, numbers)
    return ColouredTexts(
        title=title,
        run=run,
        low=low,
        high=high,
        texts=tuple(
            ColouredText(
                code=sentence.language,
                language=language_name(sentence.language) if sentence.language else "",
                direction=direction(sentence.language),
                text=sentence.text,
                pieces=tuple(_coloured(piece, numbers, low, high) for piece in parts),
            )
            for sentence, parts in zip(sentences, pieces, strict=True)
        ),
    )


def scale(means: Sequence[float], numbers: Sequence[int]) -> tuple[float, float]:
    """Return the layer numbers at both ends of the colours: what is used, no narrower than `MIN_SPAN` where it can be.

    Both ends are of layers that there are.
    """
    first, last = float(min(numbers, default=0)), float(max(numbers, default=1))
    if not means:
        return first, last
    low, high = min(means), max(means)
    missing = max(0.0, MIN_SPAN - (high - low)) / 2
    low, high = low - missing, high + missing
    low, high = (low, high) if low >= first else (first, high + first - low)
    low, high = (low, high) if high <= last else (low - (high - last), last)
    return max(low, first), high


def language_name(code: str) -> str:
    """Return the English name, or the code where the table does not know it."""
    return next((known.name for known in all_languages() if known.code == code), code)


def direction(code: str) -> str:
    """Return `ltr` or `rtl`, or `auto` where the table does not know the language."""
    return next((known.direction for known in all_languages() if known.code == code), "auto")


def _coloured(piece: Piece, numbers: Sequence[int], low: float, high: float) -> ColouredPiece:
    tokens = " + ".join(map(_readable, piece.tokens))
    if not piece.weights:
        return ColouredPiece(piece=piece, colour="", says="not read by the encoder: the text was cut before")
    mean = piece.mean_layer(numbers)
    each = ", ".join(f"{n}: {100 * w:.0f} %" for n, w in zip(numbers, piece.weights, strict=True))
    says = f"{tokens}: mean layer {mean:.2f} (layer {each})"
    return ColouredPiece(piece=piece, colour=shade((mean - low) / (high - low or 1.0)) if piece.body else "", says=says)


def _readable(token: str) -> str:
    """Put a dotted circle under a token that starts with a mark, as a mark alone has nothing to stand on."""
    return f"◌{token}" if token and unicodedata.category(token[0])[0] == "M" else token


def _by_language(runs: Sequence[LayerWeights]) -> dict[str, tuple[float, ...]]:
    codes = dict.fromkeys(code for run in runs for code in run.languages)
    return {code: _mean([run.languages[code].mean for run in runs if code in run.languages]) for code in codes}


def _by_script(runs: Sequence[LayerWeights]) -> dict[str, tuple[float, ...]]:
    script_of = {known.code: known.script for known in all_languages()}
    found: dict[str, list[list[tuple[int, tuple[float, ...]]]]] = {}
    for run in runs:
        of_run: dict[str, list[tuple[int, tuple[float, ...]]]] = {}
        for code, item in run.languages.items():
            if code in script_of:
                of_run.setdefault(script_of[code], []).append((item.num_tokens, item.mean))
        for script, items in of_run.items():
            found.setdefault(script, []).append(items)
    return {script: _mean([_weighted(items) for items in found[script]]) for script in sorted(found)}


def _weighted(items: Sequence[tuple[int, tuple[float, ...]]]) -> tuple[float, ...]:
    total = sum(count for count, _ in items)
    if not total:
        return _mean([mean for _, mean in items])
    columns = zip(*(mean for _, mean in items), strict=True)
    return tuple(fsum(n * w for (n, _), w in zip(items, column, strict=True)) / total for column in columns)


def _mean(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(fsum(column) / len(rows) for column in zip(*rows, strict=True))
