import csv
import io
import re
from datetime import timedelta
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.compare import comparison
from layerbridge.evaluation.render import render, render_results, to_csv, to_markdown
from tests.evaluation.fakes import CREATED, SHA, make_language, make_results


def seed(number, correct=5, **changes):
    languages = {"en": make_language(8), "si": make_language(correct), "ta": make_language(correct)}
    origin = {"run": f"ts-seed-{number}", "seed": number, "checkpoint_sha256": f"checkpoint-{number}"}
    return make_results(languages, **(origin | changes))


def other(**changes):
    """A run of another set-up."""
    origin = {
        "run": "last",
        "config_sha256": SHA["e"],
        "setup_sha256": SHA["e"],
        "checkpoint_sha256": SHA["e"],
    }
    languages = changes.pop("languages", None)
    return make_results(languages, **(origin | changes))


def row(table, name):
    return next(found for found in table.rows if found.name == name)


def drawn(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_rows_are_seen_languages_then_codes_then_averages():
    languages = {code: make_language() for code in ("ta", "en", "hi", "as")}
    table = comparison([make_results(languages, languages_seen=("hi", "en"))])
    assert [found.name for found in table.rows] == ["en", "hi", "as", "ta", "average", "zero-shot average"]
    assert [found.seen for found in table.rows] == [True, True, False, False, None, None]


def test_averages_are_over_languages_and_keep_zero_shot_apart():
    table = comparison([make_results()])
    assert row(table, "average").cells[0].mean == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert row(table, "zero-shot average").cells[0].mean == pytest.approx(0.55)
    assert row(table, "zero-shot average").majority == pytest.approx(0.4)
    assert row(table, "zero-shot average").n == 20


def test_seeds_of_one_setup_are_one_column_with_mean_and_deviation():
    table = comparison([seed(0, 4), seed(1, 5), seed(2, 9), other()])
    assert [(column.name, column.num_seeds) for column in table.columns] == [("ts", 3), ("last", 1)]
    cell = row(table, "si").cells[0]
    assert cell.mean == pytest.approx(0.6)
    assert cell.deviation == pytest.approx(stdev([0.4, 0.5, 0.9]))
    assert row(table, "si").cells[1].deviation is None
    assert row(table, "en").cells[0].deviation == 0


def test_the_deviation_of_an_average_is_over_seeds_not_languages():
    table = comparison([seed(0, 4), seed(1, 6)])
    averages = [(0.8 + 0.4 + 0.4) / 3, (0.8 + 0.6 + 0.6) / 3]
    assert row(table, "average").cells[0].deviation == pytest.approx(stdev(averages))


@pytest.mark.parametrize(
    "change",
    [
        {"config_sha256": SHA["e"]},
        {"setup_sha256": SHA["e"]},
        {"setup_sha256": None},
        {"max_source_tokens": 200},
        {"languages_seen": ("en", "hi")},
        {"bases": {"encoder": {"name": "embedded", "fingerprint": "e2"}}},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_stay_apart(change):
    assert len(comparison([seed(0), seed(1, **change)]).columns) == 2


def test_checkpoints_of_unknown_setup_are_never_grouped():
    assert len(comparison([seed(0, setup_sha256=None), seed(1, setup_sha256=None)]).columns) == 2


@given(order=st.permutations(range(4)))
def test_numbers_do_not_depend_on_the_order_of_the_runs(order):
    given_runs = [seed(0, 4), seed(1, 5), seed(2, 9), other()]
    table = comparison([given_runs[index] for index in order])
    expected = comparison(given_runs)
    for found, wanted in zip(table.rows, expected.rows, strict=True):
        cells = {column.name: cell for column, cell in zip(table.columns, found.cells, strict=True)}
        for column, cell in zip(expected.columns, wanted.cells, strict=True):
            assert cells[column.name] == cell


def test_results_given_twice_count_once_and_the_newest_stands():
    newer = make_results({"en": make_language(1)}, created=CREATED + timedelta(days=1))
    table = comparison([make_results({"en": make_language(9)}), newer, make_results({"en": make_language(9)})])
    assert len(table.columns) == 1
    assert row(table, "en").cells[0].mean == pytest.approx(0.1)
    assert row(table, "en").cells[0].deviation is None
    assert table.notes == ()


def test_one_checkpoint_under_two_names_counts_once_and_is_noted():
    table = comparison([make_results(run="a"), make_results(run="b")])
    assert len(table.columns) == 1
    assert "a, b have one and the same checkpoint, which counts once." in table.notes


def test_a_seed_used_twice_is_noted():
    table = comparison([seed(0), seed(0, checkpoint_sha256="another")])
    assert any("not of seeds alone: 0, 0" in note for note in table.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "xnli"}, "task is 'news' of ts-seed-0; 'xnli' of last"),
        ({"task_version": 2}, "task version is 1 of ts-seed-0; 2 of last"),
        ({"split": "dev"}, "split is 'test' of ts-seed-0; 'dev' of last"),
        ({"limit": 50}, "limit is none of ts-seed-0; 50 of last"),
        (
            {"languages": {"si": make_language(data_sha256=SHA["f"])}},
            "data sha256 of language 'si' is d00000000000 of ts-seed-0; f00000000000 of last",
        ),
    ],
)
def test_what_is_not_comparable_is_refused_and_says_which_run_has_which(change, words):
    with pytest.raises(DataError, match=words):
        comparison([make_results(), other(**change)])


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ConfigError, match="no results to compare"):
        comparison([])


def test_averages_are_over_common_languages_and_say_so():
    fewer = other(languages={"en": make_language(2), "si": make_language(2)})
    table = comparison([make_results(), fewer])
    assert row(table, "ta").cells[1] is None
    assert row(table, "average").cells[0].mean == pytest.approx(0.65)
    assert "Averages are over the languages that all runs have: en, si." in table.notes


def test_no_average_without_common_languages():
    table = comparison([make_results({"en": make_language()}), other(languages={"si": make_language()})])
    assert [found.name for found in table.rows] == ["en", "si"]
    assert "none, so there are none" in table.notes[0]


def test_a_language_any_run_has_seen_is_not_zero_shot():
    table = comparison([make_results(), other(languages_seen=("en", "si"))])
    assert row(table, "zero-shot average").cells[0].mean == pytest.approx(0.6)


def test_languages_seen_that_are_unknown_are_noted():
    table = comparison([make_results(languages_seen=None)])
    assert [found.name for found in table.rows] == ["en", "si", "ta", "average"]
    assert "Languages seen in training are unknown of ts-seed-0." in table.notes


def test_texts_cut_and_unlike_limits_are_noted():
    cut = other(languages={"en": make_language(truncated=3)}, max_source_tokens=200)
    notes = comparison([make_results({"en": make_language()}), cut]).notes
    assert "last: texts cut at 200 tokens: en 3." in notes
    assert "Tokens read per text differ: 200 in last; 512 in ts-seed-0." in notes


def test_other_frozen_models_and_unlike_answer_limits_are_noted():
    bases = {"encoder": {"name": "large", "fingerprint": "e2"}, "llm": {"name": "embedded", "fingerprint": "l1"}}
    unlike = other(bases=bases, max_new_tokens=8)
    notes = comparison([make_results(), unlike]).notes
    assert "Encoders differ: embedded (e1) in ts-seed-0; large (e2) in last." in notes
    assert "Tokens generated at most differ: 8 in last; 32 in ts-seed-0." in notes
    assert not any("LLMs" in note for note in notes)


def generated_only(**changes):
    language = make_language(methods={"generate": {"correct": 3, "unreadable": 2}})
    return make_results({"en": language}, methods=("generate",), **changes)


def test_the_method_is_score_where_all_have_it():
    assert comparison([make_results()]).method == "score"
    assert comparison([make_results({"en": make_language()}), generated_only(run="g")]).method == "generate"
    with pytest.raises(ConfigError, match="Not all results have method 'score': g has generate"):
        comparison([generated_only(run="g")], "score")


# Drawing


def test_equal_names_of_two_setups_are_told_apart():
    table = comparison([make_results(run="a"), other(run="a")])
    assert [column.name for column in table.columns] == ["a [1]", "a [2]"]


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        (("ts-seed-0", "ts-seed-1"), "ts"),
        (("ts_s1", "ts_s2"), "ts"),
        (("ts.0", "ts.10"), "ts"),
        (("one", "two"), "one + two"),
        (("same", "same"), "same"),
        (("glass-0", "glass-1"), "glass"),
    ],
)
def test_a_group_is_named_by_what_its_runs_share(runs, name):
    table = comparison([seed(number, run=run) for number, run in enumerate(runs)])
    assert table.columns[0].name == name


def test_the_table_shows_percent_spread_seeds_and_majority():
    text = drawn(render(comparison([seed(0, 4), seed(1, 6)])))
    for part in (
        "ts (2 seeds)",
        "50.00 ± 14.14",
        "40.00",
        "en *",
        "seen in training",
        "zero-shot average",
        "version 1",
    ):
        assert part in text


def test_unreadable_answers_have_their_own_column():
    table = comparison([make_results()], "generate")
    assert "unreadable" in drawn(render(table))
    assert "10.00" in to_markdown(table)
    assert "unreadable" not in to_markdown(comparison([make_results()], "score"))


def test_markdown_has_one_line_a_row_and_notes_below():
    cut = make_results({"en": make_language(truncated=3)}, run="a|b")
    lines = to_markdown(comparison([cut])).splitlines()
    assert lines[2] == "| language | n | majority | a\\|b |"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[4] == "| en \\* | 10 | 40.00 | 60.00 |"
    assert lines[-1] == "- a\\|b: texts cut at 512 tokens: en 3."


def test_csv_reads_back():
    fewer = other(languages={"en": make_language(2)}, run="la,st")
    text = to_csv(comparison([seed(0, 4), seed(1, 6), fewer], "generate"))
    rows = {found["language"]: found for found in csv.DictReader(io.StringIO(text))}
    assert rows["en"]["seen"] == "true"
    assert rows["si"]["ts: accuracy %"] == "50.0000"
    assert rows["si"]["ts: standard deviation"] == "14.1421"
    assert rows["si"]["ts: seeds"] == "2"
    assert rows["si"]["ts: unreadable %"] == "10.0000"
    assert rows["si"]["la,st: accuracy %"] == ""


def test_one_run_shows_every_method_and_what_was_cut():
    text = drawn(render_results(make_results({"si": make_language(5, truncated=4), "en": make_language(8)}, limit=10)))
    assert re.search(r"^\s*en \*.*^\s*si .*^\s*average", text, re.DOTALL | re.MULTILINE)
    for part in (
        "first 10 rows",
        "generate",
        "unreadable",
        "cut: texts longer than 512",
        "zero-shot average",
        "50.00",
    ):
        assert part in text


def test_names_that_look_like_markup_are_shown_as_they_are():
    results = make_results(run="[red]a[/red]")
    assert "[red]a[/red]" in drawn(render(comparison([results])))
    assert "[red]a[/red]" in drawn(render_results(results))
