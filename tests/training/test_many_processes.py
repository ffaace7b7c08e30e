"""Several processes: torchrun with two of them gives what one gives, whatever the rows, and resumes like one."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from layerbridge.config import Recipe, build_config
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.training.batches import SharedBatches, deal
from layerbridge.training.length_groups import LengthGroups, RandomOrder
from layerbridge.training.sharding import build_sharded, check_shardable
from layerbridge.training.train import train
from tests import tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ANSWERS = {"0": "positive", "1": "no", "2": "one two three four"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Train and dev rows of different lengths; their answers have 2 to 6 tokens."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 48), ("dev", 7)):
        lines = [{"body": f"the cat {name} {i} {'mat ' * (i * 7 % 11)}", "tag": str(i % 3)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(tiny_models, rows, *, name="test", num_rows=48, bridge=None, **training) -> Recipe:
    data = {
        "name": name,
        "encoder": tiny_models["mt5"],
        "llm": tiny_models["llama"],
        "fusion": {"name": "transformer_softmax", "feedforward_width": 16, "dropout": 0.0},
        "task": {
            "name": "own",
            "files": {"train": str(rows / "train.jsonl"), "dev": str(rows / "dev.jsonl")},
            "encoder_prompt": "Text: {body} Label: ",
            "answer_column": "tag",
            "answers": ANSWERS,
            "max_train_rows": num_rows,
        },
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 3e-4,  # rounding moves a norm by 6e-6 at most; at 3e-3 it grows to 3e-3
            "adam_epsilon": 1e-3,  # with less, Adam blows rounding up where a gradient is zero
            "eval_every": 4,
            "select": "last",
            **training,
        },
        **(bridge or {}),
    }
    return build_config(Recipe, data, where="test")


def run_by_two(arguments, **environment):
    """Run a script or module by two processes that share one machine's cores."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([*TORCHRUN, *map(str, arguments)], env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


TRAIN_ALL = """
    import sys
    from pathlib import Path
    from layerbridge.config import load_recipe
    from layerbridge.training.train import train

    for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
        train(load_recipe(path), Path(sys.argv[1]) / path.stem, progress=False)
"""

SHARED = {
    "rows-that-divide": {},
    "the-last-batch-has-four-rows": {"num_rows": 44},
    "the-last-batch-has-one-row": {"num_rows": 41},
    "length-groups": {"num_rows": 45, "group_by_length": True},
    "accumulation": {"num_rows": 43, "micro_batch_size": 2},
    "accumulation-of-single-rows-in-length-groups": {"num_rows": 42, "micro_batch_size": 1, "group_by_length": True},
    "workers": {"num_rows": 44, "num_workers": 1},
    "less-memory": {"num_rows": 44, "gradient_checkpointing": True},
    "a-sharded-llm": {"num_rows": 41, "shard_llm": True},
    "a-sharded-llm-that-recomputes": {"num_rows": 44, "shard_llm": True, "gradient_checkpointing": True},
    "a-trained-encoder-of-which-one-layer-is-read": {
        "bridge": {"fusion": {"name": "single_layer", "layer": 1}},
        "lora": {"rank": 2},
    },
}
"""Name -> what is special about a run that two processes share."""


def shared_recipe(tiny_models, rows, name) -> Recipe:
    options = dict(SHARED[name])
    lora = options.pop("lora", None)
    made = recipe(tiny_models, rows, name=name, **options)
    data = made.model_dump(mode="json")
    return build_config(Recipe, data | {"encoder": data["encoder"] | {"lora": lora}}, where="test")


@pytest.fixture(scope="module")
def by_two(tiny_models, rows, tmp_path_factory):
    """Every run of SHARED, by two processes."""
    folder = tmp_path_factory.mktemp("two")
    for name in SHARED:
        data = shared_recipe(tiny_models, rows, name).model_dump(mode="json")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
    script = folder / "train_all.py"
    script.write_text(textwrap.dedent(TRAIN_ALL))
    run_by_two([script, folder])
    return folder


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(found, wanted):
    for key in ("loss", "eval_loss", "eval_accuracy", "grad_norm"):
        ours, theirs = ([(r["step"], r[key]) for r in metrics(run) if key in r] for run in (found, wanted))
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        close = 1e-4 if key == "grad_norm" else 1e-5  # norms of gradients add up the rounding of all of them
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=close, abs=close), key
    ours, theirs = (load_file(run / "checkpoint/bridge.safetensors") for run in (found, wanted))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_have_the_losses_and_the_tensors_of_one(by_two, tiny_models, rows, tmp_path, name):
    alone = shared_recipe(tiny_models, rows, name)
    one = {"micro_batch_size": None, "shard_llm": False}
    alone = alone.model_copy(update={"training": alone.training.model_copy(update=one)})
    train(alone, tmp_path / "one", progress=False)
    steps = [row["step"] for row in metrics(tmp_path / "one") if "loss" in row]
    assert steps == list(range(1, 2 * -(-(SHARED[name].get("num_rows", 48)) // 8) + 1))
    assert_same_run(by_two / name, tmp_path / "one")


def test_only_one_process_writes(by_two):
    for name in SHARED:
        rows = metrics(by_two / name)
        assert len({(row["step"], *row) for row in rows}) == len(rows)
        assert {path.name for path in (by_two / name).iterdir()} == {
            "recipe.yaml", "run.json", "environment.json", "metrics.jsonl", "checkpoint", "checkpoints",
        }  # fmt: skip


def test_a_run_of_two_processes_that_was_killed_goes_on_to_the_same_end(tiny_models, rows, tmp_path):
    """With dropout on: each process takes up its own random state."""
    config = recipe(tiny_models, rows, num_rows=43, keep_checkpoints=9)
    data = config.model_dump(mode="json")
    data["fusion"] |= {"dropout": 0.3}
    path = tmp_path / "dropped.yaml"
    path.write_text(yaml.safe_dump(data))
    ran = run_by_two(["-m", "layerbridge.cli", "train", path, "--out", tmp_path / "run", "--quiet"])
    assert ran.stdout.count("Run written to") == 1
    whole = load_file(tmp_path / "run/checkpoint/bridge.safetensors")
    shown = [row for row in metrics(tmp_path / "run") if "loss" in row or "eval_loss" in row]
    # What a kill after step 8, in the middle of writing the next checkpoint, leaves:
    (tmp_path / "run/checkpoints/checkpoint-12/trainer_state.json").unlink()
    (tmp_path / "run/checkpoint/bridge.safetensors").unlink()
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"status": "training"}))
    run_by_two(["-m", "layerbridge.cli", "train", path, "--out", tmp_path / "run", "--quiet"])
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed"] is True
    resumed = load_file(tmp_path / "run/checkpoint/bridge.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    again = [row for row in metrics(tmp_path / "run") if "loss" in row or "eval_loss" in row]
    assert again == shown


# --- the sharded LLM -------------------------------------------------------------------------------------------------

HELD = """
    import json, sys
    from pathlib import Path
    import torch
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from layerbridge.config import load_recipe
    from layerbridge.model.bridge import Bridge
    from torch.distributed.tensor import DTensor
    from layerbridge.training.sharding import decoder_layers, shard_llm

    def bytes_held(llm):
        return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in llm.parameters())

    rank, found = PartialState(cpu=True).process_index, {}
    folder, answers = Path(sys.argv[1]), ["positive", "no"]
    texts = ["the cat sat on the mat", "one"][: 2 - rank]
    for path in sorted(folder.glob("*.yaml")):
        bridge = Bridge.build(load_recipe(path).bridge, seed=0)
        whole = bytes_held(bridge.llm)
        layers = sum(p.nbytes for layer in decoder_layers(bridge.llm) for p in layer.parameters())
        scores, written = bridge.score(texts, answers), bridge.generate(texts[:1], max_new_tokens=3)
        shard_llm(bridge, torch.device("cpu"), init_device_mesh("cpu", (2,)))
        torch.testing.assert_close(bridge.score(texts, answers), scores)
        assert bridge.generate(texts[:1], max_new_tokens=3) == written
        found[path.stem] = [whole, layers, bytes_held(bridge.llm)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
"""


def test_each_process_holds_half_of_a_sharded_llms_layers_and_all_compute_as_before(tiny_models, rows, tmp_path):
    for llm in tiny.LLMS:
        config = recipe(tiny_models, rows, bridge={"llm": tiny_models[llm]})
        (tmp_path / f"{llm}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = tmp_path / "held.py"
    script.write_text(textwrap.dedent(HELD))
    run_by_two([script, tmp_path])
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert set(found) == set(tiny.LLMS)
        for whole, of_layers, held in found.values():
            assert held == pytest.approx(whole - of_layers / 2, rel=0.01)


def test_sharding_is_refused_where_it_cannot_be(tiny_models, rows, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="over several processes, and there is one. Start them with `torchrun"):
        train(recipe(tiny_models, rows, shard_llm=True), tmp_path / "run", progress=False)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for part, value in (("lora", {"rank": 2}), ("quantization", {"quant_method": "bitsandbytes"})):
        llm = {"name": tiny_models["llama"], part: value}
        with pytest.raises(ConfigError, match=rf"Drop llm\.{part} or training\.shard_llm"):
            check_shardable(recipe(tiny_models, rows, bridge={"llm": llm}).bridge)
    config = recipe(tiny_models, rows).bridge
    with pytest.raises(ConfigError, match="a bridge was given that is built already"):
        check_shardable(config, Bridge.build(config))


def test_a_process_whose_starter_does_not_number_it_is_its_machines_first(tiny_models, rows, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    for name in ("init_device_mesh", "shard_llm"):
        monkeypatch.setattr(f"layerbridge.training.sharding.{name}", lambda *_: None)
    bridge = build_sharded(recipe(tiny_models, rows).bridge, seed=0, device=torch.device("cpu"))
    assert isinstance(bridge, Bridge)


# --- which rows each process takes -----------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=120),
    micro=st.integers(1, 5),
    num_processes=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    grouped=st.booleans(),
    seed=st.integers(0, 3),
)
def test_processes_together_take_each_row_once_and_each_update_has_the_rows_of_one_process(
    lengths, micro, num_processes, accumulation, grouped, seed
):
    batch_size = micro * num_processes * accumulation

    def order():
        if grouped:
            return LengthGroups(lengths, batch_size=batch_size, seed=seed)
        return RandomOrder(len(lengths), seed=seed)

    def passes(process, count, size):
        batches = SharedBatches(
            order(), lengths, batch_size=batch_size, micro_batch_size=size, process=process, num_processes=count
        )
        found = list(batches)
        assert len(found) == len(batches)
        return found

    alone = passes(0, 1, batch_size)
    shared = [passes(process, num_processes, micro) for process in range(num_processes)]
    assert len({len(found) for found in shared}) == 1, "all processes do the same number of passes"
    for update, wanted in enumerate(alone):
        begin = update * accumulation
        parts = [rows for found in shared for rows in found[begin : begin + accumulation]]
        assert all(1 <= len(rows) <= micro for rows in parts)
        assert sorted(row for rows in parts for row in rows if row >= 0) == sorted(wanted)
        assert all(-1 - row in wanted for rows in parts for row in rows if row < 0)
        if len(wanted) == batch_size:
            assert all(len(rows) == micro and min(rows) >= 0 for rows in parts)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=64), num_hands=st.integers(1, 8))
def test_hands_are_dealt_in_equal_numbers_and_about_equal_tokens(lengths, num_hands):
    hands = deal(range(len(lengths)), lengths, num_hands)
    sizes = [len(hand) for hand in hands]
    assert sorted(row for hand in hands for row in hand) == list(range(len(lengths)))
    assert max(sizes) - min(sizes) <= 1
    tokens = [sum(lengths[row] for row in hand) for hand in hands]
    assert max(tokens) - min(tokens) <= 2 * max(lengths)
