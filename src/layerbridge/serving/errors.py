"""Failures as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from layerbridge.errors import unknown_name

MAX_MESSAGE = 1000
"""Characters of an error's message."""


class ApiError(Exception):
    """A failure that a client is told about.

    Args:
        status: of HTTP.
        message: what was found, what was wanted, what to do.
        param: the request's field that it is about.
        code: short name for programs.
        headers: of the response, besides the usual.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's word for this kind of failure."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """Return the response's body."""
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[: MAX_MESSAGE - 1] + "…"
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def encoded(self) -> bytes:
        """Return the body as JSON in ASCII, which holds whatever a request held, half characters included."""
        return json.dumps(self.body()).encode("ascii")


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that cannot be answered as it is; OpenAI's client raises BadRequestError."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, why: str) -> ApiError:
    """Return the error for a field of OpenAI's that would change the answer and that there is no support for."""
    return bad_request(f"{param} is not supported: {why} Leave it out.", param=param, code="unsupported_parameter")


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """Return the error for a model that is not served."""
    return ApiError(404, unknown_name("model", name, known), param="model", code="model_not_found")


def wrong_key(*, given: bool) -> ApiError:
    """Return the error for a request with another key, or none."""
    found = "another API key than this server's" if given else "no API key"
    return ApiError(
        401,
        f"The request has {found}. Send the header `Authorization: Bearer KEY`.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def wrong_host(host: str) -> ApiError:
    """Return the error for a request to a name that is not this machine's own, which a web page may have made up."""
    return ApiError(
        403,
        f"The request is for host {host!r}; without an API key this server answers to localhost, 127.0.0.1 and [::1] "
        "alone. Use one of them, or start it with an API key.",
        code="wrong_host",
    )


def body_too_large(limit: int) -> ApiError:
    """Return the error for a body above the limit."""
    return ApiError(413, f"The request's body has more than {limit} bytes. Send less at once.", code="body_too_large")


def body_too_slow(seconds: float) -> ApiError:
    """Return the error for a body that does not come."""
    return ApiError(408, f"The request's body took more than {seconds:g} seconds to arrive.", code="body_too_slow")


def too_many_requests(limit: int) -> ApiError:
    """Return the error for more requests at once than are let in."""
    message = f"{limit} requests are being worked on, which is the limit. Ask again in a moment."
    return ApiError(429, message, code="too_many_requests", headers={"Retry-After": "1"})


def too_many_connections(limit: int) -> ApiError:
    """Return the error for a connection above the limit."""
    message = f"{limit} connections are open, which is the limit. Close idle ones, or ask again in a moment."
    return ApiError(503, message, code="too_many_connections")


def queue_full(waiting: int, wanted: int, limit: int) -> ApiError:
    """Return the error for texts that find no place in the queue."""
    message = f"{waiting} texts wait and {wanted} more would be over the limit of {limit}. Ask again in a moment."
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def shutting_down() -> ApiError:
    """Return the error while a server ends."""
    return ApiError(503, "This server is shutting down. Ask another one.", code="shutting_down")


def out_of_time(seconds: float) -> ApiError:
    """Return the error for an answer that takes too long."""
    message = f"The answer took more than {seconds:g} seconds. Ask for fewer tokens or fewer texts at once."
    # OpenAI's client asks again after any 5xx, and the answer would take as long again.
    return ApiError(504, message, code="timeout", headers={"x-should-retry": "false"})


def internal() -> ApiError:
    """Return the error for our own mistakes; what happened is in the server's log and nowhere else."""
    return ApiError(500, "The server failed at this request; its log says why.", code="internal_error")
