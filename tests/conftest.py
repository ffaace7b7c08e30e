"""Shared fixtures: tiny models on disk, built once a session."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny
from tests.browser import chromium

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models; test processes share the cores

settings.register_profile("no_deadline", deadline=None)  # how long an example takes is no claim of any test
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, str]:
    """Folders of every tiny base model, by kind."""
    root: Path = tmp_path_factory.mktemp("models")
    folders = {kind: tiny.save_encoder(kind, root / kind) for kind in (*tiny.ENCODERS, *tiny.OTHER_ENCODERS)}
    folders |= {kind: tiny.save_llm(kind, root / kind) for kind in tiny.LLMS}
    folders["llama-chat"] = tiny.save_llm("llama", root / "llama-chat", chat=True)
    return folders


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; of a module, as its event loop is in the way of tests that run their own."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def measuring_data() -> Path:
    """The folder of real data; tests that need it skip without it."""
    folder = os.environ.get("LAYERBRIDGE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LAYERBRIDGE_DATA names no folder of measuring data")
    return Path(folder)
