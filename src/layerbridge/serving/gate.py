"""Before any route: whom the server answers, how much it takes in, and whether it still takes in anything.

A plain ASGI wrapper, since limits on bodies have to hold while they arrive. A body is read whole, within its limit,
before a route sees it; what is above the limit is read on for a moment and thrown away, because a client that is
still sending would otherwise see a broken connection instead of the answer.
"""

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from layerbridge.serving.errors import (
    ApiError,
    body_too_large,
    body_too_slow,
    shutting_down,
    too_many_requests,
    wrong_host,
    wrong_key,
)
from layerbridge.serving.limits import ServerConfig, is_loopback
from layerbridge.serving.metrics import Metrics

logger = logging.getLogger("layerbridge.serving")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Paths that ask for no key; the page at `/` holds nothing of the server's and asks for the key itself."""
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Paths that are answered while the server ends, and when it is full."""
DRAINED_BYTES = 64 * 2**20
"""Of a body that is refused, read and thrown away at most."""
DRAIN_SECONDS = 5.0
"""And for so long at most."""


class Gate:
    """An application behind its limits.

    Args:
        app: what answers.
        config: key and limits.
        metrics: told of each answer.
    """

    def __init__(self, app: App, config: ServerConfig, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, config.limits, metrics
        self._key = None if config.api_key is None else _digest(config.api_key.get_secret_value().strip().encode())
        self._checks_host = config.api_key is None
        self.closing = False
        """Set when the server is told to end: from then on new requests get 503."""
        self.num_running = 0
        """Requests being worked on, those of `ALWAYS` left out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand over to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # stays where the client leaves before the answer
        named, request_id = request_id_header()
        whole = False

        async def counted(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), named]}
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._let_in(scope, receive, counted)
            if status == 500:
                logger.error("request %s got status 500", request_id)  # why is in the line of whoever failed
        except ApiError as error:
            await _refuse(error, counted)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not whole:  # else Starlette has answered it, and raised it on for us to log
                raise
        finally:
            self.metrics.answered(scope["path"], status, time.perf_counter() - start)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check(scope["path"], headers)
        except ApiError:
            await _drain(receive)
            raise
        if scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
            return
        self._count(1)
        try:
            body = await self._read_body(receive)
            if body is not None:
                await self.app(scope, _replay(body, receive), send)
        finally:
            self._count(-1)

    def _check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what needs no body to be refused."""
        self._check_host(headers.get(b"host", b""))
        if path not in OPEN:
            self._check_key(headers.get(b"authorization"))
        if path in ALWAYS:
            return
        if self.closing:
            raise shutting_down()
        if self.num_running >= self.limits.max_requests:
            raise too_many_requests(self.limits.max_requests)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            raise body_too_large(self.limits.max_body_bytes)

    def _count(self, change: int) -> None:
        self.num_running += change
        self.metrics.running(self.num_running)

    def _check_host(self, host: bytes) -> None:
        """Refuse names that a web page can point at this machine, where no key keeps its requests out."""
        if self._checks_host:
            name = host.decode("latin-1")
            name = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
            if not is_loopback(name):
                raise wrong_host(name[:100])

    def _check_key(self, authorization: bytes | None) -> None:
        if self._key is None:
            return
        scheme, _, key = (authorization or b"").partition(b" ")
        # Digests are of one length, so that comparing takes the same time whatever was sent.
        if not hmac.compare_digest(_digest(key.strip()), self._key) or scheme.lower() != b"bearer":
            raise wrong_key(given=authorization is not None)

    async def _read_body(self, receive: Receive) -> bytes | None:
        """Return the whole body; None where the client left."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.limits.max_body_bytes:
                        body.clear()
                        if more:
                            await _drain(receive)
                        raise body_too_large(self.limits.max_body_bytes)
                    if not more:
                        return bytes(body)
        except TimeoutError:
            raise body_too_slow(self.limits.body_seconds) from None


def request_id_header() -> tuple[tuple[bytes, bytes], str]:
    """Return the header that names a response, for its client to quote, and the name; none is taken from outside."""
    request_id = f"req_{uuid.uuid4().hex}"
    return (b"x-request-id", request_id.encode("ascii")), request_id


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _drain(receive: Receive) -> None:
    """Read the rest of a body that is refused and throw it away."""
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while drained < DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _refuse(error: ApiError, send: Send) -> None:
    body = error.encoded()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
