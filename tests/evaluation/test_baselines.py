"""Baselines without a bridge: the files are a bridge's, the origin says what it is, and fields alone are translated."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from layerbridge.config import EvaluationConfig, LLMConfig, PromptConfig, TranslatorConfig
from layerbridge.data.example import Example, Split
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.baselines import RenderedPrompt, evaluate_llm_alone
from layerbridge.evaluation.compare import comparison
from layerbridge.evaluation.predictions import predictions_path, read_predictions
from layerbridge.model.llm_reader import LLMReader
from layerbridge.model.translator import Translation
from layerbridge.prompt import render_prompt
from layerbridge.results import json_sha256, read_results
from tests.evaluation.fakes import ANSWERS, FakeBridge, FakeTask, make_results, make_split

SAID = [("Sports", "Sports"), ("Sports", "Science"), ("Business", "x"), ("Science", "Science")]
PROMPT = "Text: {text} Topic: {topic}"


class FakeReader(FakeBridge):
    """Counts how often both methods are asked for at once."""

    calls = 0

    def answer(self, texts, answers, *, max_new_tokens=32, max_source_tokens=512):
        self.calls += 1
        scores = self.score(texts, answers, max_source_tokens=max_source_tokens)
        return scores, self.generate(texts, max_new_tokens=max_new_tokens, max_source_tokens=max_source_tokens)


@dataclass
class FakeTranslator:
    """`[si] word` -> `word`; what it was given is kept."""

    config: TranslatorConfig = field(default_factory=lambda: TranslatorConfig(name="/somewhere/nllb"))
    asked: list[tuple[str, str]] = field(default_factory=list)
    cut: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "/somewhere/nllb", "revision": None, "fingerprint": "t1", "tokenizer_fingerprint": "t2"}

    def tag(self, code):
        if code == "ta":
            raise ConfigError("none of the tags of Tamil")
        return code

    def translate(self, texts, code):
        self.asked += [(text, code) for text in texts]
        return [Translation(text=text.removeprefix(f"[{code}] "), cut=text == self.cut) for text in texts]


@dataclass
class PromptedTask(FakeTask):
    encoder_prompt: str = PROMPT


def prompted_split(language):
    said = enumerate(["Sports", "Science", "Business"])
    fields = ({"text": f"[{language}] row {n}", "topic": f"[{language}] says {a}"} for n, a in said)
    rows = [(render_prompt(PROMPT, row), row["topic"].split("says ")[1]) for row in fields]
    return Split.of(
        (Example(id=str(n), language=language, text=t, answer=a) for n, (t, a) in enumerate(rows)), source="s"
    )


def evaluate(folder, task, reader=None, **options):
    config = options.pop("config", EvaluationConfig())
    splits = {code: task.load(code, "test") for code in task.languages}
    reader = reader or FakeReader()
    return evaluate_llm_alone(reader, task, splits, config, folder, run="llm-alone", **options)


@pytest.fixture
def task():
    return FakeTask({"en": make_split("en", SAID), "si": make_split("si", SAID[:3])})


def test_the_files_are_those_of_an_evaluation_and_say_what_they_are(tmp_path, task):
    results = evaluate(tmp_path, task)
    assert results == read_results(tmp_path / "results.json")
    header, rows = read_predictions(predictions_path(tmp_path, "si"))
    assert [row.scored for row in rows][:2] == ["Sports", "Science"]
    assert [row.generated.strip() for row in rows] == ["Sports", "Science", "x"]
    found = header.provenance
    assert (found.kind, found.fusion, found.run, found.seed) == ("baseline", "llm_alone", "llm-alone", None)
    assert found.languages_seen == ()
    assert {role: base.name for role, base in found.bases.items()} == {"llm": "embedded"}
    assert results.averages("score").seen is None
    assert header.data_sha256 == task.load("si", "test").sha256


def test_finished_languages_are_kept_and_a_kill_loses_one_alone(tmp_path, task):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, task, FakeBridge(fail_on="si word"))
    assert predictions_path(tmp_path, "en").is_file()
    again = FakeBridge()
    evaluate(tmp_path, task, again)
    assert all(text.startswith("si") for batch in again.batches for text in batch)
    third = FakeBridge()
    assert evaluate(tmp_path, task, third) == read_results(tmp_path / "results.json")
    assert third.batches == []


def test_another_llm_or_prompt_is_another_origin_and_answers_again(tmp_path, task):
    first = evaluate(tmp_path, task).provenance
    other = FakeBridge(fingerprint_="b" * 64)
    second = evaluate(tmp_path, task, other).provenance
    assert first.checkpoint_sha256 != second.checkpoint_sha256
    assert other.batches


def test_a_baseline_stands_beside_bridges_in_a_comparison(tmp_path, task):
    baseline = evaluate(tmp_path, task)
    bridge = make_results(dict(baseline.languages))
    columns = comparison([bridge, baseline]).columns
    assert [column.name for column in columns] == ["ts", "llm-alone"]


@pytest.mark.parametrize(("methods", "calls"), [(("score", "generate"), 2), (("score",), 0), (("generate",), 0)])
def test_both_methods_are_asked_for_at_once_and_one_alone(tmp_path, task, methods, calls):
    reader = FakeReader()
    config = EvaluationConfig(methods=methods)
    results = evaluate(tmp_path / "once", task, reader, config=config)
    assert reader.calls == calls  # a batch a language
    apart = evaluate(tmp_path / "apart", task, FakeBridge(), config=config)
    assert results.languages == apart.languages
    for language in task.languages:
        pair = [read_predictions(predictions_path(tmp_path / name, language))[1] for name in ("once", "apart")]
        assert pair[0] == pair[1]


# translation


def test_fields_are_translated_and_the_prompt_around_them_is_not(tmp_path):
    task = PromptedTask({"si": prompted_split("si")})
    reader, translator = FakeReader(), FakeTranslator()
    results = evaluate(tmp_path, task, reader, translator=translator)
    assert translator.asked[:2] == [("[si] row 0", "si"), ("[si] says Sports", "si")]
    assert len(translator.asked) == 6, "each field once, though texts are counted, scored and generated from"
    assert "Text: row 0 Topic: says Sports" in reader.batches[0]
    assert results.languages["si"].methods["generate"].correct == 3
    found = results.provenance
    assert (found.fusion, set(found.bases)) == ("translate_then_llm", {"llm", "translator"})
    assert found.bases["translator"].name == "local:nllb"


def test_what_is_cut_in_translation_is_counted(tmp_path):
    task = PromptedTask({"si": prompted_split("si")})
    results = evaluate(tmp_path, task, translator=FakeTranslator(cut="[si] row 1"))
    assert results.languages["si"].truncated == 1
    _, rows = read_predictions(predictions_path(tmp_path, "si"))
    assert [row.truncated for row in rows] == [False, True, False]


def test_a_translator_with_other_options_is_another_baseline(tmp_path):
    task = PromptedTask({"si": prompted_split("si")})
    beams = FakeTranslator(TranslatorConfig(name="elsewhere", num_beams=4))
    places = FakeTranslator(TranslatorConfig(name="elsewhere", batch_size=3))
    found = [evaluate(tmp_path, task, translator=t).provenance for t in (FakeTranslator(), beams, places)]
    assert found[0].checkpoint_sha256 == found[2].checkpoint_sha256 != found[1].checkpoint_sha256


def test_a_language_without_a_tag_is_an_error_before_anything_is_translated(tmp_path):
    task = PromptedTask({"si": prompted_split("si"), "ta": prompted_split("ta")})
    translator = FakeTranslator()
    with pytest.raises(ConfigError, match="tags of Tamil"):
        evaluate(tmp_path, task, translator=translator)
    assert translator.asked == []


words = st.text(st.sampled_from("ab {}\nක:"), min_size=1, max_size=8).filter(str.strip)


@given(premise=words, hypothesis=words)
def test_a_rendered_prompt_read_backwards_gives_its_fields(premise, hypothesis):
    template = "Premise: {premise} Hypothesis: {hypothesis} Again: {premise} {{Label}}: "
    assume(" Hypothesis: " not in premise)
    prompt = RenderedPrompt(template)
    text = render_prompt(template, {"premise": premise, "hypothesis": hypothesis})
    assert prompt.render(prompt.fields(text)) == text
    assert prompt.fields(text) == [premise, hypothesis]
    assert prompt.render(["", "x"]) == "Premise:  Hypothesis: x Again:  {Label}: "


def test_a_text_that_is_not_of_its_prompt_is_refused():
    with pytest.raises(DataError, match="'Something' does not follow its task's prompt"):
        RenderedPrompt(PROMPT).fields("Something")


def test_the_real_llm_alone_goes_through_the_same_door(tiny_models, tmp_path, task):
    reader = LLMReader.build(LLMConfig(name=tiny_models["gemma3"]), PromptConfig(), device="cpu")
    config = EvaluationConfig(max_source_tokens=12, max_new_tokens=4)
    with pytest.warns(UserWarning, match="longer than 12 LLM tokens"):
        results = evaluate(tmp_path, task, reader, config=config)
    _, rows = read_predictions(predictions_path(tmp_path, "en"))
    assert [row.source_tokens for row in rows] == reader.count_source_tokens(
        [example.text for example in task.load("en", "test").examples]
    )
    assert [row.truncated for row in rows] == [row.source_tokens > 12 for row in rows]
    assert results.languages["en"].truncated == sum(row.truncated for row in rows)
    for row, example in zip(rows, task.load("en", "test").examples, strict=True):
        alone = reader.score([example.text], ANSWERS, max_source_tokens=12)[0].tolist()
        assert list(row.log_probs.values()) == pytest.approx(alone, abs=1e-4)


def test_the_canonical_hash_does_not_depend_on_order():
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1}) != json_sha256({"a": 1, "b": [3]})
