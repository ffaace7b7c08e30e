"""lm-evaluation-harness's model class for a bridge, registered as `layerbridge` once this module is imported.

    import layerbridge.evaluation.harness.model
    lm_eval.simple_evaluate("layerbridge", model_args="pretrained=runs/demo/last_layer", tasks=[...])

A log-likelihood is `Bridge.score`'s: of the answer and its end token, the answer tokenised as in training. So accuracy
by the harness is accuracy by `layerbridge evaluate`.

Shapes: B batch, N answers.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import lm_eval.models  # noqa: F401  # first: lm_eval looks up its own models only while none is registered
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from layerbridge.config import EvaluationConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.batches import in_batches
from layerbridge.evaluation.harness.marks import Reading, read_context

if TYPE_CHECKING:
    from layerbridge.model.bridge import Bridge

Found = TypeVar("Found")

GENERATION_OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams")


class Context(NamedTuple):
    """What is read of one document. Documents are kept apart, so that batches are those of `layerbridge evaluate`."""

    task: str | None
    document: int | None
    reading: Reading


@register_model("layerbridge")
class BridgeLM(LM):
    """A bridge that answers lm-evaluation-harness's requests, in this process.

    Args:
        pretrained: a loaded bridge, or what `load_bridge` takes: run folder, checkpoint folder or hub name.
        batch_size: texts a forward pass, at most.
        batch_tokens: encoder tokens a forward pass, padding included.
        max_source_tokens: encoder tokens a text; longer texts are cut, and counted in `truncated`.
        max_gen_toks: LLM tokens of a generated text, where the task does not say.
        device: by default the first GPU if there is one, else the CPU.
        encoder: where the encoder is now, if not where it was in training.
        llm: the same of the LLM.
        trust_remote_code: let the base models run code of their own.

    Raises:
        ConfigError: a batch size or number of tokens that is not a number.
        CheckpointError: a checkpoint that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: "str | Path | Bridge",
        *,
        batch_size: int | str = 256,
        batch_tokens: int | str = 4096,
        max_source_tokens: int = 512,
        max_gen_toks: int = 256,
        device: str | None = None,
        encoder: str | None = None,
        llm: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        for name, what, value in (("batch_size", "texts", batch_size), ("batch_tokens", "tokens", batch_tokens)):
            if not str(value).isdecimal() or int(value) < 1:
                raise ConfigError(f"{name} is {value!r}; wanted a number of {what}, 1 or more.")
        if isinstance(pretrained, str | Path):
            from layerbridge.model.checkpoint import load_bridge

            pretrained = load_bridge(
                pretrained, device=device, encoder=encoder, llm=llm, trust_remote_code=trust_remote_code
            )
        self.bridge = pretrained
        self.batch_size = int(batch_size)
        self.batch_tokens = int(batch_tokens)
        self.max_source_tokens = max_source_tokens
        self.max_gen_toks = max_gen_toks
        self.truncated: Counter[str | None] = Counter()
        """Task -> contexts that were cut at `max_source_tokens`."""

    # ---------------------------------------------------------------------------------------------------------------
    # Requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) log p(answer, end | context), and whether greedy text is the answer.

        The answer is the continuation without its leading white space. Answers that share a document and context are
        scored together.

        Raises:
            DataError: a context or answer that a bridge cannot read, or a log-probability that is not finite.
        """
        asked: dict[Context, dict[str, None]] = {}
        keys = []
        for request in requests:
            context, continuation = request.args[:2]
            keys.append((_context(request, context), _answer(request, continuation)))
            asked.setdefault(keys[-1][0], {})[keys[-1][1]] = None
        alike: dict[tuple[str | None, tuple[str, ...]], list[Context]] = {}
        for found, answers in asked.items():
            alike.setdefault((found.task, tuple(answers)), []).append(found)
        results: dict[tuple[Context, str], tuple[float, bool]] = {}
        with tqdm(total=len(asked), desc="Scoring", disable=disable_tqdm) as bar:
            for (_, choices), contexts in alike.items():

                def score(
                    batch: list[int], contexts: list[Context] = contexts, choices: tuple[str, ...] = choices
                ) -> dict[tuple[Context, str], tuple[float, bool]]:
                    return self._score([contexts[index] for index in batch], choices)

                for batch, found_here in self._in_batches(contexts, score):
                    results |= found_here
                    bar.update(len(batch))
        for request, key in zip(requests, keys, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, results[key])
        return [results[key] for key in keys]

    def _score(self, batch: list[Context], answers: tuple[str, ...]) -> dict[tuple[Context, str], tuple[float, bool]]:
        texts, prompts = self._inputs(batch)
        processor = self.bridge.processor
        ids = processor.answer_ids(answers)
        log_probs_BN, greedy = self.bridge.answer(
            texts,
            answers,
            prompts=prompts,
            max_new_tokens=max(map(len, ids)),  # their end tokens included: a text that goes on is longer than any
            max_source_tokens=self.max_source_tokens,
        )
        spelled = [processor.llm_tokenizer.decode(row[:-1], skip_special_tokens=True) for row in ids]
        found = {}
        for context, log_probs, text in zip(batch, log_probs_BN.tolist(), greedy, strict=True):
            for answer, log_prob, spelling in zip(answers, log_probs, spelled, strict=True):
                if not math.isfinite(log_prob):
                    raise DataError(
                        f"{_place(context.task, context.document)}: the log-probability of {answer!r} is {log_prob}. "
                        "lm_eval cannot count an answer as unreadable and would take it for one; "
                        "`layerbridge evaluate` counts it. Or load the models in float32."
                    )
                found[context, answer] = (log_prob, text == spelling)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return for each (context, options) what `Bridge.generate` writes, up to the first of `until`.

        Raises:
            ConfigError: an option that a bridge does not have.
            DataError: a context that a bridge cannot read.
        """
        alike: dict[tuple[str | None, str], list[int]] = {}
        contexts = []
        for index, request in enumerate(requests):
            context, options = request.args[:2]
            contexts.append(_context(request, context))
            wanted = json.dumps(generation_arguments(options, self.max_gen_toks))
            alike.setdefault((request.task_name, wanted), []).append(index)
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="Generating", disable=disable_tqdm) as bar:
            for (_, arguments), indices in alike.items():
                those = [contexts[index] for index in indices]

                def write(batch: list[int], those: list[Context] = those, options: str = arguments) -> list[str]:
                    sources, prompts = self._inputs([those[number] for number in batch])
                    return self.bridge.generate(
                        sources,
                        prompts=prompts,
                        max_source_tokens=self.max_source_tokens,
                        batch_tokens=None,  # a batch already
                        **json.loads(options),
                    )

                for batch, written in self._in_batches(those, write):
                    texts |= dict(zip([indices[number] for number in batch], written, strict=True))
                    bar.update(len(batch))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[index])
        return [texts[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: a bridge has no unconditional text.

        Raises:
            ConfigError: always.
        """
        task = requests[0].task_name if requests else None
        raise ConfigError(
            f"Task {task!r} asks for the probability of a text on its own, and a bridge has no unconditional text: "
            "its LLM answers to what the encoder read. Give perplexity tasks to the LLM alone (lm_eval --model hf)."
        )

    def _in_batches(
        self, contexts: Sequence[Context], run: Callable[[list[int]], Found]
    ) -> Iterator[tuple[list[int], Found]]:
        """Yield batches of indices with what `run` makes of each: the batches of `layerbridge evaluate`."""
        lengths = self.bridge.count_source_tokens([context.reading.text for context in contexts])
        limit = self.bridge.source_limit(self.max_source_tokens)
        self.truncated.update(context.task for context, length in zip(contexts, lengths, strict=True) if length > limit)
        config = EvaluationConfig(
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            max_source_tokens=self.max_source_tokens,
            max_new_tokens=self.max_gen_toks,
        )
        yield from in_batches([min(length, limit) for length in lengths], config, run)

    def _inputs(self, batch: Sequence[Context]) -> tuple[list[str], list[str]]:
        own = self.bridge.processor.prompt.text
        prompts = [own if context.reading.prompt is None else context.reading.prompt for context in batch]
        return [context.reading.text for context in batch], prompts

    # ---------------------------------------------------------------------------------------------------------------
    # For lm_eval

    @property
    def tokenizer_name(self) -> str:
        """The LLM's name, by which lm_eval keeps caches apart."""
        return str(self.bridge.bases["llm"]["name"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> NoReturn:
        """Refuse: a bridge applies its LLM's chat template itself.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "A bridge applies its LLM's chat template itself, where it was trained with prompt.style chat. "
            "Drop --apply_chat_template."
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval's `simple_evaluate` adds to its results."""
        return {"checkpoint_sha256": self.bridge.fingerprint(), "fusion": self.bridge.config.fusion.name}


def generation_arguments(options: dict[str, Any], max_gen_toks: int) -> dict[str, Any]:
    """Return the arguments of `Bridge.generate` that an lm_eval task's generation options mean.

    Raises:
        ConfigError: an option that a bridge does not have.
    """
    given = dict(normalize_gen_kwargs(options, max_gen_toks))
    foreign = [name for name in given if name not in GENERATION_OPTIONS]
    if foreign:
        raise ConfigError(
            f"Generation option {', '.join(map(repr, foreign))} of the task is none of a bridge. Known: "
            f"{', '.join(GENERATION_OPTIONS)}. Drop it from the task's generation_kwargs."
        )
    arguments = {
        "max_new_tokens": given["max_gen_toks"],
        "stop": [text for text in given["until"] if text],
        "temperature": float(given.get("temperature", 1.0)) if given["do_sample"] else 0.0,
    }
    return arguments | {name: given[name] for name in ("top_p", "top_k", "num_beams") if given.get(name) is not None}


def _context(request: Instance, context: str) -> Context:
    try:
        reading = read_context(context)
    except DataError as error:
        raise DataError(f"{_place(request.task_name, request.doc_id)}: {error}") from None
    return Context(request.task_name, request.doc_id, reading)


def _answer(request: Instance, continuation: str) -> str:
    answer = continuation.lstrip()  # lm_eval's delimiter; in training answers begin without one
    if not answer:
        raise DataError(
            f"{_place(request.task_name, request.doc_id)}: the answer {continuation!r} is empty; wanted text to score."
        )
    return answer


def _place(task: str | None, document: int | None) -> str:
    return f"Task {task or '(no name)'}, document {document if document is not None else '(no number)'}"
