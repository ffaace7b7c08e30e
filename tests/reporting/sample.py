"""An analysis rich enough for every part of the report; its numbers are made up, its texts are ours."""

import math
import random
from datetime import UTC, datetime
from functools import cache

from layerbridge.analysis import (
    Accuracy,
    Analysis,
    AverageRow,
    Claim,
    Difference,
    LanguageRow,
    LanguageWeights,
    LayerWeights,
    LearningCurve,
    Origin,
    Point,
    SetUp,
    SetUpWeights,
    TaskAnalysis,
    TokenWeights,
)
from layerbridge.languages import language
from layerbridge.results import Versions

CODES = (
    "en", "ar", "bg", "bn", "de", "el", "es", "fr", "gu", "hi", "id", "ja", "kn", "ml", "mr", "ne", "pa", "ru", "si",
    "sw", "ta", "te", "th", "tr", "ur", "vi", "zh",
)  # fmt: skip
SEEDS = (0, 1, 2, 3, 4)
LAYERS = tuple(range(1, 9))
REFERENCE, MAIN = "last_layer", "transformer_softmax"
BRIDGES = (REFERENCE, "global_softmax_published", "langbridge", MAIN)
GLOBAL = BRIDGES[1]
BASELINES = ("llm_alone", "linear_probe_last_layer", *(f"linear_probe-{name}" for name in (REFERENCE, MAIN)))
"""As the study of the paper calls them."""

TEXTS = {
    "si": ("ශ්‍රී ලංකාවේ වැසි නිසා අද පාසල් වසා ඇත.", "▁ශ|්|\u200dරී|▁ලංකා|වේ|▁වැ|සි|▁නිසා|▁අද|▁පාස|ල්|▁වසා|▁ඇත|."),
    "ta": ("மழை காரணமாக இன்று பள்ளிகள் மூடப்பட்டுள்ளன.", "▁மழை|▁காரணம|ாக|▁இன்|று|▁பள்ளி|கள்|▁மூட|ப்பட்ட|ுள்ளன|."),
    "ar": ("أُغلقت المدارس اليوم بسبب المطر الغزير.", "▁أ|ُ|غل|قت|▁المدارس|▁اليوم|▁بسبب|▁الم|طر|▁الغ|زير|."),
    "th": ("วันนี้โรงเรียนปิดเพราะน้ำท่วม", "▁|วันน|ี้|โรงเรียน|ปิด|เพราะ|น|้|ำ|ท่วม"),
    "zh": ("因为大雨,今天学校停课。", "▁|因为|大|雨|,|今天|学校|停|课|<0xE3>|<0x80>|<0x82>"),
    "hi": ("भारी बारिश के कारण आज विद्यालय बंद हैं।", "▁भारी|▁बार|िश|▁के|▁कारण|▁आज|▁वि|द|्या|लय|▁बंद|▁हैं|।"),
    "en": ("Schools are closed today because of heavy rain", "▁School|s|▁are|▁closed|▁today|▁because|▁of|▁heavy|▁rain"),
}  # fmt: skip


def accuracy(rng: random.Random, centre: float, unreadable: float = 0.0) -> Accuracy:
    values = [min(max(rng.gauss(centre, 0.02), 0.0), 1.0) for _ in SEEDS]
    mean = math.fsum(values) / len(values)
    return Accuracy(mean=mean, low=mean - 0.035, high=mean + 0.035, by_seed=tuple(values), unreadable=unreadable)


def difference(rng: random.Random, mean: float, *, is_average: bool) -> Difference:
    half = 0.015 if is_average else 0.045
    p = min(1.0, max(0.0004, math.exp(-4 * abs(mean) / half * 0.8)))
    mcnemar = None if is_average else min(1.0, p * rng.uniform(0.8, 1.3))
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p_bootstrap=p,
        p_bootstrap_holm=None if is_average else min(1.0, 8 * p),
        p_mcnemar=mcnemar,
        p_mcnemar_holm=None if mcnemar is None else min(1.0, 8 * mcnemar),
        wins=rng.randrange(40, 90),
        losses=rng.randrange(40, 90),
        detectable=half * 1.43,
    )


def set_ups(*, sweep: bool = True) -> tuple[SetUp, ...]:
    def one(name, group, fusion=None, layer=None):
        runs = tuple(f"{name}-seed{seed}" for seed in SEEDS)
        return SetUp(name=name, group=group, fusion=fusion or name, layer=layer, seeds=SEEDS, runs=runs)

    layers = [one(f"layer-{n}", "layer_sweep", "single_layer", n) for n in LAYERS] if sweep else []
    return (*(one(n, "bridge") for n in BRIDGES), *layers, *(one(n, "baseline") for n in BASELINES))


def make_task(task: str = "sib200", method: str = "score", *, codes=CODES, sweep: bool = True, seed=7) -> TaskAnalysis:
    rng = random.Random(f"{task}{method}{seed}")
    columns = set_ups(sweep=sweep)
    gain = {
        "global_softmax_published": 0.008,
        "langbridge": -0.01,
        MAIN: 0.012,
        "llm_alone": -0.12,
        "linear_probe_last_layer": 0.06,
        f"linear_probe-{MAIN}": 0.1,
    }
    rows = []
    for code in codes:
        known = language(code)
        base = 0.52 if code == "en" else rng.uniform(0.26, 0.48)
        accuracies, differences = {}, {}
        reference = accuracy(rng, base)
        for column in columns:
            if column.layer is not None:
                found = accuracy(rng, base - 0.12 + 0.02 * column.layer - 0.004 * max(0, column.layer - 6) ** 2)
            else:
                found = accuracy(rng, base + gain.get(column.name, 0.0), 0.03 if method == "generate" else 0.0)
            found = reference if column.name == REFERENCE else found
            accuracies[column.name] = found
            if column.name != REFERENCE:
                differences[column.name] = difference(rng, found.mean - reference.mean, is_average=False)
        rows.append(
            LanguageRow(
                code=code,
                name=known.name,
                script=known.script,
                direction=known.direction,
                resource=known.resource,
                seen=code == "en",
                n=204,
                majority=0.25,
                accuracies=accuracies,
                differences=differences,
            )
        )
    averages = [make_average(rng, "average", columns, rows)]
    averages.append(make_average(rng, "zero-shot average", columns, [row for row in rows if not row.seen]))
    return TaskAnalysis(
        task=task, task_version=1, split="test", limit=None, method=method, reference=REFERENCE, set_ups=columns,
        encoder="embedded encoder", llm="embedded LM",
        languages=tuple(rows), averages=tuple(averages), parallel=True,
        notes=("3 of 5508 texts were longer than 512 encoder tokens and were cut.",),
    )  # fmt: skip


def make_average(rng, name, columns, rows) -> AverageRow:
    accuracies, differences = {}, {}
    for column in columns:
        each = [row.accuracies[column.name] for row in rows]
        mean = math.fsum(found.mean for found in each) / len(each)
        by_seed = tuple(math.fsum(found.by_seed[s] for found in each) / len(each) for s in range(len(SEEDS)))
        unreadable = math.fsum(found.unreadable for found in each) / len(each)
        accuracies[column.name] = Accuracy(
            mean=mean, low=mean - 0.012, high=mean + 0.012, by_seed=by_seed, unreadable=unreadable
        )
    for column in columns:
        if column.name != REFERENCE:
            gain = accuracies[column.name].mean - accuracies[REFERENCE].mean
            differences[column.name] = difference(rng, gain, is_average=True)
    codes = tuple(row.code for row in rows)
    return AverageRow(
        name=name, languages=codes, n=204 * len(rows), majority=0.25, accuracies=accuracies, differences=differences
    )


def make_weights(rng: random.Random, fusion: str, seed: int, task: str = "sib200") -> LayerWeights:
    def row(shift: float) -> tuple[float, ...]:
        scores = [math.exp(-((layer - 5.5 - shift) ** 2) / 6 + rng.gauss(0, 0.05)) for layer in LAYERS]
        return tuple(score / math.fsum(scores) for score in scores)

    fixed = row(0.3 * seed)
    languages = {
        code: LanguageWeights(num_tokens=4000 + 10 * i, mean=fixed if fusion == GLOBAL else row(i % 5 - 2))
        for i, code in enumerate(CODES)
    }
    sentences = []
    for code, (text, tokens) in TEXTS.items():
        spelt = (*tokens.split("|"), "</s>")
        weights = tuple(fixed if fusion == GLOBAL else row(rng.uniform(-2.5, 2)) for _ in spelt)
        sentences.append(TokenWeights(language=code, text=text, tokens=spelt, weights=weights))
    return LayerWeights(
        run=f"{fusion}-seed{seed}", fusion=fusion, seed=seed, task=task, layer_numbers=LAYERS, languages=languages,
        sentences=tuple(sentences),
    )  # fmt: skip


def make_curve(rng: random.Random, name: str, seed: int, task: str = "sib200") -> LearningCurve:
    steps = range(20, 261, 20)
    loss = [Point(step=s, value=0.6 + 1.5 * math.exp(-s / 60) + rng.gauss(0, 0.03)) for s in steps]
    dev = [Point(step=s, value=0.55 - 0.3 * math.exp(-s / 70) + rng.gauss(0, 0.015)) for s in range(32, 265, 33)]
    return LearningCurve(
        task=task, set_up=name, run=f"{name}-seed{seed}", seed=seed, train_loss=tuple(loss), dev_accuracy=tuple(dev),
        selected_step=dev[-2].step,
    )  # fmt: skip


def make_origin(name: str, seed: int, task: str = "sib200") -> Origin:
    return Origin(
        task=task, set_up=name, run=f"{name}-seed{seed}", seed=seed, checkpoint_sha256=f"{seed}a" * 32,
        config_sha256="c" * 64, data_sha256=dict.fromkeys(CODES, "d" * 64), data_source=("sib200 rows, tsv",),
        train_rows=701, train_source="sib200 train", train_sha256="e" * 64, steps=264, seconds=187.4,
        encoder="embedded encoder", llm="embedded LM",
        versions=Versions(layerbridge="0.1.0", torch="2.8.0", transformers="5.17.0"), machine="cpu, 2 cores",
    )  # fmt: skip


@cache
def make_analysis(title: str = "Topics in 26 languages never trained on") -> Analysis:
    """Two tasks, one read both ways; 27 languages, 4 bridges, 8 single layers, 4 baselines, 5 seeds."""
    rng = random.Random(1)
    tasks = (make_task(), make_task(method="generate"), make_task("xnli", codes=CODES[:15], sweep=False))
    claims = tuple(
        Claim(
            task=task.task,
            method=task.method,
            set_up=name,
            reference=REFERENCE,
            average="zero-shot average",
            num_languages=len(task.averages[1].languages),
            num_seeds=len(SEEDS),
            difference=task.averages[1].differences[name],
        )
        for task in tasks
        for name in (MAIN, "global_softmax_published", "langbridge")
    )
    claims = tuple(
        claim.model_copy(update={"p_holm": min(1.0, 8 * claim.difference.p_bootstrap)}) if number else claim
        for number, claim in enumerate(claims)
    )
    return Analysis(
        title=title, command="layerbridge reproduce paper --pair embedded --data DATA",
        created=datetime(2025, 3, 1, 12, tzinfo=UTC), claims=claims, tasks=tasks,
        weights=tuple(
            SetUpWeights(set_up=name, weights=make_weights(rng, name, seed))
            for name in (GLOBAL, MAIN)
            for seed in (0, 1)
        ),
        curves=tuple(make_curve(rng, name, seed) for name in (*BRIDGES, "layer-3") for seed in SEEDS),
        origins=tuple(make_origin(name, seed) for name in BRIDGES for seed in SEEDS),
        notes=("Amazon reviews were left out: no data was given.",),
    )  # fmt: skip
