"""`layerbridge annotate`: a run and a corpus in, the corpus with labels or answers out."""

from typing import Annotated, Any

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode, names
from layerbridge.errors import ConfigError


def annotate(
    run: Annotated[str, typer.Argument(help="Run folder, checkpoint folder or hub name.", show_default=False)],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="File, folder, pattern or fsspec URL of .jsonl[.gz|.zst] or .parquet shards."
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or fsspec URL.")],
    labels: Annotated[
        str | None, typer.Option(help="To choose from, commas between; by default the task's answers.")
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write those of all labels.")] = False,
    generate: Annotated[bool, typer.Option("--generate", help="Write answers in free text instead of labels.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="LLM tokens of an answer; by default 32.", show_default=False)
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="An answer ends before this text. Repeatable.")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="By default named as the field of the task's prompt, or `text`.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", "-f", help="Column of a field of the prompt. Repeatable.", metavar="NAME=COLUMN"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The encoder reads the text without the task's prompt.")] = False,
    prompt: Annotated[
        str | None, typer.Option(help="Text for the LLM after the soft tokens; by default the recipe's.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="What rejected rows are named by, if they have it.")] = "id",
    keep: Annotated[
        str | None, typer.Option(help="Columns of the input to write, commas between; by default all.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the names of added columns.")] = "",
    too_long: Annotated[str, typer.Option(help="Texts over the limit: reject or cut.")] = "reject",
    max_source_tokens: Annotated[int, typer.Option(min=1, help="Encoder tokens a text.")] = 512,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per forward pass, padding included.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Shards at the same time; worker i takes GPU i.")] = 1,
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    executor_option: Annotated[
        list[str] | None,
        typer.Option(help="Of datatrove's executor: time, partition, ... Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    part: Annotated[str, typer.Option(help="Do the K-th of N parts of the shards here.", metavar="K/N")] = "1/1",
    device: Annotated[str | None, typer.Option(help="By default the GPUs, else the CPU.", show_default=False)] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Measure the first rows, estimate the rest, write none.")
    ] = False,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Label a corpus, or answer its rows (`pip install 'layerbridge[scale]'`). After a kill the same command goes on.

    Example: `layerbridge annotate runs/demo/transformer_softmax in/ out/ --text-column text --workers 2`
    """
    try:
        from layerbridge.annotation import annotate as room
        from layerbridge.annotation import summary
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("datatrove", "dill", "loguru", "humanize"):
            raise
        raise ConfigError(f"Annotating needs {error.name}. Install it: pip install 'layerbridge[scale]'") from None
    options: dict[str, Any] = {
        "method": "generate" if generate else "classify",
        "labels": names(labels),
        "probabilities": probabilities,
        "max_new_tokens": max_new_tokens,
        "stop": tuple(stop or ()),
        "prompt": prompt,
        "id_column": id_column,
        "keep": names(keep),
        "prefix": prefix,
        "too_long": too_long,
        "max_source_tokens": max_source_tokens,
        "batch_tokens": batch_tokens,
    }
    prepared = room.prepare(
        room.Request(
            run=run,
            source=source,
            output=output,
            options={name: value for name, value in options.items() if value is not None},
            raw=raw,
            text_column=text_column,
            columns=_pairs("--field", field, "NAME=COLUMN"),
            workers=workers,
            executor=executor,
            executor_options=_pairs("--executor-option", executor_option, "NAME=VALUE"),
            part=_part(part),
            device=device,
            encoder=encoder,
            llm=llm,
            trust_remote_code=trust_remote_code,
        )
    )
    if plan:
        summary.show_plan(prepared, room.estimate(prepared))
        return
    try:
        report = room.annotate(prepared)
    except room.FailedShardsError as error:
        summary.show_report(prepared, error.report)
        raise
    except KeyboardInterrupt:
        typer.echo("Stopped. Finished shards are kept; the same command goes on.", err=True)
        raise typer.Exit(130) from None
    summary.show_report(prepared, report)


def _pairs(option: str, pairs: list[str] | None, form: str) -> dict[str, str]:
    found = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"{option} {pair!r} is not of the form {form}.")
        found[name.strip()] = value.strip()
    return found


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit()):
        raise ConfigError(f"--part {text!r} is not of the form K/N, such as 2/4.")
    return int(number), int(parts)
