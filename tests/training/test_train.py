"""Training: what is written, what is refused, and that a killed run ends where an undisturbed one ends."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from layerbridge.config import Recipe, TrainingConfig, build_config
from layerbridge.data.example import Example
from layerbridge.errors import CheckpointError, ConfigError, DataError, ModelError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_bridge
from layerbridge.training import train as train_module
from layerbridge.training.length_groups import LengthGroups
from layerbridge.training.run import open_run
from layerbridge.training.token_rows import TokenRows, collate
from layerbridge.training.train import train
from layerbridge.training.trainer import BridgeTrainer, check_training, last_complete_checkpoint, num_steps
from tests import tiny

ANSWERS = ("positive", "negative")
EXAMPLE = Example(id="1", language="en", text="the cat", answer="positive")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """English train and dev rows, and a Swahili file."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 48), ("dev", 8), ("sw", 6)):
        lines = [{"body": f"the cat {name} {i} {'mat' * (i % 5)}", "tag": ANSWERS[i % 2]} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(tiny_models, rows, *, task=None, llm="llama", **training) -> Recipe:
    data = {
        "name": "test",
        "encoder": tiny_models["mt5"],
        "llm": tiny_models[llm],
        "fusion": {"name": "transformer_softmax", "feedforward_width": 16},
        "task": {
            "name": "own",
            "files": {"train": str(rows / "train.jsonl"), "dev": str(rows / "dev.jsonl")},
            "encoder_prompt": "Text: {body} Label: ",
            "answer_column": "tag",
            "answers": list(ANSWERS),
            **(task or {}),
        },
        "training": {"max_steps": 6, "batch_size": 8, "learning_rate": 3e-3, "eval_every": 2, **training},
    }
    return build_config(Recipe, data, where="test")


def test_a_run_writes_what_the_docs_list(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False)
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {"recipe.yaml", "run.json", "environment.json", "metrics.jsonl", "checkpoint", "checkpoints"}
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "finished"
    assert record["languages_seen"] == ["en"]
    assert (record["train_rows"], record["dev_rows"], record["steps"]) == (48, 8, 6)
    assert record["selected_step"] in (2, 4, 6)
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if "eval_accuracy" in row] == [2, 4, 6]
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["training"]["max_steps"] == 6
    environment = (tmp_path / "run/environment.json").read_text()
    assert os.uname().nodename not in environment
    bridge = load_bridge(tmp_path / "run")
    assert bridge.trained_on["encoder_prompt"] == "Text: {body} Label: "
    assert bridge.trained_on["languages"] == ["en"]
    assert bridge.trained_on["answers"] == list(ANSWERS)


def test_exactly_the_trained_part_changes(tiny_models, rows, tmp_path):
    bridge = Bridge.build(recipe(tiny_models, rows).bridge, seed=0)
    before = {name: p.detach().clone() for name, p in bridge.named_parameters()}
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False, bridge=bridge)
    changed = {name for name, p in bridge.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(bridge.trained_parameters())
    assert set(load_file(tmp_path / "run/checkpoint/bridge.safetensors")) == changed


def test_the_selected_step_is_the_best_on_dev(tiny_models, rows, tmp_path, monkeypatch):
    scores = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(
        "layerbridge.training.trainer.dev_metrics", lambda *_: {"eval_loss": 1.0, "eval_selection": next(scores)}
    )
    bridge = train(recipe(tiny_models, rows), tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["selected_step"], record["dev_selection"]) == (4, 0.75)
    best = load_file(tmp_path / "run/checkpoints/checkpoint-4/bridge.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in bridge.trained_state().items())


def test_selecting_the_last_step_keeps_the_last(tiny_models, rows, tmp_path):
    bridge = train(recipe(tiny_models, rows, select="last"), tmp_path / "run", progress=False)
    last = load_file(tmp_path / "run/checkpoints/checkpoint-6/bridge.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in bridge.trained_state().items())


def test_free_text_answers_train_and_select_by_loss(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows, task={"answers": None}), tmp_path / "run", progress=False)
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    looks = [row for row in metrics if "eval_loss" in row]
    assert looks
    assert all(row["eval_selection"] == -row["eval_loss"] for row in looks)


def test_same_seed_same_weights_other_seed_other_weights(tiny_models, rows, tmp_path):
    prints = [
        train(recipe(tiny_models, rows, seed=seed), tmp_path / str(i), progress=False).fingerprint()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_models, rows, tmp_path):
    """Answers of different lengths: a mean of means would differ."""
    weights = []
    for micro in (8, 2):
        options = {"micro_batch_size": micro, "max_steps": 3, "schedule": "constant", "warmup_fraction": 0.0}
        config = recipe(tiny_models, rows, task={"answers": {"positive": "one two three four", "negative": "no"}})
        config = config.model_copy(update={"fusion": build_config(Recipe, {**config.model_dump(), "fusion": {
            "name": "transformer_softmax", "dropout": 0.0}}, where="test").fusion})  # fmt: skip
        config = config.model_copy(update={"training": config.training.model_copy(update=options)})
        weights.append(train(config, tmp_path / str(micro), progress=False).trained_state())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-4, rtol=1e-3)


KILLED_RUN = """
    import os, signal
    from transformers import TrainerCallback
    from layerbridge.config import load_recipe
    from layerbridge.training import trainer
    from layerbridge.training.train import train

    class Killer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == {kill_at}:
                os.kill(os.getpid(), signal.SIGKILL)

    original = trainer.BridgeTrainer.__init__
    def with_killer(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Killer())
    trainer.BridgeTrainer.__init__ = with_killer
    train(load_recipe({recipe!r}), {folder!r}, progress=False)
"""


def run_until_killed(recipe_file, folder, kill_at):
    script = textwrap.dedent(KILLED_RUN).format(kill_at=kill_at, recipe=str(recipe_file), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("options", "encoder"),
    [
        ({"select": "last"}, {}),
        ({"select": "best", "micro_batch_size": 4}, {"lora": {"rank": 2}}),
        ({"select": "last", "group_by_length": True, "fusion_learning_rate": 1e-4, "state_noise": 0.5}, {}),
    ],
)
def test_forty_steps_equal_twenty_a_hard_kill_and_twenty_resumed(tiny_models, rows, tmp_path, options, encoder):
    config = recipe(tiny_models, rows, max_steps=40, eval_every=10, **options)
    data = config.model_dump(mode="json")
    config = build_config(Recipe, data | {"encoder": data["encoder"] | encoder}, where="test")
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    straight = train(config, tmp_path / "straight", progress=False).trained_state()

    run_until_killed(recipe_file, tmp_path / "killed", kill_at=23)
    assert last_complete_checkpoint(tmp_path / "killed").name == "checkpoint-20"
    resumed = train(config, tmp_path / "killed", progress=False).trained_state()

    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    record = json.loads((tmp_path / "killed/run.json").read_text())
    assert record["resumed"] is True
    metrics = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "killed")
    }
    looks = {name: [(r["step"], r["eval_loss"]) for r in rows if "eval_loss" in r] for name, rows in metrics.items()}
    assert looks["straight"] == looks["killed"]


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=500),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_length_groups_give_every_row_once_an_epoch_and_only_the_last_batch_is_short(lengths, batch_size, seed):
    sampler = LengthGroups(lengths, batch_size=batch_size, seed=seed)
    first = list(sampler)
    assert sorted(first) == list(range(len(lengths)))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(len(lengths)))


def test_length_groups_leave_little_padding_and_another_order_each_epoch():
    lengths = [1 + (i * 37) % 100 for i in range(1000)]
    sampler = LengthGroups(lengths, batch_size=20, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        batches = [[lengths[row] for row in orders[-1][i : i + 20]] for i in range(0, 1000, 20)]
        assert sum(20 * max(batch) for batch in batches) < 1.1 * sum(lengths)
        assert [max(batch) for batch in batches] != sorted((max(batch) for batch in batches), reverse=True)
    assert orders[0] != orders[1]


def test_the_fusion_can_have_a_learning_rate_of_its_own(tiny_models, rows, tmp_path):
    """One Adam step moves a parameter by its learning rate: with warm-up off, each part by its own."""
    config = recipe(
        tiny_models,
        rows,
        max_steps=1,
        eval_every=1,
        warmup_fraction=0.0,
        schedule="constant",
        fusion_learning_rate=1e-5,
        select="last",
    )
    before = Bridge.build(config.bridge, seed=0).trained_state()
    after = train(config, tmp_path / "run", progress=False).trained_state()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert max(value for name, value in moved.items() if name.startswith("fusion.")) == pytest.approx(1e-5, rel=0.1)
    assert moved["boundary"] == pytest.approx(3e-3, rel=0.1)


def test_a_checkpoint_cut_off_by_a_kill_is_not_resumed_from(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows, keep_checkpoints=3), tmp_path / "run", progress=False)
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-6"
    state = tmp_path / "run/checkpoints/checkpoint-6/trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-4"
    (tmp_path / "run/checkpoints/checkpoint-4/trainer_state.json").unlink()
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"


def test_what_a_kill_left_of_an_opening_run_is_no_hindrance(tiny_models, rows, tmp_path, monkeypatch):
    config = recipe(tiny_models, rows)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".recipe.yaml.1.partial").write_text("na")
    open_run(folder, config, overwrite=False)
    assert (folder / "recipe.yaml").is_file()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerbridge.training.run.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        open_run(folder, config, overwrite=False)  # nothing was learned, so it begins anew
    monkeypatch.undo()
    open_run(folder, config, overwrite=False)
    assert (folder / "recipe.yaml").is_file()


def test_a_run_goes_on_where_its_data_has_moved(tiny_models, rows, tmp_path):
    config = recipe(tiny_models, rows)
    here = {"task": {"name": "xnli", "data": "/here"}}
    there = {"task": {"name": "xnli", "data": "/there"}}
    first, second = (build_config(Recipe, config.model_dump() | task, where="test") for task in (here, there))
    open_run(tmp_path / "run", first, overwrite=False)
    (tmp_path / "run/checkpoints/checkpoint-1").mkdir(parents=True)
    open_run(tmp_path / "run", second, overwrite=False)
    other = build_config(Recipe, config.model_dump() | {"task": {"name": "sib200"}}, where="test")
    with pytest.raises(ConfigError, match="task differ"):
        open_run(tmp_path / "run", other, overwrite=False)


def test_a_full_disk_in_training_says_so_and_the_run_goes_on_later(tiny_models, rows, tmp_path, monkeypatch):
    import errno

    from transformers import Trainer

    config = recipe(tiny_models, rows, keep_checkpoints=3)
    straight = train(config, tmp_path / "straight", progress=False).trained_state()
    original, calls = Trainer._save_optimizer_and_scheduler, []

    def full(self, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(
        CheckpointError, match="checkpoint of step 4: .*No space left on device.*Earlier ones are untou"
    ):
        train(config, tmp_path / "run", progress=False)
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-2"
    resumed = train(config, tmp_path / "run", progress=False).trained_state()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


# --- what is refused, and what is said -------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again_unasked(tiny_models, rows, tmp_path):
    config = recipe(tiny_models, rows, max_steps=1)
    train(config, tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="is finished"):
        train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "run", progress=False, overwrite=True)


def test_another_recipe_in_the_same_folder_is_refused(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"begun with another recipe: training differ"):
        open_run(tmp_path / "run", recipe(tiny_models, rows, seed=9), overwrite=False)


def test_a_run_goes_on_with_smaller_passes_and_another_evaluation_to_the_same_end(tiny_models, rows, tmp_path):
    """As after an out-of-memory error: what changes no result may change, and recipe.yaml is the latest recipe."""
    options = {"select": "last", "keep_checkpoints": 9, "adam_epsilon": 1e-3}
    config = with_dropout_off(recipe(tiny_models, rows, **options))
    straight = train(config, tmp_path / "run", progress=False).trained_state()
    (tmp_path / "run/checkpoints/checkpoint-6/trainer_state.json").unlink()
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"status": "training"}))
    changed = {"micro_batch_size": 2, "gradient_checkpointing": True, "keep_checkpoints": 8}
    data = with_dropout_off(recipe(tiny_models, rows, **{**options, **changed})).model_dump(mode="json")
    data["evaluation"]["limit"] = 7
    resumed = train(build_config(Recipe, data, where="test"), tmp_path / "run", progress=False).trained_state()
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed"] is True
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=2e-5, rtol=1e-4)
    latest = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert (latest["training"]["micro_batch_size"], latest["evaluation"]["limit"]) == (2, 7)


def with_dropout_off(config) -> Recipe:
    fusion = {"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0}
    return build_config(Recipe, config.model_dump(mode="json") | {"fusion": fusion}, where="test")


def test_a_first_try_that_failed_does_not_bar_the_corrected_one(tiny_models, rows, tmp_path):
    open_run(tmp_path / "run", recipe(tiny_models, rows, seed=9), overwrite=False)
    train(recipe(tiny_models, rows, max_steps=1), tmp_path / "run", progress=False)


def test_a_finished_run_survives_an_overwrite_that_cannot_begin(tiny_models, rows, tmp_path):
    train(recipe(tiny_models, rows, max_steps=1), tmp_path / "run", progress=False)
    with pytest.raises(ModelError):
        train(recipe(tiny_models | {"llama": "no/where"}, rows), tmp_path / "run", progress=False, overwrite=True)
    load_bridge(tmp_path / "run")


def test_going_on_with_other_rows_is_refused_with_both_hashes(tiny_models, rows, tmp_path):
    config = recipe(tiny_models, rows)
    train(config, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run/run.json").read_text())
    changed = record | {"status": "training", "train_sha256": "0" * 64}
    (tmp_path / "run/run.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=f"sha256 {'0' * 16}, and they now have {record['train_sha256'][:16]}"):
        train(config, tmp_path / "run", progress=False)


def test_a_batch_that_the_passes_do_not_divide_is_refused(tiny_models, rows, tmp_path):
    with pytest.raises(ConfigError, match="batch_size is 8, and 1 processes with 3 rows a pass"):
        train(recipe(tiny_models, rows, micro_batch_size=3), tmp_path / "run", progress=False)


def test_a_batch_that_the_processes_do_not_divide_is_refused_with_what_helps(tiny_models, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for options in ({}, {"micro_batch_size": 1}):
        with pytest.raises(
            ConfigError, match="batch_size is 8, and 3 processes share each update.*that 3 divides"
        ) as e:
            check_training(recipe(tiny_models, rows, **options).training)
        assert "micro_batch_size" not in str(e.value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes with 3 rows a pass make 6 rows.*a number that divides 4"):
        check_training(recipe(tiny_models, rows, micro_batch_size=3).training)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"torch_compile": True, "gradient_checkpointing": True}, "are both on"),
        ({"micro_batch_size": 3}, "3 rows a pass"),
        ({"gradient_checkpointing": True}, "cannot compute their activations again"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_text_is_encoded(tiny_models, rows, tmp_path, options, words):
    bridge = Bridge.build(recipe(tiny_models, rows).bridge)
    bridge.llm.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=words):
        train(recipe(tiny_models, rows, **options), tmp_path / "run", bridge=bridge, cache=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_never_touched(tiny_models, rows, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds files and no recipe"):
            open_run(tmp_path, recipe(tiny_models, rows), overwrite=overwrite)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_selecting_the_best_without_dev_rows_is_refused(tiny_models, rows, tmp_path):
    files = {"files": {"train": str(rows / "train.jsonl")}}
    with pytest.raises(ConfigError, match=r"Set task\.dev_rows"):
        train(recipe(tiny_models, rows, task=files), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    train(recipe(tiny_models, rows, task=files | {"dev_rows": 8}), tmp_path / "run", progress=False)


def test_other_training_languages_only_in_so_many_words_and_on_record(tiny_models, rows, tmp_path):
    task = {"train_languages": ["sw"], "files": {"train": str(rows / "sw.jsonl"), "dev": str(rows / "dev.jsonl")}}
    train(recipe(tiny_models, rows, task=task, max_steps=1), tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run/run.json").read_text())["languages_seen"] == ["sw"]


@pytest.mark.parametrize(
    ("what", "limit", "tokens"),
    [("texts", {"max_source_tokens": 24}, "24 encoder"), ("answers", {"max_answer_tokens": 2}, "2 LLM")],
)
def test_texts_and_answers_over_the_limit_are_counted_and_said(
    tiny_models, rows, tmp_path, caplog, what, limit, tokens
):
    with caplog.at_level(logging.WARNING, logger=train_module.__name__):
        train(recipe(tiny_models, rows, max_steps=1, **limit), tmp_path / "run", progress=False)
    count = json.loads((tmp_path / "run/run.json").read_text())[f"truncated_train_{what}"]
    assert count > 0
    assert f"{count} of 48 training {what} are longer than {tokens} tokens" in caplog.text


def test_an_answer_that_tokenises_to_nothing_stops_before_training(tiny_models, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("layerbridge.model.processor.BridgeProcessor._llm_ids", lambda self, text: [])
    with pytest.raises(DataError, match="tokenises to nothing"):
        train(recipe(tiny_models, rows), tmp_path / "run", progress=False)


def test_steps_follow_from_epochs():
    assert num_steps(TrainingConfig(epochs=3, batch_size=8), 98_999) == 3 * 12_375
    assert num_steps(TrainingConfig(epochs=3, batch_size=8, max_steps=7), 98_999) == 7


def test_trainer_arguments_are_the_recipes(tiny_models, rows, tmp_path):
    training = TrainingConfig(batch_size=8, micro_batch_size=2, warmup_fraction=0.5, max_steps=10)
    bridge = Bridge.build(recipe(tiny_models, rows).bridge)
    twenty = TokenRows([EXAMPLE] * 20, bridge.processor, training)
    trainer = BridgeTrainer(bridge, training=training, train=twenty, dev=None, answers=None, folder=tmp_path)
    args = trainer.args
    assert args.per_device_train_batch_size == 2
    assert args.gradient_accumulation_steps == 4
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.8, 0.999, 3e-7)
    assert args.warmup_steps == 5
    assert args.lr_scheduler_type == "cosine"


def test_collated_batches_hold_tensors_only(tiny_models, rows):
    bridge = Bridge.build(recipe(tiny_models, rows).bridge)
    batch = collate([TokenRows([EXAMPLE], bridge.processor, TrainingConfig())[0]], bridge.processor)
    assert set(batch) == {"source_ids", "source_mask", "prompt_ids", "prompt_mask", "labels"}
    assert int(batch["labels"].max()) < tiny.VOCABULARY
