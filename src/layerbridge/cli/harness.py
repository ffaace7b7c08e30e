"""`layerbridge harness`: a run under EleutherAI's lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode, names


def harness(
    run: Annotated[Path, typer.Argument(help="Run folder or checkpoint folder.")],
    tasks: Annotated[
        str,
        typer.Option(help="Commas between: sib200, sib200_si, indicxnli_ta, sinhala_news, or lm_eval's."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Local folder with the rows, or with a folder per benchmark; else the hub.")
    ] = None,
    languages: Annotated[str | None, typer.Option(help="Of sib200, indicxnli, sinhala_news as a whole: si,ta.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task, the first ones.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Texts per forward pass, at most.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Encoder tokens per forward pass, padding included.")
    ] = None,
    include_path: Annotated[str | None, typer.Option(help="Folder with lm_eval task files of your own.")] = None,
    include_defaults: Annotated[
        bool, typer.Option("--include-defaults", help="Also know the tasks that come with lm_eval; some seconds.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for lm_eval's results and their origin.")] = None,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate a run with lm-evaluation-harness (`pip install 'layerbridge[eval]'`) and print its table.

    Example: `layerbridge harness runs/sib200 --tasks sib200_si,sib200_ta --data ~/sib200`
    """
    from layerbridge.evaluation.harness.run import run_harness, to_table, write_json

    results = run_harness(
        run,
        names(tasks) or (),
        data=data,
        languages=names(languages),
        limit=limit,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        include_path=include_path,
        include_defaults=include_defaults,
        encoder=encoder,
        llm=llm,
        trust_remote_code=trust_remote_code,
    )
    typer.echo(to_table(results))
    if out is not None:
        write_json(results, out)
        typer.echo(f"Wrote {out}.")
