"""The HTTP client to the server in which an LLM runs: requests, streams, and every failure as one of ours.

What the other server says about a request that it refuses (4xx) is passed on; what it says about its own failures is
for the log.
"""

import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import Field, SecretStr, field_validator

from layerbridge.config import FrozenConfig
from layerbridge.errors import ConfigError
from layerbridge.serving.errors import ApiError, bad_request
from layerbridge.serving.limits import is_loopback

logger = logging.getLogger("layerbridge.serving")

ENGINE_API_KEY = "LAYERBRIDGE_ENGINE_API_KEY"
"""Environment variable with the key that the other server asks for."""

CONNECT_SECONDS = 10.0
KEPT_SECONDS = 2.0
"""That an idle connection is used again; less than the 5 after which vLLM closes it."""
HEALTH_SECONDS = 5.0
"""Between looks at whether the other server is well."""
MAX_ERROR_BYTES = 64 * 1024
MAX_PASSED_ON = 300
"""Characters of the other server's message."""

Json = dict[str, Any]


class UpstreamConfig(FrozenConfig):
    """Where the LLM runs."""

    url: str
    """Of the server, with or without `/v1` at its end."""
    model: str | None = None
    """Its name there; by default the only one that is served."""
    route: Literal["completions", "chat"] = "completions"
    """`completions`: the LLM reads what it read in training. `chat`: soft tokens inside a user's turn, which the other
    server writes."""
    api_key: SecretStr | None = None
    health_seconds: float = Field(default=HEALTH_SECONDS, gt=0)
    """Between looks at whether it is well."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--engine-url is {url!r}; wanted http://HOST:PORT or https://HOST:PORT")
        if parts.username or parts.password:
            # Not a ValueError, whose message would repeat them.
            raise ConfigError(f"--engine-url holds a user or a password. Set {ENGINE_API_KEY} instead.")
        if parts.query or parts.fragment:
            raise ValueError(f"--engine-url {url!r} has a query or a fragment; wanted the server's address alone")
        return url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def is_open(self) -> bool:
        """Whether what is sent there passes a network unencrypted."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")


class Upstream:
    """The other server.

    Args:
        config: where it is.
        seconds: without a byte from it, after which it is given up.
        max_connections: at once; more requests wait for one.
    """

    def __init__(self, config: UpstreamConfig, *, seconds: float, max_connections: int) -> None:
        key = config.api_key.get_secret_value().strip() if config.api_key else ""
        self._options: Json = {
            "base_url": config.url,
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "trust_env": False,  # neither a proxy nor a .netrc gets the key
        }
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
        limits = httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=KEPT_SECONDS,
        )
        self._client = httpx.AsyncClient(timeout=timeout, limits=limits, **self._options)
        self.config = config
        self.healthy = True
        """Whether it was well when last looked at."""
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    # ---------------------------------------------------------------------------------------------------------------
    # Requests

    @asynccontextmanager
    async def stream(self, path: str, body: bytes) -> AsyncIterator[AsyncIterator[Json]]:
        """Send a request and hand out the choices of its streamed answer; leaving ends it over there too.

        Raises:
            ApiError: whatever goes wrong.
        """
        with self._failures():
            response = await self._send(path, body)
            try:
                if response.status_code != 200:
                    raise refused(response.status_code, await _beginning(response))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise broken("it did not stream")
                yield _choices(response)
            finally:
                await response.aclose()

    async def ask(self, path: str, body: bytes) -> Json:
        """Send a request and return its answer.

        Raises:
            ApiError: whatever goes wrong.
        """
        with self._failures():
            response = await self._send(path, body)
            try:
                return _read(response.status_code, await response.aread())
            finally:
                await response.aclose()

    async def _send(self, path: str, body: bytes) -> httpx.Response:
        """Send a request and return the answer's beginning."""
        request = self._client.build_request("POST", path, content=body, headers=_JSON)
        try:
            return await self._client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # A kept connection may have been closed over there just now. Once more: writing an answer changes nothing.
            return await self._client.send(request, stream=True)

    def ask_now(self, method: str, path: str, body: Json | None = None) -> Json:
        """Do the same before there is an event loop."""
        with self._failures(), httpx.Client(timeout=httpx.Timeout(60, connect=CONNECT_SECONDS), **self._options) as one:
            response = one.request(method, path, json=body)
            return _read(response.status_code, response.content)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn failures of the connection into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self.healthy = False
            logger.error("the LLM's server cannot be reached: %s", error)
            raise ApiError(
                503,
                "The server in which the LLM runs cannot be reached now. Ask again in a moment.",
                code="engine_unreachable",
                headers={"Retry-After": "5"},
            ) from None
        except httpx.TimeoutException as error:
            logger.error("the LLM's server took too long: %s", type(error).__name__)
            raise ApiError(504, "The server in which the LLM runs took too long.", code="engine_timeout") from None
        except httpx.HTTPError as error:
            raise broken(f"{type(error).__name__}: {error}") from None

    # ---------------------------------------------------------------------------------------------------------------
    # Health

    def is_well(self) -> bool:
        """Ask whether it is well, now."""
        try:
            with httpx.Client(timeout=CONNECT_SECONDS, **self._options) as one:
                return one.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def watch(self) -> None:
        """Look at its health from now on, in a thread of its own."""

        def look() -> None:
            while not self._ended.wait(self.config.health_seconds):
                was, self.healthy = self.healthy, self.is_well()
                if was != self.healthy:
                    logger.warning("the LLM's server is %s", "well again" if self.healthy else "not well")

        self._watch = threading.Thread(target=look, name="layerbridge-health", daemon=True)
        self._watch.start()

    async def close(self) -> None:
        """Close all connections and look no more."""
        self._ended.set()
        await self._client.aclose()


_JSON = {"content-type": "application/json"}


def refused(status: int, body: Any) -> ApiError:
    """Return our error for a status of the other server.

    Args:
        status: of HTTP, or the `code` of an error in a stream.
        body: of the answer: `{"error": {"message": ...}}`, as bytes or read already.
    """
    message = _message(body)
    if status in (400, 413, 422):
        return bad_request(f"The LLM's server refused the request: {message}", code="engine_refused")
    if status == 429:
        text = "The LLM's server has too many requests. Ask again in a moment."
        return ApiError(429, text, code="engine_full", headers={"Retry-After": "1"})
    logger.error("the LLM's server answered %s: %s", status, message)
    if status in (401, 403):
        return ApiError(502, "The LLM's server does not take this server's key.", code="engine_key")
    if status == 404:
        return ApiError(502, "The LLM's server has no such model or route any more.", code="engine_not_found")
    if status == 503:
        text = "The LLM's server takes no requests now. Ask again in a moment."
        return ApiError(503, text, code="engine_unavailable", headers={"Retry-After": "5"})
    if status in (408, 504):
        return ApiError(504, "The LLM's server took too long.", code="engine_timeout")
    return ApiError(502, "The LLM's server failed at this request.", code="engine_failed")


def broken(why: str) -> ApiError:
    """Return our error for an answer that is none."""
    logger.error("the LLM's server gave no whole answer: %s", why)
    return ApiError(502, "The LLM's server gave no whole answer.", code="engine_broken")


async def _choices(response: httpx.Response) -> AsyncGenerator[Json, None]:
    """Yield the choices of all events up to `[DONE]`."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[len("data:") :].strip()
        if data == "[DONE]":
            return
        chunk = _json(data)
        if chunk.get("error"):
            code = chunk["error"].get("code") if isinstance(chunk["error"], Mapping) else None
            raise refused(code if isinstance(code, int) else 500, chunk)
        for choice in chunk.get("choices") or ():
            yield choice
    raise broken("its stream ended before its end")


def _read(status: int, content: bytes) -> Json:
    if status != 200:
        raise refused(status, content[:MAX_ERROR_BYTES])
    return _json(content)


def _json(data: str | bytes) -> Json:
    try:
        found = json.loads(data)
    except ValueError:
        raise broken("what it sent is not JSON") from None
    if not isinstance(found, dict):
        raise broken("what it sent is no JSON object")
    return found


async def _beginning(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) >= MAX_ERROR_BYTES:
            break
    return bytes(body[:MAX_ERROR_BYTES])


def _message(body: Any) -> str:
    """Return the message of an error's body, one line of it; older servers have no `error` around it."""
    try:
        found = json.loads(body) if isinstance(body, bytes) else body
        found = found.get("error", found) if isinstance(found, Mapping) else {}
        message = found if isinstance(found, str) else found.get("message", "")
    except (ValueError, AttributeError):
        message = ""
    line = str(message).strip().splitlines()[:1]
    return line[0][:MAX_PASSED_ON] if line else "it did not say why."
