"""Layer weights by language: padding does not count, chosen sentences stand alone, and languages add up over calls."""

import pytest
import torch

from layerbridge.analysis import read_weights
from layerbridge.config import BridgeConfig, EvaluationConfig
from layerbridge.data.example import Example, Split
from layerbridge.data.sentences import SHOWN, example_sentences
from layerbridge.errors import DataError
from layerbridge.evaluation.weights import keep_weights, measure_weights
from layerbridge.model.bridge import Bridge

TEXTS = ["the cat", "the cat sat on the mat and the dog did not", "no"]


@pytest.fixture(scope="module")
def bridge(tiny_models) -> Bridge:
    fusion = {"name": "transformer_softmax", "feedforward_width": 16}
    config = {"encoder": tiny_models["mt5"], "llm": tiny_models["llama"], "fusion": fusion}
    return Bridge.build(BridgeConfig.model_validate(config), seed=0)


def split(language: str, texts=TEXTS) -> Split:
    rows = [Example(id=str(i), language=language, text=text, answer="yes") for i, text in enumerate(texts)]
    return Split.of(rows, source="test")


def measure(bridge, languages, sentences=None, **options):
    config = EvaluationConfig(max_source_tokens=32, **options)
    splits = {code: split(code) for code in languages}
    return measure_weights(
        bridge, splits, config, run="r-seed-0", seed=0, task="t", sentences=sentences or {}
    )  # fmt: skip


def test_a_languages_mean_is_over_its_real_tokens(bridge):
    found = measure(bridge, ["en"]).languages["en"]
    rows = torch.cat([found.weights for found in bridge.layer_weights(TEXTS)])
    assert found.num_tokens == len(rows)
    assert found.mean == pytest.approx(rows.mean(dim=0).tolist(), abs=1e-5)
    assert sum(found.mean) == pytest.approx(1, abs=1e-5)


def test_a_limit_leaves_rows_out(bridge):
    assert measure(bridge, ["en"], limit=1).languages["en"].num_tokens == len(bridge.layer_weights(TEXTS[:1])[0].tokens)


def test_sentences_are_shown_as_they_are(bridge):
    (shown,) = measure(bridge, ["en"], {"si": ["වැසි නිසා"]}).sentences
    (found,) = bridge.layer_weights(["වැසි නිසා"])
    assert (shown.language, shown.text, shown.tokens) == ("si", "වැසි නිසා", found.tokens)
    assert torch.tensor(shown.weights).allclose(found.weights, atol=1e-5)
    assert measure(bridge, ["en"]).layer_numbers == found.layers


def test_languages_measured_one_after_another_end_in_one_file(bridge, tmp_path):
    path = tmp_path / "layer_weights.json"
    keep_weights(measure(bridge, ["si"], {"si": ["a cat"]}), path)
    keep_weights(measure(bridge, ["en"], {"en": ["the cat"]}), path)
    keep_weights(measure(bridge, ["en"], {"en": ["the dog"]}), path)
    found = read_weights(path)
    assert list(found.languages) == ["en", "si"]
    assert [(item.language, item.text) for item in found.sentences] == [("en", "the dog"), ("si", "a cat")]


def test_weights_of_another_checkpoint_are_replaced(bridge, tmp_path):
    path = tmp_path / "layer_weights.json"
    other = measure(bridge, ["si"]).model_copy(update={"checkpoint_sha256": "another"})
    keep_weights(other, path)
    keep_weights(measure(bridge, ["en"]), path)
    assert list(read_weights(path).languages) == ["en"]
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_weights(path)
    keep_weights(measure(bridge, ["en"]), path)
    assert list(read_weights(path).languages) == ["en"]


def test_example_sentences_are_parallel_headlines_without_a_prompt():
    found = example_sentences(["si", "en", "xx", "ta"])
    assert list(found) == ["si", "en", "ta"]
    assert all(len(texts) == len(SHOWN) for texts in found.values())
    assert found["en"][0].startswith("Ethiopian runner wins")
    assert not any("Category" in text for texts in found.values() for text in texts)
