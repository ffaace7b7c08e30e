"""Generation through a bridge: batches, sampling, beams, stop strings and streams.

The LLM's own `generate` does the decoding; given embeddings it returns the new tokens only.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, TextIteratorStreamer

from layerbridge.errors import ConfigError, DataError
from layerbridge.model.batches import BATCH_SIZE, BATCH_TOKENS, as_list, ask_in_batches
from layerbridge.model.splice import splice

if TYPE_CHECKING:
    from layerbridge.model.scoring import PrefixReader


class GenerationMixin:
    """`generate` and `stream`, for any `PrefixReader`."""

    def generate(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        max_source_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        num_beams: int = 1,
        stop: Sequence[str] = (),
        seed: int | None = None,
        batch_tokens: int | None = BATCH_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> list[str]:
        """Return one answer a text, whatever the number of texts; greedy, they are what each text gives alone.

        Args:
            texts: what the encoder reads, in a list.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            max_new_tokens: LLM tokens an answer.
            max_source_tokens: encoder tokens a text; longer texts are cut.
            temperature: 0 is greedy; above it, sampling.
            top_p: of sampling: smallest set of tokens with this much probability.
            top_k: of sampling: this many most probable tokens.
            num_beams: above 1, beam search.
            stop: an answer ends before the first of these strings.
            seed: of sampling; torch's global state is left alone then. What is drawn depends on the batches as well.
            batch_tokens: tokens of a batch, padding included; halved by itself when memory runs out. None: all texts
                are one batch, which whoever calls has made.
            batch_size: texts of a batch at most.

        Raises:
            ConfigError: an option that cannot be, or one text alone does not fit the memory.
            DataError: no texts, one text in place of a list, one that tokenises to nothing, or more than the LLM has
                positions for.
        """
        reader = cast("PrefixReader", self)
        options = generation_options(reader, max_new_tokens, temperature, top_p, top_k, num_beams, stop)

        def ask(some: list[str], their_prompts: list[str] | None) -> list[str]:
            ids = _generate(reader, some, their_prompts, max_source_tokens, options)
            return list(reader.processor.llm_tokenizer.batch_decode(ids, skip_special_tokens=True))

        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            answers = ask_in_batches(
                reader.processor,
                ask,
                texts,
                prompts,
                max_source_tokens=max_source_tokens,
                max_new_tokens=max_new_tokens,
                batch_tokens=batch_tokens,
                batch_size=batch_size,
            )
        return [cut_at_stop(answer, stop) for answer in answers]

    def stream(
        self,
        text: str,
        *,
        prompt: str | None = None,
        max_new_tokens: int = 32,
        max_source_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yield one text's answer piece by piece; joined, the pieces are what `generate` returns.

        Takes the options of `generate` except beams and a seed, and refuses what it refuses once the first piece is
        asked for. Dropping the iterator ends the generation.
        """
        reader = cast("PrefixReader", self)
        texts, prompts = as_list([text], "texts"), None if prompt is None else as_list([prompt], "prompts")
        options = generation_options(reader, max_new_tokens, temperature, top_p, top_k, 1, stop)
        streamer = TextIteratorStreamer(reader.processor.llm_tokenizer, skip_special_tokens=True)
        failure: list[BaseException] = []
        left = threading.Event()

        def work() -> None:
            try:
                _generate(
                    reader,
                    texts,
                    prompts,
                    max_source_tokens,
                    options | {"streamer": streamer, "stopping_criteria": [lambda ids, scores: _all(ids, left)]},
                )
            except BaseException as error:  # handed to the consumer below
                failure.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from _until_stop(streamer, stop)
        finally:
            left.set()
            worker.join()
        if failure:
            raise failure[0]


def max_positions(llm: PreTrainedModel) -> int | None:
    """Return how many positions an LLM has; None where its config does not say."""
    limit: int | None = getattr(llm.config.get_text_config(), "max_position_embeddings", None)
    return limit


def check_length(llm: PreTrainedModel, length: int) -> None:
    """Raise a DataError if an LLM would have to read more positions than it has."""
    limit = max_positions(llm)
    if limit is not None and length > limit:
        raise DataError(
            f"The LLM would have to read {length} positions and takes {limit}. Lower max_source_tokens or "
            "max_new_tokens, or shorten the prompt."
        )


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text up to the first of the stop strings."""
    ends = [index for index in (text.find(s) for s in stop) if index >= 0]
    return text[: min(ends)] if ends else text


def _until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Yield pieces up to the first stop string, holding back what may be the beginning of one."""
    seen, sent = "", 0
    for piece in pieces:
        seen += piece
        cut = cut_at_stop(seen, stop)
        safe = len(cut) if len(cut) < len(seen) else len(seen) - possible_stop(seen, stop)
        if safe > sent:
            yield seen[sent:safe]
            sent = safe
    rest = cut_at_stop(seen, stop)[sent:]
    if rest:
        yield rest


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that a stop string begins with."""
    lengths = (n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)


def _all(ids: torch.Tensor, flag: threading.Event) -> torch.Tensor:
    return torch.full((ids.shape[0],), flag.is_set(), dtype=torch.bool, device=ids.device)


def generation_options(
    reader: "PrefixReader",
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    num_beams: int = 1,
    stop: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what transformers' `generate` is called with, checked; by default greedy."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; wanted at least 1.")
    if temperature < 0 or not 0 < top_p <= 1 or num_beams < 1 or (top_k is not None and top_k < 1):
        raise ConfigError(
            f"Generation got temperature {temperature}, top_p {top_p}, top_k {top_k}, num_beams {num_beams}; wanted "
            "temperature >= 0, 0 < top_p <= 1, top_k >= 1 and num_beams >= 1."
        )
    if any(not s for s in stop):
        raise ConfigError("A stop string is empty; wanted at least one character.")
    tokenizer = reader.processor.llm_tokenizer
    own_end = reader.llm.generation_config.eos_token_id if reader.llm.generation_config else None
    ends = {tokenizer.eos_token_id, *([own_end] if isinstance(own_end, int) else own_end or [])}
    config: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": temperature > 0,
        "eos_token_id": sorted(ends),
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    if temperature > 0:
        config |= {"temperature": temperature, "top_p": top_p, "top_k": top_k or 0}
    if stop:
        config["stop_strings"] = list(stop)
    options: dict[str, Any] = {"generation_config": GenerationConfig(**config)}
    if stop:
        options["tokenizer"] = tokenizer
    return options


@torch.inference_mode()
def _generate(
    reader: "PrefixReader",
    texts: Sequence[str],
    prompts: Sequence[str] | None,
    max_source_tokens: int,
    options: dict[str, Any],
) -> torch.Tensor:
    reader.eval()
    inputs = reader.processor(texts, prompts=prompts, max_source_tokens=max_source_tokens).to(reader.device)
    spliced = splice(reader.prefix_pieces(inputs))
    check_length(reader.llm, spliced.mask_BT.shape[1] + options["generation_config"].max_new_tokens)
    llm: Any = reader.llm
    return llm.generate(inputs_embeds=spliced.embeds_BTD, attention_mask=spliced.mask_BT.long(), **options)
