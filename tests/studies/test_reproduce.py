"""A study runs what is missing, shares encoder passes, and ends the same whatever interrupts it."""

import hashlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.errors import ConfigError
from layerbridge.model.encoder import FrozenEncoder
from layerbridge.studies.processes import _take_gpu
from layerbridge.studies.study import load_study
from layerbridge.studies.work import StudyError, Workshop
from tests.studies.grid import LANGUAGES, outcome, write_study


@pytest.fixture
def encoder_passes(monkeypatch):
    """Count every pass of every encoder in this process, held or read layer by layer."""
    counted = []

    def count(name):
        original = getattr(FrozenEncoder, name)

        def counting(self, *args):
            counted.append(1)
            return original(self, *args)

        monkeypatch.setattr(FrozenEncoder, name, counting)

    count("forward")
    count("_stream")
    return counted


def reproduce(*arguments) -> str:
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "layerbridge.cli", "reproduce", *map(str, arguments)]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_models):
    return write_study(tmp_path_factory.mktemp("study"), tiny_models)


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    """The study done in one go by one process: its folder and its cache."""
    folder = tmp_path_factory.mktemp("undisturbed")
    out, cache = folder / "out", folder / "cache"
    shown = reproduce(study, "--out", out, "--cache", cache, "--workers", 1)
    return out, cache, shown


def test_a_study_shows_its_plan_does_every_job_and_writes_the_report(undisturbed):
    out, _, shown = undisturbed
    assert "A small study: two tiny models" in shown
    assert "0 of them done" in shown
    runs = {path.name for path in (out / "headlines").iterdir()}
    seeds = [f"{name}-seed-{seed}" for seed in (0, 1) for name in ("last_layer", "transformer_softmax")]
    assert runs >= {*seeds, "llm_alone", "linear_probe_last_layer", "linear_probe-transformer_softmax-seed-0"}
    assert "layer-2" in runs
    page = out / "report" / "index.html"
    assert str(page) in shown.replace("\n", "")
    assert "A small study" in page.read_text(encoding="utf-8")
    analysis = json.loads((out / "report/analysis.json").read_text(encoding="utf-8"))
    by_method = {task["method"]: task for task in analysis["tasks"]}
    assert set(by_method) == {"score", "generate"}
    set_ups = {item["name"]: item for item in by_method["score"]["set_ups"]}
    assert set_ups["transformer_softmax"]["seeds"] == [0, 1]
    assert {item["layer"] for item in set_ups.values() if item["group"] == "layer_sweep"} >= {1, 2}
    assert {name for name, item in set_ups.items() if item["group"] == "baseline"} >= {"llm_alone"}
    assert [row["code"] for row in by_method["score"]["languages"]] == sorted(LANGUAGES)


def test_a_study_leaves_what_others_log_as_it_was(undisturbed):
    assert logging.getLogger("layerbridge.training").isEnabledFor(logging.WARNING)


def test_the_encoder_reads_each_text_once(undisturbed):
    out, _, _ = undisturbed
    jobs = list(out.glob("headlines/*/job.json"))
    assert len(jobs) == 9
    for path in jobs:
        assert json.loads(path.read_text())["encoder_passes"] == 0, path
    shards = [load_file(path)["digests_T"] for path in undisturbed[1].rglob("*.safetensors")]
    digests = [bytes(row.tolist()) for shard in shards for row in shard]
    assert len(digests) == len(set(digests))
    # 32 train, 8 dev and 3 x 12 test rows, and two sentences in each language
    assert len(digests) == 32 + 8 + 36 + 6


def test_a_second_study_with_another_fusion_makes_no_encoder_pass(undisturbed, tiny_models, tmp_path, encoder_passes):
    _, cache, _ = undisturbed
    fusions = {name: {"fusion": name} for name in ("last_layer", "global_softmax")}
    other = write_study(tmp_path, tiny_models, set_ups=fusions)
    shown = reproduce(other, "--out", tmp_path / "out", "--cache", cache, "--workers", 1)
    assert "Encoder: 0 of" in shown
    assert (tmp_path / "out/headlines/global_softmax-seed-1/checkpoint/bridge.safetensors").is_file()
    assert encoder_passes == []


def test_a_finished_study_does_nothing_again(undisturbed, study, encoder_passes, monkeypatch):
    out, cache, _ = undisturbed
    before = outcome(out)

    def never(self, job):
        raise AssertionError(job)

    monkeypatch.setattr(Workshop, "do", never)
    reproduce(study, "--out", out, "--cache", cache, "--workers", 1)
    assert outcome(out) == before
    assert encoder_passes == []


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


@pytest.mark.parametrize("launcher", ["workers", "torchrun"])
def test_two_processes_end_where_one_does(undisturbed, study, tmp_path, launcher):
    out = tmp_path / "out"
    arguments = command(study, "--out", out, "--cache", tmp_path / "cache")
    if launcher == "torchrun":
        arguments = [*TORCHRUN, *arguments[2:]]
    else:
        arguments += ["--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == outcome(undisturbed[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_study_killed_at_any_moment_goes_on_to_the_identical_result(undisturbed, study, tmp_path, seed):
    out = tmp_path / "out"
    arguments = command(study, "--out", out, "--cache", tmp_path / "cache", "--workers", 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = random.Random(seed)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(list(out.glob("headlines/*/run.json"))) + moments.randint(0, 2)
        while process.poll() is None and len(list(out.glob("headlines/*/run.json"))) < wanted:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == outcome(undisturbed[0])


def test_plan_alone_does_nothing(study, tmp_path):
    shown = reproduce(study, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--plan")
    (row,) = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│headlines")]
    assert [int(cell) for cell in row[1:7]] == [32, 8, 36, 3, 9, 0]
    assert "split test of package:headlines, the first 12 rows a language" in shown
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["locks"]


def test_a_job_that_fails_is_named_and_the_others_are_done(study, tmp_path, tiny_models, monkeypatch):
    original = Workshop.do

    def do(self, job):
        if job.name == "last_layer-seed-0":
            raise ConfigError("the disk is on fire")
        original(self, job)

    monkeypatch.setattr(Workshop, "do", do)
    bases = {"encoder": tiny_models["mt5"], "llm": tiny_models["llama"]}
    pairs = {"tiny": {"title": "tiny models", "defaults": bases}}
    small = write_study(tmp_path, tiny_models, seeds=[0], baselines=[], pairs=pairs)
    arguments = [
        "reproduce",
        str(small),
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "c"),
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, StudyError)
    assert "1 of 2 jobs failed" in str(result.exception)
    assert "headlines/last_layer-seed-0: the disk is on fire" in str(result.exception)
    assert (tmp_path / "out/headlines/transformer_softmax-seed-0/job.json").is_file()


def test_another_study_in_the_same_folder_is_refused(undisturbed, tiny_models, tmp_path):
    out, cache, _ = undisturbed
    other = write_study(tmp_path, tiny_models, baselines=[])
    result = CliRunner().invoke(app, ["reproduce", str(other), "--out", str(out), "--cache", str(cache)])
    assert isinstance(result.exception, ConfigError)
    assert "defined otherwise now" in str(result.exception)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear reader")
    result = CliRunner().invoke(app, ["reproduce", str(other), "--out", str(tmp_path / "full")])
    assert "holds files and no study.json" in str(result.exception)


def test_a_cache_too_small_for_all_texts_leaves_the_rest_to_the_encoder(study, tmp_path, undisturbed):
    shown = reproduce(
        study, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1, "--seeds", "0",
        "--cache-limit", 0.0008,
    )  # fmt: skip
    assert "texts are over --cache-limit" in shown
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    assert 600_000 < size < 820_000
    found, wanted = outcome(tmp_path / "out"), outcome(undisturbed[0])
    name = "headlines/last_layer-seed-0/evaluation/headlines-test-first-12/results.json"
    assert found[name]["languages"] == wanted[name]["languages"]


ASKED = {"evaluation": {"languages": ["Sinhala", "en", "ta", "sw"]}}


def test_tasks_without_data_are_left_out_and_said(tmp_path, tiny_models):
    (tmp_path / "data").mkdir()
    study = write_study(tmp_path, tiny_models, tasks={"sib200": ASKED, "xnli": {}}, main="sib200")
    result = CliRunner().invoke(
        app, ["reproduce", str(study), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "o")]
    )
    assert isinstance(result.exception, ConfigError)
    assert "None of the tasks of study small is in" in str(result.exception)
    for name, rows in (("train", 21), ("dev", 7), ("test", 7)):
        for code in ("eng_Latn", "sin_Sinh"):
            folder = tmp_path / "data/sib200" / code
            folder.mkdir(parents=True, exist_ok=True)
            topics = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
            lines = [f"{i}\t{topics[i % 7]}\ta sentence {name} {i}" for i in range(rows)]
            (folder / f"{name}.tsv").write_text("index_id\tcategory\ttext\n" + "\n".join(lines) + "\n")
    shown = reproduce(study, "--data", tmp_path / "data", "--out", tmp_path / "o", "--plan")
    assert "Task xnli was left out" in shown
    assert "│sib200" in shown
    assert "Task sib200 in ta, sw was left out: no file of its test split" in shown
    for file in tmp_path.glob("data/sib200/*/test.tsv"):
        file.unlink()
    result = CliRunner().invoke(app, ["reproduce", str(study), "--data", str(tmp_path / "data"), "--plan"])
    assert "its dev rows are to be evaluated, and they choose the best step; set task.dev_rows" in str(result.exception)
    assert str(tmp_path / "data") not in shown.split("xnli was left out")[1].split("\n")[0]


def test_parts_of_a_grid_can_be_added_later_and_the_command_says_all(tmp_path, tiny_models):
    """The layer sweep is of a task that comes later; the baseline is not asked again under another seed."""
    small = write_study(tmp_path, tiny_models, tasks={"first": FEW, "headlines": FEW}, seeds=[3, 4], main="first")
    arguments = [small, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1]
    reproduce(*arguments, "--tasks", "first", "--seeds", "3")
    assert command_of(tmp_path / "out") == "layerbridge reproduce small.yaml --pair tiny --tasks first --seeds 3"
    asked = (tmp_path / "out/first/llm_alone/job.json").stat().st_mtime_ns
    reproduce(*arguments, "--seeds", "4")
    assert (tmp_path / "out/first/llm_alone/job.json").stat().st_mtime_ns == asked
    assert (tmp_path / "out/headlines/layer-1/job.json").is_file()
    assert command_of(tmp_path / "out") == "layerbridge reproduce small.yaml --pair tiny"


FEW = {"task": {"name": "headlines", "max_train_rows": 8, "dev_rows": 4, "rows_seed": 0}, "training": {"max_steps": 1}}


def command_of(out):
    return json.loads((out / "report/analysis.json").read_text(encoding="utf-8"))["command"]


def test_rows_that_changed_are_asked_again_and_moved_ones_are_not(tmp_path, tiny_models):
    def rows(name, count):
        lines = [json.dumps({"body": f"the cat {name} {i}", "tag": ("yes", "no")[i % 2]}) for i in range(count)]
        return "".join(f"{line}\n" for line in lines)

    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 16), ("dev", 4), ("si", 4)):
        (folder / f"{name}.jsonl").write_text(rows(name, count))
    files = {"train": "data/train.jsonl", "dev": "data/dev.jsonl", "test": {"si": "data/si.jsonl"}}
    task = {"name": "own", "files": files, "encoder_prompt": "{body}", "answer_column": "tag", "answers": ["yes", "no"]}
    small = write_study(
        tmp_path,
        tiny_models,
        tasks={"own": {"task": task, "training": {"max_steps": 1}, "evaluation": {"languages": ["si"]}}},
        seeds=[0],
        baselines=[],
        main="own",
    )
    arguments = [small, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1]
    assert "0 of them done" in reproduce(*arguments)
    assert "2 of them done" in reproduce(*arguments, "--plan")
    more = reproduce(*arguments, "--plan", "--seeds", "0,1")
    assert re.search(r"own: \d+ s a job so far; \d+ min of one process for the rest\.", more)
    (folder / "si.jsonl").write_text(rows("other", 4))
    assert "0 of them done" in reproduce(*arguments, "--plan")
    (folder / "train.jsonl").write_text(rows("later", 16))
    learned_from = [tmp_path / f"out/own/{name}-seed-0/run.json" for name in ("last_layer", "transformer_softmax")]
    before = [json.loads(path.read_text())["train_sha256"] for path in learned_from]
    assert "0 of them done" in reproduce(*arguments)
    after = [json.loads(path.read_text())["train_sha256"] for path in learned_from]
    assert not set(before) & set(after), "a bridge that learned from other rows is no answer"
    assert "2 of them done" in reproduce(*arguments, "--plan")


@pytest.mark.parametrize("seeds", ["a", "1,1", "0,-1", ""])
def test_seeds_that_are_none_are_refused(study, tmp_path, seeds):
    result = CliRunner().invoke(app, ["reproduce", str(study), "--out", str(tmp_path / "out"), "--seeds", seeds])
    assert isinstance(result.exception, ConfigError)
    assert "wanted different whole numbers" in str(result.exception)


@pytest.mark.parametrize(
    ("visible", "number", "wanted"), [(None, 3, "3"), ("4,5", 1, "5"), ("4,5", 2, "4"), ("", 1, "")]
)
def test_a_process_takes_one_of_the_gpus_that_are_the_users(visible, number, wanted):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    _take_gpu(environment, number)
    assert environment["CUDA_VISIBLE_DEVICES"] == wanted


def test_a_study_whose_first_file_was_cut_off_begins_again(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".study.json.1.partial").write_text("{")
    assert "0 of them done" in reproduce(study, "--out", out, "--cache", tmp_path / "cache", "--plan")


def test_without_its_packages_a_study_says_so_at_once(study, tmp_path, monkeypatch):
    from layerbridge.studies import reproduce as module

    monkeypatch.setattr(module, "PACKAGES", ("scipy", "a_package_that_is_not_there"))
    result = CliRunner().invoke(app, ["reproduce", str(study), "--out", str(tmp_path / "out")])
    assert "a_package_that_is_not_there, not installed here: pip install 'layerbridge[study]'" in str(result.exception)


def test_a_set_up_can_be_added_later_and_one_that_was_run_cannot_change(tmp_path, tiny_models):
    keys = {"tasks": {"headlines": FEW}, "seeds": [0], "baselines": [], "pairs": pairs_without_sweep(tiny_models)}
    set_ups = {"last_layer": {"fusion": "last_layer"}, "layer_mean": {"fusion": "layer_mean"}}
    small = write_study(tmp_path, tiny_models, set_ups=set_ups, **keys)
    arguments = [small, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1]
    reproduce(*arguments, "--set-ups", "last_layer")
    assert {path.parent.name for path in tmp_path.glob("out/headlines/*/job.json")} == {"last_layer-seed-0"}
    assert command_of(tmp_path / "out") == "layerbridge reproduce small.yaml --pair tiny --set-ups last_layer"
    before = (tmp_path / "out/headlines/last_layer-seed-0/job.json").stat().st_mtime_ns

    added = {"fusion": {"name": "layer_mean", "normalize_layers": True}}
    write_study(tmp_path, tiny_models, set_ups={**set_ups, "added": added}, **keys)
    reproduce(*arguments)
    assert (tmp_path / "out/headlines/added-seed-0/job.json").is_file()
    assert (tmp_path / "out/headlines/last_layer-seed-0/job.json").stat().st_mtime_ns == before
    assert command_of(tmp_path / "out") == "layerbridge reproduce small.yaml --pair tiny"

    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments), "--set-ups", "layer_men"])
    assert "Unknown set-up 'layer_men'. Did you mean 'layer_mean'" in str(result.exception)

    write_study(tmp_path, tiny_models, set_ups={**set_ups, "added": {"fusion": "layer_mean"}}, **keys)
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    assert "where set-up added is another now; a new name would do. Name another folder" in str(result.exception)


def test_a_folder_of_before_set_ups_could_be_added_goes_on(tmp_path, tiny_models):
    keys = {"tasks": {"headlines": FEW}, "seeds": [0], "baselines": [], "pairs": pairs_without_sweep(tiny_models)}
    small = write_study(tmp_path, tiny_models, **keys)
    arguments = [small, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1]
    reproduce(*arguments)
    path = tmp_path / "out/study.json"
    record = json.loads(path.read_text())
    definition = load_study(str(small)).definition("tiny")
    whole = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({k: v for k, v in record.items() if k != "set_ups"} | {"definition_sha256": whole}))
    assert "2 of them done" in reproduce(*arguments)
    assert json.loads(path.read_text()) == record
    path.write_text(json.dumps({k: v for k, v in record.items() if k != "set_ups"}))
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    assert "defined otherwise now" in str(result.exception)


def pairs_without_sweep(models):
    return {"tiny": {"title": "tiny models", "defaults": {"encoder": models["mt5"], "llm": models["llama"]}}}


def test_a_dev_study_chooses_and_its_log_has_what_its_runs_have(tmp_path, tiny_models):
    """From the study's file to the log: the plain mean over runs is what the selection says."""
    keys = {"tasks": {"headlines": HELD_OUT}, "baselines": [], "pairs": pairs_without_sweep(tiny_models)}
    small = write_study(tmp_path, tiny_models, **keys)
    reproduce(small, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1)
    arguments = ["select", str(tmp_path / "out"), "--out", str(tmp_path / "log")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    log = json.loads((tmp_path / "log/selection.json").read_text(encoding="utf-8"))
    assert (log["split"], log["languages"], log["n"]) == ("held_out", ["en"], 4)
    assert (
        log["studies"][0]["definition_sha256"]
        == json.loads((tmp_path / "out/study.json").read_text())["definition_sha256"]
    )
    for item in log["candidates"]:
        files = sorted(tmp_path.glob(f"out/headlines/{item['set_up']}-seed-*/evaluation/*/results.json"))
        read = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        assert item["accuracy"]["by_seed"] == [r["languages"]["en"]["methods"]["score"]["correct"] / 4 for r in read]
        assert sorted(item["checkpoints"].values()) == sorted(r["provenance"]["checkpoint_sha256"] for r in read)


HELD_OUT = {**FEW, "training": {"max_steps": 1, "select": "last"}, "evaluation": {"split": "held_out"}}
