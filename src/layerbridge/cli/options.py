"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

EncoderPlace = Annotated[
    str | None, typer.Option("--encoder", help="Where the encoder is now, if not where it was in training.")
]
LLMPlace = Annotated[str | None, typer.Option("--llm", help="Where the LLM is now, if not where it was in training.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the base models run code of their own. Off unless typed.")
]


def names(text: str | None) -> tuple[str, ...] | None:
    """Return the words of an option with commas between them; None stays None."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def shown(path: Path) -> str:
    """Return a path without what lies above it on this machine: as it was typed if it is below here, else its end."""
    return path.name if path.is_absolute() or ".." in path.parts else str(path)
