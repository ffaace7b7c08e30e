"""Recipes: shorthand, overrides, paths, and complaints that name the nearest known key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge import config as cfg
from layerbridge.errors import ConfigError, nearest, unknown_name


def load(tmp_path, text, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return cfg.load_recipe(path, overrides)


def test_a_bare_name_stands_for_a_part(tmp_path):
    recipe = load(tmp_path, "fusion: last_layer\ntask: sib200")
    assert recipe.fusion == cfg.LastLayer()
    assert recipe.task == cfg.BuiltinTaskConfig(name="sib200")
    assert recipe.name == "recipe"
    assert recipe.bridge == cfg.BridgeConfig(fusion=cfg.LastLayer())
    assert load(tmp_path, "task: t", "pooling=mean").pooling == cfg.PoolingConfig(name="mean")
    every = load(tmp_path, "task: t\npooling: mean", "pooling={name: every, size: 4}").pooling
    assert every == cfg.PoolingConfig(name="every", size=4)
    assert load(tmp_path, "task: t\npooling: none").pooling == cfg.PoolingConfig()


def test_overrides_reach_every_depth_and_are_yaml(tmp_path):
    recipe = load(
        tmp_path,
        "fusion: last_layer\ntask: sib200",
        "training.learning_rate=3e-4",
        "fusion.name=global_softmax",
        "fusion.temperature=2",
        "encoder.layers=[0, 3, -1]",
        "evaluation.languages=[si, ta]",
        "encoder.lora={rank: 4}",
    )
    assert recipe.training.learning_rate == 3e-4
    assert recipe.fusion == cfg.GlobalSoftmax(temperature=2)
    assert recipe.encoder.layers == (0, 3, -1)
    assert recipe.evaluation.languages == ("si", "ta")
    assert recipe.encoder.lora == cfg.LoraConfig(rank=4)


def test_a_bare_base_name_keeps_the_other_options_and_a_bare_fusion_name_does_not(tmp_path):
    text = "task: t\nencoder: {name: a, dtype: bfloat16}\nfusion: {name: global_softmax, temperature: 2}"
    recipe = load(tmp_path, text, "encoder=b", "fusion=last_layer")
    assert (recipe.encoder.name, recipe.encoder.dtype) == ("b", "bfloat16")
    assert recipe.fusion == cfg.LastLayer()


def test_a_file_list_makes_a_task_ones_own(tmp_path):
    recipe = load(tmp_path, "task: {name: t, files: {train: a.csv}, encoder_prompt: '{x}', answer_column: y}")
    assert isinstance(recipe.task, cfg.OwnTaskConfig)


def test_relative_paths_are_meant_from_the_recipes_folder_and_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir("/")
    recipe = load(tmp_path, "task: {name: sib200, data: data}\nencoder: data\nllm: hub/name")
    assert recipe.task.data == recipe.encoder.name == str(tmp_path / "data")
    assert recipe.llm.name == "hub/name"


def test_a_recipe_survives_its_own_dump(tmp_path):
    import yaml

    recipe = load(tmp_path, "fusion: {name: single_layer, layer: 3}\ntask: sib200\nencoder: {layers: [1, 3]}")
    again = load(tmp_path, yaml.safe_dump(recipe.model_dump(mode="json")))
    assert again == recipe


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        cfg.LastLayer().name = "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: t\nfusion: transfomer_softmax", "unknown fusion 'transfomer_softmax'. Did you mean 'transformer_soft"),
        ("task: t\nfusion: {name: last_layer, foo: 1}", "unknown key 'fusion.foo'"),
        ("task: t\nfusion: {temperature: 1}", "fusion has no name; known: attention_pool"),
        ("task: t\ntraning: {}", "unknown key 'traning'. Did you mean 'training'"),
        ("task: t\ntraining: {learning_rate: -1}", "training.learning_rate: Input should be greater than 0 (found -1)"),
        ("task: t\nencoder: {layers: 'lst'}", "wanted 'all', 'last:K'"),
        ("task: t\nencoder: {dtype: floa32}", "unknown encoder.dtype 'floa32'. Did you mean 'float32'"),
        ("task: t\nprojector: liner", "unknown projector.name 'liner'. Did you mean 'linear'"),
        ("task: t\nprojector: {hidden_width: 4}", "hidden_width is of projector 'mlp'"),
        (
            "task: t\nfusion: {name: global_softmax, heads: 0}",
            "fusion.heads: Input should be greater than or equal to 1",
        ),
        (
            "task: t\nfusion: {name: attention_pool, weights: entmax}",
            "unknown fusion.weights 'entmax'. Did you mean 'ent",
        ),
        (
            "task: t\nfusion: {name: attention_pool, temperature: 0}",
            "fusion.temperature: Input should be greater than 0",
        ),
        (
            "task: t\nfusion: {name: transformer_softmax, heads: 2}",
            "unknown key 'fusion.heads': fusion 'transformer_softmax' takes none; these do: attention_pool, "
            "global_softmax, low_rank_softmax. Known here: dropout, feedforward_width, name, normalize_layers, "
            "temperature, weights",
        ),
        (
            "task: t\nfusion: {name: last_layer, layer: 2}",
            "unknown key 'fusion.layer': fusion 'last_layer' takes none; these do: single_layer. Known here: name",
        ),
        ("task: t\nfusion: {name: global_softmax, head: 2}", "unknown key 'fusion.head'. Did you mean 'heads'?"),
        ("task: t\nfusion: {name: recommended, rank: 2}", "fusion 'global_softmax' takes none; these do: low_rank"),
        ("task: t\npooling: men", "unknown pooling.name 'men'. Did you mean 'mean'"),
        ("task: t\npooling: every", "pooling 'every' has no size; say how many source tokens make a soft token"),
        ("task: t\npooling: {name: mean, size: 2}", "size is of pooling 'every', and this one is 'mean'; drop it"),
        ("fusion: last_layer", "task is missing"),
        ("- a\n- b", "holds list, wanted a mapping"),
        ("a: [", "is not valid YAML"),
        ("task: {name: t, files: {train: x}, answr: 1}", "unknown key 'task.answr'. Did you mean 'answers'"),
    ],
)
def test_every_mistake_gets_a_clear_error(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert message in str(error.value)


@pytest.mark.parametrize("name", cfg._fusions())
def test_every_key_of_another_fusion_is_answered_with_the_fusions_that_have_it(tmp_path, name):
    fusions = cfg._fusions()
    keys = {key for other in fusions.values() for key in other.model_fields} - set(fusions[name].model_fields)
    for key in keys:
        having = [other for other in sorted(fusions) if key in fusions[other].model_fields]
        with pytest.raises(ConfigError) as error:
            load(tmp_path, f"task: t\nfusion: {{name: {name}, {key}: 1}}")
        assert f"fusion {name!r} takes none; these do: {', '.join(having)}. Known here: " in str(error.value)
        assert "Did you mean" not in str(error.value)


def test_the_defaults_are_the_published_set_up():
    training = cfg.TrainingConfig()
    assert training.learning_rate == 3e-5
    assert training.adam_betas == (0.8, 0.999)
    assert (training.adam_epsilon, training.weight_decay, training.max_grad_norm) == (1e-8, 3e-7, 1.0)
    assert (training.schedule, training.warmup_fraction, training.epochs) == ("cosine", 0.05, 3.0)
    assert (training.batch_size, training.max_source_tokens) == (8, 200)
    assert cfg.EvaluationConfig().max_source_tokens == 512


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=12), min_size=1, unique=True))
def test_unknown_names_always_list_what_is_known(found, known):
    message = unknown_name("thing", found, known)
    assert all(name in message for name in known)
    assert nearest(found, known) in {None, *known}
