"""Numbers and claims in words. A claim says no more than its interval and its p-value do.

Accuracies are shown in percent, differences in points of it, with a true minus sign.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from layerbridge.analysis import Analysis, Claim, Difference, TaskAnalysis

TASK_NAMES = {
    "sib200": "SIB-200",
    "xnli": "XNLI",
    "indicxnli": "IndicXNLI",
    "sinhala_news": "Sinhala news",
    "sinhala_news_rksk": "Sinhala news (rksk)",
    "headlines": "Headlines",
    "amazon_reviews": "Amazon reviews",
}
"""As their papers spell them; any other task is called what it is."""

SET_UP_NAMES = {
    "last_layer": "last layer",
    "single_layer": "single layer",
    "layer_mean": "layer mean",
    "global_softmax": "Global Softmax",
    "global_softmax_published": "Global Softmax as published",
    "attention_pool": "attention pool",
    "low_rank_softmax": "low-rank softmax",
    "langbridge": "LangBridge's recipe",
    "transformer_softmax": "Transformer Softmax",
    "llm_alone": "LLM alone",
    "translate_then_llm": "translate, then LLM",
    "linear_probe_last_layer": "linear probe, last layer",
    "linear_probe_fused": "linear probe, fused",
}
"""Of set-ups that are called as their fusion or baseline, or as in a study of the package."""

METHODS = {"score": "label scoring", "generate": "generate and match"}
RESOURCES = ("left behind", "scraping by", "hopeful", "rising star", "underdog", "winner")
"""Names of the classes 0 to 5 of Joshi et al. 2020, arXiv 2004.09095."""

SCRIPTS = {
    "Arab": "Arabic", "Armn": "Armenian", "Beng": "Bengali", "Cyrl": "Cyrillic", "Deva": "Devanagari",
    "Ethi": "Ethiopic", "Geor": "Georgian", "Grek": "Greek", "Gujr": "Gujarati", "Guru": "Gurmukhi", "Hang": "Hangul",
    "Hans": "Chinese, simplified", "Hant": "Chinese, traditional", "Hebr": "Hebrew", "Jpan": "Japanese",
    "Khmr": "Khmer", "Knda": "Kannada", "Laoo": "Lao", "Latn": "Latin", "Mlym": "Malayalam", "Mymr": "Myanmar",
    "Nkoo": "N’Ko",
    "Olck": "Ol Chiki", "Orya": "Odia", "Sinh": "Sinhala", "Taml": "Tamil", "Telu": "Telugu", "Tfng": "Tifinagh",
    "Thai": "Thai", "Tibt": "Tibetan",
}  # fmt: skip
"""English names of the scripts in the table of languages, by their ISO 15924 codes."""

NOTHING = "–"
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """A claim in words."""

    about: str
    """Task, average, seeds, method."""
    finding: str
    """The set-up, its difference, interval and p-value."""
    verdict: str
    """`better than ...`, `worse than ...`, or `no difference shown` and what could have been."""
    kind: str
    """`better`, `worse` or `open`: for the page's looks."""

    def __str__(self) -> str:
        return f"{self.about}: {self.finding}: {self.verdict}"


def task_name(task: str) -> str:
    """Return a task's name for readers."""
    return TASK_NAMES.get(task, task)


def set_up_name(name: str) -> str:
    """Return a set-up's name for readers; a study's probes and its layer sweep are named after what they look at.

    ` [2]`, which tells set-ups of one name apart, stays.
    """
    bare, number = re.fullmatch(r"(.*?)( \[\d+\])?", name, flags=re.DOTALL).groups(default="")  # type: ignore[union-attr]
    kind, _, rest = bare.partition("-")
    if kind == "linear_probe" and rest:
        return f"linear probe on {set_up_name(rest)}'s fused states{number}"
    if kind == "layer" and rest.isdigit():
        return f"layer {rest}{number}"
    return f"{SET_UP_NAMES.get(bare, bare)}{number}"


def with_names(note: str, set_ups: Sequence[str]) -> str:
    """Return a note with set-ups and tasks called as readers know them; runs, paths and the like stay."""
    names = "|".join(map(re.escape, sorted(set_ups, key=len, reverse=True)))
    if names:
        note = re.sub(rf"(?<![\w/.-])({names})(?![\w/-])", lambda found: set_up_name(found[1]), note)
    return re.sub(r"\b([Tt]ask )(\w+)", lambda found: found[1] + task_name(found[2]), note)


def heading(analysis: Analysis) -> str:
    """Return the page's headline: the title given, else one of the tasks' names."""
    if analysis.title:
        return analysis.title
    names = list(dict.fromkeys(task_name(task.task) for task in analysis.tasks))
    found = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"Bridges compared on {found}" if analysis.claims else f"Accuracy on {found}"


def script_name(code: str) -> str:
    """Return a script's name for readers."""
    return SCRIPTS.get(code, code)


def percent(fraction: float | None, *, places: int = 1) -> str:
    """Return `34.1` for 0.341."""
    return NOTHING if fraction is None else f"{100 * fraction:.{places}f}"


def points(difference: float | None, *, places: int = 1) -> str:
    """Return `+1.2` for 0.012, `−1.2` for -0.012 and `0.0` for nothing."""
    if difference is None:
        return NOTHING
    shown = f"{100 * difference:+.{places}f}"
    return shown[1:] if float(shown) == 0 else shown.replace("-", "−")


def probability(p: float | None) -> str:
    """Return a p-value to two digits that matter, `< 0.001` below that."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    # 0.0496 is not written 0.05: the digits must not say otherwise than the comparison with the level.
    return f"{p:.3f}" if p < 0.01 or round(p, 2) == LEVEL else f"{p:.2f}"


def interval(low: float, high: float) -> str:
    """Return `−0.3 to +2.7` in points, to as many places as show on which side of zero it ends."""
    is_close = any(value and abs(100 * value) < 0.05 for value in (low, high))
    places = 2 if is_close else 1
    return f"{points(low, places=places)} to {points(high, places=places)}"


def verdict(difference: Difference, *, adjusted: float | None = None) -> str:
    """Return `better` or `worse` where p is below 5 % and the interval leaves out zero, else `open`.

    Args:
        difference: its p is the paired bootstrap's.
        adjusted: p of a difference that is one of several, which has to be below 5 % too.
    """
    is_shown = max(difference.p_bootstrap, adjusted or 0.0) < LEVEL
    if is_shown and difference.low > 0:
        return "better"
    if is_shown and difference.high < 0:
        return "worse"
    return "open"


def power(difference: Difference) -> str:
    """Return what could have been shown, as half a sentence."""
    if not difference.wins and not difference.losses:
        return "the two never disagreed, so these rows do not tell"
    if difference.detectable is None:
        return "the two disagreed alike on all rows, which does not tell what could be shown"
    if difference.detectable >= 1:
        return "these rows and seeds are too few to show any"
    return f"a true one of {percent(difference.detectable)} points would be shown 4 times in 5"


def say(claim: Claim) -> Sentence:
    """Return a claim in words that follow from its numbers."""
    found = claim.difference
    p = probability(found.p_bootstrap).replace(" ", "\u00a0")
    p = p if p[0] == "<" else f"=\u00a0{p}"
    if claim.p_holm is not None:
        p += f" (Holm\u00a0{probability(claim.p_holm)})".replace("< ", "<\u00a0")
    kind = verdict(found, adjusted=claim.p_holm)
    seeds = f"{claim.num_seeds} seed{'' if claim.num_seeds == 1 else 's'}"
    languages = f"{claim.num_languages} language{'' if claim.num_languages == 1 else 's'}"
    lost = " once adjusted for the other claims" if kind != verdict(found) else ""
    shown = f"no difference shown{lost}; {power(found)}."
    return Sentence(
        about=f"{task_name(claim.task)}, {claim.average} of {languages}, {seeds}, {METHODS[claim.method]}",
        finding=(
            f"{set_up_name(claim.set_up)} {points(found.mean)} points over {set_up_name(claim.reference)}, "
            f"95\u00a0% interval {interval(found.low, found.high)}, p\u00a0{p}"
        ),
        verdict=shown if kind == "open" else f"{kind} than {set_up_name(claim.reference)}.",
        kind=kind,
    )


def describe_task(task: TaskAnalysis) -> str:
    """Return on what rows and how a task was measured, as one sentence."""
    limit = "" if task.limit is None else f", the first {task.limit} rows of each language"
    count = f"{len(task.languages)} language{'' if len(task.languages) == 1 else 's'}"
    rows = f"{sum(row.n for row in task.languages)} rows in {count}"
    if task.parallel:
        rows = f"{task.languages[0].n} rows, each in {count}"
    how = (
        "the answer with the highest probability counts"
        if task.method == "score"
        else "the generated text must be one of the answers; text that is none of them counts as wrong"
    )
    return (
        f"Task version {task.task_version}, {task.split} split{limit}: {rows}. "
        f"{METHODS[task.method].capitalize()}: {how}."
    ) + (f" {models}." if (models := describe_models(task)) else "")


def describe_models(task: TaskAnalysis) -> str:
    """Return `Encoder X, LLM Y`, of the bridges; empty: not known, or no bridge."""
    sides = (("Encoder", task.encoder), ("LLM", task.llm))
    return ", ".join(f"{side} {_brief(name)}" for side, name in sides if name)


def _brief(name: str) -> str:
    """Cut a commit to its first 12 digits."""
    return re.sub(r"@([0-9a-f]{12})[0-9a-f]+$", r"@\1", name)
