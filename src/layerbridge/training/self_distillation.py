"""English self-distillation: through the bridge the LLM is to predict what it predicts reading the text itself.

Shapes: A answer tokens (end tokens included) of a batch, N of all rows, B rows, T LLM positions, V LLM vocabulary, K
kept outcomes of a distribution.

MT-LLM (arXiv 2406.12739). The teacher is the frozen LLM reading `[bos | text as its own tokens | prompt | answer]`, the
student the same LLM reading `[bos | soft tokens | boundary | prompt | answer]`; the loss is KL(teacher || student) of
what both predict next, wherever a token of the answer is predicted, times the temperature squared.

Differs from the paper: it matches next-token distributions at the answer by KL, the paper one output vector of a text
by its squared error; the LLM needs no adapters, which the paper trains; and the teacher is never tuned to a task. So
its distributions are read once: whole in vocabularies up to `WHOLE`, else the `TOP` most probable tokens, and the mass
of all others as one outcome. KL over these is a lower bound of the whole KL, and zero with it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from layerbridge.data.example import Example, Split
from layerbridge.errors import DataError
from layerbridge.model.bridge import Bridge
from layerbridge.model.generation import check_length
from layerbridge.model.splice import positions
from layerbridge.training.token_rows import TEXTS_AT_ONCE, TokenRows

WHOLE = 8192
"""Vocabularies up to this size are kept whole."""
TOP = 256
"""Tokens that are kept of larger ones."""
TOKENS_AT_ONCE = 4096
"""LLM positions that the teacher reads in a pass, padding included."""
LOWEST = -6e4
"""Stands for log-probabilities that float16 has no number for."""


class Kept(NamedTuple):
    """Distributions over the next token."""

    log_probs_AK: Tensor
    """float16; with ids the last column is the mass of all tokens that have none."""
    ids_AK: Tensor | None
    """int32, of one token fewer; None: all tokens, in the vocabulary's order."""

    def pick(self, places_A: Tensor, device: torch.device) -> "Kept":
        """Return the distributions at some places, on a device."""
        ids_AK = None if self.ids_AK is None else self.ids_AK[places_A].to(device)
        return Kept(self.log_probs_AK[places_A].to(device), ids_AK)

    def put(self, places_A: Tensor, some: "Kept") -> None:
        """Write distributions to some places."""
        self.log_probs_AK[places_A] = some.log_probs_AK.cpu()
        if self.ids_AK is not None and some.ids_AK is not None:
            self.ids_AK[places_A] = some.ids_AK.cpu()


def keep(logits_AV: Tensor, temperature: float) -> Kept:
    """Return what is kept of next-token distributions, softened by a temperature."""
    log_probs_AV = torch.log_softmax(logits_AV.float() / temperature, dim=-1)
    if log_probs_AV.shape[-1] <= WHOLE:
        return Kept(log_probs_AV.clamp(min=LOWEST).half(), None)
    top_AK = log_probs_AV.topk(TOP, dim=-1)
    kept_AK = torch.cat([top_AK.values, _of_others(log_probs_AV, top_AK.indices)], dim=-1)
    return Kept(kept_AK.clamp(min=LOWEST).half(), top_AK.indices.int())


def distillation_loss(logits_AV: Tensor, kept: Kept, temperature: float) -> Tensor:
    """Return the summed KL(teacher || student) of A distributions, times the temperature squared.

    Args:
        logits_AV: the student's, of any dtype.
        kept: the teacher's, at the same temperature.
        temperature: of both.
    """
    teacher_AK = torch.log_softmax(kept.log_probs_AK.float(), dim=-1)  # rounded, they do not quite sum to one
    student_AK = torch.log_softmax(logits_AV.float() / temperature, dim=-1)
    if kept.ids_AK is not None:
        ids_AK = kept.ids_AK.long()
        student_AK = torch.cat([student_AK.gather(-1, ids_AK), _of_others(student_AK, ids_AK)], dim=-1)
    return temperature**2 * F.kl_div(student_AK, teacher_AK, reduction="sum", log_target=True)


def _of_others(log_probs_AV: Tensor, ids_AK: Tensor) -> Tensor:
    """Return (A, 1): the log of the mass of all tokens but these."""
    return log_probs_AV.scatter(-1, ids_AK, float("-inf")).logsumexp(dim=-1, keepdim=True)


class Teacher:
    """What the frozen LLM predicts of every row when it reads the text itself. Build with `Teacher.read`.

    Args:
        kept: distributions of all rows, one after another.
        starts: where each row's begin, and the end of the last.
        temperature: that they are softened by.
        num_cut_texts: texts that the teacher read only the beginning of.
    """

    def __init__(self, kept: Kept, starts: Sequence[int], *, temperature: float, num_cut_texts: int = 0) -> None:
        self.kept = kept
        self.starts = list(starts)
        self.temperature = temperature
        self.num_cut_texts = num_cut_texts

    @classmethod
    @torch.no_grad()
    def read(cls, bridge: Bridge, rows: TokenRows, *, temperature: float, max_text_tokens: int) -> "Teacher":
        """Let the LLM, adapters off, read every row once.

        Several processes each read all rows: the distributions stay in main memory, where the rows are dealt out anew
        every epoch.

        Args:
            bridge: whose LLM it is.
            rows: prompts and answers as the student reads them. A prompt that has the text in it already
                (`prompt.llm_reads_text`) is read alone.
            temperature: to soften the distributions by.
            max_text_tokens: LLM tokens of a text; also cut at what the LLM's positions leave.

        Raises:
            DataError: a text that tokenises to nothing, or a prompt and answer too long for the LLM.
        """
        counts = [len(rows[number].answer) for number in range(len(rows))]
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        num_cut, read = 0, []
        for ids, was_cut in _row_ids(bridge, rows, max_text_tokens):
            num_cut += was_cut
            read.append(ids)
        kept: Kept | None = None
        with adapters_off(bridge.llm):
            for numbers in _passes([len(ids) for ids in read]):
                logits_AV = _answer_logits(bridge.llm, [read[n] for n in numbers], [counts[n] for n in numbers])
                some = keep(logits_AV, temperature)
                kept = kept or _room(starts[-1], some)
                kept.put(_places(starts, numbers), some)
        assert kept is not None, "a run has rows"
        return cls(kept, starts, temperature=temperature, num_cut_texts=num_cut)

    def of_rows(self, numbers: Sequence[int], device: torch.device) -> Kept:
        """Return the distributions of some rows' answer tokens, one row after another."""
        return self.kept.pick(_places(self.starts, numbers), device)

    def describe(self) -> dict[str, Any]:
        """Return what the run record says of it."""
        tensors = [part for part in self.kept if part is not None]
        return {
            "distributions": self.starts[-1],
            "kept_tokens": TOP if self.kept.ids_AK is not None else self.kept.log_probs_AK.shape[1],
            "bytes": sum(part.nbytes for part in tensors),
            "truncated_texts": self.num_cut_texts,
        }


def _room(num_distributions: int, like: Kept) -> Kept:
    def empty(part: Tensor) -> Tensor:
        return torch.empty((num_distributions, part.shape[1]), dtype=part.dtype)

    return Kept(empty(like.log_probs_AK), None if like.ids_AK is None else empty(like.ids_AK))


def _places(starts: Sequence[int], numbers: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(starts[number], starts[number + 1]) for number in numbers])


def _row_ids(bridge: Bridge, rows: TokenRows, max_text_tokens: int) -> Iterator[tuple[list[int], bool]]:
    """Yield what the teacher reads of each row, and whether its text was cut; of the answer all but the end token."""
    processor = bridge.processor
    bos = processor.llm_tokenizer.bos_token_id
    begin = [] if bos is None else [bos]
    limit = getattr(bridge.llm.config.get_text_config(), "max_position_embeddings", None)
    for first in range(0, len(rows), TEXTS_AT_ONCE):
        numbers = range(first, min(first + TEXTS_AT_ONCE, len(rows)))
        texts = [rows.examples[number].text for number in numbers]
        read: list[list[int]] = [[] for _ in texts]
        if not processor.prompt.llm_reads_text:
            read = processor.llm_tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for number, text, ids in zip(numbers, texts, read, strict=True):
            if not ids and not processor.prompt.llm_reads_text:
                raise DataError(
                    f"Text {number + 1} of {len(rows)} ({text!r}) tokenises to nothing with the LLM's tokenizer, so it "
                    "predicts nothing of it for training.self_distillation. Drop it, or give it at least one token."
                )
            row = rows[number]
            after = [*row.prompt.tolist(), *row.answer.tolist()[:-1]]
            room = max_text_tokens if limit is None else min(max_text_tokens, limit - len(begin) - len(after))
            yield [*begin, *ids[: max(1, room)], *after], len(ids) > room


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield rows of like length, longest first."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _answer_logits(llm: PreTrainedModel, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
    """Return the logits (A, V) at the last `counts` places of each row, one row after another."""
    length, most = max(map(len, rows)), max(counts)
    check_length(llm, length)
    embedding: Any = llm.get_input_embeddings()
    ids_BT = torch.zeros((len(rows), length), dtype=torch.long)
    mask_BT = torch.zeros((len(rows), length), dtype=torch.bool)
    for place, row in enumerate(rows):
        ids_BT[place, length - len(row) :] = torch.tensor(row)
        mask_BT[place, length - len(row) :] = True
    mask_BT = mask_BT.to(embedding.weight.device)
    logits_BAV = llm(
        input_ids=ids_BT.to(embedding.weight.device),
        attention_mask=mask_BT.long(),
        position_ids=positions(mask_BT),
        logits_to_keep=most,
        use_cache=False,
    ).logits
    return torch.cat([logits_AV[most - count :] for logits_AV, count in zip(logits_BAV, counts, strict=True)])


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it did before adapters were put into it."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def read_texts(path: str | Path) -> Split:
    """Read a file of English texts, one a line; empty lines are left out.

    Raises:
        DataError: no such file, not UTF-8, or no text in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"No file {path}, which training.self_distillation.texts names. Give a UTF-8 file with one text a line."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 at byte {error.start}. Write it as UTF-8, one English text a line."
        ) from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} has {len(lines)} lines and no text in them; wanted one English text a line.")
    examples = tuple(Example(id=str(n), language="en", text=text, answer="") for n, text in enumerate(texts, start=1))
    digest = hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()
    return Split(examples=examples, source=f"local:{path.name}", sha256=digest)
