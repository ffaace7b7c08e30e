"""One connection of a client: what it may hold without asking anything, and without reading what it is told.

uvicorn gives a connection a time only between a response and the first byte after it. Here it also has one until its
first request's head is whole, and while it does not read a response that is made, so that neither needs a key to be
kept for ever.
"""

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from layerbridge.serving.errors import ApiError, bad_request, too_many_connections
from layerbridge.serving.gate import request_id_header
from layerbridge.serving.limits import Limits

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers."""
SEND_BUFFER_BYTES = 128 * 1024
"""That the system takes of a response before the client has read it. Left to itself it takes megabytes for each client
that does not read, and does not tell for as long whether one does."""


class ConnectionConfig(uvicorn.Config):
    """uvicorn's settings, and limits of connections.

    Args:
        app: the application.
        limits: of one server.
        more: uvicorn's.
    """

    def __init__(self, app: Any, limits: Limits, **more: Any) -> None:
        # By name: where httptools is installed uvicorn would take it, which does not bound headers.
        super().__init__(app, http=Connection, ws="none", h11_max_incomplete_event_size=MAX_HEAD_BYTES, **more)
        self.limits = limits


class Connection(H11Protocol):
    """uvicorn's protocol with h11, within limits."""

    config: ConnectionConfig

    def __init__(self, config: ConnectionConfig, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._answer, self.app = self.app, self._answered
        self._timer: asyncio.TimerHandle | None = None
        self._unread: float = 0
        """Bytes of responses that the client had not read when the timer was set."""
        self._last = 0.0
        """When a client that still reads, byte by byte, is left too; on the event loop's clock."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; above the limit of connections, say so and end."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        limit = self.config.limits.max_connections
        if len(self.connections) > limit:
            self._refuse(too_many_connections(limit))
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless the connection is being closed: what still comes is no request that is answered."""
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        """Take what has come."""
        super().handle_events()
        self._mind()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._mind()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(bad_request(f"{msg} Send HTTP/1.1, with at most {MAX_HEAD_BYTES} bytes of headers."))

    async def _answered(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            if self.cycle is not None and self.cycle.scope is scope:  # else the next request is being answered
                self._set()  # uvicorn closes what is unfinished, which waits until the client has read what there is

    # ---------------------------------------------------------------------------------------------------------------
    # The time that a client has

    def _mind(self) -> None:
        """Give the client its time, unless it is our turn to do something."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None:  # else bytes that trickle in would win time
            self._set()

    def _set(self) -> None:
        self._last = self.loop.time() + self.config.limits.request_seconds
        self._look_later()

    def _look_later(self) -> None:
        self._forget()
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.config.limits.header_seconds, self._is_over)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_over(self) -> None:
        """End a connection on which nothing came, or nothing was read; one that is still reading goes on."""
        reads = 0 < self.transport.get_write_buffer_size() < self._unread
        if reads and self.loop.time() < self._last:
            self._look_later()
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = error.encoded()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            request_id_header()[0],
        ]
        phrase = HTTPStatus(error.status).phrase.encode()
        status = h11.Response(status_code=error.status, headers=headers, reason=phrase)
        for event in (status, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
