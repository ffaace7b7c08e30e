"""What a server lets in and how long it works on it; and where it listens. Every limit is a field with its unit."""

from ipaddress import ip_address

from pydantic import Field, SecretStr, field_validator, model_validator

from layerbridge.config import FrozenConfig

API_KEY = "LAYERBRIDGE_API_KEY"
"""Environment variable with the API key."""


class Limits(FrozenConfig):
    """Limits of one server. What is above one is refused with the status that its field names."""

    max_body_bytes: int = Field(default=2**20, ge=1)
    """Bytes of a request's body, also where no length was announced. 413."""
    max_texts: int = Field(default=256, ge=1)
    """Texts of one request: prompts, or texts to classify. 400."""
    max_inspect_texts: int = Field(default=32, ge=1)
    """Texts of one request to inspect, whose answer has a number for each token and layer: megabytes. 400."""
    max_text_characters: int = Field(default=50_000, ge=1)
    """Characters of one text, of a prompt and of all messages together. 400."""
    max_messages: int = Field(default=256, ge=1)
    """Messages of one chat. 400."""
    max_labels: int = Field(default=256, ge=1)
    """Labels of one request. 400."""
    max_label_tokens: int = Field(default=4096, ge=1)
    """LLM tokens of all labels of a request together. 400."""
    max_label_characters: int = Field(default=500, ge=1)
    """Characters of one label, and of one stop string. 400."""
    max_stops: int = Field(default=16, ge=1)
    """Stop strings of one request. 400."""
    max_source_tokens: int = Field(default=512, ge=1)
    """Encoder tokens of one text; the encoder's own limit holds too. Longer texts are refused, not cut. 400."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """LLM tokens of what the LLM reads as text. 400."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """LLM tokens of one answer. 400 for a request that asks for more."""
    default_new_tokens: int = Field(default=128, ge=1)
    """LLM tokens of one answer where the request does not say."""
    max_requests: int = Field(default=512, ge=1)
    """Requests that are being worked on or wait, at once. 429."""
    max_connections: int = Field(default=640, ge=1)
    """Connections at once, idle ones too: under the 1,024 files that many systems let a process open. Those above are
    closed, after a 503 that not every client sees."""
    max_queue: int = Field(default=1024, ge=1)
    """Texts that wait for a place in a batch. 429."""
    request_seconds: float = Field(default=300.0, gt=0)
    """Seconds from a request's whole body to the last byte of the answer, waiting included. 504."""
    header_seconds: float = Field(default=15.0, gt=0)
    """Seconds that a request's head may take to arrive, from the connection or the response before; and that a client
    may read nothing of a response that is made. The connection is closed."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Seconds that a request's body may take to arrive. 408."""
    shutdown_seconds: float = Field(default=30.0, ge=0)
    """Seconds that running answers have to finish once the server is told to end; new requests get 503."""
    batch_rows: int = Field(default=32, ge=1)
    """Texts of one batch."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Positions of one batch, padding and answers to come included. One text alone may have more."""
    max_batches: int = Field(default=16, ge=1)
    """Batches of answers being written at once; they take turns, a token each."""
    writing_tokens: int = Field(default=65_536, ge=1)
    """Positions of all answers being written, counted as in `batch_tokens`; at this many no other batch begins."""
    gather_steps: int = Field(default=8, ge=0)
    """Tokens that each batch being written gets before another begins, so that texts gather for it."""
    max_writing: int = Field(default=256, ge=1)
    """Texts at an engine elsewhere at once, up to a batch more; the others wait here."""
    batch_wait_ms: float = Field(default=5.0, ge=0)
    """Milliseconds that an idle engine waits for company of the first text."""

    @model_validator(mode="after")
    def _check(self) -> "Limits":
        if self.default_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"default_new_tokens is {self.default_new_tokens} and max_new_tokens {self.max_new_tokens}; "
                "wanted a default within the limit"
            )
        if self.max_connections < self.max_requests:
            raise ValueError(
                f"max_connections is {self.max_connections} and max_requests {self.max_requests}; wanted a connection "
                "for each request"
            )
        return self


class ServerConfig(FrozenConfig):
    """Where a server listens and whom it answers."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free port."""
    api_key: SecretStr | None = None
    """Asked for as `Authorization: Bearer KEY`; must be there where others than this machine can connect."""
    limits: Limits = Limits()

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
            raise ValueError("the API key has characters that an HTTP header cannot hold; wanted printable ASCII")
        if key is not None and len(key.get_secret_value().strip()) < 8:
            raise ValueError(f"the API key has {len(key.get_secret_value().strip())} characters; wanted at least 8")
        return key

    @model_validator(mode="after")
    def _check_host(self) -> "ServerConfig":
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which others than this machine can reach, and there is no API key. Set "
                f"{API_KEY}, or give a file with --api-key-file; or listen on 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host's name or address."""
    if host.casefold() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
