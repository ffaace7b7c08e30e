"""Losses beside the task's, by two processes: they have the columns and the tensors of one."""

import json
import textwrap

import pytest
import torch
import yaml
from safetensors.torch import load_file

from layerbridge.config import Recipe, build_config
from layerbridge.training.objective import AGREEMENT, ANSWER, DISTILLATION, Objective
from layerbridge.training.train import train
from tests.training.test_many_processes import TRAIN_ALL, run_by_two
from tests.training.test_many_processes import recipe as make_recipe
from tests.training.test_many_processes import rows as rows

SHARED = {
    "both-beside-the-task": {
        "num_rows": 43,
        "micro_batch_size": 2,
        "self_distillation": {"weight": 2.0},
        "noise_agreement": {"weight": 3.0},
    },
    "a-stage-before-it": {"num_rows": 41, "self_distillation": {"weight": 0.0, "epochs_before": 1}},
}
"""Name -> what is special about a run that two processes share; a short last batch leaves one of them without rows."""


def shared_recipe(tiny_models, rows, name) -> Recipe:
    data = make_recipe(tiny_models, rows, name=name, **SHARED[name]).model_dump(mode="json")
    return build_config(Recipe, data, where="test")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


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


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_have_the_losses_and_the_tensors_of_one(by_two, tiny_models, rows, tmp_path, name):
    alone = shared_recipe(tiny_models, rows, name)
    alone = alone.model_copy(update={"training": alone.training.model_copy(update={"micro_batch_size": None})})
    train(alone, tmp_path / "one", progress=False)
    for key in ("loss", ANSWER, DISTILLATION, AGREEMENT, "eval_loss"):
        ours, theirs = (
            [(row.get("stage"), row["step"], row[key]) for row in metrics(run) if key in row]
            for run in (by_two / name, tmp_path / "one")
        )
        assert [row[:2] for row in ours] == [row[:2] for row in theirs]
        assert [row[2] for row in ours] == pytest.approx([row[2] for row in theirs], rel=1e-4, abs=1e-5), key
    ours, theirs = (load_file(run / "checkpoint/bridge.safetensors") for run in (by_two / name, tmp_path / "one"))
    for tensor_name, tensor in theirs.items():
        torch.testing.assert_close(ours[tensor_name], tensor, atol=2e-5, rtol=1e-4)


def test_columns_are_means_over_updates_also_where_a_process_had_nothing_to_learn():
    objective = Objective(agreement_L=torch.tensor([0.1, 0.2]))
    device = torch.device("cpu")
    assert objective.columns(2, device) == {ANSWER: 0.0, AGREEMENT: 0.0}
    objective._sums = {ANSWER: torch.tensor(3.0), AGREEMENT: torch.tensor(1.0)}
    assert objective.columns(2, device) == {ANSWER: 1.5, AGREEMENT: 0.5}
    assert objective.columns(1, device) == {ANSWER: 0.0, AGREEMENT: 0.0}
