"""Options that several commands share."""

from typing import Annotated

import typer

EncoderPlace = Annotated[
    str | None, typer.Option("--encoder", help="Where the encoder is now, if not where it was in training.")
]
LLMPlace = Annotated[str | None, typer.Option("--llm", help="Where the LLM is now, if not where it was in training.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the base models run code of their own. Off unless typed.")
]
