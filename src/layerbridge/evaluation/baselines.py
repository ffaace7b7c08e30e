"""Baselines without a bridge: the LLM alone on the text, as it is or translated into English first.

Predictions and results have the same files and the same rows as a bridge's, so that `compare` and the statistics put
them side by side; their provenance says `kind: baseline`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerbridge.config import EvaluationConfig
from layerbridge.errors import DataError
from layerbridge.evaluation.predict import base_origin, predict_languages, shared_origin
from layerbridge.evaluation.score import rescore
from layerbridge.results import BaseModelOrigin, Provenance, Results, json_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from layerbridge.data.example import Split
    from layerbridge.data.tasks import Task
    from layerbridge.model.llm_reader import LLMReader
    from layerbridge.model.translator import Translator

LLM_ALONE = "llm_alone"
TRANSLATE_THEN_LLM = "translate_then_llm"


def evaluate_llm_alone(
    reader: LLMReader,
    task: Task,
    splits: Mapping[str, Split],
    config: EvaluationConfig,
    folder: Path,
    *,
    run: str,
    translator: Translator | None = None,
    progress: bool = False,
) -> Results:
    """Ask the LLM alone, language by language, and write predictions and results.json as `evaluate_run` does.

    `config.max_source_tokens` counts the LLM's tokens here, of the text as the LLM reads it. With a translator, a
    text's fields are translated and the English prompt around them stays; English rows are read as they are. A row is
    counted as truncated if the LLM's text was cut, or a field or its translation before that.

    Args:
        reader: The LLM.
        task: Whose answers are asked for.
        splits: Language code -> rows, as `load_splits` gives them.
        config: Methods, limits and batch size.
        folder: Evaluation folder; languages that are there already, just so, are kept.
        run: Name in the results.
        translator: None: the LLM reads the text in its own language.
        progress: Show a bar per language on stderr.

    Raises:
        ConfigError: a free-text task to be scored, or a language that the translator has no tag for.
        DataError: gold answers that are none of the task's.
    """
    name = LLM_ALONE if translator is None else TRANSLATE_THEN_LLM
    bases = {"llm": base_origin(reader.bases["llm"])}
    definition: dict[str, Any] = {"baseline": name, "llm": reader.fingerprint()}
    if translator is not None:
        for language in splits:
            translator.tag(language)  # a missing tag should cost no hours of the languages before it
        bases["translator"] = base_origin(translator.identity)
        places = {"name", "revision", "batch_size", "trust_remote_code"}
        definition["translator"] = {
            "config": translator.config.model_dump(mode="json", exclude=places),
            "fingerprints": [translator.identity["fingerprint"], translator.identity["tokenizer_fingerprint"]],
        }
    digest = json_sha256(definition)
    provenance = describe_baseline(
        task,
        config,
        run=run,
        name=name,
        bases=bases,
        checkpoint_sha256=digest,
        setup_sha256=digest,
        languages_seen=(),  # nothing was trained; what the LLM's makers trained it on is not known
    )
    for language, split in splits.items():
        asked: Any = reader if translator is None else TranslatingReader(reader, translator, language, task)
        predict_languages(asked, task, {language: split}, config, provenance, folder, progress=progress)
    return rescore(folder, provenance=provenance)


def describe_baseline(
    task: Task,
    config: EvaluationConfig,
    *,
    run: str,
    name: str,
    bases: Mapping[str, BaseModelOrigin],
    checkpoint_sha256: str,
    setup_sha256: str,
    languages_seen: tuple[str, ...],
    seed: int | None = None,
) -> Provenance:
    """Return where a baseline's numbers come from.

    Args:
        task: Of the evaluation.
        config: Of the evaluation.
        run: Name in the results.
        name: The baseline's, in place of a fusion's.
        bases: Frozen models by role.
        checkpoint_sha256: Of all that the answers follow from.
        setup_sha256: Of what two seeds of it share.
        languages_seen: In training.
        seed: Of the training rows, if any are used.
    """
    return Provenance(
        **shared_origin(task, config),
        run=run,
        kind="baseline",
        fusion=name,
        seed=seed,
        checkpoint_sha256=checkpoint_sha256,
        config_sha256=setup_sha256,
        setup_sha256=setup_sha256,
        bases=dict(bases),
        languages_seen=languages_seen,
    )


class TranslatingReader:
    """An `LLMReader` that is handed one language's texts and reads them in English.

    Args:
        reader: The LLM.
        translator: Into English.
        language: Our code, of all texts.
        task: Whose prompt stands around the fields; it is English already.
    """

    def __init__(self, reader: LLMReader, translator: Translator, language: str, task: Task) -> None:
        self.reader = reader
        self.translator = translator
        self.language = language
        self.prompt = RenderedPrompt(task.encoder_prompt)
        self.cut_texts: set[str] = set()
        """Texts of which a field or its translation was cut."""
        self._english: dict[str, str] = {}

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Translate the texts, and return how many LLM tokens each has in English before any cut."""
        return self.reader.count_source_tokens(self._read(texts))

    def source_limit(self, max_source_tokens: int) -> int:
        """Return the limit on the LLM's tokens that holds."""
        return self.reader.source_limit(max_source_tokens)

    def score(self, texts: Sequence[str], answers: Sequence[str], **options: Any) -> Tensor:
        """Score as the LLM alone does, on the English texts."""
        return self.reader.score(self._read(texts), answers, **options)

    def generate(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Generate as the LLM alone does, on the English texts."""
        return self.reader.generate(self._read(texts), **options)

    def answer(self, texts: Sequence[str], answers: Sequence[str], **options: Any) -> tuple[Tensor, list[str]]:
        """Score and generate as the LLM alone does, on the English texts."""
        return self.reader.answer(self._read(texts), answers, **options)

    def _read(self, texts: Sequence[str]) -> list[str]:
        new = [text for text in dict.fromkeys(texts) if text not in self._english]
        fields = [self.prompt.fields(text) for text in new]
        found = iter(self.translator.translate([field for row in fields for field in row], self.language))
        for text, row in zip(new, fields, strict=True):
            translations = [next(found) for _ in row]
            self._english[text] = self.prompt.render([translation.text for translation in translations])
            if any(translation.cut for translation in translations):
                self.cut_texts.add(text)
        return [self._english[text] for text in texts]


class RenderedPrompt:
    """A template read backwards: a rendered text -> its fields. Put together again, they are the text.

    Where a field holds the words that the template has between two fields, the first such place counts.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._literals: list[str] = []
        self._places: list[int | None] = []
        """After each literal: which field, in the order of their first use; None: the template's end."""
        numbers: dict[str, int] = {}
        pattern = ""
        for literal, name, _, _ in string.Formatter().parse(template):
            pattern += re.escape(literal)
            if name is not None:
                pattern += "(.+?)" if name not in numbers else rf"(?:\{numbers[name] + 1})"
                numbers.setdefault(name, len(numbers))
            self._literals.append(literal)
            self._places.append(None if name is None else numbers[name])
        self._pattern = re.compile(pattern, re.DOTALL)

    def fields(self, text: str) -> list[str]:
        """Return the fields of a rendered text, each once.

        Raises:
            DataError: the text is not of this template.
        """
        match = self._pattern.fullmatch(text)
        if match is None:
            raise DataError(
                f"The text {text[:80]!r} does not follow its task's prompt {self.template!r}, so its fields cannot be "
                "translated apart from it."
            )
        return list(match.groups())

    def render(self, fields: Sequence[str]) -> str:
        """Return the template with other fields; an empty one stays empty."""
        pairs = zip(self._literals, self._places, strict=True)
        return "".join(literal + ("" if place is None else fields[place]) for literal, place in pairs)
