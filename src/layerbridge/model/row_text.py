"""Tokens to text as they come: what is handed out is never taken back, and in the end is the whole text's decoding.

A tokenizer's decoding of some tokens is not always the beginning of its decoding of more: characters may span tokens,
runs of byte tokens are decoded together, and some tokenizers tidy spaces before punctuation. What may still change is
held back, and so is what may be the beginning of a stop string.
"""

from collections.abc import Collection, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from layerbridge.model.generation import cut_at_stop, possible_stop

Finish = Literal["stop", "length"]

WINDOW = 64
"""Tokens that are decoded again for each new one, at least; twice as many at most."""
TIDIED = 3
"""Characters at the end of a text that tidying may still join to what follows: a space and two more, as in ` n't`."""
HALF = "�"
"""What stands for bytes that are no character, or not yet."""


class RowText:
    """What one row has written, as text.

    Args:
        tokenizer: the LLM's.
        stop: the text ends before the first of these strings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.ids: list[int] = []
        """All tokens pushed."""
        self.stopped = False
        """Whether a stop string was met; what is pushed later is ignored."""
        self._start, self._before = 0, ""  # text of the tokens before the window
        self._sent = 0
        byte = tokenizer.convert_tokens_to_ids("<0x00>")
        self._has_bytes = byte is not None and byte != tokenizer.unk_token_id
        self._tidies = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain by now and was not returned before."""
        if self.stopped:
            return ""
        self.ids.append(token)
        whole = self._decode(len(self.ids))
        self._move_window(whole)
        return self._send(self._certain(whole))

    def close(self) -> str:
        """Return the rest of the text: no token follows."""
        return "" if self.stopped else self._send(self._decode(len(self.ids)), last=True)

    def write(self, token: int, *, ends: Collection[int], max_new_tokens: int) -> tuple[str, Finish | None]:
        """Add a token; return the text that is certain by now, all of it where the row ends, and why it ends.

        Args:
            token: that was written.
            ends: end tokens; one of them is no part of `ids`.
            max_new_tokens: after which the row ends.
        """
        if token in ends:
            length = len(self.ids)
            piece = self.push(token) + self.close()  # no text, if it is a special token
            del self.ids[length:]
            return piece, "stop"
        piece = self.push(token)
        if not self.stopped and len(self.ids) >= max_new_tokens:
            piece += self.close()
            return piece, "stop" if self.stopped else "length"
        return piece, "stop" if self.stopped else None

    def _decode(self, end: int) -> str:
        ids = self.ids[self._start : end]
        return self._before + str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else self._before

    def _certain(self, whole: str) -> str:
        """Return the beginning of the text that no further token can change."""
        if self._has_bytes:
            end = len(self.ids)
            while end > self._start and self._may_join(self.ids[end - 1]):
                end -= 1
            if end < len(self.ids):
                whole = self._decode(end)
        whole = whole.rstrip(HALF)
        if self._tidies:
            space = whole.rfind(" ", max(0, len(whole) - TIDIED))
            whole = whole if space < 0 else whole[:space]
        return whole

    def _may_join(self, token: int) -> bool:
        """Return whether a token is a byte, or is left out of texts and so may stand between two bytes."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        return str(name).startswith("<0x") or token in self.tokenizer.all_special_ids

    def _move_window(self, whole: str) -> None:
        """Decode fewer tokens from here on, where their text is an end of the whole one."""
        if len(self.ids) - self._start < 2 * WINDOW:
            return
        start = len(self.ids) - WINDOW
        tail = str(self.tokenizer.decode(self.ids[start:], skip_special_tokens=True))
        if tail and not tail.startswith(HALF) and whole.endswith(tail):
            self._start, self._before = start, whole[: len(whole) - len(tail)]

    def _send(self, text: str, *, last: bool = False) -> str:
        """Return what of a certain text is to be handed out; no stop string begins in what was handed out before."""
        rest = text[self._sent :]
        cut = cut_at_stop(rest, self.stop)
        if len(cut) < len(rest):
            self.stopped = True
        elif not last:
            cut = rest[: len(rest) - possible_stop(rest, self.stop)]
        self._sent += len(cut)
        return cut
