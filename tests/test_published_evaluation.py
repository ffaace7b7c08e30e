"""The published evaluation that ours is held against writes and scores what ours does."""

import pytest
import torch
from benchmarks.pair import Row
from benchmarks.published_evaluation import PublishedEvaluation

from layerbridge.config import BridgeConfig, EncoderConfig, LLMConfig, TransformerSoftmax
from layerbridge.model.bridge import Bridge
from tests.model.test_bridge import ANSWERS, TEXTS


@pytest.fixture(scope="module")
def both(tiny_models):
    config = BridgeConfig(
        encoder=EncoderConfig(name=tiny_models["mt5"]),
        llm=LLMConfig(name=tiny_models["llama"]),
        fusion=TransformerSoftmax(dropout=0.0),
    )
    bridge = Bridge.build(config, seed=0)
    with torch.no_grad():
        for name, parameter in bridge.trained_parameters().items():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    published = PublishedEvaluation(tiny_models["mt5"], tiny_models["llama"])
    published.start_like(bridge.trained_parameters())
    return bridge, published


def test_the_published_evaluation_writes_the_greedy_texts_of_ours(both):
    bridge, published = both
    written, num_tokens = published.write_all([Row(text, "") for text in TEXTS * 3], 12)
    assert written == [text.strip() for text in bridge.generate(TEXTS * 3, max_new_tokens=12)]
    assert len(set(written)) > 1
    assert all(1 <= count <= 12 for count in num_tokens)


def test_scoring_each_pair_alone_gives_the_scores_of_ours(both):
    bridge, published = both
    alone = torch.tensor([[published.log_probability(text, answer) for answer in ANSWERS] for text in TEXTS])
    torch.testing.assert_close(bridge.score(TEXTS, ANSWERS), alone, atol=1e-4, rtol=1e-4)
