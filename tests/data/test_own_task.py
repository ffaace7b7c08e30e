import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.config import OwnTaskConfig, TaskFiles, TaskRows, load_recipe
from layerbridge.data.tasks import build_task
from layerbridge.errors import ConfigError, DataError
from layerbridge.prompt import prompt_fields, render_prompt
from tests.data.writers import write_rows

ROWS = [{"body": "late parcel", "queue": "1"}, {"body": "wrong bill", "queue": "2"}]


def config(folder, **changes):
    options = {
        "name": "tickets",
        "files": TaskFiles(train=str(folder / "train.csv"), test={"si": str(folder / "si.csv")}),
        "encoder_prompt": "Ticket: {body} Queue: ",
        "answer_column": "queue",
        "answers": {"1": "Delivery", "2": "Billing"},
    }
    return OwnTaskConfig(**(options | changes))


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "train.csv", [{"body": f"t{number}", "queue": str(number % 2 + 1)} for number in range(10)])
    write_rows(tmp_path / "si.csv", ROWS)
    return tmp_path


def refused(kind, act, *args, **options):
    with pytest.raises(kind) as error:
        act(*args, **options)
    return str(error.value)


def test_answers_may_be_a_mapping(folder):
    task = build_task(config(folder))
    split = task.load("si", "test")
    assert [(e.id, e.language, e.text, e.answer) for e in split.examples] == [
        ("1", "si", "Ticket: late parcel Queue: ", "Delivery"),
        ("2", "si", "Ticket: wrong bill Queue: ", "Billing"),
    ]
    assert split.source == "local:si.csv"
    assert task.answers == ("Delivery", "Billing")
    assert task.languages == ("si",)
    assert task.splits == ("train", "test")


def test_answers_may_be_a_list_or_free_text(folder):
    listed = build_task(config(folder, answers=("1", "2")))
    free = build_task(config(folder, answers=None))
    assert [e.answer for e in listed.load("si", "test").examples] == ["1", "2"]
    assert free.answers is None
    assert [e.answer for e in free.load("si", "test").examples] == ["1", "2"]
    assert free.validate()[1].answers == {"different answers": 2}


def test_training_is_from_the_one_training_language(folder):
    task = build_task(config(folder, train_languages=("de",)))
    train, dev = task.load_training(TaskRows(train_languages=("de",), dev_rows=3), seed=0)
    assert {example.language for example in train.examples} == {"de"}
    assert (len(train), len(dev)) == (7, 3)
    write_rows(folder / "dev.csv", ROWS)
    files = TaskFiles(train=str(folder / "train.csv"), dev=str(folder / "dev.csv"))
    task = build_task(config(folder, files=files))
    assert [len(split) for split in task.load_training(TaskRows(), seed=0)] == [10, 2]
    assert task.splits == ("train", "dev")


def test_a_language_outside_the_table_is_the_users_own_business(folder):
    task = build_task(config(folder, files=TaskFiles(train="x", test={"gsw": str(folder / "si.csv")})))
    assert len(task.load("gsw", "test")) == 2


def test_a_recipe_of_ones_own_task_is_read_from_its_own_folder(folder):
    (folder / "recipe.yaml").write_text(
        "task:\n  name: tickets\n  files: {train: train.csv, test: {si: si.csv}}\n"
        "  encoder_prompt: 'Ticket: {body} Queue: '\n  answer_column: queue\n"
        "  answers: {'1': Delivery, '2': Billing}\n"
    )
    recipe = load_recipe(folder / "recipe.yaml")
    assert len(build_task(recipe.task).load("si", "test")) == 2


def test_a_prompt_that_names_a_column_the_file_lacks(folder):
    task = build_task(config(folder, encoder_prompt="Ticket: {bdy} Queue: "))
    message = refused(DataError, task.load, "si", "test")
    assert "si.csv: no column 'bdy'" in message
    assert "Found columns: body, queue" in message
    assert "Is 'body' meant to be 'bdy'?" in message


def test_a_value_that_the_answers_mapping_misses(folder):
    task = build_task(config(folder, answers={"1": "Delivery"}))
    message = refused(DataError, task.load, "si", "test")
    assert "si.csv, line 3: label '2' in column 'queue' is none of task tickets" in message
    assert "Known: 1" in message


@pytest.mark.parametrize("answers", [{"1": " ", "2": "Billing"}, ("Delivery", ""), {}, ()])
def test_an_answer_that_is_empty_after_stripping(folder, answers):
    message = refused(ConfigError, build_task, config(folder, answers=answers))
    assert "Task tickets: found an answer that is empty" in message
    assert ("label '1'" in message) == (isinstance(answers, dict) and bool(answers))


def test_a_free_text_answer_that_is_empty(folder):
    write_rows(folder / "si.csv", [ROWS[0], {"body": "x", "queue": "  "}])
    task = build_task(config(folder, answers=None))
    assert "si.csv, line 3: 'queue' is empty" in refused(DataError, task.load, "si", "test")


def test_an_answer_named_twice(folder):
    assert "names 3 answers" in refused(ConfigError, build_task, config(folder, answers=("1", "2", " 1")))


def test_a_missing_file_is_named_with_its_language(folder):
    (folder / "si.csv").unlink()
    message = refused(DataError, build_task(config(folder)).load, "si", "test")
    assert "si.csv" in message
    assert "test file of language 'si'" in message


def test_a_prompt_that_gives_the_answer_away(folder):
    task = config(folder, encoder_prompt="{body} {queue}")
    assert "encoder_prompt names {queue}, which is the answer_column" in refused(ConfigError, build_task, task)


def test_several_training_languages_in_one_file(folder):
    message = refused(ConfigError, build_task, config(folder, train_languages=("en", "de")))
    assert "train_languages has 2 languages (en, de)" in message


def test_balancing_free_text(folder):
    task = build_task(config(folder, answers=None))
    message = refused(ConfigError, task.load_training, TaskRows(balance_classes=True), seed=0)
    assert "balance_classes needs classes, and task tickets has free text" in message


def test_balancing_with_an_answer_that_never_occurs(folder):
    task = build_task(config(folder, answers={"1": "Delivery", "2": "Billing", "3": "Other"}))
    message = refused(DataError, task.load_training, TaskRows(balance_classes=True), seed=0)
    assert "no training row of 'Other' among 10 rows" in message


@pytest.mark.parametrize("prompt", ["no field", "{}", "{a!r}", "{a:>9}", "{a", "a}"])
def test_a_prompt_that_is_no_template(folder, prompt):
    assert "encoder_prompt" in refused(ConfigError, build_task, config(folder, encoder_prompt=prompt))


NAME = st.text(st.characters(exclude_characters="{}[!:", exclude_categories=["Cs"]), min_size=1)
VALUE = st.text(min_size=1).filter(str.strip)


@given(NAME, VALUE, st.text().map(lambda text: text.replace("{", "{{").replace("}", "}}")))
def test_any_column_name_and_any_text_go_through_a_prompt_as_they_are(name, value, around):
    template = around + "{" + name + "}"
    plain = around.replace("{{", "{").replace("}}", "}")
    assert prompt_fields(template) == (name,)
    assert render_prompt(template, {name: value}) == render_prompt(template, value) == plain + value
