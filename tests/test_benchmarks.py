"""Every measurement runs, and the published pipeline that ours is held against computes what ours computes."""

import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import __main__ as benchmarks
from benchmarks.measure import check, machine, parser, peak_memory, take_turns
from benchmarks.memory import fit
from benchmarks.pair import Row
from benchmarks.published_pipeline import FUSION_NAMES, IGNORED, PublishedPipeline
from benchmarks.scoring import train
from benchmarks.training_step import BareWork, build_bridge, compare_steps

from layerbridge.config import BridgeConfig, TransformerSoftmax
from layerbridge.model.bridge import Bridge

ROOT = Path(__file__).parent.parent
NAMES = [name for name in benchmarks.BENCHMARKS if (ROOT / "benchmarks" / f"{name}.py").is_file()]
TEXTS = ["the cat sat on the mat", "one", "Habari ya asubuhi, one two three", "neutral positive"]
ANSWERS = ["positive", "negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def made_up_data(tmp_path_factory) -> Path:
    """A folder in the layout of the measuring data, with texts of random words."""
    folder: Path = tmp_path_factory.mktemp("data")
    (folder / "xnli").mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulmnrst", k=draw.randint(2, 8))) for _ in range(400)]
    for language in ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"):
        rows = [
            f"{' '.join(draw.choices(words, k=draw.randint(3, 25)))}\t{' '.join(draw.choices(words, k=5))}\t{label}\n"
            for _ in range(100)
            for label in ("entailment", "neutral", "contradiction")
        ]
        (folder / "xnli" / f"dev-{language}.tsv").write_text("".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_quickly_and_writes_its_checks(name, made_up_data, work, tmp_path):
    out = tmp_path / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--out", str(out)]
    done = subprocess.run(
        [*command, "--data", str(made_up_data), "--work", str(work)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text(encoding="utf-8"))
    for one in found["checks"]:
        assert set(one) == {"name", "wanted", "seen", "holds"}
    assert found["machine"]["torch"] == torch.__version__
    for folder in (made_up_data, work, tmp_path, ROOT):
        assert str(folder) not in out.read_text(encoding="utf-8"), "a result holds no paths"
    assert benchmarks.described(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_how_to_run_it_and_shows_an_example_row(name):
    doc = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
    assert f"python -m benchmarks.{name}" in doc
    assert "example row" in doc.lower()


@pytest.mark.parametrize("fusion", FUSION_NAMES)
def test_the_published_pipeline_has_our_loss_and_our_gradients(fusion, tiny_models):
    bridge, pipeline = _twins(fusion, tiny_models)
    inputs = bridge.processor(TEXTS, answers=ANSWERS)

    ours, theirs = bridge.loss(inputs), pipeline(TEXTS, ANSWERS)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours.backward()
    theirs.backward()
    gradients = pipeline.by_our_names(gradients=True)
    assert set(gradients) == set(bridge.trained_parameters())
    for name, parameter in bridge.trained_parameters().items():
        torch.testing.assert_close(
            parameter.grad,
            gradients[name].reshape(parameter.shape),
            atol=1e-5 * max(1.0, float(parameter.grad.abs().max())),
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_published_pipeline_does_not_depend_on_its_padding(tiny_models):
    _, pipeline = _twins("transformer_softmax", tiny_models)
    together = pipeline(TEXTS, ANSWERS).item()
    counts = [len(pipeline.llm_tokenizer(answer)["input_ids"]) + 1 for answer in ANSWERS]
    alone = [pipeline([text], [answer]).item() for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, abs=1e-5)


def test_the_published_pipeline_can_drop_out_as_published(tiny_models):
    pipeline = PublishedPipeline(tiny_models["mt5"], tiny_models["llama"], dropout=True)
    assert pipeline(TEXTS, ANSWERS).item() != pipeline(TEXTS, ANSWERS).item()


@pytest.mark.parametrize("num_chunks", [1, 2, 4])
def test_bare_work_reads_every_token_once_however_it_is_cut(num_chunks, tiny_models):
    bridge, pipeline = _twins("last_layer", tiny_models)
    inputs = bridge.processor(TEXTS, answers=ANSWERS)
    bare = BareWork(pipeline.encoder, pipeline.llm, inputs, num_chunks)
    bare()
    assert sum(int(one["source_mask_bs"].sum()) for one in bare.passes) == int(inputs.source_mask.sum())
    num_answers = int((inputs.labels != IGNORED).sum())
    assert sum(int((one["targets_ba"] != IGNORED).sum()) for one in bare.passes) == num_answers
    ends = len(TEXTS) if num_chunks == 1 else 0  # cut, the end tokens are not read
    positions = int(inputs.source_mask.sum()) + num_answers + len(TEXTS) + ends
    assert sum(int(one["mask_bt"].sum()) for one in bare.passes) == positions


def test_contestants_take_turns_and_the_warm_up_is_not_counted():
    calls: list[str] = []
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in found.values()] == [2, 2]


def test_peak_memory_counts_what_is_held_at_once_and_not_what_is_freed():
    def run() -> None:
        for _ in range(3):
            torch.zeros(250_000).add_(1)  # 1 MB, freed each time

    assert 1_000_000 <= peak_memory(run) < 1_100_000


def test_a_check_holds_at_its_limit_and_not_beyond():
    assert check("x", 32.0, at_least=32) == {"name": "x", "wanted": ">= 32", "seen": 32.0, "holds": True}
    assert check("x", 1.06, at_most=1.05) == {"name": "x", "wanted": "<= 1.05", "seen": 1.06, "holds": False}


def test_the_machine_has_the_threads_and_the_device_of_those_that_worked():
    told = machine(threads=1, device=torch.device("cpu"))
    assert (told["threads"], told["gpu"]) == (1, None)
    assert machine()["threads"] == torch.get_num_threads()


def test_a_straight_line_is_found():
    assert fit([1, 2, 3], [12, 14, 16]) == pytest.approx((2, 10, 1))


def test_the_tables_in_the_documents_are_those_of_the_results():
    text = benchmarks.PERFORMANCE.read_text(encoding="utf-8")
    assert benchmarks.with_results(text) == text, "run `python -m benchmarks --write-docs`"


def test_a_result_is_written_into_its_block_and_nothing_else_changes(tmp_path):
    row = {
        "checks": [check("ratio", 37.61, at_least=32)],
        "machine": _MACHINE,
        "tables": {"Rows": [{"a": 1, "b": 2.5}]},
    }
    (tmp_path / "fusion.json").write_text(json.dumps(row), encoding="utf-8")
    text = "before\n<!-- measured: fusion -->\nold\n<!-- end -->\nafter <!-- measured: memory -->\n<!-- end -->\n"
    filled = benchmarks.with_results(text, tmp_path)
    assert filled.startswith("before\n<!-- measured: fusion -->\n")
    assert "\nold\n" not in filled
    assert "| ratio | >= 32 | 37.61 | yes |" in filled
    assert "| 1 | 2.50 |" in filled
    assert "Not measured yet: `python -m benchmarks.memory`" in filled
    assert benchmarks.with_results(filled, tmp_path) == filled


def test_one_command_runs_them_all_prints_the_verdicts_and_names_what_failed(monkeypatch, tmp_path, capsys):
    def run(name: str, out: Path, options: list[str]) -> bool:
        assert options == ["--quick", "--data", str(Path("texts").resolve())]
        row = {"checks": [check("ratio", 2.0, at_least=1), check("memory", 3.0, at_most=2)], "machine": _MACHINE}
        out.write_text(json.dumps(row), encoding="utf-8")
        return name != "memory"

    monkeypatch.setattr(benchmarks, "run", run)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--data", "texts", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="Did not come to their end: memory"):
        benchmarks.main()
    shown = capsys.readouterr().out
    assert "| fusion | ratio | >= 1 | 2.00 | yes |" in shown
    assert "| fusion | memory | <= 2 | 3.00 | **no** |" in shown
    assert "\n| memory |" not in shown


def test_checks_that_do_not_hold_end_in_an_error_and_data_are_looked_for_where_the_command_was_given(
    monkeypatch, tmp_path, capsys
):
    def run(name: str, out: Path, options: list[str]) -> bool:
        assert options == ["--data", str(tmp_path / "texts")]
        row = {"checks": [check("ratio", 2.0, at_least=1), check("memory", 3.0, at_most=2)], "machine": _MACHINE}
        out.write_text(json.dumps(row), encoding="utf-8")
        return True

    monkeypatch.setattr(benchmarks, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fusion", "--data", "texts", "--results", "."])
    with pytest.raises(SystemExit, match="1 of 2 checks do not hold"):
        benchmarks.main()
    assert "| fusion | memory | <= 2 | 3.00 | **no** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "give --data FOLDER or set LAYERBRIDGE_DATA"), (["--data", "nowhere"], "nowhere: there is no folder xnli")],
)
def test_without_texts_a_measurement_says_how_to_name_them(options, said, monkeypatch, capsys):
    monkeypatch.delenv("LAYERBRIDGE_DATA", raising=False)
    with pytest.raises(SystemExit):
        parser("a measurement").parse_args(options)
    assert said in capsys.readouterr().err
    assert parser("of no texts", reads_texts=False).parse_args(options).quick is False


def test_a_batch_smaller_than_the_number_of_chunks_is_not_cut_into_empty_ones(tiny_models):
    rows = [Row(text, answer) for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    models = (tiny_models["mt5"], tiny_models["llama"])
    found = compare_steps(models, [rows[:2]], "last_layer", repetitions=1, seed=0)
    assert "bare_in_2_chunks_ms" in found
    assert "bare_in_4_chunks_ms" not in found


def test_a_bridge_whose_texts_never_become_answers_is_not_measured(tiny_models, tmp_path):
    bridge = build_bridge((tiny_models["mt5"], tiny_models["llama"]), "last_layer")
    rows = [Row(text, answer) for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    kept = tmp_path / "bridge.safetensors"
    with pytest.raises(SystemExit, match="After 1 steps the bridge's texts were not yet answers"):
        train(bridge, rows, rows, kept, max_steps=1, learning_rate=1e-3)
    assert not kept.exists()
    train(bridge, rows, rows, kept, max_steps=1, learning_rate=1e-3, must_answer=False)
    assert kept.exists()


def test_an_unknown_benchmark_is_answered_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "fuson"])
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert "unknown benchmark fuson; known: roofline, fusion" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(benchmarks.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_of_known_benchmarks_measured_in_full(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem in benchmarks.BENCHMARKS
    assert not found["options"]["quick"], "sizes that measure nothing"


_MACHINE = {"processor": "x", "cores": 2, "threads": 2, "gpu": None, "torch": "2", "transformers": "5"}


def _twins(fusion, tiny_models) -> tuple[Bridge, PublishedPipeline]:
    """A bridge away from its start, where some gradients are zero, and the pipeline with the same parameters."""
    config = BridgeConfig(
        encoder=tiny_models["mt5"],
        llm=tiny_models["llama"],
        fusion=TransformerSoftmax(dropout=0.0) if fusion == "transformer_softmax" else fusion,
    )
    bridge = Bridge.build(config, device="cpu", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in bridge.trained_parameters().items():
            scale = 1e-6 if name == "fusion.tau" else 0.02
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    pipeline = PublishedPipeline(tiny_models["mt5"], tiny_models["llama"], fusion=fusion)
    pipeline.start_like(bridge.trained_parameters())
    return bridge, pipeline
