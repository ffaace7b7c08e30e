"""Evaluation folders made by the real writers, with answers known row by row; every figure worked out here again."""

import itertools
import json
import re
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from layerbridge.analysis import LanguageWeights, LayerWeights, read_analysis, write_analysis, write_weights
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation import statistics
from layerbridge.evaluation.analyse import analyse
from layerbridge.evaluation.correctness import find_evaluations
from layerbridge.evaluation.predictions import predictions_path, read_predictions, write_predictions
from layerbridge.evaluation.score import rescore
from layerbridge.evaluation.set_ups import pair_seeds
from tests.evaluation.fakes import ANSWERS, SHA, make_header, make_prediction, make_provenance

FEW = 200


def write_run(root, name, correct, *, order=None, ids=None, task="news", run_json=True, **changes):
    """A run folder with one evaluation; `correct`: language -> a string such as `110` (`x`: unreadable)."""
    seed = int(name[-1]) if name[-1].isdigit() else None
    fusion = name.split("-seed-")[0]
    origin = {
        "run": name,
        "fusion": fusion,
        "seed": seed,
        "task": task,
        "checkpoint_sha256": f"checkpoint-{name}",
        "config_sha256": f"config-{fusion}",
        "setup_sha256": f"setup-{fusion}",
    }
    provenance = make_provenance(**(origin | changes))
    folder = root / name / "evaluation" / f"{task}-{provenance.split}"
    for code, row in correct.items():
        rows = []
        for number, mark in enumerate(row):
            gold = ANSWERS[number % 3]
            said = {"1": gold, "0": ANSWERS[(number + 1) % 3], "x": "nothing"}[mark]
            prediction = make_prediction(number, gold, None if mark == "x" else said, said, language=code)
            rows.append(_only(prediction, provenance.methods, (ids or {}).get(code, {}).get(number)))
        if order:
            rows = [rows[index] for index in order]
        header = make_header(len(rows), language=code, provenance=provenance)
        write_predictions(predictions_path(folder, code), header, rows)
    rescore(folder)
    if run_json:
        record = {
            "trained_parameters": 1234,
            "train_rows": 90,
            "train_source": "local:train",
            "steps": 20,
            "seconds": 3.5,
        }
        record |= {"train_sha256": SHA["f"], "selected_step": 10}
        (root / name / "run.json").write_text(json.dumps(record))
    return folder


def _only(prediction, methods, identity):
    changes = {} if identity is None else {"id": identity}
    if "score" not in methods:
        changes |= {"scored": None, "log_probs": None}
    if "generate" not in methods:
        changes |= {"generated": None}
    return type(prediction)(**{name: getattr(prediction, name) for name in prediction.__slots__} | changes)


OURS = {"en": "111110", "si": "111011", "ta": "101110"}
THEIRS = {"en": "111100", "si": "010001", "ta": "001010"}


@pytest.fixture
def two(tmp_path):
    write_run(tmp_path, "transformer_softmax-seed-0", OURS)
    write_run(tmp_path, "last_layer-seed-0", THEIRS)
    return tmp_path


def table_of(analysis, method="score", task="news"):
    return next(item for item in analysis.tasks if (item.task, item.method) == (task, method))


def language_of(table, code):
    return next(row for row in table.languages if row.code == code)


def bits(row):
    return np.array([mark == "1" for mark in row], dtype=float)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_every_figure_of_a_two_language_example_is_the_one_worked_out(two):
    table = table_of(analyse([two], num_resamples=100_000))
    assert [item.name for item in table.set_ups] == ["last_layer", "transformer_softmax"]
    assert table.reference == "last_layer"
    si = language_of(table, "si")
    assert (si.name, si.script, si.direction, si.seen, si.n) == ("Sinhala", "Sinh", "ltr", False, 6)
    assert si.accuracies["transformer_softmax"].mean == pytest.approx(5 / 6)
    assert si.accuracies["last_layer"].by_seed == pytest.approx((2 / 6,))
    difference = si.differences["transformer_softmax"]
    assert (difference.wins, difference.losses) == (3, 0)
    assert difference.mean == pytest.approx(0.5)
    assert difference.p_mcnemar == pytest.approx(stats.binomtest(3, 3).pvalue)
    # Unseen: si with 3 of 3 discordant rows, ta with 2 of 2: Holm takes the smaller p twice, the other once.
    assert difference.p_mcnemar_holm == pytest.approx(0.5)
    ta = language_of(table, "ta").differences["transformer_softmax"]
    assert (ta.wins, ta.losses, ta.p_mcnemar, ta.p_mcnemar_holm) == (2, 0, 0.5, 0.5)
    en = language_of(table, "en").differences["transformer_softmax"]
    assert (en.p_bootstrap_holm, en.p_mcnemar_holm) == (None, None)
    # The average of si and ta, whose rows are translations: every resample of 6 rows, enumerated.
    (zero_shot,) = (row for row in table.averages if row.name == "zero-shot average")
    values = (bits(OURS["si"]) - bits(THEIRS["si"]) + bits(OURS["ta"]) - bits(THEIRS["ta"])) / 2
    means = np.array([values[list(drawn)].mean() for drawn in itertools.product(range(6), repeat=6)])
    found = zero_shot.differences["transformer_softmax"]
    assert (zero_shot.languages, zero_shot.n) == (("si", "ta"), 12)
    assert (found.wins, found.losses, found.p_mcnemar, found.p_bootstrap_holm) == (5, 0, None, None)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-9)
    reached = np.mean(np.abs(means - values.mean()) >= values.mean() - 1e-12)
    assert found.p_bootstrap == pytest.approx(reached, abs=0.003)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * means.std(), rel=1e-4)
    assert table.parallel


def test_rows_are_paired_by_id_not_by_order(two, tmp_path):
    write_run(tmp_path / "shuffled", "transformer_softmax-seed-0", OURS, order=[3, 0, 5, 1, 4, 2])
    expected = analyse([two / "transformer_softmax-seed-0", two / "last_layer-seed-0"], num_resamples=FEW)
    found = analyse([tmp_path / "shuffled", two / "last_layer-seed-0"], num_resamples=FEW)
    assert found.tasks == expected.tasks


def test_the_order_of_the_paths_changes_nothing(two):
    runs = [two / "transformer_softmax-seed-0", two / "last_layer-seed-0"]
    assert (
        analyse(runs, num_resamples=FEW) == analyse(runs[::-1], num_resamples=FEW) == analyse([two], num_resamples=FEW)
    )


def test_languages_of_unlike_rows_are_not_parallel(tmp_path):
    ids = {"ta": {number: f"other-{number}" for number in range(6)}}
    write_run(tmp_path, "transformer_softmax-seed-0", OURS, ids=ids)
    write_run(tmp_path, "last_layer-seed-0", THEIRS, ids=ids)
    table = table_of(analyse([tmp_path], num_resamples=20_000))
    si, ta = (bits(OURS[code]) - bits(THEIRS[code]) for code in ("si", "ta"))
    apart = ((si.var() + ta.var()) / 6) ** 0.5 / 2
    (zero_shot,) = (row for row in table.averages if row.name == "zero-shot average")
    assert not table.parallel
    found = zero_shot.differences["transformer_softmax"]
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * apart, rel=1e-4)


def test_seeds_are_one_setup_and_averaged(tmp_path):
    for seed, row in enumerate(("110000", "111000", "111100")):
        write_run(tmp_path, f"last_layer-seed-{seed}", {"si": row})
        write_run(tmp_path, f"transformer_softmax-seed-{seed}", {"si": "1" + row[:5]})
    table = table_of(analyse([tmp_path], num_resamples=FEW))
    assert [(item.name, item.seeds) for item in table.set_ups] == [
        ("last_layer", (0, 1, 2)),
        ("transformer_softmax", (0, 1, 2)),
    ]
    row = language_of(table, "si")
    assert row.accuracies["last_layer"].by_seed == pytest.approx((2 / 6, 3 / 6, 4 / 6))
    assert row.accuracies["last_layer"].mean == pytest.approx(0.5)
    difference = row.differences["transformer_softmax"]
    assert (difference.wins, difference.losses) == (3, 0)
    assert difference.p_mcnemar == 1  # one discordant row in each pair of runs
    assert "Fewer than 5 seeds: last_layer 3, transformer_softmax 3." in table.notes


def test_what_several_seeds_can_show_is_the_bootstraps_and_of_one_pair_connors(tmp_path):
    generator = np.random.default_rng(0)
    ours, theirs = (
        ["".join(map(str, row)) for row in (generator.random((3, 60)) < chance).astype(int)] for chance in (0.6, 0.5)
    )
    for seed in range(3):
        write_run(tmp_path / str(seed), f"transformer_softmax-seed-{seed}", {"si": ours[seed]})
        write_run(tmp_path / str(seed), f"last_layer-seed-{seed}", {"si": theirs[seed]})
    correct_KN, reference_KN = (np.stack([bits(row) for row in rows]) for rows in (ours, theirs))
    difference = language_of(table_of(analyse([tmp_path])), "si").differences["transformer_softmax"]
    expected = statistics.paired_bootstrap([correct_KN], [reference_KN])
    assert difference.detectable == pytest.approx(expected.detectable)
    assert difference.p_bootstrap == pytest.approx(expected.p, abs=0.01)  # ids are in another order here
    alone = language_of(table_of(analyse([tmp_path / "0"])), "si").differences["transformer_softmax"]
    discordant = np.mean(correct_KN[0] != reference_KN[0])
    assert alone.detectable == pytest.approx(statistics.detectable_difference(60, discordant))


def test_setups_that_never_disagreed_do_not_tell_what_could_be_shown(tmp_path):
    for seed in range(2):
        for name in ("transformer_softmax", "last_layer"):
            write_run(tmp_path, f"{name}-seed-{seed}", OURS)
    table = table_of(analyse([tmp_path], num_resamples=FEW))
    found = [row.differences["transformer_softmax"] for row in (*table.languages, *table.averages)]
    assert {(item.mean, item.p_bootstrap, item.detectable) for item in found} == {(0.0, 1.0, None)}


def test_all_rows_right_is_no_certainty(tmp_path):
    for seed in range(2):
        write_run(tmp_path, f"last_layer-seed-{seed}", {"si": "111111", "ta": "111111"})
    table = table_of(analyse([tmp_path], num_resamples=FEW))
    exact = stats.binomtest(6, 6).proportion_ci(method="exact").low
    for row in (*table.languages, *table.averages):
        accuracy = row.accuracies["last_layer"]
        assert (accuracy.low, accuracy.high) == (pytest.approx(exact), 1.0)


def test_unreadable_answers_are_wrong_and_their_own_figure(tmp_path):
    write_run(tmp_path, "last_layer-seed-0", {"si": "11x0", "ta": "1111"})
    accuracy = language_of(table_of(analyse([tmp_path], num_resamples=FEW), "generate"), "si").accuracies
    assert accuracy["last_layer"].mean == pytest.approx(0.5)
    assert accuracy["last_layer"].unreadable == pytest.approx(0.25)


# ---------------------------------------------------------------------------------------------------------------------
# Set-ups


def write_baseline(root, name, correct, **changes):
    origin = {"kind": "baseline", "seed": None, "setup_sha256": None, "fusion": name, "methods": ("score",)}
    return write_run(root, name, correct, **(origin | changes))


def test_bridges_layer_sweep_and_baselines_are_told_apart_and_in_this_order(two):
    write_baseline(two, "majority", dict.fromkeys(OURS, "100100"))
    for layer in (10, 9):
        changes = {"fusion": "single_layer", "layer": layer, "config_sha256": f"c{layer}", "setup_sha256": f"s{layer}"}
        write_run(two, f"single_layer_{layer}-seed-0", OURS, **changes)
    analysis = analyse([two], num_resamples=FEW)
    assert [(item.group, item.layer) for item in table_of(analysis).set_ups] == [
        ("bridge", None),
        ("bridge", None),
        ("layer_sweep", 9),
        ("layer_sweep", 10),
        ("baseline", None),
    ]
    assert "majority" not in [item.name for item in table_of(analysis, "generate").set_ups]
    assert [claim.set_up for claim in analysis.claims] == ["transformer_softmax"]


def test_one_run_of_a_baseline_is_compared_with_every_seed(tmp_path):
    for seed, row in enumerate(("110000", "111000")):
        write_run(tmp_path, f"last_layer-seed-{seed}", {"si": row})
    write_baseline(tmp_path, "majority", {"si": "000111"})
    difference = language_of(table_of(analyse([tmp_path], num_resamples=FEW)), "si").differences["majority"]
    assert (difference.wins, difference.losses) == (3 + 3, 2 + 3)
    assert difference.mean == pytest.approx(fmean([0.5 - 2 / 6, 0.5 - 3 / 6]))


def test_seeds_that_one_setup_lacks_are_left_out_of_the_difference_and_noted(tmp_path):
    for seed in range(3):
        write_run(tmp_path, f"last_layer-seed-{seed}", {"si": "110000"})
    for seed in (1, 2):
        write_run(tmp_path, f"transformer_softmax-seed-{seed}", {"si": "111000"})
    analysis = analyse([tmp_path], num_resamples=FEW)
    table = table_of(analysis)
    assert language_of(table, "si").differences["transformer_softmax"].wins == 2
    assert "transformer_softmax is compared with last_layer in 2 pairs of runs." in table.notes
    assert analysis.claims[0].num_seeds == 2


@pytest.mark.parametrize(
    ("seeds", "expected", "note"),
    [
        ((0,), 1, "transformer_softmax is compared with last_layer in 1 pair of runs."),
        ((9,), 1, "last_layer is one training, which every seed of transformer_softmax is compared with"),
        ((8, 9), 2, "transformer_softmax and last_layer share no seed: .* in order, in 2 pairs"),
        ((0, 1, 2), 3, None),
    ],
)
def test_a_claim_has_the_seeds_of_the_side_that_has_fewer(tmp_path, seeds, expected, note):
    for seed in range(3):
        write_run(tmp_path, f"transformer_softmax-seed-{seed}", {"si": "111000"})
    for seed in seeds:
        write_run(tmp_path, f"last_layer-seed-{seed}", {"si": "110000"})
    write_baseline(tmp_path, "majority", {"si": "000111"})
    analysis = analyse([tmp_path], num_resamples=FEW)
    assert analysis.claims[0].num_seeds == expected
    found = [text for text in table_of(analysis).notes if "pair" in text or "is one training" in text]
    assert len(found) == (note is not None)
    assert note is None or re.search(note, found[0])


def test_a_claim_over_a_baseline_without_seeds_has_the_seeds_of_the_bridge(tmp_path):
    for seed in range(3):
        write_run(tmp_path, f"transformer_softmax-seed-{seed}", {"si": "111000"})
    write_baseline(tmp_path, "majority", {"si": "000111"})
    analysis = analyse([tmp_path], num_resamples=FEW, reference="majority")
    assert [claim.num_seeds for claim in analysis.claims] == [3]
    assert not any("pair" in note for note in table_of(analysis).notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "group", "expected"),
    [
        ((0, 1, 2), (0, 1, 2), "bridge", ([0, 1, 2], [0, 1, 2])),
        ((0, 1, 2), (2, 0), "bridge", ([0, 2], [1, 0])),
        ((0, 1, 2), (1,), "bridge", ([1], [0])),
        ((0, 1, 2), (1,), "baseline", ([0, 1, 2], [0, 0, 0])),
        ((None,), (0, 1), "bridge", ([0, 0], [0, 1])),
        ((0, 1, 2), (5, 6), "bridge", ([0, 1], [0, 1])),
    ],
)
def test_runs_are_paired_by_seed(two, ours, theirs, group, expected):
    first = table_of(analyse([two], num_resamples=FEW)).set_ups[0]
    left = first.model_copy(update={"seeds": ours})
    right = first.model_copy(update={"seeds": theirs, "group": group})
    assert pair_seeds(left, right) == expected


def test_the_reference_is_the_last_layer_unless_another_is_named(two):
    write_run(two, "attention_pool-seed-0", OURS)
    assert table_of(analyse([two], num_resamples=FEW)).reference == "last_layer"
    other = analyse([two], num_resamples=FEW, reference="attention_pool")
    assert table_of(other).reference == "attention_pool"
    with pytest.raises(ConfigError, match=r"Unknown set-up 'last_layr'\. Did you mean 'last_layer'"):
        analyse([two], reference="last_layr")


def test_a_plain_last_layer_comes_before_another_recipes(tmp_path):
    for seed in (0, 1):
        changes = {"fusion": "last_layer", "config_sha256": "tuned", "setup_sha256": "tuned"}
        write_run(tmp_path, f"a_tuned_last-seed-{seed}", OURS, **changes)
        write_run(tmp_path, f"last_layer-seed-{seed}", THEIRS)
    assert table_of(analyse([tmp_path], num_resamples=FEW)).reference == "last_layer"


def test_without_a_last_layer_the_first_setup_is_the_reference(tmp_path):
    write_run(tmp_path, "transformer_softmax-seed-0", OURS)
    write_run(tmp_path, "global_softmax-seed-0", THEIRS)
    assert table_of(analyse([tmp_path], num_resamples=FEW)).reference == "global_softmax"


def test_averages_are_over_the_languages_that_all_bridges_have(two):
    write_run(two, "attention_pool-seed-0", {"en": OURS["en"], "si": OURS["si"]})
    table = table_of(analyse([two], num_resamples=FEW))
    assert [row.languages for row in table.averages] == [("en", "si"), ("si",)]
    assert "attention_pool" not in language_of(table, "ta").accuracies
    assert "Averages are over the languages that all bridges have: en, si." in table.notes
    assert all(row.differences["transformer_softmax"].p_mcnemar is None for row in table.averages)


def test_a_baseline_with_fewer_languages_does_not_move_the_bridges_averages(two):
    before = analyse([two], num_resamples=FEW)
    write_baseline(two, "llm", {"en": "111111", "si": "000000"})
    after = analyse([two], num_resamples=FEW)
    assert after.claims == before.claims
    table = table_of(after)
    assert [row.languages for row in table.averages] == [("en", "si", "ta"), ("si", "ta")]
    assert all("llm" not in row.accuracies for row in table.averages)
    assert "llm" in language_of(table, "si").accuracies
    assert "llm has no ta, and is left out of averages with them." in table.notes


def test_a_reference_with_fewer_languages_takes_the_averages_with_it(two):
    write_baseline(two, "llm", {"en": "111111", "si": "000000"})
    analysis = analyse([two], num_resamples=FEW, reference="llm")
    assert [row.languages for row in table_of(analysis).averages] == [("en", "si"), ("si",)]
    assert [claim.num_languages for claim in analysis.claims] == [1, 1]


def test_baselines_alone_are_averaged_over_what_they_share(tmp_path):
    write_baseline(tmp_path, "llm", {"en": "111111", "si": "000000"})
    write_baseline(tmp_path, "probe", OURS)
    analysis = analyse([tmp_path], num_resamples=FEW)
    assert table_of(analysis).averages[0].languages == ("en", "si")
    assert (analysis.claims, table_of(analysis).encoder) == ((), None)


def test_without_unseen_languages_holm_is_over_all_and_there_is_no_zero_shot_average(tmp_path):
    for name, rows in (("transformer_softmax-seed-0", OURS), ("last_layer-seed-0", THEIRS)):
        write_run(tmp_path, name, rows, languages_seen=("en", "si", "ta"))
    analysis = analyse([tmp_path], num_resamples=FEW)
    table = table_of(analysis)
    assert [row.name for row in table.averages] == ["average"]
    assert analysis.claims[0].average == "average"
    assert all(row.differences["transformer_softmax"].p_mcnemar_holm is not None for row in table.languages)


# ---------------------------------------------------------------------------------------------------------------------
# Claims and the whole


def test_claims_have_the_main_task_first_and_the_transformer_softmax_first_in_each(tmp_path):
    for task in ("alpha", "beta"):
        for name in ("transformer_softmax-seed-0", "global_softmax-seed-0", "last_layer-seed-0"):
            write_run(tmp_path / task, name, OURS, task=task)
    found = [(claim.task, claim.set_up) for claim in analyse([tmp_path], num_resamples=FEW, main="beta").claims]
    names = ["transformer_softmax", "global_softmax"]
    assert found == [(task, name) for task in ("beta", "alpha") for name in names]
    assert analyse([tmp_path], num_resamples=FEW).claims[0].task == "alpha"
    with pytest.raises(ConfigError, match="Unknown task 'gamma'.*Known: alpha, beta"):
        analyse([tmp_path], num_resamples=FEW, main="gamma")


def test_claims_after_the_first_are_adjusted_for_being_several(tmp_path):
    for number, name in enumerate(("transformer_softmax", "attention_pool", "global_softmax", "last_layer")):
        correct = "".join("1" if (n * 7 + number) % 5 > number else "0" for n in range(40))
        write_run(tmp_path, f"{name}-seed-0", {"si": correct})
    first, *others = analyse([tmp_path], num_resamples=FEW).claims
    assert (first.set_up, first.p_holm) == ("transformer_softmax", None)
    expected = statistics.holm([claim.difference.p_bootstrap for claim in others])
    assert [claim.p_holm for claim in others] == expected
    assert len(others) == 2


def test_bridges_that_only_generate_have_their_claims_beside_a_probe_that_only_scores(tmp_path):
    for name, rows in (("transformer_softmax-seed-0", OURS), ("last_layer-seed-0", THEIRS)):
        write_run(tmp_path, name, rows, methods=("generate",))
    write_baseline(tmp_path, "linear_probe_last_layer", OURS)
    write_baseline(tmp_path, "llm_alone", THEIRS)
    analysis = analyse([tmp_path], num_resamples=FEW)
    assert [(claim.method, claim.set_up) for claim in analysis.claims] == [("generate", "transformer_softmax")]
    probes = table_of(analysis, "score")
    assert probes.reference is None
    assert all(row.differences == {} and len(row.accuracies) == 2 for row in (*probes.languages, *probes.averages))


def test_what_is_not_done_of_a_study_is_noted(two):
    places = [f"news/last_layer-seed-{seed}" for seed in range(7)]
    for place in places[:2]:
        (two / place).mkdir(parents=True)
        (two / place / "job.json").write_text("{}")
    (two / "study.json").write_text(json.dumps({"study": "mine", "jobs": places}))
    note, after = analyse([two], num_resamples=FEW, notes=["mine"]).notes
    assert note == "2 of 7 jobs are done; missing: " + ", ".join(places[2:6]) + ", 1 more."
    assert after == "mine"
    for record in ({"study": "older, without jobs"}, {"jobs": places[:2]}):
        (two / "study.json").write_text(json.dumps(record))
        assert analyse([two], num_resamples=FEW).notes == ()


def test_an_analysis_reads_back_as_it_was_written(two):
    analysis = analyse([two], num_resamples=FEW, title="Ours", command="layerbridge report runs", notes=["a note"])
    write_analysis(analysis, two / "analysis.json")
    assert read_analysis(two / "analysis.json") == analysis
    assert (analysis.title, analysis.command, analysis.notes) == ("Ours", "layerbridge report runs", ("a note",))


def test_weights_curves_and_origins_come_from_the_runs_files(two):
    run = two / "transformer_softmax-seed-0"
    metrics = [
        {"step": 5, "loss": 2.5},
        {"step": 10, "eval_loss": 1.0, "eval_accuracy": 0.5},
        {"step": 10, "train_runtime": 3.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (run / "environment.json").write_text(json.dumps({"device": "cpu", "cpu_count": 2}))
    weights = LayerWeights(
        run=run.name,
        fusion="transformer_softmax",
        seed=0,
        task="news",
        layer_numbers=(1, 2),
        languages={"si": LanguageWeights(num_tokens=3, mean=(0.25, 0.75))},
        sentences=(),
    )
    write_weights(weights, run / "evaluation" / "news-test" / "layer_weights.json")
    analysis = analyse([two], num_resamples=FEW)
    assert [(item.set_up, item.weights) for item in analysis.weights] == [("transformer_softmax", weights)]
    (curve,) = analysis.curves
    assert [(point.step, point.value) for point in curve.train_loss] == [(5, 2.5)]
    assert [(point.step, point.value) for point in curve.dev_accuracy] == [(10, 0.5)]
    assert curve.selected_step == 10
    origin = next(item for item in analysis.origins if item.run == run.name)
    assert (origin.machine, origin.train_rows, origin.steps, origin.seconds) == ("cpu, 2 CPU cores", 90, 20, 3.5)
    assert (origin.encoder, origin.data_sha256["si"]) == ("embedded", SHA["d"])
    assert len(analysis.origins) == 2
    assert table_of(analysis).set_ups[1].trained_parameters == 1234


def test_an_evaluation_without_its_run_has_no_curve_and_is_fine(tmp_path):
    folder = write_run(tmp_path, "last_layer-seed-0", OURS, run_json=False)
    analysis = analyse([folder / "results.json"], num_resamples=FEW)
    assert (analysis.curves, analysis.weights) == ((), ())
    assert analysis.origins[0].machine is None


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, and finding


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_version": 2}, "task version is 1 of last_layer-seed-0; 2 of other"),
        ({"split": "dev"}, "split is 'test' of last_layer-seed-0; 'dev' of other"),
        ({"limit": 6}, "limit is none of last_layer-seed-0; 6 of other"),
    ],
)
def test_another_version_split_or_limit_is_refused_and_says_which(tmp_path, change, words):
    write_run(tmp_path, "last_layer-seed-0", THEIRS)
    write_run(tmp_path, "other", OURS, **change)
    with pytest.raises(DataError, match=words):
        analyse([tmp_path])


def test_bridges_between_other_models_are_refused_and_say_which(two):
    bases = {"encoder": {"name": "other", "fingerprint": "e2"}, "llm": {"name": "embedded", "fingerprint": "l1"}}
    write_baseline(two, "linear_probe_last_layer", OURS, bases={"encoder": bases["encoder"]})
    table = table_of(analyse([two], num_resamples=FEW))
    assert (table.encoder, table.llm) == ("embedded", "embedded")
    assert any("Encoders differ: embedded (e1) in last_layer-seed-0" in note for note in table.notes)
    write_run(two, "attention_pool-seed-0", OURS, bases=bases)
    words = r"encoder of bridges is 'other \(e2\)' of attention_pool-seed-0; 'embedded \(e1\)' of last_layer-seed-0, tr"
    with pytest.raises(DataError, match=words):
        analyse([two], num_resamples=FEW)


def test_other_rows_are_refused_with_an_example(two):
    write_run(two, "last_layer-seed-0", THEIRS, ids={"si": {4: "strange"}})
    words = "language 'si', transformer_softmax-seed-0 has 6 rows, 1 of them not in last_layer-seed-0 .*'row-4'"
    with pytest.raises(DataError, match=words):
        analyse([two])


def test_missing_predictions_are_refused(two):
    predictions_path(two / "last_layer-seed-0" / "evaluation" / "news-test", "si").unlink()
    with pytest.raises(DataError, match=r"No predictions at .*si\.jsonl.*layerbridge evaluate"):
        analyse([two])


def test_predictions_that_count_otherwise_are_refused(two):
    path = predictions_path(two / "last_layer-seed-0" / "evaluation" / "news-test", "si")
    header, rows = read_predictions(path)
    gold = rows[0].answer
    write_predictions(path, header, [make_prediction(0, gold, gold, gold), *rows[1:]])
    with pytest.raises(DataError, match=r"counts otherwise than .*results\.json.*--rescore"):
        analyse([two])


def test_predictions_of_another_evaluation_are_refused(two):
    path = predictions_path(two / "last_layer-seed-0" / "evaluation" / "news-test", "si")
    header, rows = read_predictions(path)
    update = {"provenance": header.provenance.model_copy(update={"checkpoint_sha256": "older"})}
    write_predictions(path, header.model_copy(update=update), rows)
    with pytest.raises(DataError, match="is of another evaluation"):
        analyse([two])


def test_results_are_found_at_any_depth_once_and_not_in_reports_or_hidden_folders(two, tmp_path):
    for hidden in (".cache", "report"):
        write_run(tmp_path / "deep" / hidden, "last_layer-seed-7", THEIRS)
    deep = write_run(tmp_path / "deep" / "er", "last_layer-seed-1", THEIRS)
    found = find_evaluations([two, deep, deep / "results.json", deep.parent.parent])
    assert sorted(path.parts[-4] for path in found) == [
        "last_layer-seed-0",
        "last_layer-seed-1",
        "transformer_softmax-seed-0",
    ]


def test_nothing_to_analyse_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="no results to analyse"):
        analyse([])
    with pytest.raises(ConfigError, match="No run, study, evaluation folder"):
        analyse([tmp_path / "gone"])
    with pytest.raises(DataError, match="has no results, at any depth"):
        analyse([tmp_path])


def test_a_damaged_record_is_named(two):
    (two / "last_layer-seed-0" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"st')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is not JSON"):
        analyse([two], num_resamples=FEW)
