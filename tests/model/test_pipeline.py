"""Pipelines: the form of transformers' own, the answers of the bridge's methods, and streams read as they are used."""

import collections.abc

import pytest
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification
from transformers import TextClassificationPipeline as TheirClassification
from transformers import TextGenerationPipeline as TheirGeneration

import layerbridge
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import pipeline as module
from layerbridge.model.checkpoint import save_bridge
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make


class Rows(Dataset):
    """A dataset as torch knows it: a length and items, and an error of its own beyond the end."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index >= len(self.rows):
            raise KeyError(index)
        return self.rows[index]


INPUTS = {
    "one text": lambda: "the cat",
    "a list of one": lambda: ["the cat"],
    "a list": lambda: list(TEXTS),
    "a generator": lambda: (text for text in TEXTS),
    "a dataset": lambda: Rows(TEXTS),
}


def form(value):
    """Return a value without its words and numbers: lists, streams and keys are what is left."""
    if isinstance(value, list):
        return [form(item) for item in value]
    if isinstance(value, dict):
        return {key: type(item).__name__ for key, item in value.items()}
    assert isinstance(value, collections.abc.Iterable)
    return "stream", [form(item) for item in value]


@pytest.fixture(scope="module")
def bridge(tiny_models):
    made = make(tiny_models)
    origin = {"task": "t", "task_version": 1, "languages": ["en"], "seed": 0}
    made.trained_on = origin | {"encoder_prompt": "one {text} two", "answers": ANSWERS}
    return made


@pytest.fixture(scope="module")
def their_classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        id2label=dict(enumerate(ANSWERS)),
        label2id={label: number for number, label in enumerate(ANSWERS)},
    )
    model = BertForSequenceClassification(config).eval()

    def build(**options):
        return TheirClassification(model=model, tokenizer=tiny.tokenizer(ends_texts=True), device=-1, **options)

    return build


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("in_call", [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"batch_size": 2}], ids=str)
@pytest.mark.parametrize("when_built", [{}, {"top_k": None}, {"top_k": 2}, {"batch_size": 3}], ids=str)
def test_labels_have_the_form_of_transformers(bridge, their_classifier, inputs, when_built, in_call):
    ours = layerbridge.pipeline(bridge, "text-classification", **when_built)(inputs(), **in_call)
    theirs = their_classifier(**when_built)(inputs(), **in_call)
    assert isinstance(ours, list) == isinstance(theirs, list)
    assert form(ours) == form(theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"return_full_text": False}], ids=str)
def test_written_answers_have_the_form_of_transformers(bridge, tiny_models, inputs, options):
    their = TheirGeneration(
        model=tiny._llm("llama").eval(), tokenizer=tiny.tokenizer(ends_texts=False), device=-1, do_sample=False
    )
    ours = layerbridge.pipeline(bridge, "text-generation")(inputs(), max_new_tokens=3, **options)
    theirs = their(inputs(), max_new_tokens=3, **options)
    assert isinstance(ours, list) == isinstance(theirs, list)
    assert form(ours) == form(theirs)


@pytest.mark.filterwarnings("ignore")
def test_labels_are_ranked_as_transformers_ranks_them(bridge, their_classifier):
    """The best first; the same numbers as `classify`, whatever the form."""
    for pipe in (layerbridge.pipeline(bridge), their_classifier()):
        for answers in (pipe(TEXTS, top_k=None), list(pipe(iter_of(TEXTS), top_k=None))):
            for row in answers:
                assert sorted(row, key=lambda item: -item["score"]) == row
                assert {item["label"] for item in row} == set(ANSWERS)
        assert [pipe(text)[0]["label"] for text in TEXTS] == [row[0]["label"] for row in pipe(TEXTS, top_k=1)]
    pipe = layerbridge.pipeline(bridge)
    for text, row, best in zip(TEXTS, pipe(TEXTS, top_k=None), pipe(TEXTS), strict=True):
        (wanted,) = bridge.classify([bridge.render(text)])
        assert {item["label"]: pytest.approx(item["score"], abs=1e-4) for item in row} == wanted.probabilities
        assert best == {"label": wanted.label, "score": pytest.approx(wanted.probability, abs=1e-4)}


def iter_of(texts):
    yield from texts


def test_written_answers_are_those_of_generate(bridge):
    pipe = layerbridge.pipeline(bridge, "text-generation", max_new_tokens=6)
    rendered = [bridge.render(text) for text in TEXTS]
    wanted = bridge.generate(rendered, max_new_tokens=6)
    assert pipe(TEXTS) == [[{"generated_text": text}] for text in wanted]
    assert list(pipe(iter_of(TEXTS), batch_size=3)) == pipe(TEXTS)
    assert pipe(TEXTS[0], return_full_text=True) == [{"generated_text": rendered[0] + wanted[0]}]
    prompted = bridge.generate(rendered, prompts=["no"] * len(TEXTS), max_new_tokens=6)
    assert pipe(TEXTS, prompt="no") == [[{"generated_text": text}] for text in prompted]
    assert prompted != wanted


def test_the_tasks_prompt_stands_around_a_text_unless_it_is_raw(bridge):
    pipe = layerbridge.pipeline(bridge)
    (rendered,), (raw,) = bridge.classify(["one cat two"]), bridge.classify(["cat"])
    assert pipe("cat")[0]["score"] == pytest.approx(rendered.probability, abs=1e-5)
    assert pipe("cat", raw=True)[0]["score"] == pytest.approx(raw.probability, abs=1e-5)
    assert rendered.probability != pytest.approx(raw.probability, abs=1e-5)
    assert layerbridge.pipeline(bridge, raw=True)("cat") == pipe("cat", raw=True)


def test_fields_are_taken_by_name_and_other_columns_left_alone(bridge):
    pipe = layerbridge.pipeline(bridge)
    assert (
        pipe({"text": "cat", "id": "7"}) == pipe("cat")[0]
    )  # a lone mapping gives a lone answer, as transformers' does
    assert list(pipe(iter_of([{"text": "cat", "id": "7"}]))) == pipe(["cat"])


def test_rows_of_a_hub_dataset_are_answered(bridge):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": text, "id": str(number)} for number, text in enumerate(TEXTS)])
    pipe = layerbridge.pipeline(bridge)
    assert [row["label"] for row in pipe(rows)] == [row["label"] for row in pipe(TEXTS)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("task", module.PIPELINES)
def test_a_stream_is_read_no_further_than_batch_size(bridge, task, size):
    read = []

    def endless():
        while True:
            read.append(TEXTS[len(read) % len(TEXTS)])
            yield read[-1]

    answers = layerbridge.pipeline(bridge, task, batch_size=size)(endless())
    assert read == []
    for number in range(1, 6):
        next(answers)
        assert len(read) == -(-number // size) * size


def test_parts_of_a_stream_draw_different_numbers(bridge):
    pipe = layerbridge.pipeline(bridge, "text-generation", temperature=3.0, seed=5, max_new_tokens=12, batch_size=2)
    answers = list(pipe(iter_of(["cat"] * 6)))
    assert answers == list(pipe(iter_of(["cat"] * 6)))
    assert answers[:2] == pipe(["cat"] * 2)
    assert answers[:2] != answers[2:4] != answers[4:]


def test_nothing_in_gives_nothing_out(bridge):
    pipe = layerbridge.pipeline(bridge)
    assert pipe([]) == list(pipe(iter_of([]))) == []


def test_a_run_is_loaded(bridge, tmp_path):
    save_bridge(bridge, tmp_path)
    pipe = layerbridge.pipeline(tmp_path, labels=["yes", "no"])
    assert pipe("cat")[0]["label"] in ("yes", "no")
    assert layerbridge.pipeline(str(tmp_path))("cat") == layerbridge.pipeline(bridge)("cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "text-clasification"}, "Unknown task of a pipeline 'text-clasification'. Did you mean 'text-class"),
        ({"topk": 3}, "Unknown option of the text-classification pipeline 'topk'. Did you mean 'top_k'"),
        ({"prompts": ["a"]}, "Unknown option .* 'prompts'. Did you mean 'prompt'"),
        ({"task": "text-generation", "labels": ["a"]}, "Unknown option of the text-generation pipeline 'labels'"),
        ({"prompt": 7}, "prompt is 7, a int; wanted text"),
        ({"prompt": "a\ud800"}, "prompt holds half a character"),
        ({"batch_size": 0}, "batch_size is 0; wanted a whole number of texts, at least 1"),
        ({"top_k": 0}, "top_k is 0; wanted a number of labels, at least 1, or None"),
        ({"top_k": "all"}, "top_k is 'all'"),
    ],
)
def test_options_that_cannot_be_are_refused_when_built_and_when_called(bridge, options, message):
    with pytest.raises(ConfigError, match=message):
        layerbridge.pipeline(bridge, **options)
    task = options.pop("task", "text-classification")
    if task in module.PIPELINES:
        with pytest.raises(ConfigError, match=message):
            layerbridge.pipeline(bridge, task)(iter_of(TEXTS), **options)


@pytest.mark.parametrize("task", module.PIPELINES)
@pytest.mark.parametrize("size", [1, 4, 64])
def test_an_input_of_a_stream_is_refused_with_its_number_in_the_stream(bridge, monkeypatch, task, size):
    count = type(bridge.processor).count_source_tokens  # the tiny tokenizers end texts, so none of theirs is empty
    monkeypatch.setattr(
        bridge.processor,
        "count_source_tokens",
        lambda texts: [n if text else 0 for n, text in zip(count(bridge.processor, texts), texts, strict=True)],
    )
    pipe = layerbridge.pipeline(bridge, task, batch_size=size, raw=True)
    for text, message in {
        "a\ud800": r"Input 18 holds half a character \(U\+D800\); wanted Unicode text",
        "": r"Input 18 \(''\) tokenises to nothing with the encoder's tokenizer",
        None: "Input 18 is a NoneType; wanted a text",
    }.items():
        with pytest.raises(DataError, match=f"^{message}"):
            list(pipe(iter_of(["cat"] * 17 + [text] + ["mat"] * 3)))
    with pytest.raises(DataError, match="^Input 2: field 'text' holds half a character"):
        pipe(["cat", {"text": "a\ud800"}], raw=False)


def test_inputs_that_cannot_be_are_refused_with_their_number(bridge):
    pipe = layerbridge.pipeline(bridge, batch_size=2)
    with pytest.raises(DataError, match="Got a int; wanted a text, a list of texts"):
        pipe(7)
    with pytest.raises(DataError, match="Got a bytes; wanted a text"):
        pipe(b"cat")
    with pytest.raises(DataError, match="Input 2 is a NoneType; wanted a text, or the fields"):
        pipe(["cat", None])
    with pytest.raises(DataError, match="Input 3: field 'text' is empty"):
        list(pipe(iter_of(["cat", "mat", " "])))
    with pytest.raises(DataError, match="Input 1: no field 'text' among 'body'"):
        pipe({"body": "cat"})
    with pytest.raises(DataError, match="Input 1 is a dict; wanted a text. Drop raw=True to give fields"):
        pipe({"text": "cat"}, raw=True)
