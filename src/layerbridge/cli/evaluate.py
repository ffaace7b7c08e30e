"""`layerbridge evaluate`: a run and a task in, predictions and a table of accuracies out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from layerbridge.cli.options import EncoderPlace, LLMPlace, TrustRemoteCode, names


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or (--rescore) evaluation folder.")],
    task: Annotated[str | None, typer.Option(help="Task to evaluate on; by default the run's own.")] = None,
    data: Annotated[str | None, typer.Option(help="Local folder or file with the task's data.")] = None,
    languages: Annotated[str | None, typer.Option(help="Codes with commas between: si,ta. By default all.")] = None,
    split: Annotated[str | None, typer.Option(help="By default `test`.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows per language, the first ones.")] = None,
    methods: Annotated[str | None, typer.Option(help="score, generate, or both with a comma between.")] = None,
    out: Annotated[Path | None, typer.Option(help="By default RUN/evaluation/TASK-SPLIT[-first-N].")] = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Score existing predictions; no model.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Texts per forward pass, at most.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Encoder tokens per forward pass, padding included.")] = None,
    encoder: EncoderPlace = None,
    llm: LLMPlace = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate a run language by language; finished languages are kept and not predicted again.

    Example: `layerbridge evaluate runs/sinhala --languages si,ta --methods score`
    """
    from rich.console import Console

    from layerbridge.config import EvaluationConfig, build_config
    from layerbridge.evaluation.predict import evaluate_run
    from layerbridge.evaluation.predictions import FOLDER
    from layerbridge.evaluation.render import render_results
    from layerbridge.evaluation.run_folder import find_run
    from layerbridge.evaluation.score import RESULTS_FILE
    from layerbridge.evaluation.score import rescore as score_again

    if rescore and (run / FOLDER).is_dir():
        folder = run
        results = score_again(folder)
    else:
        found = find_run(run)
        given: dict[str, Any] = {
            "languages": names(languages),
            "split": split,
            "limit": limit,
            "methods": names(methods),
            "batch_size": batch_size,
            "batch_tokens": batch_tokens,
        }
        base = found.recipe.evaluation if found.recipe else EvaluationConfig()
        changes = {key: value for key, value in given.items() if value is not None}
        config = build_config(EvaluationConfig, base.model_dump() | changes, where="command line")
        task_config = found.choose_task(task, data)
        folder = out or found.evaluation_folder(task_config.name, config)
        if rescore:
            results = score_again(folder)
        else:
            results = evaluate_run(
                run,
                task_config=task_config,
                config=config,
                out=folder,
                progress=True,
                encoder=encoder,
                llm=llm,
                trust_remote_code=trust_remote_code,
            )
    Console().print(render_results(results))
    typer.echo(f"Wrote {folder / RESULTS_FILE}; the predictions are in {folder / FOLDER}.")
