"""A bridge in the manner of transformers' pipelines: one call for a text, a list, or a stream without end.

    classify = layerbridge.pipeline("runs/own_data", "text-classification", top_k=None)
    for answers in classify(line for line in open("messages.txt")):
        print(answers[0]["label"])

Texts come in and answers go out in the form that `transformers.pipeline` gives them for the same task. Names of options
are those of `Bridge.classify` and `Bridge.generate`.

These are no subclasses of `transformers.Pipeline`, for what it does is right for a PreTrainedModel and wrong for a
bridge: its constructor moves the model to the first accelerator and reads the config, tokenizer and generation config
of one model, where a bridge has two; and it tokenises rows one by one and pads them as one tokenizer would, where a
bridge makes batches by a budget of tokens and asks for all labels in one pass.
"""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from layerbridge.errors import ConfigError, DataError, unknown_name
from layerbridge.model.batches import why_no_text
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_bridge
from layerbridge.model.classification import Classification

READ_AHEAD = 64
"""Texts of a stream that are read and answered together, and of a pass at most, where no `batch_size` is given."""

Row = str | Mapping[str, str]
"""A text, or the fields of a task's prompt by name; fields that the prompt does not name are left alone."""


class BridgePipeline:
    """A callable over a bridge; made by `pipeline`.

    Args:
        bridge: loaded already.
        options: of every call, unless that call says otherwise.
    """

    task: ClassVar[str]
    method: ClassVar[str]
    """Of `Bridge`, whose keyword options can be given here too."""
    own_options: ClassVar[tuple[str, ...]] = ("batch_size", "prompt", "raw")

    def __init__(self, bridge: Bridge, **options: Any) -> None:
        self.bridge = bridge
        self.options = self._checked(options)

    def __call__(self, inputs: Row | Iterable[Row], **options: Any) -> Any:
        """Answer.

        Args:
            inputs: one text; a list or tuple of texts, answered at once; or any other iterable or dataset of texts, of
                which `batch_size` are read ahead. In place of a text, the fields of the task's prompt by name.
            options: `raw`: without the task's prompt around the text. `prompt`: what the LLM reads after all texts.
                `batch_size`: texts of a pass at most. Further those of the bridge's own method, and of the task.

        Returns:
            The form of one answer for one text, a list of them for a list, and an iterator of them for anything else.

        Raises:
            ConfigError: an unknown option, or one that cannot be.
            DataError: an input that is no text, or that the task's prompt cannot hold.
        """
        wanted = {**self.options, **self._checked(options)}
        if isinstance(inputs, str | Mapping):
            (answer,) = self._answer([inputs], wanted)
            return self._alone(answer, inputs, options)
        if isinstance(inputs, list | tuple):
            return self._answer(inputs, wanted)
        return self._stream(_rows(inputs), wanted)

    def _stream(self, rows: Iterator[Row], options: dict[str, Any]) -> Iterator[Any]:
        size = options.get("batch_size", READ_AHEAD)
        for start in itertools.count(step=size):
            some = list(itertools.islice(rows, size))
            if not some:
                return
            yield from self._answer(some, options, start=start)

    def _answer(self, rows: Sequence[Row], options: dict[str, Any], start: int = 0) -> list[Any]:
        """Return the answers to rows, of which the first is number `start` of its stream."""
        if not rows:
            return []
        given = dict(options)
        raw, prompt = given.pop("raw", False), given.pop("prompt", None)
        texts = [self._text(row, number, raw=raw) for number, row in enumerate(rows, start=start + 1)]
        prompts = None if prompt is None else [prompt] * len(texts)
        try:
            return self._ask(texts, prompts, {"batch_size": READ_AHEAD} | given, start)
        except DataError:  # it may number texts from the first of these
            for number, (text, length) in enumerate(
                zip(texts, self.bridge.count_source_tokens(texts), strict=True), start=start + 1
            ):
                if not length:
                    raise DataError(
                        f"Input {number} ({text!r}) tokenises to nothing with the encoder's tokenizer. Drop it, or "
                        "give a text with at least one token."
                    ) from None
            raise

    def _text(self, row: Row, number: int, *, raw: bool) -> str:
        if not isinstance(row, str if raw else str | Mapping):
            wanted = "a text" if raw else "a text, or the fields of the task's prompt by name"
            hint = " Drop raw=True to give fields." if raw and isinstance(row, Mapping) else ""
            raise DataError(f"Input {number} is a {type(row).__name__}; wanted {wanted}.{hint}")
        try:
            text = str(row) if raw else self.bridge.render(row)
        except DataError as error:
            raise DataError(f"Input {number}: {error}") from None
        problem = why_no_text(text)
        if problem is not None:
            raise DataError(f"Input {number} {problem}")
        return text

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(getattr(Bridge, self.method)).parameters
        known = {*parameters, *self.own_options} - {"self", "texts", "prompts"}
        for name in options:
            if name not in known:
                raise ConfigError(unknown_name(f"option of the {self.task} pipeline", name, known))
        size = options.get("batch_size", 1)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"batch_size is {size!r}; wanted a whole number of texts, at least 1.")
        problem = None if options.get("prompt") is None else why_no_text(options["prompt"])
        if problem is not None:
            raise ConfigError(f"prompt {problem}")
        return options

    def _ask(self, texts: list[str], prompts: list[str] | None, options: dict[str, Any], start: int) -> list[Any]:
        raise NotImplementedError

    def _alone(self, answer: Any, row: Row, options: dict[str, Any]) -> Any:
        """Return the form that one input's answer has when it was asked alone."""
        return answer


class TextClassificationPipeline(BridgePipeline):
    """Labels with their probabilities: `{"label", "score"}`, or the `top_k` best as a list, None for all of them.

    One text gives a list, as transformers does it: `[{"label", "score"}]`, and with `top_k` in the call the list of the
    best.
    """

    task = "text-classification"
    method = "classify"
    own_options = (*BridgePipeline.own_options, "top_k")

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        top_k = options.get("top_k")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ConfigError(f"top_k is {top_k!r}; wanted a number of labels, at least 1, or None for all of them.")
        return super()._checked(options)

    def _ask(self, texts: list[str], prompts: list[str] | None, options: dict[str, Any], start: int) -> list[Any]:
        ranked = "top_k" in options
        top_k = options.pop("top_k", 1)
        answers = self.bridge.classify(texts, prompts=prompts, **options)
        return [_best(answer, top_k) if ranked else _best(answer, 1)[0] for answer in answers]

    def _alone(self, answer: Any, row: Row, options: dict[str, Any]) -> Any:
        return [answer] if isinstance(row, str) and "top_k" not in options else answer


class TextGenerationPipeline(BridgePipeline):
    """Written answers: `[{"generated_text"}]` a text.

    The LLM reads no text of a bridge, but what the encoder made of it; so the answer stands alone, unless
    `return_full_text=True` puts what the encoder read before it. With a seed, each `batch_size` texts of a stream take
    the next number.
    """

    task = "text-generation"
    method = "generate"
    own_options = (*BridgePipeline.own_options, "return_full_text")

    def _ask(self, texts: list[str], prompts: list[str] | None, options: dict[str, Any], start: int) -> list[Any]:
        full = options.pop("return_full_text", False)
        if options.get("seed") is not None:  # or every part of a stream would draw the same
            options["seed"] += start // options["batch_size"]
        answers = self.bridge.generate(texts, prompts=prompts, **options)
        return [
            [{"generated_text": text + answer if full else answer}] for text, answer in zip(texts, answers, strict=True)
        ]


PIPELINES: dict[str, type[BridgePipeline]] = {
    kind.task: kind for kind in (TextClassificationPipeline, TextGenerationPipeline)
}


def pipeline(
    run_or_bridge: str | Path | Bridge, task: str = TextClassificationPipeline.task, **options: Any
) -> BridgePipeline:
    """Return a transformers-style pipeline over a bridge.

    Args:
        run_or_bridge: a run folder, a checkpoint folder or a hub name; or a bridge that is loaded already
            (`layerbridge.load` has the options of loading).
        task: `text-classification` or `text-generation`.
        options: of every call, such as `labels`, `top_k`, `max_new_tokens`, `batch_size` or `raw`.

    Raises:
        ConfigError: an unknown task or option.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    if task not in PIPELINES:
        raise ConfigError(unknown_name("task of a pipeline", task, PIPELINES))
    kind = PIPELINES[task]
    bridge = run_or_bridge if isinstance(run_or_bridge, Bridge) else load_bridge(run_or_bridge)
    return kind(bridge, **options)


def _best(answer: Classification, top_k: int | None) -> list[dict[str, Any]]:
    ranked = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
    return [{"label": label, "score": probability} for label, probability in ranked[:top_k]]


def _rows(inputs: Any) -> Iterator[Row]:
    """Return an iterator over a stream; datasets of torch may have only a length and items."""
    if hasattr(inputs, "__iter__") and not isinstance(inputs, bytes):
        return iter(inputs)
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") and not isinstance(inputs, bytes):
        return (inputs[index] for index in range(len(inputs)))
    raise DataError(f"Got a {type(inputs).__name__}; wanted a text, a list of texts, or an iterable of texts.")
