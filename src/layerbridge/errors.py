"""What a user can get wrong, and the words they get for it.

Every message says what was found, what was wanted and what to do next. `assert` is for our own mistakes only.
"""

import difflib
from collections.abc import Iterable


class LayerbridgeError(Exception):
    """Root of all errors that a user can cause and mend."""


class ConfigError(LayerbridgeError):
    """A recipe, an option or a name that cannot be used as given."""


class DataError(LayerbridgeError):
    """A file, a column or a row that does not hold what a task needs."""


class ModelError(LayerbridgeError):
    """An encoder or LLM that cannot be bridged, or cannot be loaded as asked."""


class CheckpointError(LayerbridgeError):
    """A checkpoint that is damaged, foreign, or belongs to other base models."""


class AnnotationError(LayerbridgeError):
    """Shards of a corpus that could not be annotated, or a worker that died at it."""


def nearest(found: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `found`, or None if none is close."""
    by_fold = {name.casefold(): name for name in known}
    hits = difflib.get_close_matches(str(found).casefold(), by_fold, n=1, cutoff=0.5)
    return by_fold[hits[0]] if hits else None


def unknown_name(kind: str, found: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: what was found, the nearest known one, and all of them."""
    names = sorted(known)
    guess = nearest(found, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"Unknown {kind} {found!r}.{hint} Known: {', '.join(names)}."


_ALLOCATORS_SAY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's memory, or this machine's, does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATORS_SAY)
