import dataclasses
import json
import math
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerbridge.errors import DataError
from layerbridge.evaluation.predictions import predictions_path, read_predictions, write_predictions
from layerbridge.evaluation.score import gather_results, pick_answer, read_answer, rescore, score_language
from layerbridge.results import read_results
from tests.evaluation.fakes import ANSWERS, make_header, make_prediction, make_provenance

ROWS = st.lists(
    st.tuples(
        st.sampled_from(ANSWERS),
        st.sampled_from([*ANSWERS, None]),
        st.sampled_from([*ANSWERS, " Sports\n", "sports", "", "The answer is Sports"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)
IN_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def predictions(rows):
    return [
        make_prediction(number, gold, scored, generated, truncated=cut)
        for number, (gold, scored, generated, cut) in enumerate(rows)
    ]


@given(rows=ROWS, data=st.data())
def test_the_order_of_rows_does_not_matter(rows, data):
    found = predictions(rows)
    shuffled = data.draw(st.permutations(found))
    header = make_header(len(rows))
    assert score_language(header, found) == score_language(header, shuffled)


@given(rows=ROWS)
def test_unreadable_answers_are_counted_wrong_and_apart(rows):
    score = score_language(make_header(len(rows)), predictions(rows))
    for method in ("score", "generate"):
        found = score.methods[method]
        assert 0 <= score.accuracy(method) <= 1
        assert found.unreadable <= score.n - found.correct
    assert score.methods["score"].unreadable == sum(scored is None for _, scored, _, _ in rows)
    assert score.methods["generate"].unreadable == sum(text.strip() not in ANSWERS for _, _, text, _ in rows)
    assert score.methods["generate"].correct == sum(gold == text.strip() for gold, _, text, _ in rows)
    assert score.truncated == sum(cut for *_, cut in rows)


@given(rows=ROWS)
def test_majority_baseline_agrees_with_counter(rows):
    score = score_language(make_header(len(rows)), predictions(rows))
    counts = Counter(gold for gold, *_ in rows)
    assert score.majority_correct == counts.most_common(1)[0][1] == counts[score.majority_answer]


@IN_FOLDER
@given(rows=ROWS)
def test_rescoring_from_files_equals_direct_scoring(tmp_path, rows):
    header, found = make_header(len(rows)), predictions(rows)
    write_predictions(predictions_path(tmp_path, "si"), header, found)
    direct = gather_results([(header, score_language(header, found))])
    assert rescore(tmp_path) == direct == read_results(tmp_path / "results.json")


@given(st.dictionaries(st.sampled_from(ANSWERS), st.floats(-100, 0), min_size=1))
def test_the_picked_answer_is_a_most_probable_one(log_probs):
    assert log_probs[pick_answer(log_probs)] == max(log_probs.values())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_no_answer_is_picked_if_one_log_probability_is_not_finite(value):
    assert pick_answer({"a": -1.0, "b": value}) is None


def test_equal_log_probabilities_give_the_first_answer():
    assert pick_answer({"b": -1.0, "a": -1.0}) == "b"


@pytest.mark.parametrize(
    ("text", "answer"),
    [(" Sports \n", "Sports"), ("sports", None), ("Sports.", None), ("", None), ("Sports Sports", None)],
)
def test_generated_text_is_stripped_and_matched_exactly(text, answer):
    assert read_answer(text, ANSWERS) == answer


def test_free_text_is_matched_exactly_after_strip():
    header = make_header(3, answers=None, provenance=make_provenance(methods=("generate",)))
    rows = [
        make_prediction(number, "42 ", None, text, log_probs=None) for number, text in enumerate([" 42", "43", " "])
    ]
    found = score_language(header, rows).methods["generate"]
    assert (found.correct, found.unreadable) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer": "Weather"}, "line 3 .*gold answer 'Weather' is none of Business"),
        ({"answer": " "}, "line 3 .*no gold answer"),
        ({"generated": None}, "line 3 .*no generated text"),
        ({"log_probs": None}, "line 3 .*log-probabilities of none"),
        ({"log_probs": {"Sports": -1.0}}, "line 3 .*log-probabilities of Sports; wanted Business"),
        ({"scored": "Sports"}, "line 3 .*scored is 'Sports', and by the log-probabilities 'Business'"),
    ],
)
def test_a_row_that_lacks_something_is_named_by_line(changes, words):
    rows = [make_prediction(number, "Business", "Business", "Business") for number in range(2)]
    rows[1] = dataclasses.replace(rows[1], **changes)
    with pytest.raises(DataError, match=words):
        score_language(make_header(2), rows, where="si.jsonl")


# The file


def write_two(folder, **changes):
    rows = [make_prediction(0, "Sports", "Sports", "Sports"), make_prediction(1, "Sports", None, "x")]
    path = predictions_path(folder, "si")
    write_predictions(path, make_header(2, **changes), rows)
    return path


def test_predictions_survive_the_file(tmp_path):
    rows = [make_prediction(0, "Sports", None, "a\u2028b\u0085c\r\nනව")]
    write_predictions(predictions_path(tmp_path, "si"), make_header(1), rows)
    assert read_predictions(predictions_path(tmp_path, "si")) == (make_header(1), rows)


def edit_line(number, **changes):
    def edit(lines):
        lines[number] = json.dumps(json.loads(lines[number]) | changes) + "\n"

    return edit


def cut_last(lines):
    lines[-1] = lines[-1][:20]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda lines: lines.pop(), "has 1 rows and its header says 2"),
        (cut_last, "line 3 is not JSON"),
        (lambda lines: lines.clear(), "line 1 is not JSON"),
        (lambda lines: lines.append("[]\n"), "line 4 holds list"),
        (edit_line(0, version=9), "line 1 is layerbridge-predictions version 9"),
        (edit_line(0, format="x"), "line 1 is not of the format"),
        (edit_line(0, n=0), "line 1: n: "),
        (edit_line(0, language="ta"), "line 1 is of language 'ta'; the file's name says 'si'"),
        (edit_line(1, language="ta"), "line 2 is of language 'ta' in a file of 'si'"),
        (edit_line(1, truncated="no"), "line 2: truncated: "),
        (edit_line(1, note=1), "line 2: unknown columns note"),
        (edit_line(2, id="row-0"), "line 3: id 'row-0' is also on line 2"),
    ],
)
def test_a_damaged_file_is_named_by_line(tmp_path, edit, words):
    path = write_two(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    edit(lines)
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        rescore(tmp_path)


def test_rescoring_without_predictions_says_so(tmp_path):
    with pytest.raises(DataError, match="No predictions in"):
        rescore(tmp_path)
    with pytest.raises(DataError, match="no predictions to score"):
        gather_results([])


def test_predictions_of_two_evaluations_are_not_mixed(tmp_path):
    write_two(tmp_path)
    rows = [make_prediction(0, "Sports", "Sports", "Sports", language="ta")]
    header = make_header(1, language="ta", provenance=make_provenance(checkpoint_sha256="other"))
    write_predictions(predictions_path(tmp_path, "ta"), header, rows)
    with pytest.raises(DataError, match=r"checkpoint_sha256 is 'a0+' of si and 'other' of ta"):
        rescore(tmp_path)
    assert set(rescore(tmp_path, provenance=header.provenance).languages) == {"ta"}


def test_a_half_written_file_is_not_seen(tmp_path):
    path = write_two(tmp_path)
    path.with_name(".ta.jsonl.123.part").write_text("{")
    assert set(rescore(tmp_path).languages) == {"si"}
