"""Fills the model cards with what the trainings and the yardstick measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

from layerbridge.atomic import replace_text
from pretraining.bag import BagPlan
from pretraining.instruction_rows import KINDS

CARDS = Path(__file__).parent / "cards"


def write_encoder_card(
    trained: Path, folder: Path, bag_plan: BagPlan, weights_plan: BagPlan, *, parameters: int, vocabulary: int
) -> None:
    """The encoder's `README.md` from `training.json` and `probe.json` of its training."""
    training, probe = _read(trained / "training.json"), _read(trained / "probe.json")
    plan, last = training["plan"], training["history"][-1]
    recent = training["history"][-(len(training["history"]) // 4) :]
    figures = {
        **plan,
        "bag_steps": f"{bag_plan.steps:,}",
        "bag_pairs": bag_plan.pairs,
        "weights_steps": f"{weights_plan.steps:,}",
        **{name: round(fmean(row[name] for row in recent), 2) for name in ("ranking", "parts", "masked", "first")},
        "tokens": _millions(last["tokens"]),
        "minutes": round(last["seconds"] / 60),
        "parameters": _millions(parameters),
        "vocabulary": f"{vocabulary:,}",
        "uniform": round(math.log(vocabulary), 2),
        "probe_table": _probe_table(probe),
        "curve_table": _curve_table(training["measured"], plan),
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
        "instruction_rows": f"{sum(instructions['rows'].values()):,}",
        "instruction_steps": f"{instructions['plan']['steps']:,}",
        "instruction_batch": instructions["plan"]["batch"],
        "instruction_table": _instruction_table(instructions),
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


def _curve_table(measured: list[dict], plan: dict) -> str:
    """One line a look: English and the others at the ranked layer and at the last."""
    places = [f"layer {plan[key]}" for key in ("ranked_layer", "num_layers")]
    header = "| step | tokens |" + "".join(f" {place}: English, others, retrieval |" for place in places)
    rows = []
    for look in measured:
        cells = [
            f" {look['accuracy'][place]['en']:.1%}, {look['accuracy'][place]['mean of 26']:.1%}, "
            f"{look['retrieval'][place]['mean of 26']:.2f} |"
            for place in places
        ]
        rows.append(f"| {look['step']:,} | {_millions(look['tokens'])} |" + "".join(cells))
    return "\n".join([header, "|---" * 4 + "|", *rows])


def _instruction_table(instructions: dict) -> str:
    header = "| kind | asked | rows | share of what was read | answers | held out | right |\n" + "|---" * 7 + "|\n"
    shares, accuracy = instructions["plan"]["shares"], instructions["history"][-1]["accuracy"]
    return header + "\n".join(
        f"| {name.replace('_', ' ')} | `{KINDS[name].ask}` | {instructions['rows'][name]:,} | "
        f"{shares[name] / sum(shares.values()):.0%} | {len(KINDS[name].answers) or 'open'} | "
        f"{instructions['held_out_rows'][name]} | {right:.0%} |"
        for name, right in accuracy.items()
    )


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _write(name: str, folder: Path, figures: dict) -> None:
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8").format(**figures)
    replace_text(folder / "README.md", text)
