"""The model card that goes with a checkpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from layerbridge import __version__
from layerbridge.config import EMBEDDED

if TYPE_CHECKING:
    from layerbridge.model.bridge import Bridge


def model_card(bridge: "Bridge", results: Mapping[str, Any] | None = None) -> str:
    """Return the card as Markdown with the hub's YAML header.

    Args:
        bridge: config, bases and origin are read from it.
        results: accuracy in percent by language code, if it was measured.
    """
    bases = {role: str(bridge.bases[role]["name"]) for role in ("encoder", "llm")}
    header: dict[str, Any] = {
        "library_name": "layerbridge",
        "tags": ["layerbridge", "cross-lingual-transfer", bridge.config.fusion.name],
        "base_model": [name for name in bases.values() if name != EMBEDDED and not name.startswith((".", "/"))],
        "language": sorted(results) if results else (bridge.trained_on or {}).get("languages", ["en"]),
    }
    count = sum(p.numel() for p in bridge.trained_parameters().values())
    lines = [
        "---",
        yaml.safe_dump({k: v for k, v in header.items() if v}, sort_keys=False).strip(),
        "---",
        "",
        f"# A {bridge.config.fusion.name} bridge",
        "",
        f"{count:,} trained parameters between two frozen models; the models themselves are not in here.",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {_base(bridge, 'encoder')} |",
        f"| LLM | {_base(bridge, 'llm')} |",
        f"| fusion | {bridge.config.fusion.name}, encoder layers {_layers(bridge)} |",
        *_pooling(bridge),
        f"| projector | {bridge.config.projector.name} |",
        f"| written by | layerbridge {__version__} |",
    ]
    if bridge.trained_on:
        origin = bridge.trained_on
        lines += [
            f"| trained on | {origin['task']}, version {origin['task_version']} |",
            f"| languages seen in training | {', '.join(origin['languages'])} |",
            f"| encoder prompt | `{origin['encoder_prompt']}` |",
        ]
        if origin.get("answers"):
            lines.append(f"| answers | {', '.join(origin['answers'])} |")
    if results:
        lines += ["", "## Accuracy, percent", "", "| language | accuracy |", "|---|---|"]
        lines += [f"| {language} | {value:.1f} |" for language, value in sorted(results.items())]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import layerbridge",
        "",
        'bridge = layerbridge.load("path/or/name")',
        'print(bridge.generate([bridge.render("...")]))',
        "```",
        "",
        "## Limits",
        "",
        "A bridge reads only what its encoder reads; languages that the encoder never saw stay closed. "
        "Licences of both base models apply.",
        "",
    ]
    return "\n".join(lines)


def _base(bridge: "Bridge", role: str) -> str:
    base = bridge.bases[role]
    revision = f" at `{base['revision']}`" if base["revision"] else ""
    return f"`{base['name']}`{revision}, fingerprint `{base['fingerprint']}`"


def _pooling(bridge: "Bridge") -> list[str]:
    pooling = bridge.config.pooling
    size = "" if pooling.size is None else f", {pooling.size} source tokens a soft token"
    return [] if pooling.name == "none" else [f"| pooling | {pooling.name}{size} |"]


def _layers(bridge: "Bridge") -> str:
    numbers = bridge.encoder.layer_numbers
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
