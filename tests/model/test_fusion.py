"""What every fusion must do with each of its options, and the learned ones against plain forms of themselves."""

import pytest
import torch
from benchmarks.published_fusion import PublishedTransformerSoftmax, copy_into, twins
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layerbridge import config as cfg
from layerbridge.errors import ConfigError, ModelError
from layerbridge.model.fusion import FUSIONS, build_fusion
from layerbridge.model.mixing import inverse_rms, layer_scores, weighted_sum
from layerbridge.model.states import LiveStates

CONFIGS = {
    "last_layer": cfg.LastLayer(),
    "single_layer": cfg.SingleLayer(layer=2),
    "layer_mean": cfg.LayerMean(),
    "global_softmax": cfg.GlobalSoftmax(temperature=0.5),
    "global_softmax_published": cfg.GlobalSoftmaxPublished(),
    "transformer_softmax": cfg.TransformerSoftmax(feedforward_width=12, dropout=0.0),
    "attention_pool": cfg.AttentionPool(),
    "low_rank_softmax": cfg.LowRankSoftmax(rank=5),
}
OPTIONS = {
    "entmax15": {"weights": "entmax15"},
    "sparsemax": {"weights": "sparsemax"},
    "temperature": {"temperature": 0.6},
    "heads": {"heads": 3},
}
WITH_OPTIONS = CONFIGS | {
    f"{name}-{option}": config.model_copy(update=update)
    for name, config in CONFIGS.items()
    for option, update in OPTIONS.items()
    if set(update) <= set(type(config).model_fields)
}
VARIANTS = [pytest.param(config, id=name) for name, config in WITH_OPTIONS.items()] + [
    pytest.param(config.model_copy(update={"normalize_layers": True}), id=f"{name}-normalized")
    for name, config in WITH_OPTIONS.items()
    if name != "last_layer"
]
LEARNED = [v for v in VARIANTS if v.values[0].name not in ("last_layer", "single_layer", "layer_mean")]


def make(config, num_layers=4, width=6, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    fusion = build_fusion(config, layer_numbers=range(1, num_layers + 1), width=width).to(dtype)
    with torch.no_grad():
        for parameter in fusion.parameters():
            if config.name != "global_softmax_published":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return fusion


def states(batch=2, tokens=5, num_layers=4, width=6, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(batch, tokens, width, generator=generator, dtype=dtype) for _ in range(num_layers)]
    lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    lengths[0] = tokens
    return layers, torch.arange(tokens) < lengths[:, None]


def of_heads(fused, num_heads):
    """(.., K x E) -> K times (.., E)."""
    return fused.unflatten(-1, (num_heads, -1)).unbind(-2)


def heads_of(config):
    return getattr(config, "heads", 1)


def test_the_config_and_the_table_name_the_same_fusions():
    assert set(FUSIONS) == set(CONFIGS) == set(cfg._fusion_names()) - {"recommended"}  # which is one of them


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_offered_by_the_fusions_that_can_have_it(option):
    having = {name.removesuffix(f"-{option}") for name in WITH_OPTIONS if name.endswith(f"-{option}")}
    wanted = {"global_softmax", "attention_pool", "low_rank_softmax", "transformer_softmax"}
    assert having == wanted - ({"transformer_softmax"} if option == "heads" else set())


def test_every_fusion_but_the_bare_last_layer_can_normalise():
    assert [name for name, config in CONFIGS.items() if not hasattr(config, "normalize_layers")] == ["last_layer"]


@pytest.mark.parametrize("config", VARIANTS)
class TestEveryFusion:
    def test_weights_sum_to_one_on_real_tokens_and_zero_on_padding(self, config):
        layers, mask = states()
        fusion = make(config)
        fused, weights = fusion(layers, mask)
        assert fused.shape == (*mask.shape, fusion.out_width)
        assert fusion.out_width == heads_of(config) * layers[0].shape[-1]
        assert weights.shape == (*mask.shape, len(layers))
        torch.testing.assert_close(weights.sum(-1), mask.to(weights.dtype))
        assert not fused[~mask].any()

    def test_padding_content_is_ignored(self, config):
        layers, mask = states()
        fusion = make(config)
        fused, weights = fusion(layers, mask)
        noisy = [torch.where(mask[..., None], layer, 1e3 * torch.randn_like(layer)) for layer in layers]
        fused_noisy, weights_noisy = fusion(noisy, mask)
        assert torch.equal(fused, fused_noisy)
        assert torch.equal(weights, weights_noisy)

    def test_every_token_is_fused_alone(self, config):
        layers, mask = states()
        fusion = make(config)
        fused, weights = fusion(layers, mask)
        one = [layer[1:2, :1] for layer in layers]
        torch.testing.assert_close(fusion(one, mask[1:2, :1]).states_BSE, fused[1:2, :1])
        torch.testing.assert_close(fusion(one, mask[1:2, :1]).weights_BSL, weights[1:2, :1])

    def test_fused_state_is_the_weighted_sum_of_the_layers(self, config):
        layers, mask = states()
        fused, weights = make(config)(layers, mask)
        if getattr(config, "normalize_layers", False):
            layers = [layer * torch.rsqrt(layer.square().mean(-1, keepdim=True) + 1e-6) for layer in layers]
        expected = (torch.stack(layers, 2) * weights[..., None]).sum(2)
        mean = torch.stack(of_heads(fused, heads_of(config))).mean(0)  # of heads, as the weights that are told
        torch.testing.assert_close(mean, expected)

    def test_bfloat16_states_are_mixed_in_float32(self, config):
        layers, mask = states(dtype=torch.float32)
        fusion = make(config, dtype=torch.float32)
        low = [layer.bfloat16() for layer in layers]
        exact = fusion([layer.float() for layer in low], mask).states_BSE
        fused = fusion(low, mask).states_BSE
        assert fused.dtype == torch.float32
        torch.testing.assert_close(fused, exact, rtol=1e-5, atol=1e-5)

    def test_matrix_products_in_bfloat16_leave_the_mixing_in_float32(self, config):
        layers, mask = states(dtype=torch.float32)
        fusion = make(config, dtype=torch.float32)
        exact = fusion(layers, mask)
        fusion.matmul_dtype = torch.bfloat16
        fused, weights = fusion(layers, mask)
        assert fused.dtype == weights.dtype == torch.float32
        torch.testing.assert_close(weights, exact.weights_BSL, rtol=0, atol=0.02)
        if getattr(config, "normalize_layers", False):
            layers = [layer * torch.rsqrt(layer.square().mean(-1, keepdim=True) + 1e-6) for layer in layers]
        expected = (torch.stack(layers, 2) * weights[..., None]).sum(2)
        mean = torch.stack(of_heads(fused, heads_of(config))).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5)

    def test_wrong_number_of_layers_is_refused_with_both_counts(self, config):
        layers, mask = states()
        with pytest.raises(ModelError, match=r"got 3 layers of width 6; .* 4 layers of width 6"):
            make(config)(layers[:3], mask)


@pytest.mark.parametrize("config", LEARNED)
def test_every_learned_fusion_trains_all_its_parameters(config):
    layers, mask = states()
    fusion = make(config)
    fusion(layers, mask).states_BSE.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "config", [p for p in LEARNED if p.values[0].name != "transformer_softmax" and heads_of(p.values[0]) == 1]
)
def test_untrained_mix_starts_at_the_layer_mean(config):
    layers, mask = states()
    start = build_fusion(config, layer_numbers=range(1, 5), width=6).double()(layers, mask)
    normalize = config.normalize_layers
    mean = make(cfg.LayerMean(normalize_layers=normalize))(layers, mask)
    torch.testing.assert_close(start.states_BSE, mean.states_BSE, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", [p for p in LEARNED if heads_of(p.values[0]) > 1])
def test_untrained_heads_start_near_the_layer_mean_and_no_two_alike(config):
    layers, mask = states()
    torch.manual_seed(0)
    start = build_fusion(config, layer_numbers=range(1, 5), width=6).double()(layers, mask).states_BSE
    mean = make(cfg.LayerMean(normalize_layers=config.normalize_layers))(layers, mask).states_BSE
    heads = of_heads(start, config.heads)
    for number, head in enumerate(heads):
        torch.testing.assert_close(head, mean, rtol=0, atol=0.2)
        assert all((head - other).abs().max() > 1e-3 for other in heads[:number])


def test_every_head_of_a_global_softmax_is_its_own_mix():
    layers, mask = states()
    fusion = make(cfg.GlobalSoftmax(heads=3, temperature=0.6))
    fused, weights = fusion(layers, mask)
    each_KL = torch.softmax(fusion.logits_L / 0.6, dim=-1)
    for head, own_L in zip(of_heads(fused, 3), each_KL, strict=True):
        wanted = sum(weight * layer for weight, layer in zip(own_L, layers, strict=True))
        torch.testing.assert_close(head[mask], wanted[mask])
    torch.testing.assert_close(weights[0, 0], each_KL.mean(0))


def test_every_head_of_an_attention_pool_is_the_pool_of_its_query():
    layers, mask = states()
    fusion, one = make(cfg.AttentionPool(heads=3)), make(cfg.AttentionPool())
    fused = fusion(layers, mask).states_BSE
    for query_E, head in zip(fusion.query_E, of_heads(fused, 3), strict=True):
        with torch.no_grad():
            one.query_E.copy_(query_E)
        torch.testing.assert_close(one(layers, mask).states_BSE, head)


@pytest.mark.parametrize("name", ["global_softmax", "attention_pool", "low_rank_softmax", "transformer_softmax"])
def test_a_temperature_divides_the_logits(name):
    """Low, it makes the largest weight larger; at 1 it is not there at all."""
    layers, mask = states()
    plain = CONFIGS[name].model_copy(update={"temperature": 1.0})
    cold = make(plain.model_copy(update={"temperature": 0.25}))(layers, mask).weights_BSL
    fusion = make(plain)
    logits = fusion(layers, mask).weights_BSL[mask].log()
    torch.testing.assert_close(cold[mask], torch.softmax(4 * logits, dim=-1))


def _read_plainly(fusion, config, layers_BSLE):
    """The low-rank form as its docstring has it, on stacked layers: weights (B, S, K, L)."""
    first_BSL = torch.softmax(layers_BSLE @ fusion.query_E / layers_BSLE.shape[-1] ** 0.5, dim=-1)
    read_BSE = (first_BSL[..., None] * layers_BSLE).sum(-2)
    hidden_BSR = torch.nn.functional.gelu(read_BSE @ fusion.down.weight.T + fusion.down.bias)
    logits = hidden_BSR @ fusion.up.weight.T + fusion.up.bias
    return torch.softmax(logits.unflatten(-1, (config.heads, -1)) / config.temperature, dim=-1)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_low_rank_softmax_equals_a_stacked_form_in_outputs_and_every_gradient(heads, normalize):
    layers, mask = states()
    config = cfg.LowRankSoftmax(rank=5, heads=heads, temperature=0.7, normalize_layers=normalize)
    fusion = make(config)
    stacked = torch.stack(layers, 2).requires_grad_()
    inner = stacked * torch.rsqrt(stacked.square().mean(-1, keepdim=True) + 1e-6) if normalize else stacked
    weights_BSKL = _read_plainly(fusion, config, inner)
    wanted = (weights_BSKL @ inner).flatten(-2)
    upstream, of_weights = torch.randn_like(wanted), torch.randn_like(weights_BSKL[..., 0, :])
    real = mask[..., None]
    torch.autograd.backward([wanted * real, weights_BSKL.mean(-2) * real], [upstream, of_weights])
    gradients = {name: p.grad.clone() for name, p in fusion.named_parameters()}
    fusion.zero_grad()
    ours = [layer.clone().requires_grad_() for layer in layers]
    fused, weights = fusion(ours, mask)
    torch.autograd.backward([fused, weights], [upstream, of_weights])
    torch.testing.assert_close(fused, wanted * real)
    torch.testing.assert_close(weights, weights_BSKL.mean(-2) * real)
    for name, parameter in fusion.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=lambda m, n=name: f"{n}: {m}")
    if not normalize:  # frozen states want no gradient through their RMS
        torch.testing.assert_close(torch.stack([layer.grad for layer in ours], 2), stacked.grad)


@pytest.mark.parametrize("heads", [1, 2])
def test_low_rank_softmax_reads_the_states_once_for_scores_and_once_for_each_sum(heads, monkeypatch):
    asked = []
    for name in ("scores", "weighted_sum", "inverse_rms", "layer"):
        original = getattr(LiveStates, name)
        monkeypatch.setattr(
            LiveStates, name, lambda self, *a, name=name, original=original: asked.append(name) or original(self, *a)
        )
    make(cfg.LowRankSoftmax(heads=heads))(*states())
    assert asked == ["scores", "weighted_sum"] + ["weighted_sum"] * heads


def test_low_rank_softmax_has_the_stated_number_of_parameters():
    for heads in (1, 4):
        fusion = build_fusion(cfg.LowRankSoftmax(heads=heads), layer_numbers=range(24), width=1024)
        matrices = 16 * 1024 + 16 * heads * 24
        assert sum(p.numel() for p in fusion.parameters()) == 1024 + matrices + 16 + heads * 24


def test_one_hot_weights_return_that_layer_exactly():
    layers, mask = states(dtype=torch.float32)
    for layer in (1, 2, 3, 4):
        fused = make(cfg.SingleLayer(layer=layer), dtype=torch.float32)(layers, mask)
        assert torch.equal(fused.states_BSE[mask], layers[layer - 1][mask])
    assert torch.equal(make(cfg.LastLayer())(layers, mask).states_BSE[mask], layers[-1][mask])


def test_published_temperature_moves_as_the_paper_has_it():
    fusion = build_fusion(cfg.GlobalSoftmaxPublished(), layer_numbers=(1, 2, 3), width=4)
    with torch.no_grad():
        fusion.logits_L.copy_(torch.tensor([1e-3, 2e-3, 3e-3]))
        fusion.tau.fill_(2e-3)
    layers, mask = states(num_layers=3, width=4, dtype=torch.float32)
    expected = torch.softmax((100 + 1e5 * 2e-3) * torch.tensor([1e-3, 2e-3, 3e-3]), 0)
    torch.testing.assert_close(fusion(layers, mask).weights_BSL[0, 0], expected)


def test_single_layer_that_is_not_handed_over_is_refused():
    with pytest.raises(ConfigError, match=r"layer 9, and the encoder hands over layers 1 to 4"):
        build_fusion(cfg.SingleLayer(layer=9), layer_numbers=(1, 2, 3, 4), width=6)


def test_single_layer_counts_from_the_last_with_negatives():
    layers, mask = states(num_layers=3)
    fusion = build_fusion(cfg.SingleLayer(layer=-1), layer_numbers=(2, 5, 8), width=6)
    assert torch.equal(fusion(layers, mask).states_BSE[mask], layers[2].to(torch.float64)[mask])


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    num_layers=st.integers(1, 7),
    width=st.integers(1, 9).map(lambda half: 2 * half),
    feedforward_width=st.integers(1, 16),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 10_000),
)
def test_transformer_softmax_equals_the_reference_in_outputs_and_every_gradient(
    batch, tokens, num_layers, width, feedforward_width, dtype, seed
):
    torch.manual_seed(seed)
    reference = PublishedTransformerSoftmax(num_layers, width, feedforward_width, dropout=0.0).to(dtype)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    config = cfg.TransformerSoftmax(feedforward_width=feedforward_width, dropout=0.0)
    fast = build_fusion(config, layer_numbers=range(1, num_layers + 1), width=width).to(dtype)
    copy_into(fast, reference)
    layers, mask = states(batch, tokens, num_layers, width, dtype, seed)
    ours_in = [layer.clone().requires_grad_() for layer in layers]
    theirs_in = [layer.clone().requires_grad_() for layer in layers]

    fused, weights = fast(ours_in, mask)
    fused_reference, weights_reference = reference(theirs_in, mask)
    upstream, upstream_weights = torch.randn_like(fused), torch.randn_like(weights)
    torch.autograd.backward([fused, weights], [upstream, upstream_weights])
    torch.autograd.backward([fused_reference, weights_reference], [upstream, upstream_weights])

    tolerance = 1e-9 if dtype == torch.float64 else 1e-5

    def agree(name, ours, theirs):
        scale = max(1.0, theirs.abs().max().item())
        assert (ours - theirs).abs().max().item() <= tolerance * scale, name

    agree("states", fused, fused_reference)
    agree("weights", weights, weights_reference)
    gradients = twins(reference, lambda parameter: parameter.grad)
    for name, parameter in fast.named_parameters():
        agree(name, parameter.grad, gradients[name].reshape(parameter.shape))
    for index, (ours, theirs) in enumerate(zip(ours_in, theirs_in, strict=True)):
        agree(f"layer {index + 1}", ours.grad, theirs.grad)


def test_transformer_softmax_has_the_published_number_of_parameters():
    """8.45 M at E=1024, L=24; ours has the key bias, which cancels, less."""
    fusion = build_fusion(cfg.TransformerSoftmax(), layer_numbers=range(24), width=1024)
    reference = PublishedTransformerSoftmax(24, 1024)
    count = sum(p.numel() for p in fusion.parameters())
    assert count == sum(p.numel() for p in reference.parameters()) - 1024
    assert count == pytest.approx(8.45e6, rel=0.005)


def test_transformer_softmax_starts_like_the_reference():
    torch.manual_seed(0)
    fusion = build_fusion(cfg.TransformerSoftmax(), layer_numbers=range(24), width=256)
    reference = twins(PublishedTransformerSoftmax(24, 256), lambda parameter: parameter)
    for name, parameter in fusion.named_parameters():
        spread = 0.1 if parameter.numel() > 1000 else 0.5
        assert parameter.std().item() == pytest.approx(reference[name].std().item(), rel=spread, abs=1e-3), name


def test_dropout_is_on_in_training_only():
    layers, mask = states(dtype=torch.float32)
    fusion = make(cfg.TransformerSoftmax(feedforward_width=12, dropout=0.5), dtype=torch.float32)
    fusion.train()
    assert not torch.equal(fusion(layers, mask).states_BSE, fusion(layers, mask).states_BSE)
    fusion.eval()
    assert torch.equal(fusion(layers, mask).states_BSE, fusion(layers, mask).states_BSE)


def test_dropout_has_the_reference_mean_and_spread():
    """Same masks cannot be drawn by both, so their distributions over many draws are compared."""
    torch.manual_seed(0)
    reference = PublishedTransformerSoftmax(5, 8, 16, dropout=0.3)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    fast = build_fusion(cfg.TransformerSoftmax(feedforward_width=16, dropout=0.3), layer_numbers=range(5), width=8)
    copy_into(fast, reference)
    one = [torch.randn(1, 1, 8) for _ in range(5)]
    many = [layer.expand(1, 20_000, 8).contiguous() for layer in one]
    mask = torch.ones(1, 20_000, dtype=torch.bool)
    ours, theirs = fast.train()(many, mask)[1][0], reference.train()(many, mask)[1][0]
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.01, rtol=0)


def test_mixing_backward_is_right():
    layers, _ = states(batch=1, tokens=2, num_layers=3, width=3)
    layers = [layer.requires_grad_() for layer in layers]
    direction = torch.randn(3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d, *ls: layer_scores(ls, d), (direction, *layers))
    assert torch.autograd.gradcheck(lambda w, *ls: weighted_sum(ls, w), (weights, *layers))
    assert torch.autograd.gradcheck(lambda *ls: inverse_rms(ls, torch.float64), tuple(layers))


@pytest.mark.parametrize(
    "config",
    [
        cfg.TransformerSoftmax(feedforward_width=32),
        cfg.LowRankSoftmax(),
        cfg.LowRankSoftmax(heads=3, weights="entmax15"),
        cfg.AttentionPool(heads=3, weights="sparsemax"),
        cfg.GlobalSoftmax(heads=3),
    ],
    ids=lambda config: f"{config.name}-{heads_of(config)}",
)
def test_mixing_saves_no_copy_of_the_states(config):
    layers = [torch.randn(2, 64, 32).bfloat16() for _ in range(12)]
    fusion = build_fusion(config, layer_numbers=range(12), width=32)
    mask = torch.ones(2, 64, dtype=torch.bool)
    given_storage = {layer.untyped_storage().data_ptr() for layer in layers}
    own = {p.untyped_storage().data_ptr() for p in fusion.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in given_storage | own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fusion(layers, mask)
    tokens_by_width = 2 * 64 * 32 * 4
    assert max(saved.values(), default=0) <= heads_of(config) * tokens_by_width


def test_a_fusion_is_an_ordinary_module():
    assert isinstance(make(CONFIGS["global_softmax"]), nn.Module)
