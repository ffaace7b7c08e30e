"""One test for each thing that can be wrong with a task's data; each reads the message."""

import pytest

from layerbridge.config import BuiltinTaskConfig, TaskRows
from layerbridge.data.tasks import TASKS, build_task
from layerbridge.errors import ConfigError, DataError
from tests.data.writers import write_rows


def load(folder, name="xnli", language="en", split="test"):
    return build_task(BuiltinTaskConfig(name=name, data=str(folder))).load(language, split)


def refused(kind, act, *args, **options):
    with pytest.raises(kind) as error:
        act(*args, **options)
    return str(error.value)


def nli(**changes):
    return {"premise": "a", "hypothesis": "b", "label": 0} | changes


def test_an_unknown_task_gets_the_nearest_and_all():
    message = refused(ConfigError, build_task, BuiltinTaskConfig(name="xnly"))
    assert "Unknown task 'xnly'" in message
    assert "Did you mean 'xnli'?" in message
    assert all(name in message for name in TASKS)
    assert "encoder_prompt" in message


def test_an_unknown_language_gets_the_nearest_and_those_of_the_task(tmp_path):
    message = refused(ConfigError, load, tmp_path, language="Hindu")
    assert "Task xnli has no test rows of language 'Hindu'" in message
    assert "Did you mean Hindi (hi)?" in message
    assert "Known: en, ar, bg" in message


def test_a_language_that_others_have_but_not_this_task_is_refused(tmp_path):
    message = refused(ConfigError, load, tmp_path, language="si")
    assert "no test rows of language 'si'" in message


def test_of_205_languages_not_all_are_listed(tmp_path):
    message = refused(ConfigError, load, tmp_path, name="sib200", language="Sinhalese")
    assert "Sinhala (si)" in message
    assert "205 languages, see `layerbridge tasks show sib200`" in message
    assert len(message) < 300


def test_an_unknown_split_gets_those_of_the_task(tmp_path):
    message = refused(ConfigError, load, tmp_path, split="tset")
    assert "Unknown split of task xnli 'tset'" in message
    assert "Did you mean 'test'? Known: dev, test, train" in message


def test_a_split_that_the_task_lacks_is_refused(tmp_path):
    assert "Known: test, train" in refused(ConfigError, load, tmp_path, name="sinhala_news", split="dev")


def test_training_languages_must_have_training_rows(tmp_path):
    task = build_task(BuiltinTaskConfig(name="sinhala_news", data=str(tmp_path)))
    message = refused(ConfigError, task.load_training, TaskRows(train_languages=("si",)), seed=0)
    assert "no train rows of language 'si'" in message
    assert "train_languages is empty" in refused(ConfigError, task.load_training, TaskRows(train_languages=()), seed=0)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert "No data at" in refused(DataError, load, tmp_path / "nowhere")


def test_no_matching_file_lists_what_was_looked_for_and_ten_of_what_is_there(tmp_path):
    for number in range(12):
        write_rows(tmp_path / f"part{number:02}.tsv", [nli()])
    (tmp_path / "README.md").write_text("x")
    message = refused(DataError, load, tmp_path)
    assert "No test file of language 'en'" in message
    assert "en/test-*.parquet" in message
    assert "test-en.{ext}" in message
    assert "part00.tsv, part01.tsv" in message
    assert "part09.tsv and 2 more" in message
    assert "README" not in message


def test_an_empty_folder_is_said_to_hold_nothing(tmp_path):
    assert "The folder holds no data file" in refused(DataError, load, tmp_path)


def test_the_same_rows_in_two_formats_are_refused(tmp_path):
    write_rows(tmp_path / "en" / "test.tsv", [nli()])
    write_rows(tmp_path / "en" / "test.jsonl", [nli()])
    message = refused(DataError, load, tmp_path)
    assert "Found en/test.jsonl and en/test.tsv, wanted one of them" in message


def test_a_misnamed_column_gets_the_file_the_columns_and_the_nearest(tmp_path):
    write_rows(tmp_path / "en" / "test.csv", [{"premise": "a", "hypotesis": "b", "label": 0}])
    message = refused(DataError, load, tmp_path)
    assert "en/test.csv: no column 'hypothesis'" in message
    assert "Found columns: premise, hypotesis, label" in message
    assert "Wanted: premise, hypothesis, label" in message
    assert "Is 'hypotesis' meant to be 'hypothesis'?" in message


def test_all_missing_columns_are_named_at_once(tmp_path):
    write_rows(tmp_path / "en" / "test.parquet", [{"sentence1": "a"}])
    assert "no column 'premise', 'hypothesis', 'label'" in refused(DataError, load, tmp_path)


def test_an_object_without_one_of_the_columns_is_named_by_its_line(tmp_path):
    write_rows(tmp_path / "test-en.jsonl", [nli(), {"premise": "a", "label": 1}])
    message = refused(DataError, load, tmp_path)
    assert "test-en.jsonl, line 2: no field 'hypothesis' among 'premise', 'label'" in message
    write_rows(tmp_path / "test-en.jsonl", [nli(), {"premise": "a", "hypothesis": "b"}])
    assert "line 2: no 'label'" in refused(DataError, load, tmp_path)


@pytest.mark.parametrize(("label", "found"), [(3, "'3'"), ("entailmant", "'entailmant'"), (-1, "'-1'"), (0.5, "'0.5'")])
def test_a_label_outside_the_answers_is_named_with_its_row_and_the_known_ones(tmp_path, label, found):
    write_rows(tmp_path / "test-en.jsonl", [nli(), nli(label=label)])
    message = refused(DataError, load, tmp_path)
    assert f"test-en.jsonl, line 2: label {found} in column 'label' is none of task xnli" in message
    assert "Known: 0, 1, 2, Entailment, Neutral, Contradiction" in message
    assert ("Did you mean 'Entailment'?" in message) == (label == "entailmant")


@pytest.mark.parametrize("label", [None, "", "  "])
def test_an_empty_label_is_named_by_its_row(tmp_path, label):
    write_rows(tmp_path / "test-en.jsonl", [nli(), nli(label=label)])
    assert "line 2: 'label' is empty" in refused(DataError, load, tmp_path)


@pytest.mark.parametrize("text", [None, "", " \u3000 "])
def test_an_empty_text_is_named_by_its_row(tmp_path, text):
    write_rows(tmp_path / "test-en.jsonl", [nli(), nli(premise=text)])
    assert "test-en.jsonl, line 2: field 'premise' is empty" in refused(DataError, load, tmp_path)


def test_a_tsv_row_of_empty_cells_is_not_a_blank_line(tmp_path):
    (tmp_path / "test-en.tsv").write_text("premise\thypothesis\tlabel\na\tb\t0\n\t\t\n")
    assert "test-en.tsv, line 3: field 'premise' is empty" in refused(DataError, load, tmp_path)


def test_a_text_that_is_no_text_is_named_by_its_type(tmp_path):
    write_rows(tmp_path / "test-en.jsonl", [nli(premise={"en": "a"})])
    assert "line 1: field 'premise' holds dict, wanted text" in refused(DataError, load, tmp_path)


def test_half_a_surrogate_pair_is_named(tmp_path):
    (tmp_path / "test-en.jsonl").write_text('{"premise": "a \\ud83d", "hypothesis": "b", "label": 0}')
    message = refused(DataError, load, tmp_path)
    assert "test-en.jsonl, line 1: field 'premise' holds half a character (U+D83D)" in message


def test_a_repeated_id_is_named_with_both_places(tmp_path):
    rows = [{"index_id": number, "category": "travel", "text": "x"} for number in (7, 8, 7)]
    write_rows(tmp_path / "en" / "test.tsv", rows)
    message = refused(DataError, load, tmp_path, name="sib200")
    assert "en/test.tsv, line 4: id '7' stands at en/test.tsv, line 2 already" in message
    assert "'index_id'" in message


def test_an_empty_id_is_named_by_its_row(tmp_path):
    write_rows(tmp_path / "test-en.jsonl", [{"index_id": None, "category": "travel", "text": "x"}])
    assert "line 1: the id in column 'index_id' is empty" in refused(DataError, load, tmp_path, name="sib200")


def test_without_an_id_column_rows_are_numbered(tmp_path):
    write_rows(tmp_path / "test-en.jsonl", [{"category": "travel", "text": text} for text in "ab"])
    assert [example.id for example in load(tmp_path, name="sib200").examples] == ["1", "2"]


def test_a_local_copy_without_dev_says_how_to_go_on(tmp_path):
    write_rows(tmp_path / "train-en.jsonl", [nli()])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path)))
    message = refused(DataError, task.load_training, TaskRows(), seed=0)
    assert "No dev file of language 'en'" in message
    assert "set task.dev_rows" in message


def test_training_on_nothing_but_dev_texts_is_refused(tmp_path):
    write_rows(tmp_path / "train-en.jsonl", [nli()])
    write_rows(tmp_path / "dev-en.jsonl", [nli()])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path)))
    assert "All training texts of task xnli" in refused(DataError, task.load_training, TaskRows(), seed=0)


def test_a_revision_of_a_task_without_a_hub_set_is_refused():
    message = refused(ConfigError, build_task, BuiltinTaskConfig(name="headlines", revision="x"))
    assert "revision is of a hub set, and task headlines has none" in message


def test_a_set_that_is_on_no_hub_says_where_to_get_it_and_where_to_name_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    task = build_task(BuiltinTaskConfig(name="sinhala_news_rksk"))
    message = refused(DataError, task.load, "si", "test")
    assert "on no hub, so its test rows of language 'si' can't be fetched" in message
    assert "rksk/sinhala-news-analysis on GitHub" in message
    assert "`label<TAB>text` into english.tsv and sinhala.tsv" in message
    assert "`task.data` in the recipe, or `--data`" in message
    with pytest.raises(DataError):  # once is enough
        task.validate()


def test_too_few_rows_to_divide_name_the_file(tmp_path):
    (tmp_path / "english.tsv").write_text("local\tsame\n" * 10)
    message = refused(DataError, load, tmp_path, name="sinhala_news_rksk")
    assert "english.tsv: dev and test take 4 rows of answer 'Local', but only 0 of its 10 rows" in message


def test_train_data_that_is_not_there_or_holds_nothing_is_named(tmp_path):
    def task(folder):
        return build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path), train_data=str(folder)))

    message = refused(DataError, task(tmp_path / "nowhere").load, "en", "train")
    assert "No data at" in message
    assert "`task.train_data`" in message
    (tmp_path / "other").mkdir()
    message = refused(DataError, task(tmp_path / "other").load, "en", "train")
    assert "No train file of language 'en' in other" in message
    assert "train.{ext}" in message


def test_train_data_without_dev_says_how_to_go_on(tmp_path):
    write_rows(tmp_path / "dev-en.jsonl", [nli(premise="x")])
    write_rows(tmp_path / "more" / "train.jsonl", [nli()])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path), train_data=str(tmp_path / "more")))
    message = refused(DataError, task.load_training, TaskRows(), seed=0)
    assert "No dev file of language 'en' in more" in message
    assert "set task.dev_rows" in message


def test_train_data_that_is_all_evaluated_is_refused(tmp_path):
    write_rows(tmp_path / "dev-en.jsonl", [nli()])
    write_rows(tmp_path / "more" / "train.jsonl", [nli(), nli()])
    task = build_task(BuiltinTaskConfig(name="xnli", data=str(tmp_path), train_data=str(tmp_path / "more")))
    message = refused(DataError, task.load_training, TaskRows(dev_rows=1), seed=0)
    assert "All training texts of task xnli in task.train_data also stand in its dev or test split" in message


def test_render_takes_a_bare_text_only_where_the_prompt_has_one_field():
    assert TASKS["sib200"]().render("x") == "Sentence: x Topic: "
    message = refused(DataError, TASKS["xnli"]().render, "x")
    assert "Found one text, but the prompt has 2 fields (premise, hypothesis)" in message
    message = refused(DataError, TASKS["xnli"]().render, {"premis": "x", "hypothesis": "y"})
    assert "no field 'premise' among 'premis', 'hypothesis'. Did you mean 'premis'?" in message


# ------------------------------------------------------------------------------------------------------------
# The hub


def hub_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    task = build_task(BuiltinTaskConfig(name="sinhala_news"))
    with pytest.raises(DataError):  # does not go on to the next file
        task.validate()
    return refused(DataError, task.load, "si", "test")


def response():
    from unittest.mock import MagicMock

    return MagicMock(headers={}, status_code=403)


def test_no_network_says_what_to_do(monkeypatch):
    message = hub_error(monkeypatch, OSError("Name or service not known"))
    assert "Themira/en_si_news_classification_with_label_name at revision main can't be fetched" in message
    assert "Name or service not known" in message
    assert "task.data" in message


def test_a_set_that_is_gone_or_private_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    message = hub_error(monkeypatch, RepositoryNotFoundError("404", response=response()))
    assert "does not exist or is private" in message
    assert "hf auth login" in message
    assert "task.data" in message


def test_a_gated_set_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    assert "accept terms" in hub_error(monkeypatch, GatedRepoError("403", response=response()))


def test_a_hub_set_without_the_file_lists_what_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    message = refused(DataError, build_task(BuiltinTaskConfig(name="xnli")).load, "sw", "test")
    assert "Hub set facebook/xnli at b8dd5d7af51114dbda02c0e3f6133f332186418e has no test file" in message
    assert "sw/test-*.parquet" in message
