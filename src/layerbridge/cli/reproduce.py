"""`layerbridge reproduce`: a study in, all of its runs and a report out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from layerbridge.cli.options import names, shown

if TYPE_CHECKING:
    from layerbridge.studies.reproduce import Plan
    from layerbridge.studies.study import Job
    from layerbridge.studies.work import Workshop


def reproduce(
    study: Annotated[str, typer.Argument(help="A study's name, such as paper, or its YAML file.", show_default=False)],
    pair: Annotated[
        str | None, typer.Option(help="Encoder and LLM, as the study names them; by default its first.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with a folder for each task; by default the hub.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's folder; by default runs/STUDY-PAIR.", show_default=False)
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Some of the study's tasks, with commas between.")] = None,
    set_ups: Annotated[str | None, typer.Option(help="Some of the study's set-ups, with commas between.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas between, such as 0,1; default: all.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a GPU, or one a core for the embedded pair.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where encoder features are kept, for other studies too.")] = Path(
        "runs/features"
    ),
    cache_limit: Annotated[float, typer.Option(min=0, help="Largest size of that folder, in GB.")] = 20.0,
    plan: Annotated[bool, typer.Option("--plan", help="Show plan and cost, and do nothing.")] = False,
) -> None:
    """Run every cell of a study, its baselines and its statistics, and write the report.

    What is done is kept: the same command goes on where it was. Under torchrun the work is spread over its processes.

    Example: `layerbridge reproduce paper --pair embedded --data path/to/data`
    """
    from layerbridge.studies.processes import take_place

    place = take_place()  # before torch looks at the environment

    import torch

    from layerbridge.studies.processes import start_workers, stop_workers
    from layerbridge.studies.reproduce import plan_study
    from layerbridge.studies.study import load_study
    from layerbridge.studies.work import Workshop

    loaded = load_study(study)
    pair_name, chosen = loaded.pair(pair)
    folder = out or Path("runs") / f"{loaded.name}-{pair_name}"
    folder.mkdir(parents=True, exist_ok=True)
    count = place.world if place.world > 1 else workers or _num_workers(loaded.uses_embedded(chosen))
    workshop = Workshop(
        out=folder,
        cache=cache,
        cache_bytes=int(cache_limit * 1e9),
        probe_fused="linear_probe_fused" in loaded.baselines,
        keep_checkpoints=loaded.keep_checkpoints,
        translator=loaded.translator,
        say=typer.echo,
    )
    made = plan_study(
        loaded,
        pair_name,
        workshop,
        data=data,
        threads=_threads(count),
        seeds=_seeds(seeds),
        tasks=names(tasks),
        set_ups=names(set_ups),
        typed=shown(Path(study)),
        write=not plan,
    )
    torch.set_num_threads(made.threads)
    if place.leads:
        _show_plan(made, workshop)
    if plan:
        return
    started = []
    left = [job for job in made.jobs if not workshop.is_done(job)]
    if place.leads and place.world == 1 and count > 1 and left:
        arguments = _arguments(study, pair_name, data, folder, tasks, set_ups, seeds, cache, cache_limit)
        started = start_workers(arguments, count=count - 1, threads=made.threads, num_gpus=torch.cuda.device_count())
    finished = False
    try:
        _work(made, workshop, leads=place.leads)
        finished = True
    finally:
        stop_workers(started, wait=finished)
    if place.leads:
        _report(made, folder, command=made.command + (" --data DIR" if data is not None else ""))


def _work(plan: "Plan", workshop: "Workshop", *, leads: bool) -> None:
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    left = [job for job in plan.jobs if not workshop.is_done(job)]
    if not left:
        return
    features = workshop.plan_features(plan.jobs)
    texts, size = workshop.missing(features)
    if leads:
        kept = sum(item.num_texts for item in features.values())
        typer.echo(f"Encoder: {texts} of {kept} texts to encode, {size / 1e9:.1f} GB to write.")
        for item in features.values():
            if item.num_left_out:
                typer.echo(f"{item.num_left_out} texts are over --cache-limit and are encoded every time.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not leads) as bars:
        bar = bars.add_task("texts", total=texts)
        workshop.encode(features, on_texts=lambda num: bars.advance(bar, num))
        bars.remove_task(bar)
    if leads and workshop.passes_encoding:
        typer.echo(f"This process made {workshop.passes_encoding} encoder passes.")
    began = time.monotonic()
    before = len(left)

    def done(job: "Job", seconds: float) -> None:
        still = sum(not workshop.is_done(other) for other in left)
        gone = time.monotonic() - began
        rest = gone / max(1, before - still) * still
        typer.echo(
            f"[{len(plan.jobs) - still}/{len(plan.jobs)}] {job.place} {seconds:.0f} s; about {rest / 60:.0f} min left"
        )

    workshop.run(left, on_done=done if leads else None)


def _show_plan(plan: "Plan", workshop: "Workshop") -> None:
    from rich.console import Console
    from rich.table import Table

    from layerbridge.studies.reproduce import costs

    table = Table(title=f"{plan.study.title}: {plan.pair.title}", pad_edge=False)
    for heading in ("task", "train", "dev", "test", "languages", "jobs", "done", "steps left", "answers left"):
        is_name = heading == "task"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name, overflow="fold")
    found = costs(plan, workshop)
    for cost in found:
        numbers = (cost.train_rows, cost.dev_rows, cost.test_rows, cost.num_languages, cost.num_jobs, cost.num_done)
        table.add_row(cost.task, *map(str, numbers), f"{cost.steps_left:,}", f"{cost.answers_left:,}")
    console = Console()
    console.print(table)
    for cost in found:
        limit = f", the first {cost.limit} rows a language" if cost.limit else ""
        typer.echo(f"{cost.task}: split {cost.split} of {cost.source}{limit}; trained on {cost.train_source}.")
        if cost.seconds_a_job is not None and cost.num_done < cost.num_jobs:
            each, left = cost.seconds_a_job, cost.num_jobs - cost.num_done
            typer.echo(
                f"{cost.task}: {each:.0f} s a job so far; {left * each / 60:.0f} min of one process for the rest."
            )
    for note in plan.notes:
        typer.echo(note)
    typer.echo(f"{len(plan.jobs)} jobs, {sum(cost.num_done for cost in found)} of them done, in {plan.out}.")


def _report(plan: "Plan", folder: Path, *, command: str) -> None:
    from layerbridge.evaluation.analyse import analyse
    from layerbridge.reporting.report import write_report

    analysis = analyse(
        [folder],
        title=f"{plan.study.title}: {plan.pair.title}",
        reference=plan.study.reference,
        main=plan.main,
        command=command,
        notes=plan.notes,
    )
    page = write_report(analysis, folder / "report")
    typer.echo(f"The report is {page}.")


def _seeds(text: str | None) -> list[int] | None:
    from layerbridge.errors import ConfigError

    if text is None:
        return None
    found = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in found) or len(set(found)) < len(found):
        raise ConfigError(f"--seeds is {text!r}; wanted different whole numbers with commas between, such as 0,1,2.")
    return [int(word) for word in found]


def _num_workers(embedded: bool) -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(_num_cores(), 8) if embedded else 1


def _threads(workers: int) -> int:
    import os

    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else max(1, _num_cores() // workers)


def _num_cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _arguments(
    study: str,
    pair: str,
    data: Path | None,
    out: Path,
    tasks: str | None,
    set_ups: str | None,
    seeds: str | None,
    cache: Path,
    cache_limit: float,
) -> list[str]:
    given = ["reproduce", study, "--pair", pair, "--out", str(out), "--workers", "1"]
    given += ["--cache", str(cache), "--cache-limit", str(cache_limit)]
    for name, value in (("--data", data), ("--tasks", tasks), ("--set-ups", set_ups), ("--seeds", seeds)):
        given += [name, str(value)] if value is not None else []
    return given
