"""What is found out before anything is served: addresses, models, and whether vLLM reads what a run makes."""

import pytest
import torch

from layerbridge.config import LoraConfig
from layerbridge.errors import ConfigError
from layerbridge.serving.server import build_server, build_server_config, build_upstream_config, load_bridges
from tests.model.test_bridge import make
from tests.serving.fake_vllm import faking
from tests.serving.running import running


@pytest.fixture(scope="module")
def run(tiny_models, tmp_path_factory):
    return str(make(tiny_models).save_pretrained(tmp_path_factory.mktemp("start") / "run"))


@pytest.fixture(scope="module")
def elsewhere(run):
    return load_bridges([run], device="cpu", llm_elsewhere=True)


def start(bridges, **where):
    return build_server(bridges, build_server_config(port=0), upstream=build_upstream_config(where, {}))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "wanted http://HOST:PORT or https://HOST:PORT"),
        ("ftp://host", "wanted http://HOST:PORT or https://HOST:PORT"),
        ("file:///etc/passwd", "wanted http://HOST:PORT or https://HOST:PORT"),
        ("http://user:secret@host", "Set LAYERBRIDGE_ENGINE_API_KEY instead"),
        ("http://host/?key=x", "has a query or a fragment"),
    ],
)
def test_an_address_that_is_none_is_refused(url, words):
    with pytest.raises(ConfigError, match=words) as found:
        build_upstream_config({"url": url}, {})
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("url", ["http://host:1", "http://host:1/", "http://host:1/v1", "http://host:1/v1/"])
def test_an_address_may_end_with_v1(url):
    assert build_upstream_config({"url": url}, {}).url == "http://host:1"


@pytest.mark.parametrize(
    ("url", "is_open"),
    [("http://127.0.0.1:1", False), ("http://[::1]:1", False), ("https://llm.example", False), ("http://llm:1", True)],
)
def test_a_network_without_encryption_is_known(url, is_open):
    assert build_upstream_config({"url": url}, {}).is_open is is_open


def test_nobody_there_is_said(elsewhere):
    with pytest.raises(ConfigError, match="No vLLM that is well at http://127.0.0.1:9: .*--enable-prompt-embeds"):
        start(elsewhere, url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("knobs", "where", "words"),
    [
        ({"enabled": False}, {}, "You must set `--enable-prompt-embeds`"),
        ({"well": False}, {}, "gave no 200"),
        ({"names": ("one", "two")}, {}, "serves 2 models .one, two.; say which with --engine-model"),
        ({"names": ()}, {}, "serves 0 models"),
        ({}, {"model": "tiny-lm"}, "Unknown model of --engine-model 'tiny-lm'. Did you mean 'tiny-llm'"),
        ({"key": "a-key"}, {}, "does not take this server's key"),
        ({"scales_again": 5.0}, {}, "otherwise than the tokens that they stand for"),
        ({"dtype": torch.bfloat16}, {}, "dtype torch.float32, the model's is torch.bfloat16"),
        ({}, {"route": "chat"}, "no chat template"),
    ],
)
def test_a_vllm_that_does_not_fit_is_refused_with_what_to_do(tiny_models, elsewhere, knobs, where, words):
    with faking(tiny_models["llama"], **knobs) as fake, pytest.raises(ConfigError, match=words):
        start(elsewhere, url=fake.url, **where)


def test_another_llm_of_the_same_shape_is_found_out(tiny_models, elsewhere, tmp_path):
    from tests import tiny

    other = tiny.save_llm("llama", tmp_path / "other", seed=9)
    with faking(other) as fake, pytest.raises(ConfigError, match="It is another LLM"):
        start(elsewhere, url=fake.url)


def test_the_key_is_sent_and_the_named_model_taken(tiny_models, elsewhere):
    with faking(tiny_models["llama"], key="a-long-key", names=("one", "two")) as fake:
        where = build_upstream_config({"url": fake.url, "model": "two"}, {"LAYERBRIDGE_ENGINE_API_KEY": "a-long-key"})
        assert "a-long-key" not in repr(where)
        with running(elsewhere, upstream=where) as server:
            assert server.post("/v1/completions", {"model": "run", "prompt": "the cat"}).status_code == 200
        assert {body["model"] for body in fake.bodies} == {"two"}


def test_a_run_with_adapters_in_its_llm_is_refused(tiny_models, tmp_path):
    pytest.importorskip("peft")
    adapted = make(tiny_models, llm_options={"lora": LoraConfig(rank=2)})
    with pytest.raises(ConfigError, match=r"adapters inside the LLM \(llm.lora\).*Run the LLM in this process"):
        load_bridges([str(adapted.save_pretrained(tmp_path / "run"))], device="cpu", llm_elsewhere=True)
