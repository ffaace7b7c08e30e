"""A study keeps the states of each precision apart, and says with every job which it read and what its error was."""

import json

from tests.studies.grid import write_study
from tests.studies.test_reproduce import reproduce


def test_set_ups_of_different_precisions_read_their_own_states_and_say_so(tiny_models, tmp_path):
    set_ups = {
        name: {"fusion": "last_layer", "training": {"feature_precision": name}}
        for name in ("encoder", "bfloat16", "int8")
    }
    bases = {"encoder": tiny_models["mt5"], "llm": tiny_models["llama"]}
    study = write_study(
        tmp_path,
        tiny_models,
        seeds=[0],
        baselines=["llm_alone"],
        reference="encoder",
        set_ups=set_ups,
        pairs={"tiny": {"title": "two tiny models", "defaults": bases}},
    )
    out, cache = tmp_path / "out", tmp_path / "cache"
    reproduce(study, "--out", out, "--cache", cache, "--workers", 1)
    errors = {}
    for name in set_ups:
        folder = out / f"headlines/{name}-seed-0"
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert job["encoder_passes"] == run["features"]["encoder_passes"] == 0
        assert job["features"]["precision"] == run["features"]["precision"] == name
        errors[name] = job["features"]["overall"]
        assert errors[name] == run["features"]["relative_rms_error"]
    assert errors["encoder"] == 0 < errors["bfloat16"] < errors["int8"] < 0.02
    assert json.loads((out / "headlines/llm_alone/job.json").read_text(encoding="utf-8"))["features"] is None
    assert len([path for path in cache.iterdir() if path.name != "locks"]) == 3
