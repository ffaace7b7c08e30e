"""Decoding of a batch whose rows have their own options, a token of each row at a time.

Shapes: B batch, R rows that go on, T LLM positions, V LLM vocabulary.

`generate` decodes a batch to its end with one set of options. Here rows differ in length, stop strings and sampling,
are handed out as they are written, and leave the batch when they end or are dropped. A greedy row writes what
`Bridge.generate` writes for its text alone; a sampled row draws from a generator of its own, so that its seed gives
the same text whatever shares the batch (both up to the rounding that batches of other sizes bring).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from layerbridge.errors import DataError
from layerbridge.model.answer_passes import read_prefix
from layerbridge.model.generation import check_length, generation_options
from layerbridge.model.processor import BridgeInputs
from layerbridge.model.row_text import Finish, RowText
from layerbridge.model.splice import splice

if TYPE_CHECKING:
    from layerbridge.model.scoring import PrefixReader


MOST_PROBABLE = 1024
"""Tokens among which `top_p` nearly always finds its own; ranking a whole vocabulary costs a hundred times as much."""


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How one row is written; as `Bridge.generate` takes them."""

    max_new_tokens: int = 32
    """LLM tokens, the end token included."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    temperature: float = 0.0
    """0 is greedy; above it, sampling."""
    top_p: float = 1.0
    """Of sampling: smallest set of tokens with this much probability."""
    top_k: int | None = None
    """Of sampling: this many most probable tokens."""
    seed: int | None = None
    """Of sampling; by default another one each time."""


class Written(NamedTuple):
    """What one step added to a row."""

    row: int
    text: str
    """May be empty: a token that ends no character adds nothing yet."""
    num_tokens: int
    """That the row has written, the end token left out."""
    finish: Finish | Literal["failed"] | None
    """Why the row ends here, `failed` where its logits are not numbers; None where it goes on."""


class Decoding:
    """A batch as it is written. The prefix is read when this is built.

    Args:
        reader: a bridge, or whatever else reads prefixes.
        inputs: of B texts.
        options: of each of them.

    Raises:
        DataError: a text and its answer that need more positions than the LLM has.
        ConfigError: impossible options.
    """

    @torch.inference_mode()
    def __init__(self, reader: "PrefixReader", inputs: BridgeInputs, options: Sequence[RowOptions]) -> None:
        if len(options) != len(inputs.source_ids):
            raise DataError(f"Got {len(inputs.source_ids)} texts and {len(options)} options; wanted one for each text.")
        self.reader, self.options = reader, tuple(options)
        self._ends = [set(_ends(reader, row)) for row in options]
        reader.eval()
        spliced = splice(reader.prefix_pieces(inputs.to(reader.device)))
        for length, row in zip(spliced.mask_BT.sum(dim=1).tolist(), options, strict=True):
            check_length(reader.llm, length + row.max_new_tokens)
        read = read_prefix(reader, spliced)
        self.rows = list(range(len(options)))
        """Those that go on, by their number in the batch."""
        self._held = list(self.rows)  # rows of the cache; those that ended leave it before the next pass
        self._texts = [RowText(reader.processor.llm_tokenizer, row.stop) for row in options]
        self._generators = [_generator(row) for row in options]
        self._mask_RT = spliced.mask_BT
        self._next_R1 = spliced.position_ids_BT[:, -1:] + 1
        self._cache = read.cache
        self._logits_RV: Tensor | None = read.logits_BKV[:, -1]
        self._tokens_R = torch.empty(0, dtype=torch.long)

    def drop(self, rows: Collection[int]) -> None:
        """Leave rows unfinished: they cost nothing from the next step on."""
        self.rows = [row for row in self.rows if row not in rows]

    @torch.inference_mode()
    def step(self) -> list[Written]:
        """Write one token of each row that goes on."""
        if not self.rows:
            return []
        self._leave()
        logits_RV = self._logits_RV if self._logits_RV is not None else self._read()
        self._logits_RV = None
        tokens, are_numbers = logits_RV.argmax(-1).tolist(), logits_RV.amax(-1).isfinite().tolist()
        for index, row in enumerate(self._held):
            generator = self._generators[row]
            if generator is not None and are_numbers[index]:
                tokens[index] = sample(logits_RV[index].cpu(), self.options[row], generator)
        self._tokens_R = torch.tensor(tokens, device=self.reader.device)
        written = [
            self._add(row, token) if is_number else Written(row, "", len(self._texts[row].ids), "failed")
            for row, token, is_number in zip(self._held, tokens, are_numbers, strict=True)
        ]
        self.drop({one.row for one in written if one.finish})
        return written

    def _add(self, row: int, token: int) -> Written:
        text = self._texts[row]
        piece, finish = text.write(token, ends=self._ends[row], max_new_tokens=self.options[row].max_new_tokens)
        return Written(row, piece, len(text.ids), finish)

    def _leave(self) -> None:
        """Take rows that ended or were dropped out of what the LLM goes on from."""
        if len(self._held) == len(self.rows):
            return
        going = set(self.rows)
        kept_R = torch.tensor([index for index, row in enumerate(self._held) if row in going])
        kept_R = kept_R.to(self.reader.device)
        self._held = list(self.rows)
        self._cache.batch_select_indices(kept_R)
        self._mask_RT, self._next_R1 = self._mask_RT[kept_R], self._next_R1[kept_R]
        if self._logits_RV is not None:
            self._logits_RV = self._logits_RV[kept_R]
        else:
            self._tokens_R = self._tokens_R[kept_R]

    def _read(self) -> Tensor:
        """Let the LLM read the last token of each row and return the logits of the next."""
        self._mask_RT = torch.cat([self._mask_RT, self._mask_RT.new_ones((len(self._held), 1))], dim=1)
        out = self.reader.llm(
            inputs_embeds=self.reader.embed(self._tokens_R.unsqueeze(1)),
            attention_mask=self._mask_RT.long(),
            position_ids=self._next_R1,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self._next_R1 = out.past_key_values, self._next_R1 + 1
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV


def sample(logits_V: Tensor, options: RowOptions, generator: torch.Generator) -> int:
    """Draw a token: temperature, then the `top_k` most probable ones, then those within `top_p`."""
    # In float64 and the largest logit taken off first, so that no temperature above 0 is too small.
    scaled_V = (logits_V.double() - logits_V.max()) / options.temperature
    ids_K: Tensor | None = None
    if options.top_k is not None and options.top_k < len(scaled_V):
        scaled_V, ids_K = scaled_V.topk(options.top_k)
    probabilities_K = scaled_V.softmax(-1)
    if options.top_p < 1:
        probabilities_K, order_K = _most_probable(probabilities_K, options.top_p)
        ids_K = order_K if ids_K is None else ids_K[order_K]
    up_to_K = probabilities_K.cumsum(-1)
    # From 0 up to, not including, 1: the token whose share of the line the number falls into.
    number = torch.rand(1, generator=generator, dtype=torch.float64) * up_to_K[-1]
    drawn = int(torch.searchsorted(up_to_K, number, right=True).clamp(max=len(up_to_K) - 1))
    return drawn if ids_K is None else int(ids_K[drawn])


def _most_probable(probabilities_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the smallest set of probabilities that add up to `top_p`, largest first, and their places."""
    most_K, order_K = probabilities_V.topk(min(MOST_PROBABLE, len(probabilities_V)))
    if most_K.sum() < top_p:  # a flat distribution: all have to be ranked
        most_K, order_K = probabilities_V.sort(descending=True)
    num_kept = max(1, int((most_K.cumsum(-1) - most_K < top_p).sum()))
    return most_K[:num_kept], order_K[:num_kept]


def _generator(options: RowOptions) -> torch.Generator | None:
    if options.temperature == 0:
        return None
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    return generator


def _ends(reader: "PrefixReader", row: RowOptions) -> list[int]:
    """Return the LLM's end tokens, the row's options checked."""
    options = generation_options(reader, row.max_new_tokens, row.temperature, row.top_p, row.top_k, 1, row.stop)
    ends: list[int] = options["generation_config"].eos_token_id
    return ends
