"""A frozen translation model: texts of a language -> English. For the baseline that translates, then asks the LLM.

Shapes: B batch, S source tokens, T target tokens.

Three families spell languages in three ways: NLLB and mBART by special tokens (`sin_Sinh`, `si_LK`), M2M100 by codes
(`si`), and Marian and T5 not at all, or as text before the source. The first two are asked by what the tokenizer says
of itself, the third by `prefix`; which model it is never matters.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from layerbridge.config import TranslatorConfig
from layerbridge.errors import ConfigError, unknown_name
from layerbridge.languages import describe, language
from layerbridge.model.bases import default_device, load_translator_base

TARGET = "en"


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One translated text."""

    text: str
    cut: bool
    """Whether the source was cut at its limit, or the translation at `max_new_tokens`."""


class Translator:
    """A sequence-to-sequence model and its tokenizer. Build with `Translator.build`."""

    def __init__(
        self,
        *,
        config: TranslatorConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        identity: dict[str, str | None],
    ) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.identity = identity
        """Name, revision and fingerprints, as of a bridge's bases."""
        self.tags = _known_tags(tokenizer)
        """Every language that the tokenizer tags, with the tag's token id; empty: it tags none."""
        if not self.tags and (config.source_languages is not None or config.target_language is not None):
            raise ConfigError(
                f"translator.source_languages and target_language name language tags, and the tokenizer of "
                f"{config.name!r} has none. Drop them; what the model wants before a text is `translator.prefix`."
            )
        self.target = self._tag(TARGET, config.target_language) if self.tags else None

    @classmethod
    def build(cls, config: TranslatorConfig, *, device: str | torch.device | None = None) -> Self:
        """Load the model, frozen.

        Args:
            config: the model, its language tags and its limits.
            device: by default the first GPU if there is one, else the CPU.

        Raises:
            ModelError: cannot be loaded, or is no sequence-to-sequence model.
            ConfigError: a language tag that the tokenizer does not have.
        """
        base = load_translator_base(config, torch.device(device) if device is not None else default_device())
        return cls(config=config, model=base.model, tokenizer=base.tokenizer, identity=base.identity)

    def tag(self, code: str) -> str | None:
        """Return the tokenizer's tag of one of our languages; None where the tokenizer tags no languages.

        Raises:
            ConfigError: no tag is known for it.
        """
        return self._tag(code, (self.config.source_languages or {}).get(code)) if self.tags else None

    @torch.inference_mode()
    def translate(self, texts: Sequence[str], code: str) -> list[Translation]:
        """Translate texts of one language into English; English and empty texts come back as they are.

        Args:
            texts: any number; batches are made of texts of like length.
            code: our code of the texts' language.

        Raises:
            ConfigError: the model has no tag for the language.
        """
        found = {text: Translation(text=text, cut=False) for text in texts if code == TARGET or not text.strip()}
        wanted = [text for text in dict.fromkeys(texts) if text not in found]
        tag = self.tag(code) if wanted else None
        if tag is not None:
            self.tokenizer.src_lang = tag
        lengths = dict(zip(wanted, self._count(wanted), strict=True))
        wanted.sort(key=lambda text: -lengths[text])
        for start in range(0, len(wanted), self.config.batch_size):
            batch = wanted[start : start + self.config.batch_size]
            limit = self._source_limit()
            for text, (translated, ended) in zip(batch, self._batch(batch, limit), strict=True):
                found[text] = Translation(text=translated, cut=lengths[text] > limit or not ended)
        return [found[text] for text in texts]

    def _batch(self, texts: list[str], limit: int) -> Iterable[tuple[str, bool]]:
        inputs = self.tokenizer(
            [self.config.prefix + text for text in texts],
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        model: Any = self.model
        written_BT = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            generation_config=self._generation(),
        )
        ends = torch.tensor(_ids(self._generation().eos_token_id), device=written_BT.device)
        ended_B = torch.isin(written_BT[:, 1:], ends).any(dim=1).tolist()  # column 0 starts the decoder, often with eos
        texts_B = self.tokenizer.batch_decode(written_BT, skip_special_tokens=True)
        return zip((text.strip() for text in texts_B), ended_B, strict=True)

    def _generation(self) -> GenerationConfig:
        """Beams or greedy, with what the model needs to start and end; its other defaults would be hidden options."""
        own: Any = self.model.generation_config
        model_config: Any = self.model.config
        ends = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        start = own.decoder_start_token_id
        return GenerationConfig(
            max_new_tokens=self.config.max_new_tokens,
            num_beams=self.config.num_beams,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else self.tokenizer.pad_token_id,
            decoder_start_token_id=start if start is not None else model_config.decoder_start_token_id,
            forced_bos_token_id=self.tags[self.target] if self.target is not None else own.forced_bos_token_id,
            bad_words_ids=own.bad_words_ids,  # Marian keeps its pad token from being written with it
        )

    def _source_limit(self) -> int:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        return min(self.config.max_source_tokens, positions or self.config.max_source_tokens)

    def _count(self, texts: list[str]) -> list[int]:
        if not texts:
            return []
        rows = self.tokenizer([self.config.prefix + text for text in texts], verbose=False)["input_ids"]
        return [len(ids) for ids in rows]

    def _tag(self, code: str, given: str | None) -> str:
        if given is not None:
            if given not in self.tags:
                raise ConfigError(unknown_name(f"language tag of translator {self.config.name!r}", given, self.tags))
            return given
        candidates = [code]
        with suppress(ConfigError):  # a code that our table lacks may still be one of the tokenizer's
            candidates.insert(0, language(code).flores)
        for candidate in candidates:
            if candidate in self.tags:
                return candidate
        regional = [tag for tag in self.tags if tag.startswith(f"{code}_")]
        if len(regional) == 1:
            return regional[0]
        found = f"several ({', '.join(sorted(regional))})" if regional else "none"
        key = f"translator.source_languages.{code}" if code != TARGET else "translator.target_language"
        raise ConfigError(
            f"Translator {self.config.name!r} has {found} of the tags that {describe(code)} could have "
            f"({', '.join(candidates)}). Say which of its {len(self.tags)} tags it is with {key}, such as "
            f"{sorted(self.tags)[0]!r}, or leave the language out."
        )


def _known_tags(tokenizer: Any) -> dict[str, int]:
    """Return the languages that a tokenizer tags, with the tags' token ids."""
    if getattr(tokenizer, "src_lang", None) is None:
        return {}
    if hasattr(tokenizer, "lang_code_to_token"):  # M2M100: the token of `si` is `__si__`
        return {code: int(tokenizer.get_lang_id(code)) for code in tokenizer.lang_code_to_token}
    specials = set(tokenizer.all_special_tokens) - {
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
        tokenizer.unk_token,
        tokenizer.mask_token,
    }
    return {token: int(tokenizer.convert_tokens_to_ids(token)) for token in specials if "_" in token}


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
