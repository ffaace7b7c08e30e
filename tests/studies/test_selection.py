"""A choice between set-ups: on dev alone, with the figures that its rows give, and written down whole."""

import json
from statistics import fmean

import pytest
from typer.testing import CliRunner

from layerbridge.cli import app
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation import statistics
from layerbridge.studies.selection import select
from layerbridge.studies.selection_log import read_selection, to_markdown, write_selection
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
    from layerbridge.results import write_results

    other = make_results({"si": make_language(3, data_sha256="9" * 64)}, split="test")
    write_results(other, tmp_path / "table/run/evaluation/news-test/results.json")
    found = select([study], reports=[tmp_path / "table"])
    assert found.reports_checked == 1
    assert "searched for the same rows: 1; none had any" in to_markdown(found)


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
    changed = first.model_copy(update={"command": "another"})
    assert write_selection(changed, tmp_path / "early").chosen_at == first.chosen_at != early.chosen_at


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
