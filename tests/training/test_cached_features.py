"""Training from kept features: the encoder reads each text once, whatever is trained on it, and the losses stay."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.config import Recipe, build_config
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import feature_plan
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.training.train import train
from tests.training.test_many_processes import run_by_two
from tests.training.test_train import recipe as make_recipe
from tests.training.test_train import rows  # noqa: F401

TOLERANCES = {"encoder": 1e-5, "bfloat16": 0.01, "int8": 0.02}
"""Precision -> how far losses may be from those of a run without a cache, over 12 steps of losses of about 6."""


def recipe(tiny_models, rows, *, fusion="transformer_softmax", encoder=None, **training) -> Recipe:  # noqa: F811
    """Two epochs of six steps, a loss logged at each, no dropout."""
    # With a smaller epsilon Adam blows rounding up where a gradient is near zero.
    options = {"max_steps": 12, "eval_every": 4, "adam_epsilon": 1e-3, **training}
    data = make_recipe(tiny_models, rows, **options).model_dump(mode="json")
    data["fusion"] = {"name": fusion, **({"dropout": 0.0} if fusion == "transformer_softmax" else {})}
    data["encoder"] |= encoder or {}
    return build_config(Recipe, data, where="test")


def record(run):
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(row["step"], key): row[key] for row in lines for key in ("loss", "eval_loss") if key in row}


@pytest.fixture
def encoder_passes(monkeypatch):
    """Count every pass of every encoder in this process, held or read layer by layer, by its texts."""
    counted = []

    def count(name):
        original = getattr(FrozenEncoder, name)

        def counting(self, *args):
            counted.append(len(args[0]))
            return original(self, *args)

        monkeypatch.setattr(FrozenEncoder, name, counting)

    count("forward")
    count("_stream")
    return counted


@pytest.fixture(scope="module")
def uncached(tiny_models, rows, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("uncached") / "run"
    train(recipe(tiny_models, rows), folder, progress=False)
    assert record(folder)["features"] is None
    return folder


@pytest.mark.parametrize("precision", TOLERANCES)
def test_losses_are_those_of_a_run_without_a_cache_and_the_encoder_rests(
    tiny_models,
    rows,  # noqa: F811
    tmp_path,
    uncached,
    precision,
    encoder_passes,
):
    wanted = losses(uncached)
    bridge = train(
        recipe(tiny_models, rows, feature_precision=precision), tmp_path / "run", progress=False, cache=tmp_path / "c"
    )
    found = losses(tmp_path / "run")
    assert len(found) >= 12
    assert found == pytest.approx(wanted, abs=TOLERANCES[precision])
    assert sum(encoder_passes) == 48 + 8  # each text once, before the first step
    said = record(tmp_path / "run")["features"]
    assert said["encoder_passes"] == 0
    assert (said["precision"], said["texts_kept"], said["texts_left_out"]) == (precision, 56, 0)
    assert said["bytes"] == bytes_of_tokens(tmp_path / "c")
    assert said["relative_rms_error"] == bridge.features.error.overall
    assert (said["relative_rms_error"] == 0) == (precision == "encoder")
    assert said["relative_rms_error"] <= said["worst_layer_relative_rms_error"] < 0.02


def bytes_of_tokens(cache):
    shards = [load_file(path) for path in cache.glob("*/*.safetensors")]
    tensors = [shard[name] for shard in shards for name in ("states_NLE", "scales_NLG") if name in shard]
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def test_another_seed_and_another_fusion_make_no_pass_at_all(tiny_models, rows, tmp_path, encoder_passes):  # noqa: F811
    cache = tmp_path / "cache"
    train(recipe(tiny_models, rows, max_steps=1), tmp_path / "first", progress=False, cache=cache)
    assert encoder_passes
    encoder_passes.clear()
    train(recipe(tiny_models, rows, seed=5), tmp_path / "seed", progress=False, cache=cache)
    for fusion in ("global_softmax", "last_layer", "attention_pool"):
        train(recipe(tiny_models, rows, fusion=fusion), tmp_path / fusion, progress=False, cache=cache)
        assert record(tmp_path / fusion)["features"]["encoder_passes"] == 0
    assert encoder_passes == []


def test_texts_that_do_not_fit_are_encoded_each_time_with_the_same_losses(
    tiny_models,
    rows,  # noqa: F811
    tmp_path,
    uncached,
    caplog,
):
    config = recipe(tiny_models, rows)
    train(config, tmp_path / "run", progress=False, cache=tmp_path / "cache", cache_bytes=150_000)
    said = record(tmp_path / "run")["features"]
    assert 0 < said["texts_left_out"] < 56
    assert said["texts_kept"] + said["texts_left_out"] == 56
    assert said["bytes"] <= 150_000
    assert said["encoder_passes"] > 0
    assert f"{said['texts_left_out']} of 56 texts do not fit" in caplog.text
    assert losses(tmp_path / "run") == pytest.approx(losses(uncached), abs=1e-5)


def test_a_cache_that_nothing_fits_in_is_as_none(tiny_models, rows, tmp_path, uncached):  # noqa: F811
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False, cache=tmp_path / "cache", cache_bytes=0)
    assert record(tmp_path / "run")["features"]["texts_kept"] == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(uncached), abs=1e-6)


def test_the_command_keeps_features_where_it_is_told_and_within_its_limit(tiny_models, rows, tmp_path):  # noqa: F811
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe(tiny_models, rows, max_steps=1).model_dump(mode="json")))
    for number, limit in enumerate((["--cache-limit", "0.00015"], [])):  # in GB
        cache, out = tmp_path / f"cache{number}", tmp_path / f"run{number}"
        arguments = ["train", recipe_file, "--out", out, "--cache", cache, *limit, "--quiet"]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        said = record(out)["features"]
        assert said["bytes"] == bytes_of_tokens(cache) > 0
        assert (said["bytes"] <= 150_000) == (said["texts_left_out"] > 0) == bool(limit)


def test_a_precision_of_states_that_are_not_kept_is_refused(tiny_models, rows, tmp_path):  # noqa: F811
    config = recipe(tiny_models, rows, feature_precision="int8")
    with pytest.raises(ConfigError, match=r"feature_precision is 'int8', and this run keeps no.*Add --cache DIR"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_limit_of_no_cache_is_refused(tmp_path):
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--cache-limit", "3"]
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "none is kept. Add --cache DIR, or leave out --cache-limit" in str(result.exception)


@pytest.mark.parametrize(("encoder", "kind"), [({"lora": {"rank": 2}}, "mt5"), ({"train_biases": True}, "xlmr")])
def test_states_of_an_encoder_that_trains_are_refused_before_the_run_folder_is_made(
    tiny_models,
    rows,  # noqa: F811
    tmp_path,
    encoder,
    kind,
):
    config = recipe({**tiny_models, "mt5": tiny_models[kind]}, rows, encoder=encoder)
    with pytest.raises(ConfigError, match=r"change with every step and cannot be kept.*leave out --cache"):
        train(config, tmp_path / "run", progress=False, cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_full_disk_goes_on_when_there_is_room(tiny_models, rows, tmp_path, monkeypatch, uncached):  # noqa: F811
    def full(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("layerbridge.model.features.save_file", full)
    with pytest.raises(DataError, match="No space left on device.*the same command then goes on"):
        train(recipe(tiny_models, rows), tmp_path / "run", progress=False, cache=tmp_path / "cache")
    monkeypatch.undo()
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False, cache=tmp_path / "cache")
    assert losses(tmp_path / "run") == pytest.approx(losses(uncached), abs=1e-5)


# --- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from layerbridge.config import load_recipe
    from layerbridge.model import feature_plan
    from layerbridge.model.features import FeatureStore
    from layerbridge.training.train import train

    recipe, folder, cache, written, kill_at = sys.argv[1:]
    feature_plan.SHARD_BYTES = {shard_bytes}
    original = FeatureStore.encode

    def encode(self, shard, **options):
        original(self, shard, **options)
        with open(written, "a") as file:
            file.write(shard.name + "\\n")
        if len(Path(written).read_text().splitlines()) == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    FeatureStore.encode = encode
    train(load_recipe(recipe), Path(folder), progress=False, cache=cache)
"""
SHARD_BYTES = 30_000


@pytest.fixture
def run_script(tiny_models, rows, tmp_path, monkeypatch):  # noqa: F811
    """A script that trains with a cache of small shards, and its arguments but for the last: when to be killed."""
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", SHARD_BYTES)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tiny_models, rows).model_dump(mode="json")))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(shard_bytes=SHARD_BYTES))
    return [script, *(tmp_path / name for name in ("recipe.yaml", "run", "cache", "written"))]


def test_a_killed_encode_goes_on_where_it_was(tiny_models, rows, tmp_path, run_script, uncached):  # noqa: F811
    command = [sys.executable, *map(str, run_script), "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*/*.safetensors")}
    assert len(before) == 2
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False, cache=tmp_path / "cache")
    after = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*/*.safetensors")}
    assert len(after) > 3
    assert before.items() <= after.items()
    assert losses(tmp_path / "run") == pytest.approx(losses(uncached), abs=1e-5)


def test_two_processes_of_one_run_share_the_encoding(tmp_path, run_script, uncached):
    run_by_two([*run_script, "-1"])
    written = (tmp_path / "written").read_text().splitlines()
    assert len(written) > 3
    assert len(written) == len(set(written))
    assert record(tmp_path / "run")["features"]["encoder_passes"] == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(uncached), abs=1e-3)
