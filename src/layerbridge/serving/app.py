"""The routes, and every failure as an OpenAI-shaped error. `layerbridge.serving.server` runs them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from layerbridge import __version__
from layerbridge.serving.answers import Answers, usage
from layerbridge.serving.conversation import fields_of, read_chat, read_texts
from layerbridge.serving.engine import Engine, Reading, ServedModel, Weighed, Writing
from layerbridge.serving.errors import ApiError, bad_request, internal, unknown_model
from layerbridge.serving.gate import Gate
from layerbridge.serving.limits import Limits, ServerConfig
from layerbridge.serving.metrics import Metrics
from layerbridge.serving.page import build_page
from layerbridge.serving.pieces import cut_readings
from layerbridge.serving.streams import ClientLeft, Deadline, EventStream, unless_client_leaves
from layerbridge.serving.wire import (
    ChatCompletion,
    ChatRequest,
    Classified,
    ClassifyRequest,
    ClassifyResponse,
    Completion,
    CompletionRequest,
    ErrorBody,
    Health,
    Inspected,
    InspectRequest,
    InspectResponse,
    ModelCard,
    ModelDetails,
    ModelList,
)

logger = logging.getLogger("layerbridge.serving")

_REFUSED = {
    400: "What is asked for cannot be answered as it is.",
    404: "No such model.",
    429: "Full.",
    504: "Too slow.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": why} for status, why in _REFUSED.items()
}


def build_app(engine: Engine, config: ServerConfig, metrics: Metrics) -> Gate:
    """Return the whole application: routes behind their limits.

    Args:
        engine: that answers; closed when the application ends.
        config: key and limits.
        metrics: shown at `/metrics`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    # No pages that would load scripts from elsewhere.
    app = FastAPI(title="layerbridge", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.engine = engine
    metrics.watch(engine)
    gate = Gate(app, config, metrics)
    _add_answers(app, engine, config.limits)
    _add_models(app, engine)
    page = build_page(needs_key=config.api_key is not None)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        """A page for people (docs/serving.md)."""
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    @app.get("/healthz", tags=["state"])
    async def health() -> Health:
        """Whether the process is there."""
        return Health(status="ok")

    @app.get("/readyz", tags=["state"], responses={503: {"model": Health, "description": "Not now."}})
    async def readiness(response: Response) -> Health:
        """Whether requests are answered."""
        if engine.ready and not gate.closing:
            return Health(status="ready")
        response.status_code = 503
        return Health(status="not ready")

    @app.get("/metrics", tags=["state"], response_class=Response)
    async def show_metrics() -> Response:
        """Counters, in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_failures(app)
    _describe(app)
    return gate


def _add_models(app: FastAPI, engine: Engine) -> None:
    def card(model: ServedModel) -> ModelCard:
        details = ModelDetails(
            fusion=model.fusion,
            layers=list(model.layers),
            encoder_prompt=model.encoder_prompt,
            fields=list(fields_of(model)),
            answers=list(model.answers),
            prompt=model.prompt,
        )
        return ModelCard(id=model.id, created=model.created, layerbridge=details)

    @app.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> ModelList:
        """The runs that are served."""
        return ModelList(data=[card(model) for model in engine.models.values()])

    @app.get("/v1/models/{model_id:path}", tags=["OpenAI"], responses={404: _ERRORS[404]})
    async def show_model(model_id: str) -> ModelCard:
        """One of them."""
        return card(_model(engine, model_id))


def _add_answers(app: FastAPI, engine: Engine, limits: Limits) -> None:
    @app.post("/v1/chat/completions", tags=["OpenAI"], responses=_ERRORS, response_model=ChatCompletion)
    async def chat(body: ChatRequest, request: Request) -> Any:
        """An answer to what the users say: the encoder reads that, and the LLM the other messages, as text."""
        model = _model(engine, body.model)
        reading = read_chat(body.messages, model, body.layerbridge, limits)
        return await _generate(request, engine, body, [reading], limits, chat=True)

    @app.post("/v1/completions", tags=["OpenAI"], responses=_ERRORS, response_model=Completion)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """An answer to each prompt; the encoder reads the prompts."""
        model = _model(engine, body.model)
        readings = read_texts(body.prompts, model, body.layerbridge, limits, param="prompt")
        return await _generate(request, engine, body, readings, limits, chat=False)

    @app.post("/v1/classify", tags=["layerbridge"], responses=_ERRORS, response_model=ClassifyResponse)
    async def classify(body: ClassifyRequest, request: Request) -> Any:
        """The probability of each label for each text; they add up to 1."""
        model = _model(engine, body.model)
        labels = _labels(body.labels, model, limits)
        readings = read_texts(body.all_texts, model, body.layerbridge, limits, param="texts")
        work = Deadline(limits.request_seconds).wait_for(engine.classify(model.id, readings, labels))
        rows, num_tokens = await unless_client_leaves(request, work)
        data = [
            Classified(
                index=index,
                label=max(zip(labels, row, strict=True), key=lambda pair: pair[1])[0],
                probabilities=dict(zip(labels, row, strict=True)),
            )
            for index, row in enumerate(rows)
        ]
        return ClassifyResponse(model=model.id, data=data, usage=usage(num_tokens))

    @app.post("/v1/inspect", tags=["layerbridge"], responses=_ERRORS, response_model=InspectResponse)
    async def inspect(body: InspectRequest, request: Request) -> Any:
        """Which encoder layers each token of each text draws on."""
        model = _model(engine, body.model)
        most = min(limits.max_inspect_texts, limits.max_texts)
        readings = read_texts(body.all_texts, model, body.layerbridge, limits, param="texts", max_texts=most)
        work = Deadline(limits.request_seconds).wait_for(engine.inspect(model.id, readings))
        weighed, num_tokens = await unless_client_leaves(request, work)
        # Of long texts it takes a while, during which streams go on.
        content = await asyncio.to_thread(_inspected, model, readings, weighed, num_tokens, pieces=body.pieces)
        return Response(content, media_type="application/json")


def _inspected(
    model: ServedModel, readings: Sequence[Reading], weighed: Sequence[Weighed], num_tokens: int, *, pieces: bool
) -> bytes:
    """Return an `InspectResponse` as JSON."""
    cuts = cut_readings(readings, weighed) if pieces else [None] * len(readings)
    data = [
        Inspected(index=index, text=reading.source, tokens=one.tokens, weights=one.weights, pieces=cut)
        for index, (reading, one, cut) in enumerate(zip(readings, weighed, cuts, strict=True))
    ]
    found = InspectResponse(model=model.id, layers=list(model.layers), data=data, usage=usage(num_tokens))
    return found.model_dump_json().encode()


async def _generate(
    request: Request,
    engine: Engine,
    body: ChatRequest | CompletionRequest,
    readings: Sequence[Reading],
    limits: Limits,
    *,
    chat: bool,
) -> Any:
    how = _writing(body, limits)
    deadline = Deadline(limits.request_seconds)
    events = engine.generate(body.model, readings, how)
    answers = Answers(body.model, events, number=len(readings), chat=chat, deadline=deadline)
    if not body.stream:
        return await unless_client_leaves(request, answers.whole())
    await unless_client_leaves(request, answers.begin())
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(answers.chunks(with_usage=with_usage), answers.close, deadline)


def _writing(body: ChatRequest | CompletionRequest, limits: Limits) -> Writing:
    asked = body.asked_tokens
    if asked is not None and asked > limits.max_new_tokens:
        raise bad_request(
            f"max_tokens is {asked}; this server writes at most {limits.max_new_tokens}.", param="max_tokens"
        )
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options goes with stream: true.", param="stream_options")
    if len(body.stops) > limits.max_stops:
        raise bad_request(f"Got {len(body.stops)} stop strings; at most {limits.max_stops} are taken.", param="stop")
    for stop in body.stops:
        if not 1 <= len(stop) <= limits.max_label_characters:
            raise bad_request(
                f"A stop string has {len(stop)} characters; wanted 1 to {limits.max_label_characters}.", param="stop"
            )
    return Writing(
        max_new_tokens=limits.default_new_tokens if asked is None else asked,
        stop=body.stops,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        seed=body.seed,
    )


def _labels(given: Sequence[str] | None, model: ServedModel, limits: Limits) -> tuple[str, ...]:
    labels = model.answers if given is None else tuple(given)
    if given is None and not labels:
        raise bad_request(f"{model.id!r} was trained on no task with answers; give labels.", param="labels")
    if not 1 <= len(labels) <= limits.max_labels:
        raise bad_request(f"Got {len(labels)} labels; wanted 1 to {limits.max_labels}.", param="labels")
    if len(set(labels)) < len(labels):
        raise bad_request("A label is there twice; give each once.", param="labels")
    for label in labels:
        if not label.strip() or len(label) > limits.max_label_characters:
            raise bad_request(
                f"A label has {len(label)} characters; wanted 1 to {limits.max_label_characters}, not spaces alone.",
                param="labels",
            )
    return labels


def _model(engine: Engine, name: str) -> ServedModel:
    if name not in engine.models:
        raise unknown_model(name[:100], sorted(engine.models))
    return engine.models[name]


# -------------------------------------------------------------------------------------------------------------------
# Failures and the description of routes


def _add_failures(app: FastAPI) -> None:
    def respond(error: ApiError) -> Response:
        return Response(error.encoded(), error.status, headers=error.headers, media_type="application/json")

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(ClientLeft)
    async def left(_: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)  # nobody reads it; the metrics count it

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return respond(_invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def by_the_framework(request: Request, error: HTTPException) -> Response:
        words = {404: f"There is no {request.url.path[:200]} here.", 405: f"{request.method} is not for this address."}
        told = ApiError(error.status_code, words.get(error.status_code, str(error.detail)), headers=error.headers)
        return respond(told)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return respond(internal())  # logged by whoever raised it on


def _invalid(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for a body that has another form than wanted; what it held is not repeated."""
    first = found[0]
    param = _place(first)[:200] or None
    if first["type"] == "json_invalid":
        return bad_request("The body is not JSON. Send a JSON object.", code="invalid_json")
    message = str(first["msg"]).removeprefix("Value error, ")
    others = len({_place(one) for one in found}) - 1
    more = f" There {'is' if others == 1 else 'are'} {others} more mistake{'s' * (others > 1)}." if others else ""
    return bad_request(f"{param or 'The body'}: {message[:1].lower()}{message[1:]}.{more}", param=param)


def _place(mistake: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in mistake["loc"] if part != "body")


def _describe(app: FastAPI) -> None:
    """Let the OpenAPI description say what is so: failures of form have status 400 here."""

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in found["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(name, None)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]
