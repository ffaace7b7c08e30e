"""A full cache: what was used longest ago goes, what is needed stays, and nothing else in the folder is touched."""

import os

import torch
from safetensors.torch import save_file

from layerbridge.model import feature_room
from tests.model.test_features import TEXTS, build, fill, store_of


def test_the_cache_makes_room_by_dropping_what_was_used_longest_ago(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    old, new, wanted = ([f"{word} {text}" for text in TEXTS] for word in ("old", "new", "wanted"))
    plans = [fill(store, bridge, texts) for texts in (old, new)]
    paths = [store.folder / f"{plan.shards[0].name}.safetensors" for plan in plans]
    os.utime(paths[0], (1, 1))
    plan = store.plan([bridge.processor.source_ids(wanted, 512)])
    assert store.make_room(plan, plan.num_bytes + paths[1].stat().st_size) > 0
    assert [path.exists() for path in paths] == [False, True]


def test_making_room_touches_nothing_that_is_no_shard(tiny_models, tmp_path):
    """Whatever folder is named as the cache: models, checkpoints, other files with a shard's name."""
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    old, wanted = ([f"{word} {text}" for text in TEXTS] for word in ("old", "wanted"))
    fill(store, bridge, old)
    (shard,) = store.folder.glob("*.safetensors")
    ours = {"metadata": {"format": feature_room.FORMAT}}
    foreign = {
        "mt5-large/model.safetensors": {},
        "checkpoint/bridge.safetensors": {"metadata": {"format": "layerbridge"}},
        f"mt5-large/{shard.name}": ours,
        f"{store.folder.name}/model.safetensors": ours,
        f"{store.folder.name}/{'0' * 24}.safetensors": {},
    }
    for name, options in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"weight": torch.zeros(1000)}, tmp_path / name, **options)
    (store.folder / f"{'1' * 24}.safetensors").write_bytes(b"damaged")
    plan = store.plan([bridge.processor.source_ids(wanted, 512)])
    size = shard.stat().st_size
    assert store.make_room(plan, plan.num_bytes + size) == 0, "what is not a shard does not count"
    assert store.make_room(plan, 0) == size
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")} == {
        *foreign,
        f"{store.folder.name}/{'1' * 24}.safetensors",
    }


def test_what_other_stores_need_too_is_counted_and_not_deleted(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store, small = store_of(bridge, tmp_path), store_of(bridge, tmp_path, "int8")
    plan, other = fill(store, bridge), fill(small, bridge)
    beside = [(store, plan), (small, other)]
    assert store.make_room(plan, plan.num_bytes, beside=beside) == 0
    assert not small.missing(other)
    assert list(small.folder.glob("*.safetensors"))
    assert store.make_room(plan, plan.num_bytes) > 0


def test_files_that_may_not_be_deleted_are_passed_over(tiny_models, tmp_path, monkeypatch):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    for word in ("old", "older"):
        fill(store, bridge, [f"{word} {text}" for text in TEXTS])
    first, second = sorted(store.folder.glob("*.safetensors"))
    os.utime(first, (1, 1))
    original = type(first).unlink

    def unlink(path, **options):
        if path == first:
            raise PermissionError(13, "Permission denied")
        original(path, **options)

    monkeypatch.setattr(type(first), "unlink", unlink)
    plan = store.plan([bridge.processor.source_ids(["new"], 512)])
    size = second.stat().st_size
    assert store.make_room(plan, plan.num_bytes) == size
    assert [first.exists(), second.exists()] == [True, False]
