"""What an annotation came to, or would come to, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from layerbridge.annotation.executors import LOGS
from layerbridge.annotation.outputs import DATA, REJECTS
from layerbridge.annotation.progress import duration
from layerbridge.annotation.rows import REASONS

if TYPE_CHECKING:
    from layerbridge.annotation.annotate import Prepared, Report
    from layerbridge.annotation.estimate import Estimate

MANY_ROWS = 100_000_000
"""What a speed is also told for."""


def show_report(prepared: Prepared, report: Report, console: Console | None = None) -> None:
    """Print rows, rejects by reason, and speed."""
    console = console or Console()
    output = prepared.request.output.rstrip("/")
    if report.submitted is not None:
        console.print(
            f"Submitted as Slurm job {report.submitted}. Look with: squeue --me; logs are in {output}/{LOGS}/. When it "
            "is over, give the same command again: it says what came of it, or submits what is not done.",
            markup=False,
        )
        return
    sums = report.sums
    table = Table("", "", show_header=False)
    table.add_row("shards done", f"{sums['shards']:,} of {report.num_shards:,}")
    table.add_row("rows read", f"{sums['rows']:,}")
    table.add_row("rows written", f"{sums['written']:,}")
    for reason, count in sums["rejected"].items():
        table.add_row(f"rejected: {reason}", f"{count:,}  ({REASONS.get(reason, '')})")
    if sums["cut"]:
        table.add_row("texts cut", f"{sums['cut']:,}")
    if report.here["rows"]:
        table.add_row("this call", f"{report.here['rows']:,} rows in {duration(report.seconds)}, loading included")
        table.add_row("rows a second", f"{report.here['rows'] / report.seconds:,.1f}")
        table.add_row("encoder tokens a second", f"{report.here['tokens'] / report.seconds:,.0f}")
        if report.worker_seconds:
            each = report.here["rows"] / report.worker_seconds
            table.add_row("of one worker, once loaded", f"{each:,.1f} rows a second")
    else:
        table.add_row("this call", "nothing was left to do")
    console.print(table)
    for text in report.warnings:
        console.print(f"Warning: {text}", markup=False)
    if "too_long" in sums["rejected"]:
        console.print(
            "Texts that are too long are rejected; --too-long cut, into another OUTPUT, reads their beginning."
        )
    rejects = f", bad rows with their reasons to {output}/{REJECTS}" if sums["rejected"] else ""
    console.print(f"Wrote {output}/{DATA}{rejects}.", markup=False)


def show_plan(prepared: Prepared, estimate: Estimate | None, console: Console | None = None) -> None:
    """Print what is left, and what it would take."""
    console = console or Console()
    options = prepared.plan.options
    size = sum(shard.size for shard in prepared.plan.shards)
    table = Table("", "", show_header=False)
    table.add_row("shards", f"{len(prepared.plan.shards):,}, {size / 1e6:,.1f} MB")
    if prepared.corpus.others:
        table.add_row("other files there", f"{prepared.corpus.others:,}, left alone")
    table.add_row("columns read", escape(", ".join(options.columns.values())))
    table.add_row("columns added", escape(", ".join(options.added)))
    if options.labels is not None:
        table.add_row("labels", escape(", ".join(options.labels)))
    if estimate is None:
        table.add_row("left", "nothing")
        console.print(table)
        return
    table.add_row("left", f"{estimate.shards:,} shards, about {estimate.rows:,} rows")
    table.add_row("asked for this", f"{estimate.asked:,} rows, of them {estimate.rejected:,} rejected")
    table.add_row(
        "of one worker", f"{estimate.rows_per_second:,.1f} rows, {estimate.tokens_per_second:,.0f} tokens a second"
    )
    table.add_row(f"left, {estimate.workers:,} workers", f"about {duration(estimate.seconds)}")
    hours = MANY_ROWS / estimate.rows_per_second / 3600
    table.add_row(f"{MANY_ROWS:,} such rows", f"{hours:,.1f} worker hours")
    console.print(table)
