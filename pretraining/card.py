"""Fills the model cards with what the trainings and the yardstick measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

from pretraining.bag import BagPlan

CARDS = Path(__file__).parent / "cards"


def write_encoder_card(trained: Path, folder: Path, bag_plan: BagPlan, *, parameters: int, vocabulary: int) -> None:
    """The encoder's `README.md` from `training.json` and `probe.json` of its training."""
    training, probe = _read(trained / "training.json"), _read(trained / "probe.json")
    plan, last = training["plan"], training["history"][-1]
    recent = training["history"][-10:]
    figures = {
        **plan,
        "bag_steps": bag_plan.steps,
        "bag_pairs": bag_plan.pairs,
        **{name: round(fmean(row[name] for row in recent), 2) for name in ("ranking", "masked", "first")},
        "tokens": _millions(last["tokens"]),
        "minutes": round(last["seconds"] / 60),
        "parameters": _millions(parameters),
        "vocabulary": f"{vocabulary:,}",
        "probe_table": _probe_table(probe),
    }
    _write("encoder", folder, figures)


def write_llm_card(trained: Path, folder: Path, *, parameters: int, vocabulary: int) -> None:
    """The LM's `README.md` from `training.json` of its training."""
    training = _read(trained / "training.json")
    plan, last = training["plan"], training["history"][-1]
    instructions = training["instructions"]
    figures = {
        **plan,
        **training,
        "instruction_rows": f"{instructions['rows']:,}",
        "instruction_epochs": instructions["plan"]["epochs"],
        "instruction_dev_rows": instructions["dev_rows"],
        "instruction_accuracy": f"{instructions['history'][-1]['dev_accuracy']:.0%}",
        "tokens": _millions(plan["steps"] * plan["batch"] * plan["window"]),
        "train_tokens": _millions(training["train_tokens"]),
        "held_out_tokens": f"{training['held_out_tokens']:,}",
        "minutes": round(last["seconds"] / 60),
        "parameters": _millions(parameters),
        "vocabulary": f"{vocabulary:,}",
    }
    _write("llm", folder, figures)


def _probe_table(probe: dict) -> str:
    header = "| states | English | mean of the 26 others | retrieval |\n|---|---|---|---|\n"
    return header + "\n".join(
        f"| {name} | {scores['en']:.1%} | {scores['mean of 26']:.1%} | {probe['retrieval'][name]['mean of 26']:.2f} |"
        for name, scores in probe["accuracy"].items()
    )


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _write(name: str, folder: Path, figures: dict) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8").format(**figures)
    (folder / "README.md").write_text(text, encoding="utf-8")
