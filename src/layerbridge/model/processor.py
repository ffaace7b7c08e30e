"""Texts -> the token ids that a bridge reads: source for the encoder, prompt and answer for the LLM.

Shapes: B batch, S source tokens, P prompt tokens, A answer tokens (the end token included).

Tokenising happens here, outside the model's forward pass, so that data workers can do it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerbridge.config import PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.splice import IGNORED

HOW_TO_COUNT = "`count_source_tokens` of the bridge tells which."
TEMPLATE_DATE = "26 Jul 2024"
"""The date that chat templates with one (Llama 3) are told: with today's, the same text would score differently every
day. This one is those templates' own fall-back."""

Ids = Sequence[int] | Tensor
"""Token ids of one text."""


@dataclass(frozen=True, kw_only=True)
class BridgeInputs:
    """One batch, right-padded; `splice` moves the LLM's pads to the left later."""

    source_ids: Tensor
    """(B, S)"""
    source_mask: Tensor
    """(B, S), true at real tokens."""
    prompt_ids: Tensor
    """(B, P); P is 0 where the LLM reads no text."""
    prompt_mask: Tensor
    labels: Tensor | None = None
    """(B, A): answer tokens and the end token, -100 at padding."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the batch's tensors by name; `BridgeInputs(**tensors)` is the batch again."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device) -> "BridgeInputs":
        """Return the batch on a device."""
        return BridgeInputs(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


class BridgeProcessor:
    """The two tokenizers and the prompt between them.

    Args:
        encoder_tokenizer: reads the source texts, its own special tokens kept.
        llm_tokenizer: reads prompts and answers, and brings bos, eos and the chat template.
        prompt: what the LLM reads as text.
        encoder_max_tokens: limit set by the encoder's position embeddings, if any.
    """

    def __init__(
        self,
        encoder_tokenizer: PreTrainedTokenizerBase,
        llm_tokenizer: PreTrainedTokenizerBase,
        prompt: PromptConfig,
        encoder_max_tokens: int | None = None,
    ) -> None:
        self.encoder_tokenizer = encoder_tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.prompt = prompt
        self.encoder_max_tokens = encoder_max_tokens
        if prompt.style == "chat" and not llm_tokenizer.chat_template:
            raise ConfigError(
                "prompt.style is 'chat', and the LLM's tokenizer has no chat template. Use 'plain', or an "
                "instruction-tuned LLM."
            )

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        max_source_tokens: int = 512,
        max_answer_tokens: int = 200,
    ) -> BridgeInputs:
        """Tokenise a batch.

        Args:
            texts: what the encoder reads.
            prompts: what the LLM reads, a text a row; by default the configured prompt.
            answers: what is to be learned, a text a row.
            max_source_tokens: longer texts are cut; `count_source_tokens` tells which those are.
            max_answer_tokens: the end token included; longer answers are cut before it.

        Raises:
            DataError: no texts, a text or an answer that tokenises to nothing, or lists of different lengths.
        """
        texts = list(texts)
        if not texts:
            raise DataError("Got no texts; wanted at least one.")
        for name, column in (("prompts", prompts), ("answers", answers)):
            if column is not None and len(column) != len(texts):
                raise DataError(f"Got {len(texts)} texts and {len(column)} {name}; wanted one for each text.")
        return self.batch(
            self.source_ids(texts, max_source_tokens),
            self.prompt_ids(texts, prompts),
            None if answers is None else [cut_answer(row, max_answer_tokens) for row in self.answer_ids(answers)],
        )

    def batch(
        self, source: Sequence[Ids], prompts: Sequence[Ids], answers: Sequence[Ids] | None = None
    ) -> BridgeInputs:
        """Put rows of token ids together as one batch; what is tokenised already needs nothing else."""
        source_ids, source_mask = pad_right(source, self.encoder_tokenizer.pad_token_id or 0)
        prompt_ids, prompt_mask = pad_right(prompts, 0)
        return BridgeInputs(
            source_ids=source_ids,
            source_mask=source_mask,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            labels=None if answers is None else pad_right(answers, IGNORED)[0],
        )

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Return each answer's tokens with the end token after them.

        Raises:
            DataError: an answer that tokenises to nothing.
        """
        rows: list[list[int]] = []
        for index, answer in enumerate(answers):
            ids = self._llm_ids(answer)
            if not ids:
                raise DataError(
                    f"Answer {answer!r} (number {index + 1} of {len(answers)}) tokenises to nothing with the LLM's "
                    "tokenizer. Give an answer with at least one token."
                )
            rows.append([*ids, self.llm_tokenizer.eos_token_id])
        return rows

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many encoder tokens each text has before any cut."""
        return [len(ids) for ids in self.encoder_tokenizer(list(texts), verbose=False)["input_ids"]]

    def count_read_tokens(
        self, texts: Sequence[str], prompts: Sequence[str] | None, max_source_tokens: int
    ) -> list[int]:
        """Return how many tokens of each row are read: the text's by the encoder, the prompt's by the LLM.

        Args:
            texts: B texts.
            prompts: what the LLM reads, a text a row; None: the configured prompt.
            max_source_tokens: longer texts are cut.

        Raises:
            DataError: a text that tokenises to nothing.
        """
        limit = self.source_limit(max_source_tokens)
        lengths = self.count_source_tokens(texts)
        for row, length in enumerate(lengths):
            if not length:
                raise DataError(
                    f"Text {row + 1} of {len(texts)} ({texts[row]!r}) tokenises to nothing. Drop it, or give a text "
                    "with at least one token."
                )
        if prompts is None and not self.prompt.llm_reads_text:
            prompt_ids = self.prompt_ids([""]) * len(texts)  # the same for all
        else:
            prompt_ids = self.prompt_ids(texts, prompts)
        return [min(length, limit) + len(ids) for length, ids in zip(lengths, prompt_ids, strict=True)]

    def source_limit(self, max_source_tokens: int) -> int:
        """Return the limit that holds: the asked one, or the encoder's own if that is lower."""
        return min(max_source_tokens, self.encoder_max_tokens or max_source_tokens)

    def source_ids(self, texts: list[str], max_source_tokens: int) -> list[list[int]]:
        """Return the token ids that the encoder reads of each text, cut at the limit.

        Raises:
            DataError: a text that tokenises to nothing.
        """
        limit = self.source_limit(max_source_tokens)
        rows: list[list[int]] = self.encoder_tokenizer(texts, verbose=False)["input_ids"]
        long = [index for index, ids in enumerate(rows) if len(ids) > limit]
        if long:
            warnings.warn(f"Texts longer than {limit} encoder tokens are cut there; {HOW_TO_COUNT}", stacklevel=4)
            cut = self.encoder_tokenizer([texts[i] for i in long], truncation=True, max_length=limit)["input_ids"]
            for index, ids in zip(long, cut, strict=True):
                rows[index] = ids
        for index, ids in enumerate(rows):
            if not ids:
                raise DataError(
                    f"Text {index + 1} of {len(texts)} ({texts[index]!r}) tokenises to nothing with the encoder's "
                    "tokenizer. Drop it, or give a text with at least one token."
                )
        return rows

    def prompt_ids(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[list[int]]:
        """Return the token ids that the LLM reads as text of each row, by default of the configured prompt."""
        if prompts is None and self.prompt.is_empty:
            return [[] for _ in texts]
        rows = prompts if prompts is not None else [self.prompt.text] * len(texts)
        return [self._llm_ids(self._prompt_text(text, row)) for text, row in zip(texts, rows, strict=True)]

    def plain_prompt(self, text: str, prompt: str | None = None) -> str:
        """Return what the LLM reads as text, before any chat template.

        Args:
            text: what the encoder reads; comes first where the LLM reads it too.
            prompt: by default the configured prompt.
        """
        prompt = self.prompt.text if prompt is None else prompt
        if self.prompt.llm_reads_text:
            ids = self._llm_ids(text)
            if len(ids) > self.prompt.max_text_tokens:
                warnings.warn(
                    f"The LLM reads only {self.prompt.max_text_tokens} tokens of a longer text.", stacklevel=6
                )
                text = str(self.llm_tokenizer.decode(ids[: self.prompt.max_text_tokens]))
            prompt = f"{text}\n{prompt}" if prompt else text
        return prompt

    def _prompt_text(self, text: str, prompt: str) -> str:
        prompt = self.plain_prompt(text, prompt)
        if self.prompt.style == "plain":
            return prompt
        turn = self.llm_tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            bos_token="",  # stands before the soft tokens already
            date_string=TEMPLATE_DATE,
        )
        return str(turn)

    def _llm_ids(self, text: str) -> list[int]:
        return list(self.llm_tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def cut_answer(ids: list[int], max_tokens: int) -> list[int]:
    """Return an answer's tokens, cut to `max_tokens` with the end token kept."""
    return ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]


def pad_right(rows: Sequence[Ids], value: int) -> tuple[Tensor, Tensor]:
    """Return rows of ids as one (B, longest) tensor filled up with `value`, and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return ids, mask
