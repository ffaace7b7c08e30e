"""The frozen LLM alone, reading the text itself as tokens: what a bridge has to beat.

Shapes: B batch, S text tokens of the LLM, P all tokens that it reads before the answer.

The LLM reads `[bos | text, text prompt]` and is asked as a bridge is: the same scoring and the same generation. Nothing
is trained.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerbridge.config import LLMConfig, PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model.bases import default_device, load_llm_base
from layerbridge.model.fingerprint import tensors_fingerprint
from layerbridge.model.generation import GenerationMixin
from layerbridge.model.processor import HOW_TO_COUNT, BridgeInputs, BridgeProcessor, pad_right
from layerbridge.model.scoring import ScoringMixin
from layerbridge.model.splice import Piece

ROOM_FOR_ANSWERS = 64
"""Positions of the LLM that its texts leave free."""

_BEFORE_ANSWER = ":"
"""What an answer's tokens are found after: with a space between, as tokenizers have seen most words."""

_UNLIMITED = 2**31


class LLMTextProcessor(BridgeProcessor):
    """Texts -> what the LLM alone reads; limits on source tokens are of the LLM's own tokens here.

    Args:
        llm_tokenizer: reads everything.
        prompt: what follows the text, and whether both are one turn of a chat.
        max_positions: of the LLM, if it has a limit.
    """

    def __init__(
        self, llm_tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, max_positions: int | None = None
    ) -> None:
        whole = prompt.model_copy(update={"llm_reads_text": True, "max_text_tokens": _UNLIMITED})
        super().__init__(llm_tokenizer, llm_tokenizer, whole)
        if max_positions is not None:
            around = 1 + len(self._llm_ids(self._prompt_text("", prompt.text)))  # 1: bos
            self.encoder_max_tokens = max(1, max_positions - around - ROOM_FOR_ANSWERS)

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        max_source_tokens: int = 512,
        max_answer_tokens: int = 200,
    ) -> BridgeInputs:
        """Tokenise a batch: `source_ids` is the text alone, `prompt_ids` all that the LLM reads of text and prompt.

        Args:
            texts: B texts.
            prompts: what follows the texts, a text a row; by default the configured prompt.
            answers: None: nothing is trained here.
            max_source_tokens: LLM tokens of the text; longer texts are cut at their end.
            max_answer_tokens: not used.

        Raises:
            DataError: no texts, a text that tokenises to nothing, answers, or lists of different lengths.
        """
        if answers is not None:
            raise DataError("The LLM alone is not trained, so it takes no answers to learn from; leave them out.")
        texts = list(texts)
        if not texts:
            raise DataError("Got no texts; wanted at least one.")
        if prompts is not None and len(prompts) != len(texts):
            raise DataError(f"Got {len(texts)} texts and {len(prompts)} prompts; wanted one for each text.")
        limit = self.source_limit(max_source_tokens)
        read = self._cut(texts, limit)
        if any(cut != text for cut, text in zip(read, texts, strict=True)):
            warnings.warn(f"Texts longer than {limit} LLM tokens are cut there; {HOW_TO_COUNT}", stacklevel=3)
        source_ids, source_mask = pad_right([self._llm_ids(text) for text in read], 0)
        prompt_ids, prompt_mask = pad_right(self.prompt_ids(read, prompts), 0)
        return BridgeInputs(
            source_ids=source_ids, source_mask=source_mask, prompt_ids=prompt_ids, prompt_mask=prompt_mask
        )

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Return each answer's tokens as they stand after a space, with the end token; in a chat without the space.

        Raises:
            DataError: an answer that tokenises to nothing.
        """
        rows = super().answer_ids(answers)
        if self.prompt.style == "chat":
            return rows
        before = self._llm_ids(_BEFORE_ANSWER)
        spaced = [self._llm_ids(f"{_BEFORE_ANSWER} {answer}") for answer in answers]
        return [
            [*(ids[len(before) :] if ids[: len(before)] == before else self._llm_ids(f" {answer}")), row[-1]]
            for ids, answer, row in zip(spaced, answers, rows, strict=True)
        ]

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many LLM tokens each text has before any cut."""
        return [len(self._llm_ids(text)) for text in texts]

    def count_read_tokens(
        self, texts: Sequence[str], prompts: Sequence[str] | None, max_source_tokens: int
    ) -> list[int]:
        """Return how many tokens of each row the LLM reads: of the text, cut, and the prompt.

        Args:
            texts: B texts.
            prompts: what follows the texts, a text a row; None: the configured prompt.
            max_source_tokens: LLM tokens of the text; longer texts are cut at their end.

        Raises:
            DataError: a text that tokenises to nothing.
        """
        read = self._cut(list(texts), self.source_limit(max_source_tokens))
        return [len(ids) for ids in self.prompt_ids(read, prompts)]

    def prompt_ids(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[list[int]]:
        """Return the token ids of all that the LLM reads of each row: the text, not cut here, and the prompt."""
        rows = prompts if prompts is not None else [self.prompt.text] * len(texts)
        return [self._llm_ids(self._read(text, row)) for text, row in zip(texts, rows, strict=True)]

    def _read(self, text: str, prompt: str) -> str:
        """Return all that the LLM reads; the space before the answer belongs to the answer, as in plain text."""
        whole = self._prompt_text(text, prompt)
        return whole if self.prompt.style == "chat" else whole.rstrip()

    def _cut(self, texts: list[str], limit: int) -> list[str]:
        rows = [self._llm_ids(text) for text in texts]
        for index, ids in enumerate(rows):
            if not ids or not texts[index].strip():
                raise DataError(
                    f"Text {index + 1} of {len(texts)} ({texts[index]!r}) gives the LLM nothing to read. Drop it, or "
                    "give a text with at least one token."
                )
        return [
            text if len(ids) <= limit else self._shortened(ids, limit) for text, ids in zip(texts, rows, strict=True)
        ]

    def _shortened(self, ids: list[int], limit: int) -> str:
        text = str(self.llm_tokenizer.decode(ids[:limit]))
        return text.rstrip("\ufffd") or text  # half a character at the cut would be read as three more tokens


class LLMReader(ScoringMixin, GenerationMixin, nn.Module):
    """The frozen LLM alone, with a bridge's `score`, `generate` and `answer`. Build with `LLMReader.build`."""

    def __init__(
        self,
        *,
        config: LLMConfig,
        llm: PreTrainedModel,
        processor: LLMTextProcessor,
        bases: Mapping[str, Mapping[str, str | None]],
    ) -> None:
        super().__init__()
        self.config = config
        self.llm = llm
        self.processor = processor
        self.bases = {role: dict(identity) for role, identity in bases.items()}

    @classmethod
    def build(cls, llm: LLMConfig, prompt: PromptConfig, *, device: str | torch.device | None = None) -> Self:
        """Load the LLM.

        Args:
            llm: as in a bridge's config, but without adapters.
            prompt: what the LLM reads after the text; its `llm_reads_text` and `max_text_tokens` do not matter here.
            device: by default the first GPU if there is one, else the CPU.

        Raises:
            ModelError: an LLM that cannot be loaded.
            ConfigError: adapters, or a chat prompt for an LLM without a chat template.
        """
        if llm.lora is not None:
            raise ConfigError("llm.lora is set, and the LLM alone is not trained. Drop it for this baseline.")
        base = load_llm_base(llm, torch.device(device) if device is not None else default_device())
        positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
        processor = LLMTextProcessor(base.tokenizer, prompt, positions)
        reader = cls(config=llm, llm=base.model, processor=processor, bases={"llm": base.identity})
        reader.eval()
        return reader

    @property
    def device(self) -> torch.device:
        """Where the LLM is."""
        return self.llm.get_input_embeddings().weight.device  # type: ignore[return-value]

    def fingerprint(self) -> str:
        """Return the sha256 hex digest of what the answers follow from: the LLM, its tokenizer and the prompt."""
        prompt = self.processor.prompt
        base = self.bases["llm"]
        marks = [base["fingerprint"], base["tokenizer_fingerprint"], self.config.dtype, self.config.quantization]
        return tensors_fingerprint({}, extra=f"llm alone {marks} {prompt.model_dump_json(include={'text', 'style'})}")

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the LLM's own input embeddings of token ids."""
        return self.llm.get_input_embeddings()(ids_BT)

    def prefix_pieces(self, inputs: BridgeInputs) -> list[Piece]:
        """Return `bos | text and prompt`, each with its mask; bos only where the LLM's tokenizer has one."""
        pieces = [Piece(self.embed(inputs.prompt_ids), inputs.prompt_mask)]
        bos = self.processor.llm_tokenizer.bos_token_id
        if bos is not None:
            always_B1 = torch.ones_like(inputs.prompt_mask[:, :1])
            pieces.insert(0, Piece(self.embed(torch.full_like(always_B1, bos, dtype=torch.long)), always_B1))
        return pieces

    def source_limit(self, max_source_tokens: int) -> int:
        """Return the limit on LLM tokens of a text that holds: the asked one, or what the LLM's positions leave."""
        return self.processor.source_limit(max_source_tokens)

    def count_source_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many LLM tokens each text has before any cut."""
        return self.processor.count_source_tokens(texts)
