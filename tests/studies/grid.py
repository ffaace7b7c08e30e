"""A study that takes seconds: tiny models, a few headlines, three languages."""

from pathlib import Path

import yaml

LANGUAGES = ["en", "si", "ta"]


def write_study(folder: Path, models: dict[str, str], **changes) -> Path:
    """Write a study's file and return its path; keyword arguments replace its keys."""
    data = {
        "title": "A small study",
        "seeds": [0, 1],
        "reference": "last_layer",
        "main": "headlines",
        "baselines": ["llm_alone", "linear_probe_last_layer", "linear_probe_fused"],
        "defaults": {
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 0.003,
                "eval_every": 2,
                "max_source_tokens": 48,
                "group_by_length": True,
            },
            "evaluation": {"languages": LANGUAGES, "limit": 12, "max_source_tokens": 48, "max_new_tokens": 2},
        },
        "tasks": {"headlines": {"task": {"max_train_rows": 32, "dev_rows": 8, "rows_seed": 0}}},
        "set_ups": {
            "last_layer": {"fusion": "last_layer"},
            "transformer_softmax": {"fusion": {"name": "transformer_softmax", "feedforward_width": 16}},
        },
        "pairs": {
            "tiny": {
                "title": "two tiny models",
                "defaults": {"encoder": models["mt5"], "llm": models["llama"]},
                "layer_sweep": {"tasks": ["headlines"]},
            }
        },
        **changes,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


def outcome(out: Path) -> dict[str, object]:
    """Return everything in a study's folder that must not depend on interruptions, by relative path.

    Left out: times, and where the run lies.
    """
    import json

    from safetensors.torch import load_file

    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "bridge.safetensors" and "/checkpoint/" in name:
            found[name] = {key: tensor.tolist() for key, tensor in load_file(path).items()}
        elif path.suffix == ".jsonl" and path.parent.name == "predictions":
            header, *rows = path.read_text(encoding="utf-8").splitlines()
            found[name] = [{k: v for k, v in json.loads(header).items() if k != "created"}, *rows]
        elif path.name in ("results.json", "layer_weights.json"):
            data = json.loads(path.read_text(encoding="utf-8"))
            data.pop("created", None)
            found[name] = data
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [
                (row["step"], row.get("loss"), row.get("eval_loss")) for row in rows if "train_runtime" not in row
            ]
        elif path.name == "analysis.json":
            data = json.loads(path.read_text(encoding="utf-8"))
            data.pop("created")
            for origin in data["origins"]:
                origin.pop("seconds")
            found[name] = data
    return found
