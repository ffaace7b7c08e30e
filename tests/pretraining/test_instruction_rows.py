"""What the LM's instruction rows promise: whole tables, balance, nothing on two sides, no label in a hypothesis."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from pretraining.inference_families import FAMILIES
from pretraining.inference_rows import LABELS, inference_cases
from pretraining.instruction_rows import (
    FOLDER,
    HELD_OUT_SHARE,
    KINDS,
    MAX_HELD_OUT,
    SHORT_ANSWERS,
    Instruction,
    inference_text,
    instruction_rows,
    read_table,
)
from pretraining.short_answers import TEMPLATES, short_answers

from layerbridge.config import BuiltinTaskConfig
from layerbridge.data.tasks import build_task
from pretraining import unlabelled

# Columns, answer column, kind, rows an answer at least.
TABLES = {
    "topics.tsv": (["topic", "text"], "topic", "topic", 180),
    "news.tsv": (["category", "text"], "category", "news", 40),
    "sentiment.tsv": (["label", "text"], "label", "sentiment", 50),
    "inference.tsv": (["label", "premise", "hypothesis"], "label", "inference", 50),
}
SPACES = re.compile(r"\s{2,}|^\s|\s$")
HEADLINES = FOLDER.parents[1] / "src" / "layerbridge" / "embedded" / "headlines" / "en"


@pytest.fixture(scope="module")
def rows() -> tuple[list[Instruction], list[Instruction]]:
    return instruction_rows()


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_its_columns_known_answers_and_enough_rows_of_each(name: str):
    columns, answer_column, kind, wanted = TABLES[name]
    table = read_table(FOLDER / name)
    assert {tuple(row) for row in table} == {tuple(columns)}
    counts = Counter(row[answer_column] for row in table)
    assert set(counts) == set(KINDS[kind].answers)
    assert min(counts.values()) >= wanted, counts
    assert all(row[column] for row in table for column in columns)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_plain_text_with_ascii_punctuation(name: str):
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        strange = {letter for letter in line if ord(letter) > 127 and not letter.isalpha()}
        assert not strange, (strange, line)
        assert not any(SPACES.search(cell) for cell in line.split("\t")), line


def test_no_written_text_stands_twice_in_one_table_or_two():
    texts = [row["text"].casefold() for name in TABLES for row in read_table(FOLDER / name) if "text" in row]
    texts += [row["premise"].casefold() + row["hypothesis"].casefold() for row in read_table(FOLDER / "inference.tsv")]
    for split in ("train", "dev", "test"):
        texts += [row["text"].casefold() for row in read_table(HEADLINES / f"{split}.tsv")]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_every_kind_is_in_both_parts_and_the_held_out_part_is_small(rows):
    train, held_out = (Counter(row.kind for row in part) for part in rows)
    assert set(train) == set(held_out) == set(KINDS)
    for kind in KINDS:
        if kind != "headline":
            assert 0.8 * min(MAX_HELD_OUT, HELD_OUT_SHARE * train[kind]) <= held_out[kind] <= MAX_HELD_OUT


def test_no_text_premise_or_hypothesis_is_in_both_parts(rows):
    def parts_of(row: Instruction) -> list[str]:
        if row.kind == "inference":
            return re.split(" ?(?:Premise|Hypothesis): ", row.text)[1:]
        return [row.text.split(" Question: ")[0]]

    train, held_out = ({part for row in side for part in parts_of(row)} for side in rows)
    assert not train & held_out


def test_no_headline_of_the_test_split_is_in_either_part(rows):
    texts = {row["text"] for row in read_table(HEADLINES / "test.tsv")}
    assert not texts & {row.text for part in rows for row in part}
    dev = {row["text"] for row in read_table(HEADLINES / "dev.tsv")}
    assert not dev & {row.text for row in rows[0]}


def test_every_answer_is_one_of_its_kind_or_stands_in_the_text(rows):
    for row in (row for part in rows for row in part):
        answers = KINDS[row.kind].answers
        assert row.answer in answers if answers else row.answer in row.text.split(" Question: ")[0], row


def test_the_rows_depend_on_the_seed_alone(rows):
    again, other = instruction_rows(), instruction_rows(1)
    assert again == rows
    assert other != rows
    assert Counter(row.kind for row in other[0]) == Counter(row.kind for row in rows[0])


def test_a_row_is_read_in_the_shapes_of_a_bridge_and_of_the_tasks_prompts():
    row = Instruction("topic", "The river is long.", "Geography")
    assert row.bare() == ("The river is long.\nTopic:", "Geography")
    assert row.prompted() == ("Sentence: The river is long. Topic:", " Geography")


@pytest.mark.parametrize(
    ("kind", "task", "fields"),
    [
        ("topic", "sib200", {"text": "T."}),
        ("headline", "headlines", {"text": "T."}),
        ("news", "sinhala_news_rksk", {"text": "T."}),
        ("sentiment", "amazon_reviews", {"text": "T."}),
        ("inference", "xnli", {"premise": "P.", "hypothesis": "H."}),
    ],
)
def test_the_prompted_shape_and_the_answers_are_those_of_the_task(kind: str, task: str, fields: dict[str, str]):
    built = build_task(BuiltinTaskConfig(name=task))
    text = fields["text"] if "text" in fields else inference_text(fields["premise"], fields["hypothesis"])
    asked, _ = Instruction(kind, text, KINDS[kind].answers[0]).prompted()
    assert asked == built.render(fields).rstrip()
    assert set(built.answers) <= set(KINDS[kind].answers)


def test_every_hypothesis_stands_once_with_each_label_so_alone_it_says_nothing():
    cases = inference_cases(2_000, 0)
    assert all(set(case.premises) == set(LABELS) for case in cases)
    texts = [case.hypothesis for case in cases] + [text for case in cases for text in case.premises.values()]
    assert len(set(texts)) == len(texts), "a premise or hypothesis stands there twice"


def test_a_bag_of_words_of_the_hypothesis_finds_the_label_no_better_than_chance():
    """Trained on the cases of one half, measured on the other: one label in three is right, give or take a point."""
    cases = inference_cases(1_000, 3)
    words: dict[str, Counter[str]] = {label: Counter() for label in LABELS}
    for case in cases[::2]:
        for label in case.premises:
            words[label].update(case.hypothesis.casefold().split())
    right = sum(
        max(LABELS, key=lambda label: sum(words[label][word] for word in case.hypothesis.casefold().split())) == label
        for case in cases[1::2]
        for label in case.premises
    )
    assert right / (3 * len(cases[1::2])) == pytest.approx(1 / 3, abs=0.01)


def test_every_family_gives_as_many_cases_as_any_other():
    per_family = 7
    found = inference_cases(per_family * len(FAMILIES), 5)
    assert len(found) == per_family * len(FAMILIES)
    assert inference_cases(per_family * len(FAMILIES), 5) == found
    assert inference_cases(per_family * len(FAMILIES), 6) != found


def test_too_many_cases_are_refused_with_the_number_that_was_found(monkeypatch):
    monkeypatch.setattr("pretraining.inference_rows.FAMILIES", (lambda rng: ("one", ["two"], ["three"], ["four"]),))
    monkeypatch.setattr("pretraining.inference_rows.ASIDE_SHARE", 0.0)
    with pytest.raises(ValueError, match=r"gave 1 different cases in 1,001 tries, not 5"):
        inference_cases(5, 0)


def test_every_question_of_every_template_is_asked_and_answered_from_its_passage():
    rows = short_answers(SHORT_ANSWERS, 0)
    assert len({row.passage for row in rows}) == len(rows)
    assert all(row.answer in row.passage and len(row.answer.split()) <= 2 for row in rows)
    assert {row.question.split()[0] for row in rows} >= {"Who", "Where", "When", "How", "What", "Which", "Why"}
    for sentence, questions in TEMPLATES:
        assert all(f"{{{slot}}}" in sentence for _, slot in questions)


def test_too_many_short_answers_are_refused_with_the_number_that_was_found(monkeypatch):
    monkeypatch.setattr("pretraining.short_answers.TEMPLATES", (("Rain fell.", (("What?", "name"),)),))
    monkeypatch.setattr("pretraining.short_answers.SECOND_SENTENCE_SHARE", 0.0)
    with pytest.raises(ValueError, match=r"gave 1 different passages in 601 tries, not 3"):
        short_answers(3, 0)


def test_the_labs_unlabelled_texts_are_those_of_the_instructions() -> None:
    for name, lines in unlabelled.unlabelled_texts().items():
        assert (unlabelled.FOLDER / name).read_text(encoding="utf-8") == "".join(f"{line}\n" for line in lines), (
            "run python -m pretraining.unlabelled"
        )
        assert 500 < len(lines) == len(set(lines))
