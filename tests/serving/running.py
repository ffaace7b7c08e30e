"""A real server on a loopback port, in a thread."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from layerbridge.model.bridge import Bridge
from layerbridge.serving.server import Server, build_server, build_server_config
from tests.model.test_bridge import make

PROMPT = "Text: {text} Label: "
PAIR_PROMPT = "Premise: {premise} Hypothesis: {hypothesis} "
LABELS = ["positive", "negative", "neutral"]


@dataclass
class Running:
    """What a test needs of a server that runs."""

    server: Server
    bridges: dict[str, Bridge]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def engine(self) -> Any:
        return self.server._gate.app.state.engine

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return (
            httpx.post(self.url + path, json=body, timeout=60, **more) if body is not None else self.raw(path, **more)
        )

    def raw(self, path: str, content: Any, **more: Any) -> httpx.Response:
        headers = {"content-type": "application/json"} | more.pop("headers", {})
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **more)

    def count(self, name: str) -> float:
        """Return the sum of a metric's rows."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def tiny_bridges(tiny_models: Mapping[str, str]) -> dict[str, Bridge]:
    """One bridge of a task with one field, one with two fields and a text for the LLM, and one of no task."""
    from layerbridge.config import PromptConfig

    topic, pair, plain = (make(tiny_models), make(tiny_models, prompt=PromptConfig(text="one two")), make(tiny_models))
    about = {"task": "tiny", "task_version": 1, "languages": ["en"]}
    topic.trained_on = about | {"encoder_prompt": PROMPT, "answers": LABELS}
    pair.trained_on = about | {"encoder_prompt": PAIR_PROMPT, "answers": None}
    return {"topic": topic, "pair": pair, "plain": plain}


@contextlib.contextmanager
def running(
    bridges: dict[str, Bridge], *, api_key: str | None = None, upstream: Any = None, **limits: Any
) -> Iterator[Running]:
    """Serve bridges until the block ends; their LLM runs here unless there is an upstream."""
    config = build_server_config(port=0, api_key=api_key, limits=limits)
    server = build_server(bridges, config, upstream=upstream)
    started = threading.Event()
    server.on_started = lambda port: started.set()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30), "the server did not start"
    try:
        yield Running(server, bridges)
    finally:
        server.end()
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def wait_until(true: Any, *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.02)
