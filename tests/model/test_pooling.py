"""Pooling: which tokens are averaged, where they stand, and that all who count soft tokens count the same ones."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from layerbridge.config import BridgeConfig, PoolingConfig, PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.checkpoint import load_bridge, save_bridge
from layerbridge.model.pooling import POOLINGS, build_pooling, num_soft_tokens
from layerbridge.model.splice import IGNORED
from layerbridge.model.states import LiveStates
from tests.model.test_bridge import ANSWERS, TEXTS, make

CONFIGS = {
    "none": PoolingConfig(),
    "mean": PoolingConfig(name="mean"),
    "every-1": PoolingConfig(name="every", size=1),
    "every-3": PoolingConfig(name="every", size=3),
    "every-99": PoolingConfig(name="every", size=99),
    "append_mean": PoolingConfig(name="append_mean"),
}
EVERY = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])


def count(config, num_tokens):
    """Soft tokens of a text of so many source tokens."""
    groups = -(-num_tokens // (config.size or 1))
    return {"none": num_tokens, "mean": 1, "every": groups, "append_mean": num_tokens + 1}[config.name]


@EVERY
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 100])
def test_how_many_there_will_be_is_known_from_the_tokens(config, num_tokens):
    assert num_soft_tokens(config, num_tokens) == count(config, num_tokens)


def pooled_alone(config, tokens_SE):
    """One text's soft tokens, in a plain loop."""
    mean_1E = tokens_SE.mean(0, keepdim=True)
    match config.name:
        case "mean":
            return mean_1E
        case "every":
            parts = [tokens_SE[start : start + config.size] for start in range(0, len(tokens_SE), config.size)]
            return torch.stack([part.mean(0) for part in parts])
        case "append_mean":
            return torch.cat([tokens_SE, mean_1E])
    return tokens_SE


def batch_of(lengths, order_seed, extra_columns=0):
    """Fused states of texts of these lengths, their tokens in any order, as caches and chunks hand them over."""
    columns = max(lengths) + extra_columns
    mask = torch.arange(columns) < torch.tensor(lengths)[:, None]
    states = LiveStates.of([torch.zeros(*mask.shape, 4)], mask)
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(order_seed))
    states.rows_N = states.rows_N[order]
    fused_NE = torch.randn(sum(lengths), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    texts = states.pad(fused_NE)
    return fused_NE, states, mask, [text[:length] for text, length in zip(texts, lengths, strict=True)]


def test_the_config_and_the_table_name_the_same_poolings():
    assert set(POOLINGS) == {config.name for config in CONFIGS.values()}
    assert set(POOLINGS) == set(PoolingConfig.model_fields["name"].annotation.__args__)


@EVERY
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    order_seed=st.integers(0, 99),
    extra_columns=st.integers(0, 3),
)
def test_a_batch_is_pooled_as_its_texts_are_alone_whatever_the_order_of_tokens(
    config, lengths, order_seed, extra_columns
):
    fused_NE, states, mask, texts = batch_of(lengths, order_seed, extra_columns)
    soft = build_pooling(config)(fused_NE, states, mask)
    assert soft.mask_BC.sum(1).tolist() == [count(config, length) for length in lengths]
    assert sorted(soft.rows_M.tolist()) == soft.mask_BC.flatten().nonzero().flatten().tolist()
    padded = soft.pad()
    assert not padded[~soft.mask_BC].any()
    for row, text in enumerate(texts):
        wanted = pooled_alone(config, text)
        assert soft.mask_BC[row, : len(wanted)].all()  # these first
        torch.testing.assert_close(padded[row, : len(wanted)], wanted)


@EVERY
def test_gradients_reach_every_token_as_they_do_alone(config):
    lengths = [5, 1, 3]
    fused_NE, states, mask, _ = batch_of(lengths, order_seed=3)
    together, alone = (fused_NE.clone().requires_grad_() for _ in range(2))
    soft = build_pooling(config)(together, states, mask)
    texts = [text[:length] for text, length in zip(states.pad(alone), lengths, strict=True)]
    wanted = [pooled_alone(config, text) for text in texts]
    upstream = [torch.randn_like(text) for text in wanted]
    found = [row[: len(grad)] for row, grad in zip(soft.pad(), upstream, strict=True)]
    torch.autograd.backward(found, upstream)
    torch.autograd.backward(wanted, upstream)
    torch.testing.assert_close(together.grad, alone.grad)


@pytest.mark.parametrize("alone", ["none", "every-1"])
def test_pooling_that_averages_nothing_changes_no_bit_of_a_loss(tiny_models, alone):
    losses = []
    for pooling in (PoolingConfig(), CONFIGS[alone]):
        bridge = make(tiny_models, pooling=pooling)
        losses.append(bridge.loss(bridge.processor(TEXTS, answers=["positive"] * 4)).item())
    assert losses[0] == losses[1]


@EVERY
@pytest.mark.parametrize("llm", ["llama", "gemma2"])  # packed, and padded
def test_the_llm_reads_as_many_soft_tokens_as_the_pooling_says(tiny_models, config, llm):
    bridge = make(tiny_models, llm=llm, pooling=config)
    inputs = bridge.processor(TEXTS, answers=["positive", "negative one", "no", "one"])
    lengths = inputs.source_mask.sum(1).tolist()
    read = []
    hook = bridge.llm.model.layers[0].register_forward_pre_hook(lambda layer, args: read.append(args[0].shape[:2]))
    bridge.loss(inputs)
    hook.remove()
    answers = (inputs.labels != IGNORED).sum(1).tolist()
    soft = [count(config, length) for length in lengths]
    ends = int(llm == "gemma2")  # read in padded batches, spared in packed ones
    rows = [2 + number + answer - 1 + ends for number, answer in zip(soft, answers, strict=True)]  # bos and boundary
    assert read[-1] == ((1, sum(rows)) if llm == "llama" else (4, max(rows)))


@EVERY
def test_layer_weights_stay_those_of_the_source_tokens(tiny_models, config):
    bridge, plain = make(tiny_models, pooling=config), make(tiny_models)
    (found,) = bridge.layer_weights(TEXTS[:1])
    assert len(found.tokens) == len(found.weights)
    assert torch.equal(found.weights, plain.layer_weights(TEXTS[:1])[0].weights)
    inputs = bridge.processor(TEXTS)
    assert torch.equal(bridge.fuse(inputs).states_BSE, plain.fuse(inputs).states_BSE)


def test_the_llms_limit_on_positions_counts_soft_tokens(tiny_models):
    """GPT-2's tiny one has 128: what is too long a text by its tokens is not by its means."""
    long = "cat " * 300

    def read(**pooling):
        return make(tiny_models, llm="gpt2", pooling=pooling).generate([long], max_source_tokens=200, max_new_tokens=2)

    for pooling, positions in (({"name": "none"}, 204), ({"name": "append_mean"}, 205)):
        with (
            pytest.warns(UserWarning, match="longer than 200"),
            pytest.raises(DataError, match=rf"read {positions} positions and takes 128"),
        ):
            read(**pooling)
    for pooling in ({"name": "mean"}, {"name": "every", "size": 2}):
        with pytest.warns(UserWarning, match="longer than 200"):
            assert len(read(**pooling)) == 1


def test_the_llm_reads_soft_tokens_then_boundary_then_prompt(tiny_models):
    bridge = make(tiny_models, prompt=PromptConfig(text="one"), pooling="mean")
    bos, soft, boundary, prompt = bridge.prefix_pieces(bridge.processor(TEXTS))
    assert soft.embeds_BTD.shape[:2] == soft.mask_BT.shape == (4, 1)
    assert torch.equal(boundary.embeds_BTD[0, 0], bridge.boundary)
    assert prompt.mask_BT.all()
    assert bos.mask_BT.all()


def test_checkpoints_from_before_there_was_pooling_load_as_they_were(tiny_models, tmp_path):
    bridge = make(tiny_models)
    save_bridge(bridge, tmp_path)
    path = tmp_path / "bridge.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["layerbridge"])
    del header["config"]["pooling"]
    for option in ("weights", "temperature"):
        del header["config"]["fusion"][option]
    save_file(load_file(path), path, metadata=metadata | {"layerbridge": json.dumps(header)})
    again = load_bridge(tmp_path)
    assert again.config == bridge.config
    assert again.fingerprint() == bridge.fingerprint() == header["fingerprint"]
    assert torch.equal(again.score(TEXTS, ANSWERS), bridge.score(TEXTS, ANSWERS))


def test_every_pooling_has_its_own_fingerprint(tiny_models):
    prints = {name: make(tiny_models, pooling=config).fingerprint() for name, config in CONFIGS.items()}
    assert len(set(prints.values())) == len(CONFIGS)
    assert prints["none"] == make(tiny_models).fingerprint()
    assert "pooling" not in make(tiny_models).config.model_dump_json(exclude_defaults=True)


def test_a_pooling_that_is_not_in_the_table_is_refused():
    config = BridgeConfig().pooling.model_copy(update={"name": "men"})
    with pytest.raises(ConfigError, match=r"Unknown pooling 'men'\. Did you mean 'mean'\? Known: append_mean, every"):
        build_pooling(config)
