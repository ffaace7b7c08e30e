"""A choice between set-ups: on dev alone, with the figures that its rows give, and written down whole."""

import json
from statistics import fmean

import pytest
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation import statistics
from layerbridge.results import write_results
from layerbridge.studies.selection import select
from layerbridge.studies.selection_log import Report, read_selection, to_markdown, write_selection
from tests.evaluation.fakes import make_language, make_results
from tests.evaluation.test_analyse import bits, write_run

SEEDS = {
    "last_layer": [
        {"en": "111100110000", "si": "010001010000", "ta": "001010100000"},
        {"en": "111000110000", "si": "010001000000", "ta": "001110100000"},
        {"en": "011100110000", "si": "110001010000", "ta": "001000100000"},
    ],
    "attention_pool": [
        {"en": "111100000000", "si": "011111110000", "ta": "001111111000"},
        {"en": "111100000000", "si": "111111100000", "ta": "001110111000"},
        {"en": "111000000000", "si": "011111110100", "ta": "011111111000"},
    ],
    "layer_mean": [
        {"en": "111111111100", "si": "010001010100", "ta": "001010100100"},
        {"en": "111111111100", "si": "010001000100", "ta": "001110100100"},
        {"en": "111111111100", "si": "110001010100", "ta": "001000100100"},
    ],
}

BY_ID = sorted(range(12), key=lambda number: f"row-{number}")
"""Rows are drawn in the order of their ids."""


def write_study(root, seeds=SEEDS, *, jobs=True, **changes):
    places = []
    for name, rows in seeds.items():
        for seed, correct in enumerate(rows):
            write_run(root / "news", f"{name}-seed-{seed}", correct, **{"split": "dev"} | changes)
            places.append(f"news/{name}-seed-{seed}")
    for place in places if jobs else ():
        (root / place / "job.json").write_text("{}")
    record = {"study": "ideas", "pair": "tiny", "definition_sha256": "d" * 64, "set_ups": {"last_layer": "e" * 64}}
    (root / "study.json").write_text(json.dumps(record | {"threads": 1, "layers": [], "jobs": places}))
    return root


def write_report(root):
    """Results to be reported, on rows that chose nothing."""
    other = make_results({"si": make_language(3, data_sha256="9" * 64)}, split="test")
    write_results(other, root / "run/evaluation/news-test/results.json")
    return root


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "ideas")


def candidate(selection, name):
    (found,) = [item for item in selection.candidates if item.set_up == name]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What may not choose


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_study_on_test_is_refused_and_named(tmp_path, study, split):
    other = write_study(tmp_path / "table", {"last_layer": SEEDS["last_layer"]}, split=split)
    with pytest.raises(DataError) as error:
        select([study, other])
    assert f"split 'news {split}': last_layer-seed-0, last_layer-seed-1, last_layer-seed-2" in str(error.value)
    assert "Only dev and held_out may choose" in str(error.value)
    assert "attention_pool" not in str(error.value)


def test_rows_that_a_report_has_are_refused_whatever_their_split_is_called(tmp_path, study):
    report = write_study(tmp_path / "table", {"last_layer": SEEDS["last_layer"]}, split="test")
    with pytest.raises(DataError, match="the en rows of news that .* are those of last_layer-seed-2 in the report"):
        select([study], reports=[report])


def test_other_rows_of_a_report_do_not_hinder(tmp_path, study):
    found = select([study], reports=[write_report(tmp_path / "table")])
    assert (found.reports_checked, found.reports) == (1, (Report(name="table", results=1, checked_at=found.chosen_at),))
    date = found.chosen_at.isoformat()
    assert f": 1 of table ({date}); none is of a split that was read here." in to_markdown(found)
    assert "Not compared with results that are reported; `--report FOLDER` does it" in to_markdown(select([study]))


def test_a_report_that_is_not_there_yet_is_answered_with_what_to_do_first(tmp_path, study):
    (tmp_path / "empty").mkdir()
    for folder, words in (("none", "No run, study, .* at .*none"), ("empty", "empty has no results")):
        with pytest.raises((ConfigError, DataError), match=f"{words}.* Choose without --report while there is nothing"):
            select([study], reports=[tmp_path / folder])


def test_a_damaged_report_is_said_to_be_damaged_and_not_to_be_left_out(tmp_path, study):
    report = write_report(tmp_path / "table")
    next(report.rglob("results.json")).write_text("{")
    with pytest.raises(DataError, match="is not JSON") as caught:
        select([study], reports=[report])
    assert "without --report" not in str(caught.value)


def test_an_unfinished_study_chooses_only_when_told_to_and_says_so(tmp_path):
    study = write_study(tmp_path, jobs=False)
    with pytest.raises(ConfigError, match="0 of 9 jobs are done; missing: .*finish the study, or type --unfinished"):
        select([study])
    assert "0 of 9 jobs are done" in select([study], unfinished=True).notes[0]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_the_figures_are_those_of_a_plain_recomputation(study):
    found = select([study])
    assert [item.set_up for item in found.candidates] == ["attention_pool", "layer_mean", "last_layer"]
    assert [item.rank for item in found.candidates] == [1, 2, 3]
    assert (found.average, found.languages, found.n, found.split) == ("zero-shot average", ("si", "ta"), 24, "dev")
    p_values = {}
    for name, rows in SEEDS.items():
        item = candidate(found, name)
        by_seed = [fmean([bits(correct["si"]).mean(), bits(correct["ta"]).mean()]) for correct in rows]
        assert item.accuracy.by_seed == pytest.approx(by_seed)
        assert item.accuracy.mean == pytest.approx(fmean(by_seed))
        assert item.english.mean == pytest.approx(fmean(bits(correct["en"]).mean() for correct in rows))
        assert item.checkpoints == {f"{name}-seed-{seed}": f"checkpoint-{name}-seed-{seed}" for seed in range(3)}
        if name == "last_layer":
            assert (item.difference, item.p_holm) == (None, None)
            continue
        ours, theirs = (
            [[bits(c[code])[BY_ID] for c in SEEDS[n]] for code in ("si", "ta")] for n in (name, "last_layer")
        )
        wanted = statistics.paired_bootstrap(ours, theirs)
        assert item.difference.mean == pytest.approx(wanted.mean)
        assert (item.difference.low, item.difference.high) == pytest.approx((wanted.low, wanted.high))
        assert item.difference.p_bootstrap == p_values.setdefault(name, wanted.p)
    assert [candidate(found, name).p_holm for name in p_values] == pytest.approx(
        statistics.holm(list(p_values.values()))
    )


def test_english_does_not_choose(study):
    found = select([study])
    assert candidate(found, "layer_mean").english.mean > found.chosen.english.mean
    assert found.chosen.set_up == "attention_pool"


def test_a_set_up_with_fewer_seeds_than_the_reference_is_listed_and_not_chosen(tmp_path):
    seeds = {**SEEDS, "attention_pool": SEEDS["attention_pool"][:2]}
    found = select([write_study(tmp_path, seeds)])
    assert (found.chosen.set_up, found.candidates[-1].set_up, found.candidates[-1].rank) == (
        "layer_mean",
        "attention_pool",
        None,
    )
    assert "Not ranked, for want of seeds that last_layer has: attention_pool." in found.notes


def test_of_equal_means_the_one_that_trains_less_is_chosen(tmp_path):
    seeds = {"last_layer": SEEDS["last_layer"], "a": SEEDS["attention_pool"], "b": SEEDS["attention_pool"]}
    root = write_study(tmp_path, seeds)
    for path in root.glob("news/b-seed-*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_parameters": 7}))
    assert [item.set_up for item in select([root]).candidates] == ["b", "a", "last_layer"]


def test_studies_done_one_after_the_other_are_ranked_together(tmp_path, study):
    later = write_study(tmp_path / "later", {"last_layer": SEEDS["last_layer"], "both": SEEDS["attention_pool"]})
    found = select([study, later])
    assert {item.set_up for item in found.candidates} == {*SEEDS, "both"}
    assert len(found.studies) == 2


def test_a_task_that_decides_is_named_where_there_are_several(tmp_path, study):
    for seed, correct in enumerate(SEEDS["last_layer"]):
        write_run(tmp_path / "more", f"last_layer-seed-{seed}", correct, split="dev", task="nli")
    with pytest.raises(ConfigError, match="several tasks: news, nli. Say which one decides, with --task"):
        select([study, tmp_path / "more"])
    with pytest.raises(ConfigError, match="Did you mean 'news'"):
        select([study, tmp_path / "more"], task="newz")
    found = select([study, tmp_path / "more"], task="news")
    assert candidate(found, "last_layer").beside["nli"].mean == candidate(found, "last_layer").accuracy.mean
    assert candidate(found, "attention_pool").beside == {}


def test_a_task_in_english_alone_stands_beside_and_does_not_choose(tmp_path, study):
    for name, rows in SEEDS.items():
        for seed, correct in enumerate(rows):
            only = {"en": correct["en"]}
            write_run(tmp_path / "more", f"{name}-seed-{seed}", only, split="held_out", task="nli")
    found = select([study, tmp_path / "more"])
    assert (found.task, found.chosen.set_up) == ("news", "attention_pool")
    assert "| English | nli |" in to_markdown(found)


# ---------------------------------------------------------------------------------------------------------------------
# The log


def test_the_log_is_read_back_as_it_was_written_and_keeps_its_date(tmp_path, study):
    first = write_selection(select([study], command="layerbridge select x"), tmp_path)
    assert read_selection(tmp_path / "selection.json") == first
    early = first.model_copy(update={"chosen_at": first.results_created})
    write_selection(early, tmp_path / "early")
    text = (tmp_path / "early/selection.json").read_text()
    write_selection(first, tmp_path / "early")
    assert (tmp_path / "early/selection.json").read_text() == text
    changed = first.model_copy(update={"n": 23})
    assert write_selection(changed, tmp_path / "early").chosen_at == first.chosen_at != early.chosen_at


def test_a_report_named_after_the_choice_is_added_and_alters_neither_choice_nor_date(tmp_path, study):
    chosen = select([study], command="layerbridge select ideas")
    chosen = chosen.model_copy(update={"chosen_at": chosen.results_created})
    write_selection(chosen, tmp_path)
    report = write_report(tmp_path / "table")
    later = select([study], reports=[report], command="layerbridge select ideas --report table")
    written = write_selection(later, tmp_path)
    added = {"reports_checked": 1, "reports": later.reports}
    assert written == chosen.model_copy(update=added)
    assert read_selection(tmp_path / "selection.json") == written
    assert write_selection(select([study], command="again"), tmp_path) == written, "what was compared stays"
    table = (tmp_path / "selection.md").read_text()
    assert f"Chosen at {chosen.chosen_at.isoformat()}" in table
    assert f"compared with these: 1 of table ({later.chosen_at.isoformat()}); none is of a split" in table
    shared = write_study(tmp_path / "shared", {"last_layer": SEEDS["last_layer"]}, split="test")
    with pytest.raises(DataError, match="are those of .* in the report"):
        select([study], reports=[report, shared])


def test_a_second_report_leaves_the_first_in_the_log(tmp_path, study):
    for name in ("one", "two"):
        write_report(tmp_path / name)
    write_results(
        make_results({"ta": make_language(3, data_sha256="8" * 64)}, split="test"),
        tmp_path / "two/more/evaluation/news-test/results.json",
    )
    first = write_selection(select([study], reports=[tmp_path / "one"]), tmp_path)
    early = first.reports[0].model_copy(update={"checked_at": first.results_created})
    write_selection(first.model_copy(update={"reports": (early,)}), tmp_path)
    second = write_selection(select([study], reports=[tmp_path / "two"]), tmp_path)
    assert second.reports[0] == early, "with its own date, or it would be claimed of the second's"
    assert [(report.name, report.results) for report in second.reports] == [("one", 1), ("two", 2)]
    assert second.reports_checked == 3
    dates = [report.checked_at.isoformat() for report in second.reports]
    table = (tmp_path / "selection.md").read_text()
    assert f"compared with these: 1 of one ({dates[0]}), 2 of two ({dates[1]}); none" in table
    again = write_selection(select([study], reports=[tmp_path / "one"]), tmp_path)
    assert [(report.name, report.results) for report in again.reports] == [("two", 2), ("one", 1)]
    assert again.reports_checked == 3
    assert again.reports[1].checked_at > early.checked_at


def test_other_results_are_another_choice_of_another_date(tmp_path, study):
    first = select([study], reports=[write_report(tmp_path / "table")])
    early = write_selection(first.model_copy(update={"chosen_at": first.results_created}), tmp_path)
    write_study(study, {**SEEDS, "both": SEEDS["attention_pool"]})
    later = write_selection(select([study]), tmp_path)
    assert later.chosen_at > early.chosen_at
    assert early.reports
    assert not later.reports, "it was compared with none"


def test_a_log_of_before_reports_had_names_is_read(tmp_path, study):
    write_selection(select([study]), tmp_path)
    path = tmp_path / "selection.json"
    data = {k: v for k, v in json.loads(path.read_text()).items() if k != "reports"}
    path.write_text(json.dumps(data | {"reports_checked": 2}))
    assert "compared with these: 2; none is" in to_markdown(read_selection(path))
    found = write_selection(select([study], reports=[write_report(tmp_path / "table")]), tmp_path)
    assert found.reports_checked == 3
    assert "compared with these: 2, 1 of table (" in to_markdown(found)


def test_set_ups_that_were_never_run_are_named(tmp_path, study):
    assert not any("Never run" in note for note in select([study]).notes)
    path = study / "study.json"
    names = ["last_layer", "attention_pool", "layer_mean", "entmax", "last_layer_noise"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"all_set_ups": names}))
    notes = [note for note in select([study]).notes if "Never run" in note]
    assert notes == ["Never run on news: 2 of the 5 set-ups of study ideas: entmax, last_layer_noise."]
    assert f"- {notes[0]}" in to_markdown(select([study]))


def test_a_log_changed_by_hand_is_refused(tmp_path, study):
    write_selection(select([study]), tmp_path)
    path = tmp_path / "selection.json"
    path.write_text(path.read_text().replace('"chosen": "attention_pool"', '"chosen": "layer_mean"'))
    with pytest.raises(DataError, match="chosen is 'layer_mean', and the first candidate 'attention_pool'"):
        read_selection(path)
    with pytest.raises(DataError, match="`layerbridge select STUDY...` writes it"):
        read_selection(tmp_path / "none.json")


def test_the_command_writes_the_log_and_says_the_choice(tmp_path, study):
    arguments = ["select", str(study), "--out", str(tmp_path / "log")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "# Chosen: attention_pool" in result.output
    assert "split **dev**" in result.output
    table = (tmp_path / "log/selection.md").read_text()
    assert "| 1 | attention_pool | 3 |" in table
    assert "Study ideas, pair tiny: definition sha256 `dddddddddddd`" in table
    assert "    layerbridge select ideas\n" in table
    assert str(tmp_path) not in table + (tmp_path / "log/selection.json").read_text()


def test_when_nothing_beats_the_reference_the_log_says_so(tmp_path):
    found = select([write_study(tmp_path, {"last_layer": SEEDS["attention_pool"], "layer_mean": SEEDS["last_layer"]})])
    assert found.chosen.set_up == "last_layer"
    assert "No set-up had a higher mean than the reference, last_layer." in found.notes
