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
the other server gives, asked one after the other: texts to the letter, probabilities and weights up to rounding; so are
those of all mixed requests asked at once, 200 by default, of which none may be lost either.

Then a chat is streamed while classifications of many texts keep the batched server busy, and the gaps between its
pieces are taken. At last the server's resident memory is read again and again over thousands of requests for short
answers. Its slope over the last four fifths of them, the median of those between any two readings, is what a request
leaves behind: allocators fill up before, and now and then take or give back some megabytes at once. What the process
holds altogether says nothing here: most of it is torch and the models.

    python -m benchmarks.serving
    python -m benchmarks.serving --requests 400 --concurrency 64

Example row (two busy cores, so no figure to quote):

    {"load": "free_text", "server": "batched", "requests_per_second": 31.0, "seconds": 6.5, "texts_per_batch": 7.9}
"""

import asyncio
import itertools
import multiprocessing
import random
import statistics
import time
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
SHORT = (2, 6)
"""Tokens of the many answers over which memory is read, so that thousands of them take minutes."""
KEPT_BYTES = 1024
"""That a request may leave behind: less than the text of most, so one that is kept is seen."""

Request = tuple[str, dict[str, Any]]


@dataclass
class Served:
    """A server in another process."""

    url: str
    process: int

    def ask(self, requests: Sequence[Request], *, concurrency: int) -> list[httpx.Response]:
        """Return the responses to all requests, so many at a time."""
        found = self.ask_all(requests, concurrency=concurrency)
        assert all(one is not None for one in found), f"{found.count(None)} of {len(found)} requests got no response"
        return [one.raise_for_status() for one in found if one is not None]

    def ask_all(self, requests: Sequence[Request], *, concurrency: int) -> list[httpx.Response | None]:
        """Return the responses to all requests, whatever their status; None for one that got none."""

        async def ask_them() -> list[httpx.Response | None]:
            gate = asyncio.Semaphore(concurrency)
            async with self._client(concurrency) as client:

                async def ask_one(path: str, body: dict[str, Any]) -> httpx.Response | None:
                    async with gate:
                        try:
                            return await client.post(path, json=body)
                        except httpx.HTTPError:
                            return None

                return list(await asyncio.gather(*itertools.starmap(ask_one, requests)))

        return asyncio.run(ask_them())

    def gaps_beside(self, bulk: Request, *, streamed: Request, concurrency: int) -> list[float]:
        """Return the seconds between the pieces of a streamed answer while so many bulk requests are being answered."""

        async def ask_both() -> list[float]:
            async with self._client(concurrency + 1) as client:

                async def keep_busy() -> None:
                    while True:
                        (await client.post(bulk[0], json=bulk[1])).raise_for_status()

                busy = [asyncio.ensure_future(keep_busy()) for _ in range(concurrency)]
                await asyncio.sleep(0.5)
                came = []
                async with client.stream("POST", streamed[0], json=streamed[1] | {"stream": True}) as answer:
                    answer.raise_for_status()
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            came.append(time.perf_counter())
                failed = [one for one in busy if one.done()]
                for one in busy:
                    one.cancel()
                await asyncio.gather(*busy, return_exceptions=True)
                assert not failed, f"{len(failed)} of the bulk requests failed"
            return [after - before for before, after in itertools.pairwise(came)]

        return asyncio.run(ask_both())

    def _client(self, connections: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections)
        return httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits)

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


def requests_of(texts: Sequence[str], number: int, *, seed: int, lengths: tuple[int, int] = (8, 32)) -> list[Request]:
    """Return a mix of requests: of six, three are answered in free text, two classify and one inspects."""
    chance = random.Random(seed)
    asked: list[Request] = []
    for index in range(number):
        text = chance.choice(texts)
        length = chance.randint(*lengths)
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


def slope(held: Sequence[dict[str, float]]) -> float:
    """Return bytes a request: the median slope between two readings (Theil and Sen), which one jump cannot move."""
    return statistics.median(
        (after["MiB"] - before["MiB"]) * 2**20 / (after["requests"] - before["requests"])
        for before, after in itertools.combinations(held, 2)
    )


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="of one turn")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at once")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--long-run", type=int, default=5000, help="requests over which memory is read")
    parser.add_argument("--bulk-texts", type=int, default=32, help="texts of a classification beside a stream")
    args = parser.parse_args()
    if args.quick:
        args.requests, args.repetitions, args.long_run, args.bulk_texts = 18, 1, 60, 4
    texts = [row.text for lang in LANGUAGES for row in xnli_rows(args.data, lang, seed=args.seed)[:40]]
    loads = {
        "free_text": free_text(texts, max(1, args.requests // 2), seed=args.seed),
        "mixed": requests_of(texts, args.requests, seed=args.seed),
    }

    with served({}, seed=args.seed) as batched, served(ONE_BY_ONE, seed=args.seed) as one_by_one:
        contestants = {"batched": batched, "one_by_one": one_by_one}
        rows, wrong, crowd = [], 0, {"asked": args.requests, "lost": 0, "wrong": 0}
        for load, asked in loads.items():
            wanted = one_by_one.ask(asked, concurrency=1)
            found = batched.ask(asked, concurrency=args.concurrency)
            wrong += sum(not same(one.json(), other.json()) for one, other in zip(found, wanted, strict=True))
            if load == "mixed":
                at_once = batched.ask_all(asked, concurrency=len(asked))
                answered = [one is not None and one.status_code == 200 for one in at_once]
                crowd["lost"] = answered.count(False)
                crowd["wrong"] = sum(
                    not same(one.json(), other.json())
                    for one, other, is_there in zip(at_once, wanted, answered, strict=True)
                    if one is not None and is_there
                )
            before = {name: one.batches() for name, one in contestants.items()}
            timed = measure.take_turns(
                {name: partial(one.ask, asked, concurrency=args.concurrency) for name, one in contestants.items()},
                repetitions=args.repetitions,
                warm_up=0,  # by the comparing
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
        bulk = {"model": "pair", "texts": texts[: args.bulk_texts], "labels": list(ANSWERS.values())}
        chat = {"model": "pair", "messages": [{"role": "user", "content": texts[0]}], "max_tokens": 64}
        gaps = batched.gaps_beside(("/v1/classify", bulk), streamed=("/v1/chat/completions", chat), concurrency=4)
        held = [{"requests": 0, "MiB": batched.resident_bytes() / 2**20}]
        part = max(1, args.long_run // 20)
        for number in range(part, args.long_run + 1, part):
            batched.ask(requests_of(texts, part, seed=number, lengths=SHORT), concurrency=args.concurrency)
            held.append({"requests": number, "MiB": batched.resident_bytes() / 2**20})

    speeds = {(row["load"], row["server"]): row["requests_per_second"] for row in rows}
    ratio = speeds["free_text", "batched"] / speeds["free_text", "one_by_one"]
    checks = [
        measure.check("answers in a batch that are not those alone", wrong, at_most=0),
        measure.check("free_text: requests a second, batched / one by one", ratio, at_least=3),
        measure.check(f"of {crowd['asked']} requests at once, those without an answer", crowd["lost"], at_most=0),
        measure.check(f"of {crowd['asked']} requests at once, those with another answer", crowd["wrong"], at_most=0),
    ]
    kept = held[max(1, len(held) // 5) :]
    if not args.quick:  # of which so few requests say nothing
        words = f"memory kept, bytes a request, over the last four fifths of {args.long_run}"
        checks.append(measure.check(words, slope(kept), at_most=KEPT_BYTES))
    beside = {
        "bulk": f"4 x {args.bulk_texts} texts",
        "pieces": len(gaps) + 1,
        "median_seconds": statistics.median(gaps),
        "largest_seconds": max(gaps),
    }
    measure.report(
        "requests that arrive together share a batch: more of them a second, the same answers, and memory stays flat",
        {
            "tables": {
                "Servers": rows,
                "A stream beside bulk work": [beside],
                "Resident memory": held[:: max(1, len(held) // 5)],
            },
            "memory": held,
            "checks": checks,
        },
        args,
    )


if __name__ == "__main__":
    main()
