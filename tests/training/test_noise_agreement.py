"""Noise agreement: the noise, what is measured of the layers with it, and that the mix is drawn toward it."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import BridgeConfig, NoiseAgreementConfig, Recipe, build_config, load_recipe
from layerbridge.data.example import Example
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.states import LiveStates
from layerbridge.results import setup_sha256
from layerbridge.training.noise_agreement import (
    add_noise,
    check_mixes,
    choose_texts,
    layer_agreement,
    mix_divergence,
    noted_mixes,
    wanted_weights,
)
from layerbridge.training.train import train
from tests.training.test_train import recipe as make_recipe
from tests.training.test_train import rows as rows
from tests.training.test_train import run_until_killed

WORDS = ("one", "two", "three", "four", "five", "six")
TEXTS = [f"the cat {word} on the mat {'sat ' * (n % 3)}" for n, word in enumerate(WORDS)]
COLUMN = "noise_agreement_loss"
LEARNING = ("global_softmax", "global_softmax_published", "transformer_softmax", "attention_pool")
FIXED = ({"name": "last_layer"}, {"name": "single_layer", "layer": 1}, {"name": "layer_mean"})


def bridge_of(tiny_models, encoder="mt5", fusion="global_softmax", **options) -> Bridge:
    config = {
        "encoder": {"name": tiny_models[encoder], "source_language": None, **options},
        "llm": tiny_models["llama"],
        "fusion": fusion,
    }
    return Bridge.build(build_config(BridgeConfig, config, where="test"), seed=0)


def recipe(tiny_models, rows, *, fusion=None, agreement=None, **training) -> Recipe:
    data = make_recipe(tiny_models, rows, **training).model_dump(mode="json")
    if fusion is not None:
        data["fusion"] = fusion
    data["training"]["noise_agreement"] = agreement if agreement is not None else {}
    return build_config(Recipe, data, where="test")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def agreement_of(bridge, noise, texts=TEXTS, seed=0):
    return layer_agreement(bridge, texts, noise=noise, seed=seed, max_source_tokens=200)


# --- the noise -------------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=60), noise=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_texts_noise_follows_from_text_and_seed_and_changes_letters_alone(text, noise, seed):
    noisy = add_noise(text, noise, seed)
    assert noisy == add_noise(text, noise, seed)
    others = [letter for letter in text if not letter.isalpha()]
    assert [letter for letter in noisy if not letter.isalpha()] == others
    assert add_noise(text, 0.0, seed) == text
    assert bool(noisy.strip()) == bool(text.strip()), "no text is noised away"


def test_as_many_letters_change_as_asked_in_all_four_ways():
    """Letters alone cannot be swapped, so each other way is a third; of the first of two each way is a quarter."""
    letters = add_noise("q " * 6000, 0.1, 0).split(" ")
    replaced = [letter for letter in letters if len(letter) == 1 and letter != "q"]
    for count in (letters.count("") - 1, letters.count("qq"), len(replaced)):  # 1: after the last space
        assert 140 < count < 260
    swapped = add_noise("qz " * 6000, 0.1, 0).split(" ").count("zq")
    assert 100 < swapped < 200
    assert sum(letter.isupper() for letter in add_noise("Q " * 6000, 0.1, 0)) > 5700, "capitals stay capitals"
    assert add_noise("q " * 6000, 0.1, 1).split(" ") != letters


def test_texts_are_english_different_and_drawn_by_the_seed():
    rows = [Example(id=str(n), language="en", text=f"text {n % 9}", answer="a") for n in range(30)]
    rows += [Example(id="x", language="sw", text="Habari", answer="a")]
    assert sorted(choose_texts(rows, 99, 0)) == [f"text {n}" for n in range(9)]
    drawn = [choose_texts(order, 4, seed) for order in (rows, rows[::-1]) for seed in (0, 0, 1)]
    assert len(set(drawn[0])) == 4
    assert drawn[0] == drawn[1] == drawn[3]
    assert drawn[0] != drawn[2]
    with pytest.raises(DataError, match=r"the training rows have 1 \(languages: en, sw\); wanted at least 2"):
        choose_texts([*rows[:1], rows[-1]], 9, 0)


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["mt5", "xlmr", "bert"])
def test_agreement_is_about_one_without_noise_and_less_with_more(tiny_models, encoder):
    bridge = bridge_of(tiny_models, encoder)
    none_L, little_L, much_L = (agreement_of(bridge, noise) for noise in (0.0, 0.1, 0.8))
    # Of the cosine with the others: centred vectors point away from each other, by 1 / (n - 1) on average.
    assert ((none_L > 0.99) & (none_L < 1 + 2 / (len(TEXTS) - 1))).all()
    assert (little_L < none_L).all()
    assert (much_L < little_L).all()
    assert torch.equal(agreement_of(bridge, 0.1), little_L)
    assert not torch.equal(agreement_of(bridge, 0.1, seed=1), little_L)


def test_agreement_is_the_one_worked_out_text_by_text(tiny_models):
    bridge = bridge_of(tiny_models)
    found_L = agreement_of(bridge, 0.3)
    texts = [*TEXTS, *(add_noise(text, 0.3, 0) for text in TEXTS)]
    means = []
    for text in texts:  # one at a time, without padding
        inputs = bridge.processor([text])
        layers = bridge.encoder(inputs.source_ids, inputs.source_mask)
        means.append(torch.stack([layer[0].mean(dim=0) for layer in layers]))
    states_TLE = torch.stack(means) - torch.stack(means).mean(dim=0)
    count = len(TEXTS)
    for layer in range(len(found_L)):
        clean, noisy = states_TLE[:count, layer], states_TLE[count:, layer]
        cosines = [[torch.cosine_similarity(one, other, dim=0).item() for other in noisy] for one in clean]
        same = sum(cosines[n][n] for n in range(count)) / count
        others = sum(cosines[n][m] for n in range(count) for m in range(count) if n != m) / (count * (count - 1))
        assert found_L[layer].item() == pytest.approx(same - others, abs=1e-4)


@given(agreement=st.lists(st.floats(-1, 1.2), min_size=1, max_size=30), temperature=st.floats(0.01, 5))
def test_the_wanted_weights_are_a_distribution_in_the_order_of_agreement(agreement, temperature):
    wanted_L = wanted_weights(torch.tensor(agreement), temperature)
    assert wanted_L.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (wanted_L >= 0).all()
    best = agreement.index(max(agreement))
    assert wanted_L[best] == wanted_L.max()


def test_adapters_of_the_encoder_do_not_enter(tiny_models):
    plain_L = agreement_of(bridge_of(tiny_models), 0.2)
    bridge = bridge_of(tiny_models, lora={"rank": 2})
    trained = set(bridge.trained_parameters())
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    torch.testing.assert_close(agreement_of(bridge, 0.2), plain_L)
    assert set(bridge.trained_parameters()) == trained


# --- the loss --------------------------------------------------------------------------------------------------------


def states_of(lengths, columns=6, num_layers=3):
    mask_BS = torch.tensor([[place < length for place in range(columns)] for length in lengths])
    return LiveStates.of([torch.zeros(len(lengths), columns, 4)] * num_layers, mask_BS)


def test_the_loss_is_the_divergence_from_a_texts_mean_weights_whatever_else_is_in_the_batch():
    lengths, wanted_L = (5, 1, 3), torch.tensor([0.7, 0.2, 0.1])
    states = states_of(lengths)
    weights_NL = torch.softmax(torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    found_B = mix_divergence(states, weights_NL, wanted_L)
    for number, part_nL in enumerate(weights_NL.split(lengths)):
        mean_L = part_nL.mean(dim=0)
        kl = sum(w * (w.log() - m.log()) for w, m in zip(wanted_L, mean_L, strict=True))
        torch.testing.assert_close(found_B[number], kl)
        alone_B = mix_divergence(states_of(lengths[number : number + 1]), part_nL, wanted_L)
        torch.testing.assert_close(alone_B[0], kl)
    same_NL = wanted_L.expand(sum(lengths), 3)
    torch.testing.assert_close(mix_divergence(states, same_NL, wanted_L), torch.zeros(3), atol=1e-6, rtol=0)


def test_a_layer_without_any_weight_leaves_loss_and_gradient_finite():
    weights_NL = torch.tensor([[1.0, 0.0, 0.0]]).requires_grad_()
    loss_B = mix_divergence(states_of((1,)), weights_NL, torch.tensor([0.0, 0.5, 0.5]))
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert weights_NL.grad.isfinite().all()


@pytest.mark.parametrize("fusion", LEARNING)
def test_what_a_fusion_mixes_is_noted_and_the_fusion_is_left_as_it_was(tiny_models, fusion):
    bridge = bridge_of(tiny_models, fusion=fusion)
    inputs = bridge.processor(TEXTS, answers=["positive"] * len(TEXTS))
    with torch.no_grad():
        before = bridge.loss(inputs)
        with noted_mixes(bridge.fusion) as mixes:
            assert torch.equal(bridge.loss(inputs), before)
        ((states, mixed),) = mixes
        assert "mix" not in vars(bridge.fusion)
        weights_BSL = bridge.fuse(inputs).weights_BSL
        torch.testing.assert_close(states.pad(mixed.weights_NL), weights_BSL)
    check_mixes(bridge.fusion, fusion)


@pytest.mark.parametrize("fusion", FIXED, ids=lambda fusion: fusion["name"])
def test_a_fusion_without_learned_weights_is_refused(tiny_models, rows, tmp_path, fusion):
    config = recipe(tiny_models, rows, fusion=fusion)
    with pytest.raises(ConfigError, match=f"fusion '{fusion['name']}' learns none. Choose a fusion that does"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_rows_it_cannot_be_measured_on_are_refused_before_a_model_is_loaded(tiny_models, rows, tmp_path):
    nowhere = tiny_models | {"llama": "no/where"}
    one = recipe(nowhere, rows).model_copy(update={"name": "one"}).model_dump(mode="json")
    one["task"] |= {"max_train_rows": 1}
    foreign = recipe(nowhere, rows).model_dump(mode="json")
    foreign["task"] |= {"train_languages": ["sw"]}
    for data, words in ((one, r"have 1 \(languages: en\)"), (foreign, r"have 0 \(languages: sw\)")):
        config = build_config(Recipe, data, where="test")
        with pytest.raises(DataError, match=f"noise_agreement compares English texts .* {words}; wanted at least 2"):
            train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_alone_it_pulls_the_global_softmax_to_the_wanted_weights(tiny_models):
    bridge = bridge_of(tiny_models)
    wanted_L = torch.tensor([0.1, 0.65, 0.25])
    inputs = bridge.processor(TEXTS)
    optimizer = torch.optim.Adam(bridge.fusion.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        states = bridge.encode(inputs)
        mix_divergence(states, bridge.fusion.mix(states).weights_NL, wanted_L).mean().backward()
        optimizer.step()
    found_L = bridge.fusion.layer_weights(torch.float32, torch.device("cpu"))
    torch.testing.assert_close(found_L, wanted_L, atol=2e-3, rtol=0)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_draws_its_mix_toward_the_wanted_weights_and_says_so(tiny_models, rows, tmp_path):
    """A heavy weight beside the task's loss."""
    config = recipe(
        tiny_models,
        rows,
        fusion={"name": "global_softmax"},
        agreement={"weight": 100.0, "temperature": 0.2, "max_texts": 20},
        max_steps=60,
        learning_rate=5e-2,
        eval_every=60,
        select="last",
        adam_betas=[0.9, 0.99],
    )
    bridge = train(config, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run/run.json").read_text())["noise_agreement"]
    assert len(record["agreement"]) == len(record["wanted"]) == 3
    assert sum(record["wanted"]) == pytest.approx(1.0, abs=1e-5)
    found_L = bridge.fusion.layer_weights(torch.float32, torch.device("cpu"))
    torch.testing.assert_close(found_L, torch.tensor(record["wanted"]), atol=0.05, rtol=0)
    logs = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert logs[-1][COLUMN] < 0.2 * logs[0][COLUMN]
    for row in logs:
        assert row["loss"] == pytest.approx(row["answer_loss"] + 100 * row[COLUMN], rel=1e-3, abs=1e-3)


def test_it_adds_up_with_self_distillation(tiny_models, rows, tmp_path):
    data = recipe(tiny_models, rows, agreement={"weight": 0.5}).model_dump(mode="json")
    data["training"]["self_distillation"] = {"weight": 0.25, "epochs_before": 1}
    train(build_config(Recipe, data, where="test"), tmp_path / "run", progress=False)
    found = metrics(tmp_path / "run")
    for row in found:
        if "loss" in row:
            terms = row["answer_loss"] + 0.25 * row["self_distillation_loss"] + 0.5 * row[COLUMN]
            assert row["loss"] == pytest.approx(terms, rel=1e-4)
    assert not any(COLUMN in row for row in found if "stage" in row), "the stage has its own loss alone"
    assert {"self_distillation", "noise_agreement", "stage"} <= set(json.loads((tmp_path / "run/run.json").read_text()))


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_models, rows, tmp_path):
    """Texts of different lengths and a mix of their own for each token."""
    weights, columns = [], []
    for micro in (8, 2):
        options = {"micro_batch_size": micro, "max_steps": 3, "schedule": "constant", "warmup_fraction": 0.0}
        config = recipe(
            tiny_models,
            rows,
            fusion={"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0},
            agreement={"weight": 5.0},
            adam_epsilon=1e-3,
            **options,
        )
        weights.append(train(config, tmp_path / str(micro), progress=False).trained_state())
        columns.append([row[COLUMN] for row in metrics(tmp_path / str(micro)) if COLUMN in row])
    assert columns[0] == pytest.approx(columns[1], rel=1e-4)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-5, rtol=1e-4)


def test_a_killed_run_ends_where_an_undisturbed_one_ends(tiny_models, rows, tmp_path):
    """The encoder trains too: what it agrees on is what it agreed on when the run began."""
    data = recipe(tiny_models, rows, max_steps=20, eval_every=5, select="last").model_dump(mode="json")
    data["encoder"]["lora"] = {"rank": 2}
    config = build_config(Recipe, data, where="test")
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    straight = train(config, tmp_path / "straight", progress=False).trained_state()
    run_until_killed(tmp_path / "recipe.yaml", tmp_path / "killed", kill_at=12)
    resumed = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "killed", progress=False).trained_state()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    shown = [[(row["step"], row.get(COLUMN)) for row in metrics(tmp_path / name)] for name in ("straight", "killed")]
    assert shown[0] == shown[1]
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("straight", "killed")]
    assert records[0]["noise_agreement"] == records[1]["noise_agreement"]


def test_the_setup_hash_sees_it_only_where_it_is_set(tiny_models, rows):
    plain = make_recipe(tiny_models, rows)
    data = plain.model_dump(mode="json")
    options = (None, {}, {"weight": 2.0}, {"noise": 0.2})
    hashes = [
        setup_sha256(
            build_config(Recipe, data | {"training": data["training"] | {"noise_agreement": one}}, where="test")
        )
        for one in options
    ]
    assert hashes[0] == setup_sha256(plain)
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("option", [{"noise": 0}, {"noise": 1.5}, {"max_texts": 1}, {"temperature": 0}, {"weight": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        build_config(NoiseAgreementConfig, option, where="test")
