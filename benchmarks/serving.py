"""A server that batches what arrives together, against the same one that answers texts one by one; and its memory.

Two servers with the embedded pair and an untrained Transformer Softmax, each in a process of its own, asked by this
one over HTTP about real XNLI texts in several languages, in two loads:

- **free_text**: chats and completions of one sentence each, 64 tokens long at most. This is what batching is for: a
  step of the LLM costs hardly more for many rows than for one.
- **mixed**: longer texts, half of the requests in free text of 8 to 32 tokens, the rest classified or inspected.
  Reading a text is one pass whose work grows with its tokens, which a processor without cores to spare does no quicker
  for many.

- **batched**: the limits as they are by default.
- **one_by_one**: one text in a batch and one batch at a time, nothing else changed.

They take turns; requests a second are those of the median turn. Before that each request's answer is compared with what
the other server gives, asked one after the other: texts to the letter, probabilities and weights up to rounding. Then
the batched server's resident memory is read again and again over thousands of requests; what it grows by is held
against what it holds after the first fifth, since allocators fill up before.

    python -m benchmarks.serving
    python -m benchmarks.serving --requests 400 --concurrency 64

Example row (two busy cores, so no figure to quote):

    {"load": "free_text", "server": "batched", "requests_per_second": 31.0, "seconds": 6.5, "texts_per_batch": 7.9}
"""

import asyncio
import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from benchmarks import measure
from benchmarks.pair import ANSWERS, xnli_rows

LANGUAGES = ("en", "sw", "hi", "th", "zh")
ONE_BY_ONE = {"batch_rows": 1, "max_batches": 1, "batch_wait_ms": 0.0}
TOLERANCE = 1e-3
"""Of probabilities and weights."""

Request = tuple[str, dict[str, Any]]


@dataclass
class Served:
    """A server in another process."""

    url: str
    process: int

    def ask(self, requests: Sequence[Request], *, concurrency: int) -> list[httpx.Response]:
        """Return the responses to all requests, so many at a time."""

        async def ask_all() -> list[httpx.Response]:
            gate = asyncio.Semaphore(concurrency)
            limits = httpx.Limits(max_connections=concurrency)
            async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as client:

                async def ask_one(path: str, body: dict[str, Any]) -> httpx.Response:
                    async with gate:
                        return (await client.post(path, json=body)).raise_for_status()

                return list(await asyncio.gather(*itertools.starmap(ask_one, requests)))

        return asyncio.run(ask_all())

    def batches(self) -> tuple[float, float]:
        """Return how many batches there were and how many texts they had."""
        found = {"count": 0.0, "sum": 0.0}
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            for part in found:
                if line.startswith(f"layerbridge_batch_rows_{part}"):
                    found[part] += float(line.rsplit(" ", 1)[1])
        return found["count"], found["sum"]

    def resident_bytes(self) -> int:
        """Return the memory that the process holds; Linux tells."""
        for line in Path(f"/proc/{self.process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("this system does not tell what memory a process holds")


def serve(limits: dict[str, Any], line: Connection, seed: int) -> None:
    """Serve until something comes over the line; run in a process of its own."""
    import threading

    from layerbridge.config import BridgeConfig
    from layerbridge.model.bridge import Bridge
    from layerbridge.serving.server import build_server, build_server_config

    bridge = Bridge.build(BridgeConfig(fusion="transformer_softmax"), device=measure.DEVICE, seed=seed)
    server = build_server({"pair": bridge}, build_server_config(port=0, limits=limits))
    server.on_started = line.send
    threading.Thread(target=lambda: (line.recv(), server.end()), daemon=True).start()
    server.run()


@contextmanager
def served(limits: dict[str, Any], *, seed: int) -> Iterator[Served]:
    """Start a server and stop it afterwards."""
    context = multiprocessing.get_context("spawn")
    line, theirs = context.Pipe()
    process = context.Process(target=serve, args=(limits, theirs, seed), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield Served(f"http://127.0.0.1:{line.recv()}", process.pid)
    finally:
        line.send("end")
        process.join(60)


def requests_of(texts: Sequence[str], number: int, *, seed: int) -> list[Request]:
    """Return a mix of requests: of six, three are answered in free text, two classify and one inspects."""
    chance = random.Random(seed)
    asked: list[Request] = []
    for index in range(number):
        text = chance.choice(texts)
        length = chance.randint(8, 32)
        match index % 6:
            case 0 | 1:
                messages = [{"role": "user", "content": text}]
                asked.append(("/v1/chat/completions", {"messages": messages, "max_tokens": length}))
            case 2:
                asked.append(("/v1/completions", {"prompt": text, "max_tokens": length}))
            case 3 | 4:
                asked.append(("/v1/classify", {"texts": [text], "labels": list(ANSWERS.values())}))
            case _:
                asked.append(("/v1/inspect", {"texts": [text]}))
    return [(path, {"model": "pair", **body}) for path, body in asked]


def free_text(texts: Sequence[str], number: int, *, seed: int) -> list[Request]:
    """Return requests for answers of 64 tokens to single sentences."""
    chance = random.Random(seed)
    asked: list[Request] = []
    for index in range(number):
        text = chance.choice(texts).partition(" Hypothesis: ")[2].removesuffix(" Label: ")
        body: dict[str, Any] = {"model": "pair", "max_tokens": 64}
        if index % 2:
            asked.append(("/v1/completions", body | {"prompt": text}))
        else:
            asked.append(("/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}))
    return asked


def same(found: Any, wanted: Any) -> bool:
    """Return whether two answers say the same; ids and times do not count."""
    if isinstance(wanted, dict):
        names = wanted.keys() - {"id", "created"}
        return isinstance(found, dict) and all(name in found and same(found[name], wanted[name]) for name in names)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, float):
        return abs(found - wanted) <= TOLERANCE
    return bool(found == wanted)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="of one turn")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--long-run", type=int, default=5000, help="requests over which memory is read")
    args = parser.parse_args()
    if args.quick:
        args.requests, args.repetitions, args.long_run = 18, 1, 60
    texts = [row.text for lang in LANGUAGES for row in xnli_rows(args.data, lang, seed=args.seed)[:40]]
    loads = {
        "free_text": free_text(texts, args.requests, seed=args.seed),
        "mixed": requests_of(texts, args.requests, seed=args.seed),
    }

    with served({}, seed=args.seed) as batched, served(ONE_BY_ONE, seed=args.seed) as one_by_one:
        contestants = {"batched": batched, "one_by_one": one_by_one}
        rows, wrong = [], 0
        for load, asked in loads.items():
            wanted = one_by_one.ask(asked, concurrency=1)
            found = batched.ask(asked, concurrency=args.concurrency)
            wrong += sum(not same(one.json(), other.json()) for one, other in zip(found, wanted, strict=True))
            before = {name: one.batches() for name, one in contestants.items()}
            timed = measure.take_turns(
                {name: partial(one.ask, asked, concurrency=args.concurrency) for name, one in contestants.items()},
                repetitions=args.repetitions,
            )
            for name, one in contestants.items():
                count, total = (now - then for now, then in zip(one.batches(), before[name], strict=True))
                seconds = measure.summary(timed[name])
                rows.append(
                    {
                        "load": load,
                        "server": name,
                        "requests_per_second": len(asked) / seconds["median"],
                        "seconds": seconds["median"],
                        "texts_per_batch": total / count,
                        "all_seconds": seconds,
                    }
                )
        held = [{"requests": 0, "MiB": batched.resident_bytes() / 2**20}]
        part = max(1, args.long_run // 20)
        for number in range(part, args.long_run + 1, part):
            batched.ask(requests_of(texts, part, seed=number), concurrency=args.concurrency)
            held.append({"requests": number, "MiB": batched.resident_bytes() / 2**20})

    speeds = {(row["load"], row["server"]): row["requests_per_second"] for row in rows}
    ratio = speeds["free_text", "batched"] / speeds["free_text", "one_by_one"]
    grown = held[-1]["MiB"] / held[max(1, len(held) // 5)]["MiB"]
    checks = [
        measure.check("answers in a batch that are not those alone", wrong, at_most=0),
        measure.check("free_text: requests a second, batched / one by one", ratio, at_least=3),
        measure.check(f"memory after {args.long_run} requests / after a fifth of them", grown, at_most=1.05),
    ]
    measure.report(
        "requests that arrive together share a batch: more of them a second, the same answers, and memory stays flat",
        {
            "tables": {"Servers": rows, "Resident memory": held[:: max(1, len(held) // 5)]},
            "memory": held,
            "checks": checks,
        },
        args,
    )


if __name__ == "__main__":
    main()
