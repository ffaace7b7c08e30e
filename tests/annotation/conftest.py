"""A run on tiny models, saved once a session."""

import pytest
import torch

from layerbridge.model.checkpoint import load_bridge, save_bridge
from tests.annotation.corpus import ANSWERS
from tests.model.test_bridge import make

ORIGIN = {"task": "t", "task_version": 1, "languages": ["en"], "seed": 0}


@pytest.fixture(autouse=True)
def one_thread():
    """The last bits of a probability may depend on threads; and a fork keeps none of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run(tiny_models, tmp_path_factory):
    bridge = make(tiny_models)
    bridge.trained_on = ORIGIN | {"encoder_prompt": "one {text} two", "answers": ANSWERS}
    return save_bridge(bridge, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def bridge(run):
    return load_bridge(run)


@pytest.fixture(scope="session")
def pair_run(tiny_models, tmp_path_factory):
    """A run whose prompt has two fields."""
    bridge = make(tiny_models, "xlmr", "gpt2")
    prompt = "{premise} one {hypothesis} two"
    bridge.trained_on = ORIGIN | {"encoder_prompt": prompt, "answers": ["yes", "no"]}
    return save_bridge(bridge, tmp_path_factory.mktemp("runs") / "pair")
