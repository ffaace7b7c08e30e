"""The machine's own floor, and how far above it every part of a training step is.

Operations and bytes of every part are counted by formula (`parts` below; `docs/performance.md` explains them). Products
of the sizes that matter and a plain copy are timed, the fastest of several times; a part's floor is the larger of
operations / the best speed of any product and bytes / bandwidth. Then every part is measured alone, on random weights
and states, the parts taking turns; gap is measured / floor.

    python -m benchmarks.roofline
    python -m benchmarks.roofline --width 1024

Example row of `parts` (one thread of two cores that five others shared, so no figure to quote):

    {"part": "encoder, forward", "operations_a_token": 51380224, "bytes_a_token": 16384, "floor_ms": 258.192,
     "measured_ms": 1188.074, "gap": 4.6}
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaForCausalLM, MT5EncoderModel

from benchmarks import measure
from benchmarks.pair import LAYERS, VOCABULARY, encoder_config, llm_config
from benchmarks.published_fusion import PublishedTransformerSoftmax
from benchmarks.published_pipeline import PublishedGlobalSoftmax
from layerbridge.config import GlobalSoftmaxPublished, TransformerSoftmax
from layerbridge.model.fusion import build_fusion

FEEDFORWARD = 2048
"""F of the Transformer Softmax."""


class Part(NamedTuple):
    """What one part of a step does for each source token."""

    name: str
    operations: float
    """Multiplications and additions."""
    state_bytes: float
    """Bytes of encoder states, and of copies of them, that are read or written."""


def parts(*, width: int, layers: int, vocabulary: int, answer_share: float, positions: float, item: int) -> list[Part]:
    """Return the counts of every part of a step, the same width E for encoder and LLM.

    A product of a token with an (m, n) matrix is 2mn operations, and as many again for each gradient that is wanted: of
    its input, of the matrix. Attention's own scores and sums are left out: a few per cent with texts of 50 tokens.

    Args:
        width: E.
        layers: L, of the encoder and of the LLM.
        vocabulary: of the LLM.
        answer_share: positions with a loss for every source token.
        positions: positions of the LLM for every source token.
        item: bytes of a number.
    """
    encoder = layers * (4 * width**2 + 3 * width * (width * 11 // 4))  # mT5: q k v o, gated feed-forward
    llm = layers * (2.5 * width**2 + 3 * width * 4 * width)  # Llama: q o, k v of a quarter, gated feed-forward
    one_vector = 2 * width**2 + 2 * width * FEEDFORWARD + width * layers  # value, output, feed-forward, head
    all_layers = (layers + 1) * (4 * width**2 + 2 * width * FEEDFORWARD) + width * layers
    reading = layers * width  # one multiplication and addition a state's number: a dot product, or a sum
    states = layers * width * item
    return [
        Part("encoder, forward", 2 * encoder, states),
        Part("LLM, forward and backward", 4 * llm * positions, 0),  # frozen: no gradients of weights
        Part("LM head, answers only, forward and backward", 4 * vocabulary * width * answer_share, 0),
        Part("LM head, all positions, forward and backward", 4 * vocabulary * width * positions, 0),
        # Forward: scores, mixture, fused state; backward: the gradient of each. Every one reads all states once.
        Part("our Transformer Softmax, forward and backward", 6 * one_vector + 2 * 6 * reading, 6 * states),
        # Two stacks, positions added, c joined, q k v made (12); the weighted sum, forward and backward (6). What
        # attention, norms and feed-forward keep comes on top and is not counted.
        Part("published Transformer Softmax, forward and backward", 6 * all_layers + 2 * 2 * reading, 18 * states),
        Part("our Global Softmax, forward and backward", 2 * 2 * reading, 2 * states),
        Part("published Global Softmax, forward and backward", 2 * 2 * reading, 10 * states),
        Part("projector, forward and backward", 6 * width**2, 0),
    ]


def gigaflops(rows: int, inner: int, columns: int, dtype: torch.dtype, *, repetitions: int) -> float:
    """Return the speed of one matrix product."""
    left = torch.randn(rows, inner, device=measure.DEVICE, dtype=dtype)
    right = torch.randn(columns, inner, device=measure.DEVICE, dtype=dtype).T
    return 2e-9 * rows * inner * columns / _fastest(lambda: left @ right, repetitions)


def copy_bandwidth(megabytes: int, *, repetitions: int) -> float:
    """Return GB/s of a plain copy, its reading and its writing counted."""
    source = torch.zeros(megabytes * 2**20 // 4, device=measure.DEVICE)
    target = torch.ones_like(source)
    return 2e-9 * source.numel() * 4 / _fastest(lambda: target.copy_(source), repetitions)


def _fastest(call: Callable[[], object], repetitions: int) -> float:
    call()
    return min(measure.seconds(call) for _ in range(repetitions))


def contestants(*, width: int, rows: int, columns: int, num_answers: int, read: int) -> dict[str, Callable[[], object]]:
    """Return every part of a step as a function, by the names of `parts`.

    Args:
        width: E.
        rows: texts.
        columns: tokens of each.
        num_answers: positions with a loss, of all rows.
        read: positions of the LLM, of each row.
    """
    device = measure.DEVICE
    encoder = MT5EncoderModel(encoder_config(width, LAYERS)).to(device).eval().requires_grad_(False)
    llm = LlamaForCausalLM(llm_config(width, LAYERS)).to(device).eval().requires_grad_(False)
    ids_BS = torch.randint(3, VOCABULARY, (rows, columns), device=device)
    mask_BS = torch.ones_like(ids_BS)
    layers = [torch.randn(rows, columns, width, device=device) for _ in range(LAYERS)]
    upstream_BSE = torch.randn(rows, columns, width, device=device)
    numbers = range(1, LAYERS + 1)

    @torch.no_grad()
    def encode() -> None:
        encoder(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True)

    def read_llm() -> None:
        embeds_BTD = torch.randn(rows, read, width, device=device, requires_grad=True)
        llm.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state.sum().backward()

    def head(count: int) -> Callable[[], None]:
        hidden_AD = torch.randn(count, width, device=device, requires_grad=True)
        targets_A = torch.randint(VOCABULARY, (count,), device=device)

        def predict() -> None:
            hidden_AD.grad = None
            F.cross_entropy(F.linear(hidden_AD, llm.lm_head.weight), targets_A).backward()

        return predict

    def mix(module: nn.Module, given: Callable[[], list[Tensor]]) -> Callable[[], None]:
        module.to(device)

        def forward_and_backward() -> None:
            module.zero_grad(set_to_none=True)
            module(given(), mask_BS.bool())[0].backward(upstream_BSE)

        return forward_and_backward

    def as_they_are() -> list[Tensor]:
        return layers

    def stacked() -> list[Tensor]:
        return list(torch.stack(layers, dim=1).unbind(dim=1))

    linear = nn.Linear(width, width).to(device)
    fused_BSE = torch.randn(rows, columns, width, device=device, requires_grad=True)
    ours = {
        config.name: build_fusion(config, layer_numbers=numbers, width=width)
        for config in (TransformerSoftmax(dropout=0.0), GlobalSoftmaxPublished())
    }
    both = "forward and backward"
    return {
        "encoder, forward": encode,
        f"LLM, {both}": read_llm,
        f"LM head, answers only, {both}": head(num_answers),
        f"LM head, all positions, {both}": head(rows * read),
        f"our Transformer Softmax, {both}": mix(ours["transformer_softmax"], as_they_are),
        f"published Transformer Softmax, {both}": mix(PublishedTransformerSoftmax(LAYERS, width, dropout=0.0), stacked),
        f"our Global Softmax, {both}": mix(ours["global_softmax_published"], as_they_are),
        f"published Global Softmax, {both}": mix(PublishedGlobalSoftmax(LAYERS), stacked),
        f"projector, {both}": lambda: linear(fused_BSE).backward(upstream_BSE),
    }


def main() -> None:
    parser = measure.parser(__doc__, reads_texts=False)
    parser.add_argument("--width", type=int, default=512, help="E")
    parser.add_argument("--rows", type=int, default=8, help="texts of a batch")
    parser.add_argument("--tokens", type=int, default=50, help="of each text")
    parser.add_argument("--answer-tokens", type=int, default=3, help="of each answer, its end token included")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=256, help="of the copy: far above every cache")
    args = parser.parse_args()
    if args.quick:
        args.width, args.rows, args.tokens, args.repetitions, args.megabytes = 64, 2, 16, 2, 8
    torch.manual_seed(args.seed)
    width, tokens, num_answers = args.width, args.rows * args.tokens, args.rows * args.answer_tokens
    read = args.tokens + 1 + args.answer_tokens  # bos, text, boundary, answer without its end
    sizes = {
        "attention, E x E": (tokens, width, width),
        "feed-forward, E x 4E": (tokens, width, 4 * width),
        "LM head, answers": (num_answers, width, VOCABULARY),
        "LM head, all positions": (tokens, width, VOCABULARY),
        "published fusion, all layers": (tokens * (LAYERS + 1), width, FEEDFORWARD),
    }
    products: list[dict[str, str | float]] = []
    for name, (rows, inner, columns) in sizes.items():
        speeds = {
            str(dtype).removeprefix("torch."): round(
                gigaflops(rows, inner, columns, dtype, repetitions=args.repetitions), 1
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        products.append({"product": name, "size": f"{rows} x {inner} x {columns}", **speeds})
    bandwidth = copy_bandwidth(args.megabytes, repetitions=args.repetitions)
    speed = max(float(product["float32"]) for product in products)

    made = contestants(width=width, rows=args.rows, columns=args.tokens, num_answers=num_answers, read=read)
    times = measure.take_turns(made, repetitions=args.repetitions)
    shares = {"answer_share": num_answers / tokens, "positions": read / args.tokens}
    counted = []
    for part in parts(width=width, layers=LAYERS, vocabulary=VOCABULARY, item=4, **shares):
        floor = tokens * max(part.operations / (speed * 1e9), part.state_bytes / (bandwidth * 1e9))
        measured = statistics.median(times[part.name])
        counted.append(
            {
                "part": part.name,
                "operations_a_token": round(part.operations),
                "bytes_a_token": round(part.state_bytes),
                "floor_ms": round(1e3 * floor, 3),
                "measured_ms": round(1e3 * measured, 3),
                "gap": round(measured / floor, 2),
            }
        )
    measure.report(
        "what the machine allows: measured speed of products and copies, and every part of a step against its floor",
        {
            "width": width,
            "layers": LAYERS,
            "vocabulary": VOCABULARY,
            "products": products,
            "best_gigaflops_float32": speed,
            "copy_gigabytes_a_second": round(bandwidth, 2),
            "parts": counted,
            "tables": {
                "Matrix products, GFLOP/s": products,
                f"One step of {tokens} tokens at width {width}, float32; the floor is at {speed:.0f} GFLOP/s and "
                f"{bandwidth:.1f} GB/s": counted,
            },
            "checks": [],
        },
        args,
    )


if __name__ == "__main__":
    main()
