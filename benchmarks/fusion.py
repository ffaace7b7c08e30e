"""Transformer Softmax: the exact fast form against the module built from torch's own encoder layer, in one run.

Forward + backward on the same frozen float32 states, same parameters; the two forms take turns, and the ratio of the
median times is the claim. Run on quiet cores:

    python -m benchmarks.fusion                               # E=2048, L=24, 512 tokens
    python -m benchmarks.fusion --width 1024 --repetitions 9

Example row (what a run prints as JSON; the figures are from two cores of an AMD EPYC, torch 2.13.0):

    {"width": 2048, "layers": 24, "tokens": 512, ..., "ratio": 37.6}
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from benchmarks.published_fusion import PublishedTransformerSoftmax, copy_into, twins
from layerbridge.config import TransformerSoftmax
from layerbridge.model.fusion import build_fusion


def step(module: torch.nn.Module, layers: list[torch.Tensor], mask: torch.Tensor, upstream: torch.Tensor) -> float:
    """Run one forward and backward pass and return its seconds."""
    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    fused = module(layers, mask)[0]
    fused.backward(upstream)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="E")
    parser.add_argument("--layers", type=int, default=24, help="L")
    parser.add_argument("--tokens", type=int, default=512, help="source tokens, in batches of 128")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the row to this jsonl file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    shape = (max(1, args.tokens // 128), min(128, args.tokens))
    layers = [torch.randn(*shape, args.width) for _ in range(args.layers)]
    mask = torch.ones(shape, dtype=torch.bool)
    upstream = torch.randn(*shape, args.width)

    config = TransformerSoftmax(dropout=0.0)
    fast = build_fusion(config, layer_numbers=range(1, args.layers + 1), width=args.width)
    reference = PublishedTransformerSoftmax(args.layers, args.width, dropout=0.0)
    with torch.no_grad():
        for parameter in reference.parameters():  # away from the start, where the query and its gradients are zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    copy_into(fast, reference)

    for module in (fast, reference):
        step(module, layers, mask, upstream)
    gradients = twins(reference, lambda parameter: parameter.grad)
    error = max(
        float((gradients[name].reshape(p.shape) - p.grad).norm() / p.grad.norm()) for name, p in fast.named_parameters()
    )
    seconds: dict[str, list[float]] = {"fast": [], "published": []}
    for _ in range(args.repetitions):
        seconds["fast"] += [step(fast, layers, mask, upstream) for _ in range(3)]
        seconds["published"].append(step(reference, layers, mask, upstream))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    row = {
        "claim": "transformer_softmax forward + backward, published seconds / fast seconds",
        "width": args.width,
        "layers": args.layers,
        "tokens": shape[0] * shape[1],
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "repetitions": args.repetitions,
        "seed": args.seed,
        "max_relative_gradient_error": error,
        "seconds": medians,
        "ratio": medians["published"] / medians["fast"],
    }
    print(json.dumps(row, indent=2))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
