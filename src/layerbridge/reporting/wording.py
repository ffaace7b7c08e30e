"""Numbers and claims in words. A claim says no more than its interval and its p-value do.

Accuracies are shown in percent, differences in points of it, with a true minus sign.
"""

from dataclasses import dataclass

from layerbridge.analysis import Claim, Difference, TaskAnalysis

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
    """Return a set-up's name for readers; a study's probes and its layer sweep are named after what they look at."""
    kind, _, rest = name.partition("-")
    if kind == "linear_probe" and rest:
        return f"linear probe, {set_up_name(rest)}"
    if kind == "layer" and rest.isdigit():
        return f"layer {rest}"
    return SET_UP_NAMES.get(name, name)


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


def verdict(difference: Difference) -> str:
    """Return `better` or `worse` where p is below 5 % and the interval leaves out zero, else `open`."""
    if difference.p_bootstrap < LEVEL and difference.low > 0:
        return "better"
    if difference.p_bootstrap < LEVEL and difference.high < 0:
        return "worse"
    return "open"


def say(claim: Claim) -> Sentence:
    """Return a claim in words that follow from its numbers."""
    found = claim.difference
    p = probability(found.p_bootstrap).replace(" ", "\u00a0")
    p = p if p[0] == "<" else f"=\u00a0{p}"
    kind = verdict(found)
    seeds = f"{claim.num_seeds} seed{'' if claim.num_seeds == 1 else 's'}"
    languages = f"{claim.num_languages} language{'' if claim.num_languages == 1 else 's'}"
    shown = f"no difference shown; these rows could have shown {percent(found.detectable)} points."
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
    rows = sum(row.n for row in task.languages)
    how = (
        "the answer with the highest probability counts"
        if task.method == "score"
        else "the generated text must be one of the answers; text that is none of them counts as wrong"
    )
    return (
        f"Task version {task.task_version}, {task.split} split{limit}: {rows} rows in {len(task.languages)} "
        f"language{'' if len(task.languages) == 1 else 's'}. {METHODS[task.method].capitalize()}: {how}."
    )
