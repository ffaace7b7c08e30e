"""Every hand-over with its options, through the whole bridge: alone or in a batch, packed or padded, live or kept."""

import pytest
import torch

from layerbridge.model.checkpoint import load_bridge
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make
from tests.model.test_features import fill, store_of

LOW_RANK = {"name": "low_rank_softmax", "rank": 4}
HAND_OVERS = {
    "transformer-softmax-entmax15": {
        "fusion": {"name": "transformer_softmax", "weights": "entmax15", "temperature": 0.5, "dropout": 0.0}
    },
    "attention-pool-sparsemax-heads": {"fusion": {"name": "attention_pool", "weights": "sparsemax", "heads": 2}},
    "attention-pool-temperature": {"fusion": {"name": "attention_pool", "temperature": 2.0}},
    "global-softmax-sparsemax": {"fusion": {"name": "global_softmax", "weights": "sparsemax"}},
    "global-softmax-heads": {"fusion": {"name": "global_softmax", "heads": 3, "normalize_layers": True}},
    "low-rank": {"fusion": LOW_RANK},
    "low-rank-everything": {
        "fusion": LOW_RANK | {"weights": "entmax15", "heads": 3, "temperature": 0.7, "normalize_layers": True},
        "projector": {"name": "mlp", "hidden_width": 24, "match_rms": True},
        "pooling": {"name": "every", "size": 3},
    },
    "mean": {"fusion": "last_layer", "pooling": "mean"},
    "every": {"pooling": {"name": "every", "size": 2}},
    "append-mean": {"fusion": "global_softmax", "pooling": "append_mean"},
}
EVERY = pytest.mark.parametrize("parts", [pytest.param(parts, id=name) for name, parts in HAND_OVERS.items()])
GOLD = ["positive", "negative one", "no", "one"]


def learn(bridge, inputs, form=None):
    """Return the loss and every trained tensor's gradient; `form` gives the logits, by default the bridge's own."""
    bridge.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(*form(inputs, inputs.labels)) if form else bridge.loss(inputs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in bridge.trained_parameters().items()}


def same(found, wanted, **options):
    torch.testing.assert_close(found[0], wanted[0], atol=1e-4, rtol=1e-4)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, **options, msg=lambda m, n=name: f"{n}: {m}")


@EVERY
@pytest.mark.parametrize("llm", ["llama", "gemma3", "gpt2"])
def test_batched_answers_and_scores_equal_one_by_one(tiny_models, llm, parts):
    bridge = make(tiny_models, llm=llm, **parts)
    together = bridge.generate(TEXTS, max_new_tokens=8)
    assert together == [bridge.generate([text], max_new_tokens=8)[0] for text in TEXTS]
    scores = bridge.score(TEXTS, ANSWERS)
    for row, text in enumerate(TEXTS):
        for column, answer in enumerate(ANSWERS):
            inputs = bridge.processor([text], answers=[answer])
            alone = -bridge.loss(inputs) * inputs.labels.shape[1]
            torch.testing.assert_close(scores[row, column], alone.detach(), atol=1e-4, rtol=1e-4)
    at_once, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=8)
    torch.testing.assert_close(at_once, scores, atol=1e-4, rtol=1e-4)
    assert written == together
    assert "".join(bridge.stream(TEXTS[2], max_new_tokens=8)) == together[2]


@EVERY
@pytest.mark.parametrize("encoder", tiny.ENCODERS)
def test_a_batch_has_the_gradients_of_its_rows(tiny_models, encoder, parts):
    bridge = make(tiny_models, encoder, **parts)
    batch = bridge.processor(TEXTS, answers=GOLD)
    together = learn(bridge, batch)
    tokens = int((batch.labels != -100).sum())
    bridge.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for text, answer in zip(TEXTS, GOLD, strict=True):
        loss = bridge.loss(bridge.processor([text], answers=[answer]), num_items=tokens)
        loss.backward()
        total += loss.detach()
    rows = total, {name: p.grad for name, p in bridge.trained_parameters().items()}
    same(rows, together, atol=1e-4, rtol=1e-3)
    assert all(gradient.abs().sum() > 0 for gradient in together[1].values())


@EVERY
@pytest.mark.parametrize("llm", ["llama", "gemma3"])
def test_packed_and_padded_batches_learn_alike(tiny_models, llm, parts):
    bridge = make(tiny_models, llm=llm, prompt={"text": "two three"}, **parts)
    inputs = bridge.processor(TEXTS, answers=GOLD)
    padded = learn(bridge, inputs, bridge._padded_logits)
    same(learn(bridge, inputs, bridge._packed_logits), padded, atol=5e-5, rtol=2e-3)


@EVERY
def test_live_and_kept_states_learn_alike(tiny_models, tmp_path, parts):
    bridge = make(tiny_models, **parts)
    inputs = bridge.processor(TEXTS, answers=GOLD)
    live, scores = learn(bridge, inputs), bridge.score(TEXTS, ANSWERS)
    bridge.features = store_of(bridge, tmp_path)
    fill(bridge.features, bridge, TEXTS)
    passes = bridge.encoder.num_passes
    same(learn(bridge, inputs), live, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bridge.score(TEXTS, ANSWERS), scores, atol=1e-4, rtol=1e-4)
    assert bridge.encoder.num_passes == passes
    mixed = ["quite new", *TEXTS[:2]]  # of which two are kept
    kept = bridge.score(mixed, ANSWERS)
    bridge.features = None
    torch.testing.assert_close(kept, bridge.score(mixed, ANSWERS), atol=1e-4, rtol=1e-4)


@EVERY
def test_a_saved_bridge_answers_as_before(tiny_models, tmp_path, parts):
    bridge = make(tiny_models, **parts)
    bridge.save_pretrained(tmp_path)
    again = load_bridge(tmp_path)
    assert again.config == bridge.config
    assert again.fingerprint() == bridge.fingerprint()
    assert torch.equal(again.score(TEXTS, ANSWERS), bridge.score(TEXTS, ANSWERS))
    assert again.generate(TEXTS, max_new_tokens=6) == bridge.generate(TEXTS, max_new_tokens=6)
    assert torch.equal(again.layer_weights(TEXTS[:1])[0].weights, bridge.layer_weights(TEXTS[:1])[0].weights)


@EVERY
def test_bfloat16_bases_leave_the_trained_part_in_float32(tiny_models, parts):
    options = {"dtype": "bfloat16"}
    low = make(tiny_models, encoder_options=options, llm_options=options, **parts)
    high = make(tiny_models, **parts)
    inputs = low.processor(TEXTS, answers=GOLD)
    assert low.soft_tokens(inputs).tokens_MX.dtype == torch.bfloat16
    loss, gradients = learn(low, inputs)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    torch.testing.assert_close(loss.float(), high.loss(inputs).detach(), atol=0.1, rtol=0.05)


@EVERY
def test_layer_weights_are_one_row_a_source_token_and_sum_to_one(tiny_models, parts):
    bridge = make(tiny_models, **parts)
    (found,) = bridge.layer_weights(TEXTS[:1])
    assert found.weights.shape == (len(found.tokens), len(found.layers))
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(found.tokens)))


def test_several_global_heads_take_one_encoder_pass_like_one(tiny_models):
    passes = []
    for heads in (1, 3):
        bridge = make(tiny_models, fusion={"name": "global_softmax", "heads": heads})
        bridge.score(["the cat"], ANSWERS)  # finds out what the models allow
        before = bridge.encoder.num_passes
        bridge.score(["the cat"], ANSWERS)
        passes.append(bridge.encoder.num_passes - before)
    assert passes[0] == passes[1] == 1


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_a_projector_is_as_wide_as_all_heads(tiny_models, projector):
    options = {"name": projector} | ({"hidden_width": 7} if projector == "mlp" else {})
    bridge = make(tiny_models, fusion={"name": "attention_pool", "heads": 3}, projector=options)
    first = bridge.projector.layers if projector == "linear" else bridge.projector.layers[0]
    assert first.in_features == 3 * tiny.WIDTH == bridge.fusion.out_width
