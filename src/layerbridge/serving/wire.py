"""Requests and responses, with OpenAI's names of fields.

Fields of OpenAI's that there is no support for are of two kinds: those that would change the answer are refused,
unless they have the value that changes nothing; the rest is ignored. A name that is nobody's is refused, with the
nearest known.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from layerbridge.errors import nearest
from layerbridge.serving.errors import bad_request, unsupported
from layerbridge.serving.forms import Bounded, Content, Fields, Prompt, TextOrTexts, Texts

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""Fields that change nothing about an answer's text, or ask for nothing that a bridge could do."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
}
"""Fields that would change the answer -> values that change nothing; null never does."""

_WHY = {
    "n": "a text has one answer.",
    "best_of": "a text has one answer.",
    "echo": "what the encoder reads is not part of the answer.",
    "suffix": "an answer is written from its beginning.",
    "response_format": "answers are plain text; for one of several labels there is /v1/classify.",
    "logprobs": "for the probabilities of given labels there is /v1/classify.",
    "top_logprobs": "for the probabilities of given labels there is /v1/classify.",
}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def _same(value: Any, neutral: Any) -> bool:
    """Return whether two JSON values are the same; 0 and 0.0 are, 0 and false are not."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


class _Request(_Wire):
    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in NEUTRAL:
                if value is not None and not any(_same(value, one) for one in NEUTRAL[name]):
                    raise unsupported(name, _WHY.get(name, "a bridge cannot do it."))
            elif name not in IGNORED:
                guess = nearest(name[:100], [*cls.model_fields, *NEUTRAL])
                hint = f" Did you mean {guess!r}?" if guess else ""
                raise bad_request(
                    f"Unknown field {name[:100]!r}.{hint} Leave it out.", param=name[:100], code="unknown_parameter"
                )
        return kept


class Extension(_Wire, Bounded):
    """What goes beyond OpenAI's fields; through its client as `extra_body={"layerbridge": {...}}`."""

    raw: bool = False
    """The encoder reads the text as it is, without the prompt of the task that the bridge was trained on."""
    fields: Fields | None = None
    """Fields of the task's prompt by name. The one that is left out is what the request gives as its text."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("wanted a number, found true or false")
    return value


_Int = Annotated[int, BeforeValidator(_no_bool)]
_Float = Annotated[float, BeforeValidator(_no_bool)]


class StreamOptions(_Wire, Bounded):
    """Of a streamed answer."""

    include_usage: bool | None = False
    """End with a chunk that counts tokens."""
    include_obfuscation: bool | None = None
    """Ignored."""


class _Generation(_Request):
    """What chat and completions share."""

    model: str
    max_tokens: _Int | None = Field(default=None, ge=1)
    stop: TextOrTexts | None = None
    temperature: _Float | None = Field(default=None, ge=0, le=2)
    """0, the default here, is greedy."""
    top_p: _Float | None = Field(default=None, gt=0, le=1)
    top_k: _Int | None = Field(default=None, ge=-1)
    """Not OpenAI's own; 0 and -1 are no limit, as in vLLM."""
    seed: _Int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    layerbridge: Extension = Extension()

    @property
    def asked_tokens(self) -> int | None:
        """How many tokens the answer may have, where the request says."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    @property
    def text(self) -> str:
        """The message's text, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: _Int | None = Field(default=None, ge=1)

    @property
    def asked_tokens(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(_Generation):
    """`POST /v1/completions`."""

    prompt: Prompt

    @property
    def prompts(self) -> list[str]:
        """The texts, one answer each."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class _TextsRequest(_Request):
    model: str
    texts: TextOrTexts
    layerbridge: Extension = Extension()

    @property
    def all_texts(self) -> list[str]:
        """The texts as a list."""
        return [self.texts] if isinstance(self.texts, str) else self.texts


class ClassifyRequest(_TextsRequest):
    """`POST /v1/classify`."""

    labels: Texts | None = None
    """By default the answers of the task that the bridge was trained on."""


class InspectRequest(_TextsRequest):
    """`POST /v1/inspect`."""

    pieces: bool = False
    """Say also which characters each token stands for."""


# -------------------------------------------------------------------------------------------------------------------
# Responses


class ErrorDetail(_Wire):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(_Wire):
    """The body of every failure."""

    error: ErrorDetail


class Usage(_Wire):
    """Tokens counted: those that encoder and LLM read, and those that the LLM wrote, without the end token."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class ModelDetails(_Wire):
    """What OpenAI's card has no place for."""

    fusion: str
    """By which the layers are mixed; empty: not known."""
    layers: list[int]
    """The encoder's numbers of the layers that are mixed, 0 its embeddings."""
    encoder_prompt: str | None
    """Of the task that the bridge was trained on, if it was trained on one."""
    fields: list[str]
    """Of that prompt; `text` alone without one."""
    answers: list[str]
    """Of that task; none for free text."""
    prompt: str
    """What the LLM reads after the soft tokens; may be empty."""


class ModelCard(_Wire):
    """A model, as OpenAI lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "layerbridge"
    layerbridge: ModelDetails
    """Not OpenAI's own."""


class ModelList(_Wire):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


Finish = Literal["stop", "length"]


class ChatMessage(_Wire):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Wire):
    """The one choice there is."""

    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(_Wire):
    """The response to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Wire):
    """The answer to one prompt."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Finish


class Completion(_Wire):
    """The response to completions."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Classified(_Wire):
    """One text's probabilities, which add up to 1 over the request's labels."""

    index: int
    label: str
    """The most probable one."""
    probabilities: dict[str, float]


class ClassifyResponse(_Wire):
    """The response of `/v1/classify`."""

    object: Literal["list"] = "list"
    model: str
    data: list[Classified]
    usage: Usage


class InspectedPiece(_Wire):
    """A stretch of the text that its tokens do not divide further without dividing a letter."""

    text: str
    """All pieces' texts joined are the text; empty: tokens that stand for no text, such as an end token."""
    lead: int
    """How many of its characters are white space before the letters."""
    tokens: int
    """How many of the tokens, which are in order, it stands for; 0: text that the encoder did not read."""
    field: str | None
    """Of the prompt, whose text it is, at least in part; `text` where there is no prompt; null: the prompt's words."""


class Inspected(_Wire):
    """Which encoder layers each token of a text draws on."""

    index: int
    text: str
    """As the encoder read it."""
    tokens: list[str]
    """As the encoder's tokenizer spells them."""
    weights: list[list[float]]
    """A row a token, a column a layer."""
    pieces: list[InspectedPiece] | None = None
    """Where asked for."""


class InspectResponse(_Wire):
    """The response of `/v1/inspect`."""

    object: Literal["list"] = "list"
    model: str
    layers: list[int]
    """The encoder's numbers of the layers, 0 its embeddings."""
    data: list[Inspected]
    usage: Usage


class Health(_Wire):
    """`GET /healthz` and `GET /readyz`."""

    status: Literal["ok", "ready", "not ready"]
