"""One process that serves runs: bridges are loaded, routes listen, and a signal ends it gracefully."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from pydantic import SecretStr

from layerbridge.config import build_config
from layerbridge.errors import ConfigError
from layerbridge.model.bridge import Bridge
from layerbridge.model.checkpoint import load_bridge
from layerbridge.serving.app import build_app
from layerbridge.serving.connection import ConnectionConfig
from layerbridge.serving.engine import Engine
from layerbridge.serving.gate import Gate
from layerbridge.serving.limits import API_KEY, ServerConfig, is_loopback
from layerbridge.serving.local_engine import LocalEngine
from layerbridge.serving.metrics import Metrics

if TYPE_CHECKING:  # they need httpx, which an LLM in this process does not
    from layerbridge.serving.upstream import UpstreamConfig
    from layerbridge.serving.vllm_engine import VllmEngine

POLL_SECONDS = 0.05
"""Between looks at whether the running answers have finished."""


class Server(uvicorn.Server):
    """uvicorn, with an end that clients can see.

    At a signal new requests get 503 and `/readyz` says so, while running answers go on; once they have finished, or
    their time is over, uvicorn closes the connections. A second signal does not wait.

    Args:
        gate: the application.
        engine: told to give up when its time is over, so that clients hear why.
        config: where to listen.
        log_level: uvicorn's.
    """

    def __init__(self, gate: Gate, engine: Engine, config: ServerConfig, *, log_level: str = "warning") -> None:
        super().__init__(
            ConnectionConfig(
                gate,
                config.limits,
                host=config.host.strip("[]"),
                port=config.port,
                log_level=log_level,
                lifespan="on",
                timeout_graceful_shutdown=1,  # answers have had their time by then
                server_header=False,
            )
        )
        self._gate, self._engine, self._seconds = gate, engine, config.limits.shutdown_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self.on_started: Callable[[int], None] | None = None
        """Called with the port once it listens."""

    async def startup(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.on_started:
            self.on_started(self.port)

    @property
    def port(self) -> int:
        """Where it listens."""
        found: int = self.servers[0].sockets[0].getsockname()[1]
        return found

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end, or end at once the second time."""
        self._captured_signals.append(sig)
        if self._gate.closing:
            self.should_exit = self.force_exit = True
        else:
            self.end()

    def end(self) -> None:
        """Let running answers finish, then stop; from any thread."""
        self._gate.closing = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self._ending = self._ending or asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                while self._gate.num_running:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            await self._engine.close()
        finally:
            self.should_exit = True

    async def shutdown(self, sockets=None) -> None:  # type: ignore[no-untyped-def]
        """Close the connections and the engine; a second signal leaves whatever is still waited for."""
        closing = asyncio.ensure_future(super().shutdown(sockets))
        while not closing.done():
            if self.force_exit:
                closing.cancel()
            await asyncio.wait({closing}, timeout=POLL_SECONDS)
        if not closing.cancelled():
            closing.result()


def load_bridges(
    runs: Sequence[str],
    *,
    device: str | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    trust_remote_code: bool = False,
    llm_elsewhere: bool = False,
) -> dict[str, Bridge]:
    """Load runs by the names that requests give.

    A frozen base that a run shares with the one before it is not loaded again. Where the LLM runs elsewhere, only its
    tokenizer and its input embedding are loaded.

    Raises:
        ConfigError: no run, or two of the same name.
        CheckpointError, ModelError: a run that cannot be loaded.
    """
    if not runs:
        raise ConfigError("Got no run to serve; wanted at least one run folder.")
    bridges: dict[str, Bridge] = {}
    for run in runs:
        name = model_name(run)
        if name in bridges:
            raise ConfigError(f"Two runs are called {name!r}. Rename a folder, so that requests can tell them apart.")
        like = next(reversed(bridges.values()), None)
        bridges[name] = load_bridge(
            run,
            device=device,
            encoder=encoder,
            llm=llm,
            trust_remote_code=trust_remote_code,
            like=like,
            llm_elsewhere=llm_elsewhere,
        )
    return bridges


def model_name(run: str) -> str:
    """Return the name that requests give a run: its folder's, or the hub's."""
    path = Path(run)
    if not path.exists():
        return run
    path = path.resolve()
    return path.parent.name if path.name == "checkpoint" else path.name


def read_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> SecretStr | None:
    """Return the API key from a file, or else from the environment; None without either.

    Raises:
        ConfigError: a file that cannot be read, or that others can read.
    """
    if file is None:
        key = environment.get(API_KEY, "").strip()
        return SecretStr(key) if key else None
    try:
        text, mode = file.read_text(encoding="utf-8").strip(), file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The API key's file {file} cannot be read: {error}.") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"Others can read the API key in {file}. Run `chmod 600 {file}`.")
    if not text:
        raise ConfigError(f"The API key's file {file} is empty; wanted the key on one line.")
    return SecretStr(text)


def build_server_config(**given: object) -> ServerConfig:
    """Return a checked config; complaints are one `ConfigError`, and none repeats the key."""
    key = given.get("api_key")
    if isinstance(key, str):
        given["api_key"] = SecretStr(key)
    return build_config(ServerConfig, given, where="serve")


def build_upstream_config(given: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> "UpstreamConfig":
    """Return where the LLM runs, checked; the key that is asked for there is taken from the environment."""
    from layerbridge.serving.upstream import ENGINE_API_KEY, UpstreamConfig

    key = environment.get(ENGINE_API_KEY, "").strip()
    return build_config(UpstreamConfig, {**given, "api_key": SecretStr(key) if key else None}, where="serve")


def build_server(
    bridges: Mapping[str, Bridge],
    config: ServerConfig,
    *,
    upstream: "UpstreamConfig | None" = None,
    log_level: str = "warning",
) -> Server:
    """Return a server of bridges; its engine's thread runs already.

    Args:
        bridges: by the id that requests give.
        config: where to listen, and limits.
        upstream: where the LLM runs, if not in this process.
        log_level: uvicorn's.

    Raises:
        ConfigError: there is no LLM that reads what these bridges make.
    """
    metrics = Metrics()
    engine = (
        LocalEngine(bridges, config.limits, metrics) if upstream is None else _vllm(bridges, config, upstream, metrics)
    )
    return Server(build_app(engine, config, metrics), engine, config, log_level=log_level)


def _vllm(
    bridges: Mapping[str, Bridge], config: ServerConfig, where: "UpstreamConfig", metrics: Metrics
) -> "VllmEngine":
    from layerbridge.serving.upstream import Upstream
    from layerbridge.serving.vllm_checks import check_upstream
    from layerbridge.serving.vllm_engine import VllmEngine

    limits = config.limits
    upstream = Upstream(where, seconds=limits.request_seconds, max_connections=limits.max_writing)
    return VllmEngine(bridges, limits, upstream, check_upstream(upstream, bridges), metrics)


def serve(bridges: Mapping[str, Bridge], config: ServerConfig, upstream: "UpstreamConfig | None" = None) -> None:
    """Serve bridges until a signal; the address is printed once it listens."""
    server = build_server(bridges, config, upstream=upstream)
    host = f"[{config.host.strip('[]')}]" if ":" in config.host else config.host

    def say(port: int) -> None:
        names = ", ".join(bridges)
        key = "" if config.api_key is None else ", with the API key"
        where = "" if upstream is None else f", the LLM in vLLM at {upstream.url}"
        print(f"Serving {names} at http://{host}:{port}{key}{where}", flush=True)  # noqa: T201
        if not is_loopback(config.host):
            warning = "Others can connect, and what they send is not encrypted: put TLS before it."
            print(warning, file=sys.stderr)  # noqa: T201
        if upstream is not None and upstream.is_open:
            warning = "What is sent to vLLM is not encrypted, a key included: use https, or a network of your own."
            print(warning, file=sys.stderr)  # noqa: T201

    server.on_started = say
    server.run()
