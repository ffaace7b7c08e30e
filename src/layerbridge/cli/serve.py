"""`layerbridge serve`: runs behind OpenAI's protocol."""

from pathlib import Path
from typing import Annotated, Any

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode
from layerbridge.config import EMBEDDED
from layerbridge.errors import ConfigError, unknown_name

ENGINES = ("local", "vllm")
"""Where the LLM runs: in this process, or unmodified in vLLM."""


def serve(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run folders, checkpoint folders or hub names; by default embedded, the bridge in the package.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own wants an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    engine: Annotated[str, typer.Option(help="Where the LLM runs: local, in this process; vllm, elsewhere.")] = "local",
    engine_url: Annotated[
        str | None,
        typer.Option(help="Of vllm: its address; a key from LAYERBRIDGE_ENGINE_API_KEY.", show_default=False),
    ] = None,
    engine_model: Annotated[
        str | None, typer.Option(help="Of vllm: the LLM's name there, if it serves several.", show_default=False)
    ] = None,
    engine_route: Annotated[
        str, typer.Option(help="Of vllm: completions, as trained; chat, soft tokens inside a user's turn.")
    ] = "completions",
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key; else the variable LAYERBRIDGE_API_KEY.", show_default=False),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="A limit of docs/serving.md, such as max_new_tokens=256. Repeatable.", metavar="NAME=NUMBER"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="By default the first GPU, else the CPU.", show_default=False)
    ] = None,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve one run or several to whatever speaks OpenAI's protocol (`pip install 'layerbridge[serve]'`).

    Without a run it serves the bridge in the package, which tells the topic of a headline in 27 languages.

    Example: `layerbridge serve runs/demo/transformer_softmax --port 8000`
    """
    if engine not in ENGINES:
        raise ConfigError(unknown_name("engine", engine, ENGINES))
    where = _engine_options(engine, url=engine_url, model=engine_model, route=engine_route)
    try:
        from layerbridge.serving.server import build_server_config, build_upstream_config, load_bridges, read_key
        from layerbridge.serving.server import serve as run

        upstream = None if where is None else build_upstream_config(where)
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "httpx", "uvicorn", "prometheus_client", "starlette"):
            raise
        raise ConfigError(f"Serving needs {error.name}. Install it: pip install 'layerbridge[serve]'") from None
    config = build_server_config(host=host, port=port, api_key=read_key(api_key_file), limits=_limits(limit or []))
    places: dict[str, Any] = {"encoder": encoder, "llm": llm, "trust_remote_code": trust_remote_code}
    run(load_bridges(runs or [EMBEDDED], device=device, llm_elsewhere=upstream is not None, **places), config, upstream)


def _engine_options(engine: str, **options: str | None) -> dict[str, str | None] | None:
    """Return where the LLM runs; None for in this process."""
    if engine == "local":
        given = [name for name in ("url", "model") if options[name] is not None]
        if given or options["route"] != "completions":
            raise ConfigError(
                f"--engine-{(given or ['route'])[0]} is of --engine vllm, and the engine is local. Drop it."
            )
        return None
    if options["url"] is None:
        raise ConfigError("--engine vllm needs --engine-url, such as http://127.0.0.1:8001.")
    return options


def _limits(pairs: list[str]) -> dict[str, str]:
    limits = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--limit {pair!r} is not of the form NAME=NUMBER.")
        limits[name.strip()] = value.strip()
    return limits
