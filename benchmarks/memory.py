"""Peak memory of one training step over tokens and encoder layers: what grows with what.

One step (loss, backward, clip, AdamW) of a small pair with L = 4, 8 and 16 encoder layers, the LLM always the same,
over batches of texts of one length. The peak above what was held before the step is exact: it is the allocator's own
account, not a sample. For each contestant and L, bytes = fixed + slope x tokens is fitted. What the slope gains with L
is given in states a token and layer (a state is E numbers): 1.0 means that every layer's state of every token is held.

States from the cache lie in files mapped into memory; the pages of these that were read are the system's to drop, and
are not counted. In the other forms the encoder runs in the step. The training option `gradient_checkpointing` does two
things, each measured alone here: "states recomputed" is its part about the encoder (`Bridge.recompute_states`), and
"gradient checkpointing" its part about the LLM's activations, with the encoder's states from the cache.

    python -m benchmarks.memory
    python -m benchmarks.memory --tokens 64 --rows 4 8 16 32

Example row of `slopes` (a CPU, torch 2.13.0; bytes do not depend on how busy it is):

    {"contestant": "transformer_softmax, cached", "layers": 16, "bytes_a_token": 120161.7, "r_squared": 0.999515,
     "growth": 1.0007, "states_held_a_layer": 0.007, ...}
"""

import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.pair import Row, build_pair, xnli_rows
from benchmarks.published_pipeline import FusionName
from benchmarks.training_step import OurStep, build_bridge, build_published, keep_features
from layerbridge.training.recomputation import mark_layers, recompute_activations

WIDTH, LLM_LAYERS, ITEM_BYTES = 256, 4, 4
CONTESTANTS: dict[str, FusionName] = {
    "last_layer": "last_layer",
    "global_softmax_published": "global_softmax_published",
    "transformer_softmax": "transformer_softmax",
    "global_softmax_published, states recomputed": "global_softmax_published",
    "transformer_softmax, cached": "transformer_softmax",
    "global_softmax_published, cached": "global_softmax_published",
    "transformer_softmax, cached, gradient checkpointing": "transformer_softmax",
    "published pipeline": "transformer_softmax",
}
"""What is measured, and its fusion."""
INDEPENDENT = (
    "last_layer",
    "global_softmax_published, states recomputed",
    "transformer_softmax, cached",
    "global_softmax_published, cached",
)
"""Whose slope is claimed not to grow with the number of layers."""


def peak(
    name: str, models: tuple[Path, Path], rows: Sequence[Row], *, tokens: int, num_rows: Sequence[int], seed: int
) -> list[int]:
    """Return one contestant's peak bytes for batches of so many rows of `tokens` tokens each."""
    bridge = build_bridge(models, CONTESTANTS[name], seed=seed)
    texts, answers = [row.text for row in rows], [rows[0].answer] * len(rows)  # answers alike, so that rows are
    steps: list[Callable[[], object]] = []
    folder = Path(tempfile.mkdtemp(prefix="features-"))
    try:
        if name == "published pipeline":
            pipeline = build_published(models, CONTESTANTS[name], bridge)
            optimizer = pipeline.optimizer()
            steps = [lambda n=n: pipeline.step(texts[:n], answers[:n], optimizer, tokens) for n in num_rows]
        else:
            if "cached" in name:
                keep_features(bridge, folder, texts, tokens)
            bridge.recompute_states = name.endswith("recomputed")
            ours = OurStep(bridge)
            if name.endswith("gradient checkpointing"):
                recompute_activations(bridge.llm)
                mark_layers(bridge.llm, True)
            batches = [
                bridge.processor(texts[:n], answers=answers[:n], max_source_tokens=tokens).to(measure.DEVICE)
                for n in num_rows
            ]
            assert all(batch.source_mask.all() for batch in batches), "every text fills its row"
            optimizer = ours.optimizer
            steps = [lambda batch=batch: ours(batch) for batch in batches]
        steps[0]()  # the optimizer's state, and what is found out once, are there from now on
        peaks = []
        for step in steps:
            optimizer.zero_grad(set_to_none=True)  # the last step's gradients are not to be freed within this one
            peaks.append(measure.peak_memory(step))
        return peaks
    finally:
        bridge.features = None
        shutil.rmtree(folder, ignore_errors=True)


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """Return slope, intercept and R^2 of the straight line of least squares."""
    slope, intercept = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(ys)
    left = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, intercept, 1 - left / sum((y - mean) ** 2 for y in ys)


def long_rows(rows: Sequence[Row], count: int) -> list[Row]:
    """Return `count` texts of several rows each, long enough to be cut at any length that is measured here."""
    a_text = max(2, min(8, len(rows) // count))
    starts = range(0, count * a_text, a_text)
    return [Row(" ".join(row.text for row in rows[start : start + a_text]), rows[0].answer) for start in starts]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16], help="of the encoder")
    parser.add_argument("--tokens", type=int, default=64, help="of every text")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16, 24, 32], help="of a batch")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Texts longer")  # they are meant to be
    width, llm_layers = WIDTH, LLM_LAYERS
    if args.quick:
        args.layers, args.tokens, args.rows, width, llm_layers = [2, 4], 16, [2, 4, 8], 64, 2
    rows = long_rows(xnli_rows(args.data, seed=args.seed), max(args.rows))

    points, slopes = [], []
    found: dict[tuple[str, int], float] = {}
    linearity: dict[str, float] = {}
    for name in CONTESTANTS:
        for layers in args.layers:
            models = build_pair(args.work, args.data, width=width, layers=layers, llm_layers=llm_layers)
            counts = [count * args.tokens for count in args.rows]
            peaks = peak(name, models, rows, tokens=args.tokens, num_rows=args.rows, seed=args.seed)
            slope, fixed, r_squared = fit(counts, peaks)
            found[name, layers] = slope
            linearity[name] = min(r_squared, linearity.get(name, 1.0))
            first = args.layers[0]
            held = (slope - found[name, first]) / ((layers - first) * width * ITEM_BYTES) if layers > first else None
            points.append({"contestant": name, "layers": layers, "tokens": counts, "peak_bytes": peaks})
            slopes.append(
                {
                    "contestant": name,
                    "layers": layers,
                    "bytes_a_token": round(slope, 1),
                    "fixed_bytes": round(fixed),
                    "r_squared": round(r_squared, 6),
                    "growth": round(slope / found[name, first], 4),
                    "states_held_a_layer": held if held is None else round(held, 3),
                }
            )
    last = {row["contestant"]: row for row in slopes}
    few_many = f"{args.layers[0]} -> {args.layers[-1]} layers"
    checks = [
        measure.check(
            "R^2 of bytes over tokens, the least of ours",
            min(value for name, value in linearity.items() if name != "published pipeline"),
            at_least=0.99,
        ),
        *(
            measure.check(f"{name}: growth of the slope, {few_many}", last[name]["growth"], at_most=1.05)
            for name in INDEPENDENT
        ),
        *(
            measure.check(f"{name}: states held a token and layer", last[name]["states_held_a_layer"], at_most=0.05)
            for name in INDEPENDENT
        ),
    ]
    measure.report(
        "peak memory of a training step grows with tokens, not with tokens x layers",
        {
            "width": width,
            "llm_layers": llm_layers,
            "slopes": slopes,
            "points": points,
            "tables": {"Peak bytes of a step = fixed + slope x tokens": slopes},
            "checks": checks,
        },
        args,
    )


if __name__ == "__main__":
    main()
