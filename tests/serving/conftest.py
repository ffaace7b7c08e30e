"""A server that the tests of a session share."""

import time

import pytest

from layerbridge.model import decoding
from tests.serving.running import running, tiny_bridges


@pytest.fixture(scope="session")
def bridges(tiny_models):
    return tiny_bridges(tiny_models)


@pytest.fixture(scope="session")
def served(bridges):
    with running(bridges) as found:
        yield found


@pytest.fixture
def endless(monkeypatch):
    """Answers end at their length alone, and take their time."""
    step = decoding.Decoding.step

    def slow(self):
        time.sleep(0.03)
        return step(self)

    monkeypatch.setattr(decoding, "_ends", lambda reader, row: [])
    monkeypatch.setattr(decoding.Decoding, "step", slow)


@pytest.fixture
def alive(served):
    """Whatever a test sends, the server answers after it."""
    yield served
    assert served.get("/readyz").json() == {"status": "ready"}
    assert served.post("/v1/completions", {"model": "plain", "prompt": "the cat", "max_tokens": 2}).status_code == 200
