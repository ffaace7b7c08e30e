"""A study keeps the states of each precision apart, and says with every job which it read and what its error was."""

import json

from layerbridge.studies.study import jobs_of, load_study
from layerbridge.studies.work import Workshop
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
        errors[name] = job["features"]["relative_rms_error"]
        assert job["features"].items() <= run["features"].items(), "under the same names"
    assert errors["encoder"] == 0 < errors["bfloat16"] < errors["int8"] < 0.02
    assert json.loads((out / "headlines/llm_alone/job.json").read_text(encoding="utf-8"))["features"] is None
    assert len([path for path in cache.iterdir() if path.name != "locks"]) == 3


def test_the_limit_is_of_the_folder_not_of_each_precision_in_it(tiny_models, tmp_path):
    set_ups = {name: {"fusion": "last_layer", "training": {"feature_precision": name}} for name in ("int8", "encoder")}
    bases = {"encoder": tiny_models["mt5"], "llm": tiny_models["llama"]}
    study = load_study(
        str(
            write_study(
                tmp_path,
                tiny_models,
                seeds=[0],
                baselines=[],
                reference="int8",
                set_ups=set_ups,
                pairs={"tiny": {"title": "two tiny models", "defaults": bases}},
            )
        )
    )
    jobs = jobs_of(study, study.pairs["tiny"], {"headlines": {}})
    limit = 700_000
    for _ in range(2):  # the second time all of it is there
        workshop = Workshop(out=tmp_path / "out", cache=tmp_path / "cache", cache_bytes=limit)
        plans = workshop.plan_features(jobs)
        assert [plan.num_texts > 0 for plan in plans.values()] == [True, True]
        assert sum(plan.num_bytes for plan in plans.values()) <= limit
        assert sum(plan.num_left_out for plan in plans.values()) > 0
        workshop.encode(plans)
        assert all(not workshop._stores[key].missing(plan) for key, plan in plans.items())
        shards = list((tmp_path / "cache").glob("*/*.safetensors"))
        assert len(shards) == sum(len(plan.shards) for plan in plans.values()), "none made room for another"
        assert sum(path.stat().st_size for path in shards) < 1.1 * limit
    assert workshop.passes_encoding == 0
