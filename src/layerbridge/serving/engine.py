"""The seam between HTTP and whatever answers: what an engine is asked, and what it tells.

Routes know this file alone. `layerbridge.serving.local_engine` answers with bridges in this process;
`layerbridge.serving.vllm_engine` encodes here and lets the LLM run elsewhere.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from layerbridge.prompt import Part


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What routes need to know of a bridge."""

    id: str
    """The name that requests give."""
    created: int
    """Unix seconds."""
    encoder_prompt: str | None
    """Template of the task that it was trained on, if it was trained on one."""
    prompt: str
    """What the LLM reads after the soft tokens unless a request says more; may be empty."""
    answers: tuple[str, ...]
    """Of that task; none for free text."""
    layers: tuple[int, ...]
    """The encoder's numbers of the layers that are mixed."""
    fusion: str = ""
    """By which they are mixed; empty where an engine does not say."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a bridge reads for one answer."""

    source: str
    """By the encoder."""
    prompt: str | None = None
    """By the LLM, as text after the soft tokens; by default what the run configured."""
    parts: tuple[Part, ...] = field(default=(), compare=False)
    """The source, part by part; none: it has no prompt around it. For people to look at, nothing depends on it."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How an answer is written."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None


class Began(NamedTuple):
    """A text has a place in a batch."""

    row: int
    prompt_tokens: int


class Wrote(NamedTuple):
    """A piece of an answer."""

    row: int
    text: str


class Ended(NamedTuple):
    """An answer is whole."""

    row: int
    finish: Literal["stop", "length"]
    completion_tokens: int


Event = Began | Wrote | Ended


class Scored(NamedTuple):
    """Probabilities of labels for each text."""

    probabilities: list[list[float]]
    prompt_tokens: int


class Weighed(NamedTuple):
    """One text's tokens and the weight of each layer for each of them."""

    tokens: list[str]
    weights: list[list[float]]


class Engine(Protocol):
    """What answers requests. Methods are called from one event loop; failures are raised as `ApiError`."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""

    @property
    def num_waiting(self) -> int:
        """How many texts wait."""

    def generate(self, model: str, texts: Sequence[Reading], how: Writing) -> AsyncIterator[Event]:
        """Yield what is written for each text as it comes: `Began`, then `Wrote`s, then `Ended`, a row a text.

        All texts are let in or none. Closing the iterator leaves the answers unfinished.
        """

    async def classify(self, model: str, texts: Sequence[Reading], labels: Sequence[str]) -> Scored:
        """Return the probabilities of labels; being cancelled leaves the texts unread."""

    async def inspect(self, model: str, texts: Sequence[Reading]) -> tuple[list[Weighed], int]:
        """Return layer weights by token, and how many encoder tokens there were."""

    async def close(self) -> None:
        """Finish nothing more, and return when everything is given back."""
