"""Requests that arrive together share batches, and each gets what it would get alone."""

import asyncio
import random
import threading
import time
import weakref

import httpx
import pytest
import torch

from layerbridge.serving.engine import Reading, Writing
from layerbridge.serving.errors import ApiError
from layerbridge.serving.limits import Limits
from layerbridge.serving.local_engine import LocalEngine
from layerbridge.serving.waiting_line import Row, Tokens, WaitingLine
from tests.serving.running import LABELS, running, wait_until

WORDS = ["the cat", "sat on the mat", "Habari ya asubuhi", "ශ්‍රී ලංකාව", "one two three", "positive", "👍🏽 a", "n't"]


def mixed_requests(number):
    """Requests of all kinds, no two alike."""
    chance = random.Random(0)
    asked = []
    for index in range(number):
        text = " ".join(chance.choices(WORDS, k=chance.randint(1, 5))) + f" {index}"
        sampling = {"temperature": 1.2, "seed": index} if index % 3 == 0 else {}
        length = {"max_tokens": chance.randint(1, 24)}
        stop = {"stop": ["a", "the"]} if index % 5 == 0 else {}
        match index % 6:
            case 0 | 1:
                body = {"model": "topic", "messages": [{"role": "user", "content": text}], **length, **sampling, **stop}
                asked.append(("/v1/chat/completions", body))
            case 2:
                asked.append(("/v1/completions", {"model": "plain", "prompt": [text, "one"], **length, **stop}))
            case 3:
                messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
                body = {"model": "plain", "messages": messages, **length, **sampling, "stream": True}
                asked.append(("/v1/chat/completions", body))
            case 4:
                asked.append(("/v1/classify", {"model": "topic", "texts": [text, "the mat"]}))
            case 5:
                asked.append(("/v1/inspect", {"model": "plain", "texts": text}))
    return asked


def content(response):
    """Return what a response says, without ids and times."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        return [line.split('"choices":')[1] for line in response.text.splitlines() if '"choices":' in line]
    return {name: value for name, value in response.json().items() if name not in ("id", "created")}


def close_to(found, wanted):
    """Compare whole responses: texts to the letter, probabilities and weights up to rounding."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            close_to(found[name], wanted[name])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            close_to(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    else:
        assert found == wanted


def test_200_concurrent_mixed_requests_are_each_answered_as_alone(served):
    asked = mixed_requests(200)
    alone = [content(served.post(path, body)) for path, body in asked]
    batches_before, rows_before = (served.count(f"layerbridge_batch_rows_{part}") for part in ("count", "sum"))

    async def together():
        async with httpx.AsyncClient(
            base_url=served.url, timeout=120, limits=httpx.Limits(max_connections=200)
        ) as client:
            return await asyncio.gather(*(client.post(path, json=body) for path, body in asked))

    found = [content(response) for response in asyncio.run(together())]
    for (path, body), one, other in zip(asked, found, alone, strict=True):
        try:
            close_to(one, other)
        except AssertionError as error:
            raise AssertionError(f"{path} {body}") from error
    batches, rows = (served.count(f"layerbridge_batch_rows_{part}") for part in ("count", "sum"))
    assert rows - rows_before == sum(len(body.get("prompt", body.get("texts", "x"))) if isinstance(
        body.get("prompt", body.get("texts")), list) else 1 for _, body in asked)  # fmt: skip
    assert rows - rows_before > 3 * (batches - batches_before), "they shared batches"
    assert served.count("layerbridge_queue_length") == 0
    assert served.engine.num_writing == 0


# -------------------------------------------------------------------------------------------------------------------
# The engine alone


@pytest.fixture
def engine(bridges):
    made = []

    def make(**limits):
        made.append(LocalEngine(bridges, Limits(**limits)))
        return made[-1]

    yield make
    for one in made:
        asyncio.run(one.close())


async def answer(engine, text, model="plain", **how):
    events = engine.generate(model, [Reading(source=text)], Writing(**{"max_new_tokens": 10, **how}))
    return "".join([event.text async for event in events if hasattr(event, "text")])


def test_a_text_that_cannot_be_read_takes_nobody_with_it(engine, bridges):
    engine = engine()

    async def ask():
        long = "b" * 600
        return await asyncio.gather(
            *(answer(engine, text) for text in ("the cat", long, "one", "two")), return_exceptions=True
        )

    first, second, third, fourth = asyncio.run(ask())
    assert isinstance(second, ApiError)
    assert second.status == 400
    assert [first, third, fourth] == bridges["plain"].generate(["the cat", "one", "two"], max_new_tokens=10)


def test_a_batch_that_fails_is_tried_again_in_halves(engine, bridges, monkeypatch):
    from layerbridge.serving import local_engine

    real, sizes = local_engine.Decoding, []

    def fail(bridge, inputs, options):
        sizes.append(len(options))
        if any(one.seed == 13 for one in options):
            raise RuntimeError("this one is unlucky")
        return real(bridge, inputs, options)

    monkeypatch.setattr(local_engine, "Decoding", fail)
    engine = engine(batch_wait_ms=200)

    async def ask():
        return await asyncio.gather(
            answer(engine, "the cat"), answer(engine, "one", seed=13), answer(engine, "two"), return_exceptions=True
        )

    first, second, third = asyncio.run(ask())
    assert sizes == [3, 1, 2, 1, 1]
    assert second.status == 500
    assert "unlucky" not in second.message, "what happened inside is for the log alone"
    assert [first, third] == bridges["plain"].generate(["the cat", "two"], max_new_tokens=10)


def test_a_failure_while_writing_is_answered_and_the_thread_goes_on(engine, bridges, monkeypatch):
    from layerbridge.model.decoding import Decoding

    engine = engine()
    step = Decoding.step
    monkeypatch.setattr(Decoding, "step", lambda self: 1 / 0)
    with pytest.raises(ApiError) as found:
        asyncio.run(answer(engine, "the cat"))
    assert found.value.status == 500
    monkeypatch.setattr(Decoding, "step", step)
    assert asyncio.run(answer(engine, "the cat")) == bridges["plain"].generate(["the cat"], max_new_tokens=10)[0]
    assert engine.ready


def test_a_short_answer_does_not_wait_for_a_long_one(engine, bridges, endless):
    engine = engine(max_batches=2)

    async def ask():
        long = asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=200))
        while not engine.num_writing:
            await asyncio.sleep(0.005)
        short = await answer(engine, "one", max_new_tokens=2)
        assert not long.done()
        return short, await long

    short, _ = asyncio.run(ask())
    assert bridges["plain"].generate(["one"], max_new_tokens=2)[0].startswith(short)


def test_texts_gather_while_a_batch_is_written(engine, endless, monkeypatch):
    from layerbridge.serving import local_engine

    sizes, real = [], local_engine.Decoding

    def count(bridge, inputs, options):
        sizes.append(len(options))
        return real(bridge, inputs, options)

    monkeypatch.setattr(local_engine, "Decoding", count)
    engine = engine(gather_steps=50)

    async def ask():
        first = asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=100))
        while not engine.num_writing:
            await asyncio.sleep(0.005)
        others = []
        for _ in range(5):
            others.append(asyncio.ensure_future(answer(engine, "one", max_new_tokens=2)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*others)
        assert not first.done(), "they did not wait for its end"
        await first

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert sizes == [1, 5]


def test_who_leaves_frees_the_row_and_the_place_in_the_queue(engine, endless):
    engine = engine(max_batches=1)

    async def ask():
        writing = asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=400))
        beside = asyncio.ensure_future(answer(engine, "one", max_new_tokens=400))
        while engine.num_writing < 2:
            await asyncio.sleep(0.005)
        waits = asyncio.ensure_future(answer(engine, "two"))
        while engine.num_waiting < 1:
            await asyncio.sleep(0.005)
        waits.cancel()
        writing.cancel()
        await asyncio.gather(waits, writing, return_exceptions=True)
        assert engine.num_waiting == 0
        async with asyncio.timeout(5):  # by themselves they would go on for more than twice as long
            while engine.num_writing > 1:
                await asyncio.sleep(0.005)
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
        while engine.num_writing:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_a_full_queue_lets_in_all_texts_of_a_request_or_none(engine, endless):
    engine = engine(max_queue=3, max_batches=1, batch_rows=1)

    async def ask():
        long = asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=400))
        while not engine.num_writing:
            await asyncio.sleep(0.005)
        waits = [asyncio.ensure_future(answer(engine, "one")) for _ in range(2)]
        while engine.num_waiting < 2:
            await asyncio.sleep(0.005)
        with pytest.raises(ApiError, match="2 texts wait and 2 more would be over the limit of 3") as found:
            await anext(engine.generate("plain", [Reading(source="a")] * 2, Writing(max_new_tokens=1)))
        assert found.value.status == 429
        assert engine.num_waiting == 2
        long.cancel()
        await asyncio.gather(long, *waits, return_exceptions=True)
        assert not any(one.cancelled() for one in waits)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_closing_answers_everybody_and_ends_the_thread(engine, endless):
    engine = engine(max_batches=1, batch_rows=1)

    async def ask():
        asked = [asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=400)) for _ in range(3)]
        while not engine.num_writing:
            await asyncio.sleep(0.005)
        await engine.close()
        for one in await asyncio.gather(*asked, return_exceptions=True):
            assert one.status == 503
        with pytest.raises(ApiError) as found:
            await answer(engine, "one")
        assert found.value.status == 503

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert not engine.ready


def test_bulk_work_leaves_half_of_the_time_to_answers_being_written(engine, bridges, endless, monkeypatch):
    passes, real = [], bridges["topic"].classify

    def slow(*args, **kwargs):
        passes.append(1)
        time.sleep(0.06)  # a token takes 0.03
        return real(*args, **kwargs)

    monkeypatch.setattr(bridges["topic"], "classify", slow)
    engine = engine()

    async def ask():
        async def classify():
            while True:
                await engine.classify("topic", [Reading(source="the mat")], LABELS)

        bulk = [asyncio.ensure_future(classify()) for _ in range(3)]
        while not passes:
            await asyncio.sleep(0.005)
        await answer(engine, "the cat", max_new_tokens=40)
        for one in bulk:
            one.cancel()
        await asyncio.gather(*bulk, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert len(passes) <= 30, "two tokens a pass, not one"


def test_several_long_answers_hold_no_short_one_up(engine, endless):
    engine = engine(gather_steps=0, batch_wait_ms=0)

    async def ask():
        long = []
        for _ in range(5):
            long.append(asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=200)))
            while engine.num_writing < len(long):
                await asyncio.sleep(0.005)
        await answer(engine, "one", max_new_tokens=2)
        assert not any(one.done() for one in long)
        for one in long:
            one.cancel()
        await asyncio.gather(*long, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask(), 60))


def test_no_batch_begins_above_the_positions_that_may_be_written_at_once(engine, endless):
    engine = engine(gather_steps=0, batch_wait_ms=0, writing_tokens=200)

    async def ask():
        first = asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=300))
        while not engine.num_writing:
            await asyncio.sleep(0.005)
        second = asyncio.ensure_future(answer(engine, "one", max_new_tokens=2))
        await asyncio.sleep(0.3)
        assert engine.num_waiting == 1
        first.cancel()
        await second

    asyncio.run(asyncio.wait_for(ask(), 60))


@pytest.mark.parametrize("beside", [1, 2])
def test_a_batch_begins_after_so_many_tokens_of_each_however_many_are_written(engine, endless, monkeypatch, beside):
    from layerbridge.serving import local_engine

    steps, begun, real = [], [], local_engine.Decoding

    class Counted(real):
        def __init__(self, *args):
            begun.append(len(steps))
            super().__init__(*args)

        def step(self):
            steps.append(id(self))
            return super().step()

    monkeypatch.setattr(local_engine, "Decoding", Counted)
    engine = engine(gather_steps=6, batch_wait_ms=0, batch_rows=1)

    async def ask():
        asked = [asyncio.ensure_future(answer(engine, "the cat", max_new_tokens=200)) for _ in range(beside + 1)]
        while engine.num_writing < beside + 1:
            await asyncio.sleep(0.005)
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert begun[: beside + 1] == [0, 6, 18][: beside + 1]


def test_a_failed_batch_holds_no_memory_while_its_halves_are_tried(engine, monkeypatch):
    from layerbridge.serving import local_engine

    class Activations:
        pass

    real, held = local_engine.Decoding, []

    def fail(bridge, inputs, options):
        assert not any(one() for one in held), "an earlier try's memory is still there"
        if len(options) > 1:
            mine = Activations()
            held.append(weakref.ref(mine))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bridge, inputs, options)

    monkeypatch.setattr(local_engine, "Decoding", fail)
    engine = engine(batch_wait_ms=300)

    async def ask():
        return await asyncio.gather(*(answer(engine, "the cat") for _ in range(4)))

    assert len(asyncio.run(ask())) == 4
    assert len(held) == 3, "of 4, 2 and 2"


def longest_answer(bridge, text):
    """Tokens that the LLM has positions for after bos, soft tokens and boundary."""
    read = (
        bridge.processor.count_source_tokens([text])[0] + 1 + (bridge.processor.llm_tokenizer.bos_token_id is not None)
    )
    return bridge.llm.config.max_position_embeddings - read


def test_an_answer_above_the_llms_positions_is_refused_before_it_is_in_a_batch(engine, bridges, monkeypatch):
    from layerbridge.serving import local_engine

    monkeypatch.setattr(local_engine, "Decoding", lambda *args: pytest.fail("nothing is to be read"))
    limit = bridges["plain"].llm.config.max_position_embeddings
    engine = engine(max_new_tokens=limit)
    too_many = longest_answer(bridges["plain"], "the cat") + 1
    with pytest.raises(ApiError, match=rf"need {limit + 1} positions of the LLM, which takes {limit}") as found:
        asyncio.run(answer(engine, "the cat", max_new_tokens=too_many))
    assert found.value.code == "context_length_exceeded"


def test_an_answer_of_all_of_the_llms_positions_is_begun(engine, bridges):
    longest = longest_answer(bridges["plain"], "the cat")
    engine = engine(max_new_tokens=longest)

    async def begin():
        events = engine.generate("plain", [Reading(source="the cat")], Writing(max_new_tokens=longest))
        await anext(events)
        await events.aclose()

    asyncio.run(begin())


def test_labels_are_bounded_together(engine):
    engine = engine(max_label_tokens=20)
    labels = [f"one two three {number}" for number in range(8)]
    with pytest.raises(ApiError, match=r"The labels have \d+ LLM tokens together; at most 20 are taken") as found:
        asyncio.run(engine.classify("topic", [Reading(source="the cat")], labels))
    assert (found.value.status, found.value.param) == (400, "labels")


def test_after_a_failure_of_the_device_the_engine_is_not_ready(engine, monkeypatch):
    from layerbridge.serving import local_engine

    def broken(*args):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(local_engine, "Decoding", broken)
    engine = engine()
    with pytest.raises(ApiError) as found:
        asyncio.run(answer(engine, "the cat"))
    assert found.value.status == 500
    assert not engine.ready


def test_closing_does_not_wait_for_a_pass_that_does_not_end(engine, bridges, monkeypatch):
    from layerbridge.serving import bridge_engine

    begun, may_end = threading.Event(), threading.Event()

    def stuck(*args, **kwargs):
        begun.set()
        may_end.wait(30)
        return []

    monkeypatch.setattr(bridge_engine, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(bridges["topic"], "classify", stuck)
    engine = engine()

    async def ask():
        asked = asyncio.ensure_future(engine.classify("topic", [Reading(source="the mat")], LABELS))
        await asyncio.to_thread(begun.wait)
        await engine.close()
        assert engine._thread.is_alive()
        assert not engine.ready
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(ask())
    may_end.set()
    engine._thread.join(30)
    assert not engine._thread.is_alive()


# -------------------------------------------------------------------------------------------------------------------
# The waiting line alone


def row(kind="generate", model="a", cost=10, labels=()):
    how = Writing(max_new_tokens=cost - 4) if kind == "generate" else None
    return Row(
        model=model,
        kind=kind,
        number=0,
        reading=Reading(source="x"),
        tell=lambda event: None,
        writing=how,
        labels=labels,
    )


def prepare(one):
    one.tokens = Tokens([1], [1])
    return True


def test_a_batch_is_the_first_row_and_its_company_within_rows_and_tokens():
    line = WaitingLine(Limits(batch_rows=3, batch_tokens=100))
    rows = [row(), row("classify", labels=("x",)), row(), row(model="b"), row(), row(), row("classify", labels=("y",))]
    line.put(rows)
    assert line.take(prepare) == [rows[0], rows[2], rows[4]]
    assert line.take(prepare, held_back=["generate"]) == [rows[1]]
    assert line.take(prepare) == [rows[3]]
    assert line.take(prepare) == [rows[5]]
    assert line.take(prepare) == [rows[6]]
    assert line.take(prepare) == []


def test_padding_counts_and_a_row_above_the_budget_goes_alone():
    line = WaitingLine(Limits(batch_rows=10, batch_tokens=100))
    rows = [row(cost=10), row(cost=10), row(cost=40), row(cost=500), row(cost=10)]
    line.put(rows)
    assert line.take(prepare) == rows[:2], "three of 40 are above 100"
    assert line.take(prepare) == [rows[2]]
    assert line.take(prepare) == [rows[3]]
    assert line.take(prepare) == [rows[4]]


def test_rows_that_are_cancelled_or_cannot_be_read_are_left_out():
    line = WaitingLine(Limits())
    rows = [row(), row(), row()]
    line.put(rows)
    line.cancel([rows[1]])
    assert len(line) == 2
    assert line.take(lambda one: one is not rows[0] and prepare(one)) == [rows[2]]
    assert len(line) == 0


def test_a_row_that_is_cancelled_while_a_batch_is_made_is_not_read():
    line = WaitingLine(Limits())
    rows, read = [row(), row()], []
    line.put(rows)

    def leave(one):
        read.append(one)
        line.cancel([rows[1]])
        return prepare(one)

    assert line.take(leave) == [rows[0]]
    assert read == [rows[0]]
    assert len(line) == 0


def test_texts_that_cannot_be_read_are_a_batch_of_work_too():
    line = WaitingLine(Limits(batch_rows=3))
    line.put([row() for _ in range(10)])
    read = []
    assert line.take(lambda one: bool(read.append(one))) == []
    assert (len(read), len(line)) == (3, 7)


def test_labels_count_in_a_batchs_positions():
    line = WaitingLine(Limits(batch_tokens=100))
    line.put([row("classify", labels=("x",)) for _ in range(5)])

    def with_labels(one):
        one.label_tokens = 40
        return prepare(one)

    assert len(line.take(with_labels)) == 2


def test_waiting_ends_when_a_row_comes_or_the_line_closes():
    line = WaitingLine(Limits(batch_wait_ms=0))
    done = threading.Event()
    threading.Thread(target=lambda: (line.wait(), done.set()), daemon=True).start()
    assert not done.wait(0.05)
    line.put([row()])
    assert done.wait(5)
    assert len(line.close()) == 1
    line.wait()


def test_waiting_ends_when_what_was_held_back_may_be_taken():
    line, held, done = WaitingLine(Limits(batch_wait_ms=0)), ["generate"], threading.Event()
    line.put([row()])
    threading.Thread(target=lambda: (line.wait(lambda: held), done.set()), daemon=True).start()
    assert not done.wait(0.05)
    held.clear()
    line.look_again()
    assert done.wait(5)


def test_a_client_that_leaves_frees_its_row(bridges, endless):
    body = {"model": "plain", "prompt": "the cat", "max_tokens": 400}
    with running(bridges, max_batches=1) as server:
        for stream in (True, False):
            with httpx.Client(base_url=server.url, timeout=60) as client:
                if stream:
                    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
                        lines = response.iter_lines()
                        next(lines)
                        assert server.engine.num_writing == 1
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        client.post("/v1/completions", json=body, timeout=0.3)
            wait_until(lambda: server.engine.num_writing == 0, seconds=5)
        wait_until(lambda: server.count('layerbridge_requests_total{route="/v1/completions",status="499"}') == 1)
