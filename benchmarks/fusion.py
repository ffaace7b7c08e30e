"""Transformer Softmax: the exact fast form against the module built from torch's own encoder layer, in one run.

Forward + backward on the same frozen states, same parameters. Time: the two forms take turns, and the ratio of the
median seconds is the claim. Memory: the most that one step holds above its inputs and parameters, the parameters'
gradients included. On a GPU also in bfloat16, and the bytes of states that scores and weighted sum read in a second, as
a fraction of what the machine copies (1 GiB, read and written). In bfloat16 ours has float32 parameters and bfloat16
matrix products, as in a bridge, and the published form is bfloat16 throughout, its parameters too: their gradients then
differ by rounding, and the error is shown with a note, and without a limit.

    python -m benchmarks.fusion                               # E=2048, L=24, 512 tokens
    python -m benchmarks.fusion --width 1024 --repetitions 9

Example row (from what a run prints as JSON; one thread of two shared, busy cores of an AMD EPYC, torch 2.13.0):

    {"float32": {"tokens": 512, "ratio": 36.5, "memory_ratio": 13.9, "max_relative_gradient_error": 1.9e-06, ...}, ...}
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import DEVICE, check, parser, peak_memory, report, summary, take_turns
from benchmarks.published_fusion import PublishedTransformerSoftmax, copy_into, twins
from layerbridge.config import TransformerSoftmax
from layerbridge.model.fusion import build_fusion
from layerbridge.model.mixing import layer_scores, weighted_sum

BFLOAT16_NOTE = "rounding of both; the published parameters are bfloat16 too, ours float32: no limit"
CLAIM = (
    "Transformer Softmax, forward + backward: published seconds / fast seconds at least 32, published peak extra "
    "memory / fast at least 8; on a GPU the states are read at 70 % of its copy bandwidth or more"
)


def against_published(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Return seconds, peak memory and gradients of both forms on states of one dtype.

    The published form computes in the dtype of its states; the fast one's parameters are float32, and its matrix
    products of the dtype of the states, as in a Bridge.
    """
    torch.manual_seed(args.seed)
    rows = max(1, args.tokens // 128)
    shape = (rows, args.tokens // rows)
    layers = [torch.randn(*shape, args.width, device=DEVICE, dtype=dtype) for _ in range(args.layers)]
    mask = torch.ones(shape, dtype=torch.bool, device=DEVICE)
    upstream = torch.randn(*shape, args.width, device=DEVICE)

    reference = PublishedTransformerSoftmax(args.layers, args.width, dropout=0.0)
    with torch.no_grad():
        for parameter in reference.parameters():  # away from the start, where the query and its gradients are zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    fast = build_fusion(TransformerSoftmax(dropout=0.0), layer_numbers=range(1, args.layers + 1), width=args.width)
    copy_into(fast, reference)
    if dtype == torch.bfloat16:
        fast.matmul_dtype = dtype
    modules = {"published": reference.to(DEVICE, dtype), "fast": fast.to(DEVICE)}

    def step_of(module: torch.nn.Module) -> Callable[[], None]:
        def step() -> None:
            module.zero_grad(set_to_none=True)
            fused = module(layers, mask)[0]
            fused.backward(upstream.to(fused.dtype))

        return step

    steps = {name: step_of(module) for name, module in modules.items()}
    seconds = {name: summary(values) for name, values in take_turns(steps, repetitions=args.repetitions).items()}
    memory = {}
    for name, step in steps.items():
        modules[name].zero_grad(set_to_none=True)
        memory[name] = peak_memory(step)
    gradients = twins(reference, lambda parameter: parameter.grad)
    error = max(
        float((gradients[name].reshape(p.shape) - p.grad).norm() / p.grad.norm()) for name, p in fast.named_parameters()
    )
    return {
        "tokens": shape[0] * shape[1],
        "ratio": seconds["published"]["median"] / seconds["fast"]["median"],
        "seconds": seconds,
        "memory_ratio": memory["published"] / memory["fast"],
        "peak_extra_bytes": memory,
        "of_which_gradients_of_parameters": sum(p.numel() * p.element_size() for p in fast.parameters()),
        "max_relative_gradient_error": error,
        "note_on_the_error": BFLOAT16_NOTE if dtype == torch.bfloat16 else None,
    }


def bandwidth(args: argparse.Namespace, dtype: torch.dtype, *, calls: int = 20) -> dict[str, Any]:
    """Return how fast each of the four operations reads the states, against a copy; for a GPU.

    States are several times as large as its cache. A figure is of `calls` calls in a row, so that launching them is
    hidden as it is in training.
    """
    tokens, width = args.bandwidth_tokens, args.width
    layers = [torch.randn(1, tokens, width, device=DEVICE, dtype=dtype) for _ in range(args.layers)]
    direction = torch.randn(width, device=DEVICE, requires_grad=True)
    weights = torch.randn(1, tokens, args.layers, device=DEVICE, requires_grad=True)
    scores, mixed = layer_scores(layers, direction), weighted_sum(layers, weights)
    of_scores, of_mixed = torch.randn_like(scores), torch.randn_like(mixed)
    source = torch.empty(args.copy_bytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    operations = {
        "copy": lambda: target.copy_(source),
        "scores": lambda: layer_scores(layers, direction),
        "weighted_sum": lambda: weighted_sum(layers, weights),
        "scores_backward": lambda: torch.autograd.grad(scores, direction, of_scores, retain_graph=True),
        "weighted_sum_backward": lambda: torch.autograd.grad(mixed, weights, of_mixed, retain_graph=True),
    }

    def often(operation: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                operation()

        return run

    turns = take_turns({name: often(f) for name, f in operations.items()}, repetitions=args.repetitions, warm_up=2)
    seconds = {name: statistics.median(values) / calls for name, values in turns.items()}
    states = args.layers * tokens * width * dtype.itemsize
    copied = 2 * args.copy_bytes / seconds["copy"]
    read = {name: states / spent for name, spent in seconds.items() if name != "copy"}
    forward = 2 * states / (seconds["scores"] + seconds["weighted_sum"])
    return {
        "tokens": tokens,
        "bytes_of_states": states,
        "copy_bytes_per_second": copied,
        "states_bytes_per_second": read,
        "fraction_of_copy": {name: rate / copied for name, rate in read.items()},
        "fraction_of_copy_scores_and_weighted_sum": forward / copied,
    }


def main() -> None:
    arguments = parser(__doc__, reads_texts=False)
    arguments.add_argument("--width", type=int, default=2048, help="E")
    arguments.add_argument("--layers", type=int, default=24, help="L")
    arguments.add_argument("--tokens", type=int, default=512, help="source tokens, in rows of 128")
    arguments.add_argument("--bandwidth-tokens", type=int, default=8192, help="tokens of the bandwidth figures")
    arguments.add_argument("--copy-bytes", type=int, default=2**30, help="size of the copy to compare with")
    arguments.add_argument("--repetitions", type=int, default=7)
    args = arguments.parse_args()
    if args.quick:
        args.width, args.layers, args.tokens, args.repetitions = 64, 4, 32, 1
        args.bandwidth_tokens, args.copy_bytes = 64, 2**20

    found: dict[str, Any] = {"float32": against_published(args, torch.float32)}
    if DEVICE.type == "cuda":
        found["bfloat16"] = against_published(args, torch.bfloat16)
        found["bandwidth"] = {
            "float32": bandwidth(args, torch.float32),
            "bfloat16": bandwidth(args, torch.bfloat16),
        }
    report(CLAIM, {**found, "tables": {"Against the published module": _table(found)}, "checks": _checks(found)}, args)


def _checks(found: dict[str, Any]) -> list[dict[str, Any]]:
    first = found["float32"]
    checks = [
        check("float32: published seconds / ours", first["ratio"], at_least=32),
        check("float32: published peak memory / ours", first["memory_ratio"], at_least=8),
        check("float32: largest relative error of a gradient", first["max_relative_gradient_error"], at_most=1e-4),
    ]
    for dtype, speeds in found.get("bandwidth", {}).items():
        seen = speeds["fraction_of_copy_scores_and_weighted_sum"]
        checks.append(check(f"{dtype}: states read, part of the copy bandwidth", seen, at_least=0.7))
    return checks


def _table(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "states": name,
            "tokens": row["tokens"],
            "published_ms": 1e3 * row["seconds"]["published"]["median"],
            "ours_ms": 1e3 * row["seconds"]["fast"]["median"],
            "published / ours": row["ratio"],
            "peak memory, published / ours": row["memory_ratio"],
            "max_relative_gradient_error": row["max_relative_gradient_error"],
            "note on the error": row["note_on_the_error"],
        }
        for name, row in found.items()
        if name != "bandwidth"
    ]


if __name__ == "__main__":
    main()
