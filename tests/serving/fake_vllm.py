"""A stand-in for vLLM's OpenAI-compatible server: a real tiny LLM that reads the embeddings it is sent.

It is stricter than vLLM, so that a mistake of ours shows: an unknown field is refused (vLLM ignores it), embeddings
have to have the model's dtype (vLLM casts them), and every sampling parameter has to be said.
"""

import asyncio
import base64
import binascii
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

WRITING = {
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "stop_token_ids", "stream", "return_token_ids",
}  # fmt: skip
SCORING = {"logprobs", "logprob_token_ids", "return_tokens_as_token_ids"}
FIELDS = {"/v1/completions": {"model", "prompt", "prompt_embeds"} | WRITING | SCORING,
          "/v1/chat/completions": {"model", "messages", "chat_template_kwargs"} | WRITING}  # fmt: skip
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
PLACEHOLDER = "\x00"


class Refused(Exception):  # noqa: N818
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def error_body(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}


@dataclass
class FakeVllm:
    """One server with one LLM; its fields are knobs and records for tests."""

    folder: str
    dtype: torch.dtype = torch.float32
    names: tuple[str, ...] = ("tiny-llm",)
    max_model_len: int = 512
    key: str | None = None
    enabled: bool = True
    """`--enable-prompt-embeds`."""
    knows_logprob_token_ids: bool = True
    knows_token_ids: bool = True
    scales_again: float = 1.0
    """What given embeddings are multiplied with, as older Gemma code does."""
    tokens_a_chunk: int = 1
    pause: float = 0.0
    """Seconds between chunks."""
    endless: bool = False
    well: bool = True
    fail: Any = None
    """Called with each generating request's body; may return (status, message), "cut", "junk" or "error-event"."""
    prefixes: list[torch.Tensor] = field(default_factory=list)
    """What was read, of requests that stream."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_running: int = 0
    num_left: int = 0
    """Streams that ended because the client left."""
    url: str = ""

    def __post_init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.width = self.model.get_input_embeddings().weight.shape[1]

    # ---------------------------------------------------------------------------------------------------------------

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
            ]
        )

    async def health(self, _: Request) -> PlainTextResponse:
        return PlainTextResponse("", 200 if self.well else 503)

    async def models(self, request: Request) -> JSONResponse:
        if not self.let_in(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        cards = [
            {"id": name, "object": "model", "parent": None, "max_model_len": self.max_model_len} for name in self.names
        ]
        adapter = {"id": "an-adapter", "object": "model", "parent": self.names[0] if self.names else "x"}
        return JSONResponse({"object": "list", "data": [*cards, adapter]})

    def let_in(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    async def answer(self, request: Request) -> Any:
        if not self.let_in(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        self.bodies.append(body)
        failure = self.fail(body) if self.fail else None
        if isinstance(failure, tuple):
            return JSONResponse(error_body(*failure), failure[0])
        try:
            chat = request.url.path.endswith("chat/completions")
            embeds = self.read(body, request.url.path)
            if not body.get("stream"):
                return JSONResponse(self.one_token(body, embeds))
            self.prefixes.append(embeds)
            return StreamingResponse(self.stream(body, embeds, failure, chat=chat), media_type="text/event-stream")
        except Refused as error:
            return JSONResponse(error_body(error.status, error.message), error.status)

    # ---------------------------------------------------------------------------------------------------------------
    # Reading

    def read(self, body: dict[str, Any], path: str) -> torch.Tensor:
        unknown = body.keys() - FIELDS[path]
        if unknown:
            raise Refused(400, f"unknown fields {sorted(unknown)}")
        for name, value in NEUTRAL.items():
            if body.get(name) != value:
                raise Refused(400, f"{name} is {body.get(name)}; left out, generation_config.json would decide")
        if body["model"] not in self.names:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        embeds = self.read_chat(body) if "chat" in path else self.read_completion(body)
        if len(embeds) + body["max_tokens"] > self.max_model_len:
            raise Refused(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        return embeds

    def read_completion(self, body: dict[str, Any]) -> torch.Tensor:
        if ("prompt" in body) == ("prompt_embeds" in body):
            raise Refused(400, "Either prompt or prompt_embeds must be provided and non-empty.")
        return self.embed(body["prompt"]) if "prompt" in body else self.load(body["prompt_embeds"])

    def read_chat(self, body: dict[str, Any]) -> torch.Tensor:
        if not self.tokenizer.chat_template:
            raise Refused(400, "no chat template")
        (message,) = body["messages"]
        (given,) = [part["data"] for part in message["content"] if part["type"] == "prompt_embeds"]
        parts = [PLACEHOLDER if part["type"] == "prompt_embeds" else part["text"] for part in message["content"]]
        text = self.tokenizer.apply_chat_template(
            [{"role": message["role"], "content": "\n".join(parts)}],
            tokenize=False,
            add_generation_prompt=True,
            **body["chat_template_kwargs"],
        )
        ids = [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(PLACEHOLDER)]
        return torch.cat([self.embed(ids[0]), self.load(given), self.embed(ids[1])])

    def embed(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    def load(self, data: str) -> torch.Tensor:
        if not self.enabled:
            raise Refused(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        try:
            embeds = torch.load(io.BytesIO(base64.b64decode(data, validate=True)), weights_only=True)
        except (binascii.Error, RuntimeError, EOFError) as error:
            raise Refused(400, f"prompt_embeds cannot be read: {error}") from None
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 2 or embeds.shape[1] != self.width:
            raise Refused(400, f"`prompt_embeds` hidden_size does not match the model's hidden_size {self.width}.")
        if embeds.dtype != self.dtype:
            raise Refused(400, f"dtype {embeds.dtype}, the model's is {self.dtype}")
        if embeds.untyped_storage().nbytes() != embeds.numel() * embeds.element_size():
            raise Refused(400, "more was sent than the tensor holds")
        return embeds * self.scales_again

    # ---------------------------------------------------------------------------------------------------------------
    # Writing

    def one_token(self, body: dict[str, Any], embeds: torch.Tensor) -> dict[str, Any]:
        if body["max_tokens"] != 1:
            raise Refused(400, "only one token is written without a stream")
        with torch.no_grad():
            found = self.model(inputs_embeds=embeds[None]).logits[0, -1].float().log_softmax(-1)
        token = int(found.argmax())
        choice: dict[str, Any] = {"index": 0, "text": self.tokenizer.decode([token]), "finish_reason": "length"}
        if body.get("logprobs") is not None:
            assert body["return_tokens_as_token_ids"]
            tokens = {int(one) for one in found.topk(body["logprobs"]).indices}
            if self.knows_logprob_token_ids and "logprob_token_ids" in body:
                if len(body["logprob_token_ids"]) > 128:
                    raise Refused(400, "logprob_token_ids is too long")
                tokens = set(body["logprob_token_ids"])
            top = {f"token_id:{one}": float(found[one]) for one in {token, *tokens}}
            choice["logprobs"] = {"tokens": [f"token_id:{token}"], "top_logprobs": [top]}
        return {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}

    async def stream(self, body: dict[str, Any], embeds: torch.Tensor, failure: Any, *, chat: bool) -> Any:
        self.num_running += 1
        whole = False
        try:
            if chat:  # the role comes first, without a token
                yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for number, (tokens, text, finish) in enumerate(self.write(body, embeds), start=1):
                if failure == "cut" and number == 3:
                    return
                if failure == "junk" and number == 3:
                    yield b"data: {this is no JSON\n\n"
                    return
                if failure == "error-event" and number == 3:
                    yield event(error_body(500, "CUDA error in /opt/secret/place"))
                    yield b"data: [DONE]\n\n"
                    return
                told = {"delta": {"content": text}} if chat else {"text": text}
                ids = {"token_ids": tokens} if self.knows_token_ids else {}
                yield event({"choices": [{"index": 0, **told, **ids, "finish_reason": finish}]})
                await asyncio.sleep(self.pause)
            yield b"data: [DONE]\n\n"
            whole = True
        finally:
            self.num_running -= 1
            self.num_left += not whole and failure is None

    def write(self, body: dict[str, Any], embeds: torch.Tensor) -> Iterator[tuple[list[int], str, str | None]]:
        """Yield chunks of tokens, one row at a time and without padding."""
        ends = {self.tokenizer.eos_token_id, *body["stop_token_ids"]}
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        written: list[int] = []
        chunk: list[int] = []
        cache, step, sent = None, {"inputs_embeds": embeds[None]}, 0
        finish = None
        while finish is None:
            with torch.no_grad():
                out = self.model(**step, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].float()
            token = self.choose(logits, body, generator)
            written.append(token)
            chunk.append(token)
            step = {"input_ids": torch.tensor([[token]])}
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            if (token in ends and not self.endless) or any(stop in text for stop in body["stop"]):
                finish = "stop"
            elif len(written) >= body["max_tokens"]:
                finish = "length"
            if finish or len(chunk) >= self.tokens_a_chunk:
                yield chunk, text[sent:], finish
                chunk, sent = [], len(text)

    def choose(self, logits: torch.Tensor, body: dict[str, Any], generator: torch.Generator) -> int:
        if self.endless:
            logits = logits.clone()
            logits[[self.tokenizer.eos_token_id, *body["stop_token_ids"]]] = -torch.inf
        if not body["temperature"]:
            return int(logits.argmax())
        probabilities = (logits / body["temperature"]).softmax(-1)
        if body["top_k"]:
            probabilities[probabilities < probabilities.topk(body["top_k"]).values[-1]] = 0
        return int(torch.multinomial(probabilities, 1, generator=generator))


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextlib.contextmanager
def faking(folder: str, **knobs: Any) -> Iterator[FakeVllm]:
    """Run a stand-in on a loopback port until the block ends."""
    fake = FakeVllm(folder, **knobs)
    config = uvicorn.Config(fake.app(), port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def say_so(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = say_so  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30), "the stand-in did not start"
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the stand-in did not end"
