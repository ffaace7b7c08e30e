"""lm-evaluation-harness: task files, the command, and that its accuracy is our own evaluation's."""

import json
import subprocess
import sys

import pytest
import yaml
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.config import BridgeConfig, BuiltinTaskConfig, EvaluationConfig, Recipe, build_config
from layerbridge.data.tasks import build_task
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.harness.model import BridgeLM
from layerbridge.evaluation.harness.run import run_harness
from layerbridge.evaluation.harness.tasks import Asked, build_tasks, split_names, task_files, task_names
from layerbridge.evaluation.predict import evaluate_run
from layerbridge.evaluation.predictions import read_predictions
from layerbridge.evaluation.score import pick_answer
from layerbridge.languages import all_languages
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_bridge
from layerbridge.training.train import train
from tests.data.writers import write_rows
from tests.evaluation.test_harness_marks import TRAPS

NUM_ROWS = 10
SIB200 = ("sports", "travel", "science/technology", "politics", "health", "entertainment", "geography")
NEWS = ("Business", "Entertainment", "Political", "Sports", "Science")
LANGUAGES = {"sib200": ("en", "si"), "indicxnli": ("ta", "bn"), "sinhala_news": ("en", "si")}


# ---------------------------------------------------------------------------------------------------------------------
# Rows, a run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Local jsonl in the hub sets' own schemas, a folder a benchmark; texts hold what could be taken for marks."""
    folder = tmp_path_factory.mktemp("data")
    headlines = build_task(BuiltinTaskConfig(name="headlines"))
    for code in dict.fromkeys(code for codes in LANGUAGES.values() for code in codes):
        texts = [row.text for row in headlines.load(code, "test").examples[:NUM_ROWS]]
        texts = [f"{text} {TRAPS[number % len(TRAPS)]}" for number, text in enumerate(texts)]
        for split in ("train", "dev", "test"):
            topics = [
                {"index_id": number, "category": SIB200[number * 3 % 7], "text": f"{text} {split}"}
                for number, text in enumerate(texts)
            ]
            write_rows(folder / "sib200" / code / f"{split}.jsonl", topics)
        pairs = [{"premise": t, "hypothesis": t[::-1], "label": n % 3} for n, t in enumerate(texts)]
        write_rows(folder / "indicxnli" / code / "test.jsonl", pairs)
        news = [{"sentence": text, "label": NEWS[number % 5]} for number, text in enumerate(texts)]
        write_rows(folder / "sinhala_news" / f"test_{code}.jsonl", news)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of the embedded pair, a few steps long: tiny random LLMs give every text the same answer.

    Its LLM also reads a text prompt of its own.
    """
    recipe = {
        "name": "small",
        "fusion": "last_layer",
        "projector": {"name": "linear", "match_rms": True},
        "prompt": {"text": "\nTopic:"},
        "task": {"name": "sib200", "data": str(data / "sib200")},
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-4},
        "evaluation": {"batch_size": 4},
    }
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(build_config(Recipe, recipe, where="test"), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def run_bridge(run):
    return load_bridge(run)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def test_every_language_of_every_task_file_has_a_name():
    names = task_names()
    assert {f"sib200_{item.code}" for item in all_languages()} <= set(names)
    assert sum(benchmark == "indicxnli" and language is not None for benchmark, language in names.values()) == 11
    assert names["sinhala_news_si"] == ("sinhala_news", "si")
    assert set(task_files()) == set(LANGUAGES) <= set(names)


def test_names_become_groups_and_single_languages():
    asked, foreign = split_names(["sib200", "sib200_si", "sib200_ta", "indicxnli_ta", "xnli_sw"], ["si"], ["xnli_sw"])
    assert asked == [
        Asked(benchmark="sib200", languages=("si",), as_group=True),
        Asked(benchmark="sib200", languages=("ta",), as_group=False),
        Asked(benchmark="indicxnli", languages=("ta",), as_group=False),
    ]
    assert foreign == ["xnli_sw"]


@pytest.mark.parametrize(
    ("names", "languages", "foreign", "message"),
    [
        (["sib200_sx"], None, None, r"Unknown task 'sib200_sx'\. Did you mean 'sib200_.*--include-defaults"),
        (
            ["xnli_sv"],
            None,
            ["xnli_sw"],
            r"Unknown task 'xnli_sv'\. Did you mean 'xnli_sw'.*sib200 \(sib200_{language}\)",
        ),
        ([], None, None, "No task was given"),
        (["sib200"], ["sii"], None, "Unknown language of sib200 'sii'.*Did you mean"),
        (["sib200_si"], ["si"], None, "Languages are of a group"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(names, languages, foreign, message):
    with pytest.raises(ConfigError, match=message):
        split_names(names, languages, foreign)


def own_predictions(run, benchmark, folder, out, **options):
    """Our own evaluation by label scoring: results, and each language's predictions."""
    config = EvaluationConfig(languages=LANGUAGES[benchmark], methods=("score",), batch_size=4, **options)
    task = BuiltinTaskConfig(name=benchmark, data=str(folder))
    results = evaluate_run(run, task_config=task, config=config, out=out)
    rows = {code: read_predictions(out / "predictions" / f"{code}.jsonl")[1] for code in results.languages}
    return results, rows


@pytest.mark.parametrize("benchmark", list(LANGUAGES))
@pytest.mark.parametrize("limit", [None, 5])
def test_accuracy_is_our_own_evaluations_in_every_language(run, data, tmp_path, benchmark, limit):
    found = run_harness(run, [benchmark], data=str(data), languages=LANGUAGES[benchmark], limit=limit)
    expected, _ = own_predictions(run, benchmark, data / benchmark, tmp_path, limit=limit)
    for language, score in expected.languages.items():
        name = f"{benchmark}_{language}"
        assert found["results"][name]["acc,none"] == pytest.approx(score.methods["score"].correct / score.n, abs=1e-12)
        assert found["n-samples"][name] == {"original": NUM_ROWS, "effective": score.n}
        assert found["configs"][name]["metadata"]["rows_sha256"] == score.data_sha256
        assert found["versions"][name] == expected.provenance.task_version
    assert found["groups"][benchmark]["acc,none"] == pytest.approx(expected.averages("score").all)
    assert found["layerbridge"]["checkpoint_sha256"] == expected.provenance.checkpoint_sha256


@pytest.mark.parametrize("benchmark", list(LANGUAGES))
def test_every_rows_log_probabilities_and_answer_are_our_own_evaluations(run, run_bridge, data, tmp_path, benchmark):
    _, expected = own_predictions(run, benchmark, data / benchmark, tmp_path)
    check_rows(BridgeLM(run_bridge, batch_size=4), benchmark, data / benchmark, expected)


def check_rows(model, benchmark, folder, expected, limit=None):
    if benchmark != "indicxnli":  # Neutral is the shortest, and a bridge that learnt nothing prefers it throughout
        assert len({row.scored for rows in expected.values() for row in rows}) > 1
    task = build_task(BuiltinTaskConfig(name=benchmark, data=str(folder)))
    asked = [Asked(benchmark=benchmark, languages=tuple(expected), as_group=False)]
    loaded = TaskManager(include_defaults=False).load(build_tasks(asked, lambda _: task))
    samples = evaluate(model, loaded, limit=limit)["samples"]
    for language, rows in expected.items():
        found = samples[f"{benchmark}_{language}"]
        assert len(found) == len(rows)
        for sample, row in zip(found, rows, strict=True):
            log_probs = {a: value for a, (value, _) in zip(task.answers, sample["filtered_resps"], strict=True)}
            assert log_probs == pytest.approx(row.log_probs, abs=1e-5)
            assert pick_answer(log_probs) == row.scored
            assert bool(sample["acc"]) == (row.scored == row.answer)
        assert len({tuple(row.log_probs.values()) for row in rows}) == len(rows)


def test_the_embedded_pair_agrees_with_itself_on_sinhala_topics(measuring_data, tmp_path):
    Bridge.build(BridgeConfig(), seed=0).save_pretrained(tmp_path / "bridge")
    folder = measuring_data / "sib200"
    config = EvaluationConfig(languages=("si",), methods=("score",), limit=40)
    task = BuiltinTaskConfig(name="sib200", data=str(folder))
    expected = evaluate_run(tmp_path / "bridge", task_config=task, config=config, out=tmp_path / "own")
    _, rows = read_predictions(tmp_path / "own/predictions/si.jsonl")
    found = run_harness(tmp_path / "bridge", ["sib200_si"], data=str(measuring_data), limit=40)
    score = expected.languages["si"].methods["score"]
    assert found["results"]["sib200_si"]["acc,none"] == pytest.approx(score.correct / 40, abs=1e-12)
    check_rows(BridgeLM(tmp_path / "bridge"), "sib200", folder, {"si": rows}, limit=40)


# ---------------------------------------------------------------------------------------------------------------------
# Other tasks of lm_eval


QUESTIONS = [
    {"question": f"the cat {number} sat", "options": ["positive", f"one {number}"], "gold": number % 2, "word": "one"}
    for number in range(6)
]


@pytest.fixture(scope="module")
def foreign_tasks(tmp_path_factory):
    """Task files of someone else's, in lm_eval's own format."""
    folder = tmp_path_factory.mktemp("foreign")
    rows = write_rows(folder / "rows" / "questions.jsonl", QUESTIONS)
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "metadata": {"version": 3.0},
    }
    choice = {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "gold"}
    accuracy = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    match = {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
    tasks = {
        "unmarked": {"doc_to_text": "{{question}}?", **choice, **accuracy},
        "marked": {"doc_to_text": "<encoder>{{question}}</encoder>\nAnswer:", **choice, **accuracy},
        "fewshot": {"doc_to_text": "{{question}}?", "fewshot_split": "test", "num_fewshot": 2, **choice, **accuracy},
        "marked_fewshot": {
            "doc_to_text": "<encoder>{{question}}</encoder>", "fewshot_split": "test", "num_fewshot": 2, **choice,
            **accuracy,
        },
        "written": {
            "doc_to_text": "{{question}}", "doc_to_target": "word", "output_type": "generate_until",
            "generation_kwargs": {"until": ["e"], "max_gen_toks": 4}, **match,
        },
        "only_answers": {"doc_to_text": "", **choice, **accuracy},
    }  # fmt: skip
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": f"their_{name}", **shared, **task}))
    return folder


def accuracy_by_hand(bridge, texts, prompt):
    scores = [
        bridge.score([text], row["options"], prompts=None if prompt is None else [prompt])[0]
        for text, row in zip(texts, QUESTIONS, strict=True)
    ]
    return sum(int(s.argmax()) == row["gold"] for s, row in zip(scores, QUESTIONS, strict=True)) / len(QUESTIONS)


@pytest.mark.parametrize(("name", "mark_", "prompt"), [("unmarked", "?", None), ("marked", "", "\nAnswer:")])
def test_other_peoples_tasks_are_answered(run, run_bridge, foreign_tasks, name, mark_, prompt):
    found = run_harness(run, [f"their_{name}"], include_path=str(foreign_tasks))
    texts = [row["question"] + mark_ for row in QUESTIONS]
    assert found["results"][f"their_{name}"]["acc,none"] == pytest.approx(accuracy_by_hand(run_bridge, texts, prompt))
    assert found["versions"][f"their_{name}"] == 3.0


def test_few_shot_examples_go_through_the_encoder_with_the_rest_or_are_refused(run, foreign_tasks):
    found = run_harness(run, ["their_fewshot"], include_path=str(foreign_tasks), limit=3)
    assert found["n-shot"] == {"their_fewshot": 2}
    with pytest.raises(DataError, match=r"Task their_marked_fewshot, document 0: The context has 3 marked parts"):
        run_harness(run, ["their_marked_fewshot"], include_path=str(foreign_tasks))


def test_generation_tasks_are_answered_beside_our_own(run, run_bridge, data, foreign_tasks):
    found = run_harness(run, ["their_written", "sib200_si"], data=str(data), include_path=str(foreign_tasks))
    written = run_bridge.generate([row["question"] for row in QUESTIONS], stop=["e"], max_new_tokens=4)
    right = sum(text == "one" for text in written) / len(written)
    assert found["results"]["their_written"]["exact_match,none"] == pytest.approx(right)
    assert "acc,none" in found["results"]["sib200_si"]


def test_a_task_without_a_context_says_why_it_cannot_be_asked(run, foreign_tasks):
    with pytest.raises(DataError, match="Task their_only_answers, document 0: The context is empty"):
        run_harness(run, ["their_only_answers"], include_path=str(foreign_tasks))


def test_data_that_lm_eval_cannot_load_is_one_message(run, tmp_path):
    files = {"data_files": {"test": str(tmp_path / "gone.jsonl")}, "cache_dir": str(tmp_path)}
    task = {"task": "gone", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "doc_to_text": "x"}
    (tmp_path / "gone.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(DataError, match=r"lm_eval could not load 'gone': .*gone\.jsonl"):
        run_harness(run, ["gone"], include_path=str(tmp_path))


def test_lm_eval_finds_the_model_by_its_name(run, run_bridge, foreign_tasks):
    results = simple_evaluate(
        "layerbridge",
        model_args=f"pretrained={run},batch_size=3",
        tasks=["their_unmarked"],
        task_manager=TaskManager(include_path=str(foreign_tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    texts = [row["question"] + "?" for row in QUESTIONS]
    assert results["results"]["their_unmarked"]["acc,none"] == pytest.approx(accuracy_by_hand(run_bridge, texts, None))
    assert results["config"]["checkpoint_sha256"] == run_bridge.fingerprint()


def test_registering_leaves_lm_evals_own_models_known():
    code = (
        "import layerbridge.evaluation.harness.model, lm_eval.api.registry as r; "
        "assert {'hf', 'layerbridge'} <= set(r.model_registry.keys())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def command(*arguments):
    result = CliRunner().invoke(app, ["harness", *map(str, arguments)], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_lm_evals_table_and_writes_its_results(run, run_bridge, data, tmp_path):
    out = tmp_path / "deep" / "harness.json"
    printed = command(
        run, "--tasks", "sib200, sinhala_news_si", "--languages", "en,si", "--data", data, "--limit", "1", "--out", out
    )
    for wanted in ("sib200_en", "sib200_si", "sinhala_news_si", "|acc", "Groups", f"Wrote {out}"):
        assert wanted in printed.replace("\n", "") if wanted.startswith("Wrote") else wanted in printed
    results = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert {"results", "groups", "versions", "n-samples", "configs", "layerbridge"} <= set(results)
    assert results["versions"]["sib200_si"] == 1
    assert results["n-samples"]["sib200_si"] == {"original": NUM_ROWS, "effective": 1}
    origin = results["layerbridge"]
    assert origin["checkpoint_sha256"] == run_bridge.fingerprint()
    assert (origin["run"], origin["limit"], origin["languages_seen"]) == ("small", 1, ["en"])
    assert set(origin["versions"]) == {"layerbridge", "lm_eval", "torch", "transformers"}
    assert str(data) not in out.read_text()


def test_a_runs_own_task_needs_no_data_option(run):
    assert "sib200_si" in command(run, "--tasks", "sib200_si", "--limit", "2")


def test_names_and_rows_are_checked_before_the_models_are_loaded(run, data, monkeypatch, tmp_path):
    monkeypatch.setattr("layerbridge.model.checkpoint.load_bridge", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"Unknown task 'sib20_si'\. Did you mean 'sib200_si'"):
        command(run, "--tasks", "sib20_si")
    with pytest.raises(DataError, match="th"):
        command(run, "--tasks", "sib200_th", "--data", data)
    with pytest.raises(ConfigError, match="is no folder"):
        command(run, "--tasks", "x", "--include-path", tmp_path / "gone")
    with pytest.raises(ConfigError, match="No run or checkpoint at"):
        command(tmp_path / "gone", "--tasks", "sib200_si")


def test_without_lm_eval_the_command_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'layerbridge\[eval\]'"):
        command(run, "--tasks", "sib200_si")


def test_help_and_the_names_of_tasks_load_neither_lm_eval_nor_torch():
    code = (
        "import sys, layerbridge.cli.harness\n"
        "from layerbridge.evaluation.harness.tasks import task_names; task_names()\n"
        "loaded = {'torch', 'lm_eval', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
