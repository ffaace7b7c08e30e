"""The feature store gives back what the encoder gave, to the bit whatever interrupts it, and spares every pass."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from layerbridge.config import BridgeConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import feature_plan, features
from layerbridge.model.bridge import Bridge
from layerbridge.model.features import FeatureStore
from layerbridge.model.lazy_states import LazyStates
from layerbridge.model.precision import PRECISIONS
from layerbridge.model.states import LiveStates
from tests import tiny

TEXTS = [f"the cat {'sat on the mat ' * (i % 4)}{i}" for i in range(23)]
FUSIONS = ["last_layer", "layer_mean", "global_softmax", "transformer_softmax", "attention_pool", "low_rank_softmax"]


def build(tiny_models, encoder="mt5", fusion="transformer_softmax", **options) -> Bridge:
    config = BridgeConfig.model_validate(
        {"encoder": {"name": tiny_models[encoder], **options}, "llm": tiny_models["llama"], "fusion": fusion}
    )
    return Bridge.build(config, seed=0)


def store_of(bridge, folder, precision="encoder") -> FeatureStore:
    fingerprint = bridge.bases["encoder"]["fingerprint"]
    return FeatureStore(folder, bridge.encoder, fingerprint=fingerprint, precision=precision)


def fill(store, bridge, texts=TEXTS, **options):
    plan = store.plan([bridge.processor.source_ids(texts, 512)], **options)
    store.fill(plan)
    return plan


def never(*_):
    raise AssertionError("the encoder was asked")


def layers_of(states) -> list[torch.Tensor]:
    """Each layer as a padded batch."""
    return [states.pad(states.layer(place)) for place in range(states.num_layers)]


def encoded(bridge, inputs) -> list[torch.Tensor]:
    """The encoder's own layers, zero at padding."""
    real_BS1 = inputs.source_mask.unsqueeze(-1)
    return [layer_BSE * real_BS1 for layer_BSE in bridge.encoder(inputs.source_ids, inputs.source_mask)]


@pytest.mark.parametrize("encoder", tiny.ENCODERS)
def test_stored_states_are_the_encoders_for_every_encoder(tiny_models, tmp_path, encoder):
    bridge = build(tiny_models, encoder)
    store = store_of(bridge, tmp_path)
    fill(store, bridge)
    inputs = bridge.processor(TEXTS[3:9])
    stored = store.states(inputs.source_ids, inputs.source_mask, never)
    assert stored.rows_N.tolist() == inputs.source_mask.flatten().nonzero().flatten().tolist()
    for layer_BSE, wanted_BSE in zip(layers_of(stored), encoded(bridge, inputs), strict=True):
        torch.testing.assert_close(layer_BSE, wanted_BSE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_gives_the_same_losses_and_gradients_without_an_encoder_pass(tiny_models, tmp_path, fusion):
    bridge = build(tiny_models, fusion=fusion)
    inputs = bridge.processor(TEXTS[:6], answers=["yes", "no"] * 3)

    def loss_and_gradients():
        bridge.zero_grad()
        loss = bridge.loss(inputs)
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in bridge.trained_parameters().items()}

    loss, gradients = loss_and_gradients()
    bridge.features = store_of(bridge, tmp_path)
    fill(bridge.features, bridge)
    passes = bridge.encoder.num_passes
    stored_loss, stored_gradients = loss_and_gradients()
    assert bridge.score(TEXTS[:3], ["yes", "no"]).shape == (3, 2)
    assert bridge.generate(TEXTS[:3], max_new_tokens=2)
    assert bridge.encoder.num_passes == passes
    torch.testing.assert_close(stored_loss, loss, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(stored_gradients[name], gradient, atol=1e-3, rtol=1e-3)


def test_of_a_batch_only_unknown_texts_go_through_the_encoder(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    fill(store, bridge)
    inputs = bridge.processor(
        ["a new and longer text than all of the others, which are short", TEXTS[0], "new", TEXTS[1]]
    )
    asked = []

    def encode(ids_bs, mask_bs):
        asked.append(tuple(ids_bs.shape))
        return LiveStates.of(bridge.encoder(ids_bs, mask_bs), mask_bs)

    found = store.states(inputs.source_ids, inputs.source_mask, encode)
    assert asked == [(2, inputs.source_ids.shape[1])]
    for layer_BSE, wanted_BSE in zip(layers_of(found), encoded(bridge, inputs), strict=True):
        torch.testing.assert_close(layer_BSE, wanted_BSE, atol=1e-5, rtol=1e-5)

    short = bridge.processor([TEXTS[3], "new", TEXTS[1]])
    mixed = store.states(short.source_ids, short.source_mask, encode)
    assert asked[1][1] < short.source_ids.shape[1]
    for layer_BSE, wanted_BSE in zip(layers_of(mixed), encoded(bridge, short), strict=True):
        torch.testing.assert_close(layer_BSE, wanted_BSE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("new", [[], ["quite new"], ["quite new", "newer than new"]])
@pytest.mark.parametrize("fusion", ["last_layer", "layer_mean", "global_softmax"])
def test_beside_a_store_the_encoder_still_holds_no_more_than_it_must(tiny_models, tmp_path, monkeypatch, fusion, new):
    """One layer, and sums with weights known beforehand, are read layer by layer; in training if that is asked for."""
    bridge = build(tiny_models, fusion=fusion)
    inputs = bridge.processor([*new, *TEXTS[: 2 - len(new)]], answers=["yes", "no"])
    wanted = bridge.loss(inputs).item()
    bridge.features = store_of(bridge, tmp_path)
    fill(bridge.features, bridge)
    held = []
    original = LazyStates.held.fget
    monkeypatch.setattr(LazyStates, "held", property(lambda self: held.append(1) or original(self)))
    bridge.recompute_states = True
    before = bridge.encoder.num_passes
    loss = bridge.loss(inputs)
    loss.backward()
    chunks = len(LazyStates(bridge.encoder, *read_live(bridge, new)).passes) if new else 0
    assert bridge.encoder.num_passes - before == chunks * (2 if fusion == "global_softmax" else 1)
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    bridge.recompute_states = False
    with torch.no_grad():
        bridge.loss(inputs)
    assert held == []


def read_live(bridge, texts):
    inputs = bridge.processor(texts)
    return inputs.source_ids, inputs.source_mask


def test_a_batch_of_unknown_texts_is_the_encoders_alone(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    fill(store, bridge)
    inputs = bridge.processor(["new", "another"])
    live = LiveStates.of(bridge.encoder(inputs.source_ids, inputs.source_mask), inputs.source_mask)
    assert store.states(inputs.source_ids, inputs.source_mask, lambda *_: live) is live


def test_states_are_the_same_to_the_bit_after_an_interruption(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(feature_plan, "BATCH_TOKENS", 64)
    bridge = build(tiny_models)
    straight = store_of(bridge, tmp_path / "straight")
    plan = fill(straight, bridge)
    assert len(plan.shards) > 2

    cut_off = store_of(bridge, tmp_path / "cut_off")
    cut_off.encode(plan.shards[1])
    passes = 0

    def stop(num_texts):
        nonlocal passes
        passes += 1
        if passes == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off.encode(plan.shards[0], on_batch=stop)
    assert len(cut_off.missing(plan)) == len(plan.shards) - 1
    fill(store_of(bridge, tmp_path / "cut_off"), bridge)
    for shard in plan.shards:
        name = f"{shard.name}.safetensors"
        first, second = load_file(straight.folder / name), load_file(cut_off.folder / name)
        assert all(torch.equal(first[key], second[key]) for key in ("states_NLE", "lengths_T", "digests_T"))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), max_size=40),
    max_bytes=st.none() | st.integers(0, 60_000),
    shard_bytes=st.integers(1, 20_000),
)
def test_a_plan_has_every_text_once_within_its_limit(planning_store, rows, max_bytes, shard_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_plan, "SHARD_BYTES", shard_bytes)
        plan = planning_store.plan([rows[:7], rows[7:], rows], max_bytes)
    kept = [ids for shard in plan.shards for ids in shard.rows]
    different = list(dict.fromkeys(map(tuple, rows)))
    assert kept == different[: len(kept)]
    assert len(kept) + plan.num_left_out == len(different)
    assert plan.num_bytes == sum(map(len, kept)) * planning_store.bytes_per_token
    if max_bytes is None:
        assert not plan.num_left_out
    else:
        assert plan.num_bytes <= max_bytes
        if plan.num_left_out:
            assert plan.num_bytes + len(different[len(kept)]) * planning_store.bytes_per_token > max_bytes
    for shard in plan.shards:
        size = sum(map(len, shard.rows)) * planning_store.bytes_per_token
        assert size <= shard_bytes or len(shard.rows) == 1


@pytest.fixture(scope="module")
def planning_store(tiny_models, tmp_path_factory):
    return store_of(build(tiny_models), tmp_path_factory.mktemp("features"))


def test_a_part_has_the_same_shards_in_every_plan(planning_store):
    first, second = [[1, 2], [3]], [[4, 5, 6]]
    together = planning_store.plan([first, second])
    alone = planning_store.plan([second])
    assert alone.shards == together.shards[1:]
    assert planning_store.plan([first, first]).num_texts == 2
    assert planning_store.plan([first, [*first, *second]]).shards == together.shards


def test_half_a_shard_of_a_killed_process_is_swept_away(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    (shard,) = store.plan([bridge.processor.source_ids(TEXTS, 512)]).shards
    store.folder.mkdir(parents=True)
    (store.folder / f".{shard.name}.safetensors.123.partial").write_bytes(b"half")
    store.encode(shard)
    assert [path.name for path in store.folder.iterdir()] == [f"{shard.name}.safetensors"]


def test_the_same_weights_in_another_config_are_another_encoder(tiny_models, tmp_path):
    bridge = build(tiny_models)
    folder = store_of(bridge, tmp_path).folder
    bridge.encoder.model.config.layer_norm_epsilon = 0.1
    assert store_of(bridge, tmp_path).folder != folder


def test_other_layers_and_other_precisions_are_kept_apart(tiny_models, tmp_path):
    folders = {
        store_of(build(tiny_models, **options), tmp_path).folder
        for options in ({}, {"layers": "last:2"}, {"dtype": "bfloat16"})
    }
    assert len(folders) == 3


def test_an_encoder_that_trains_is_refused(tiny_models, tmp_path):
    bridge = build(tiny_models, lora={"rank": 2})
    with pytest.raises(ConfigError, match="change with every step"):
        store_of(bridge, tmp_path)


def test_a_damaged_or_foreign_shard_is_named(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    plan = fill(store, bridge)
    path = store.folder / f"{plan.shards[0].name}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match="holds no features that can be read"):
        store_of(bridge, tmp_path).open(plan)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={**store.kind, "encoder": "another"})
    with pytest.raises(DataError, match="encoder is 'another'"):
        store_of(bridge, tmp_path).open(plan)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tiny_models, tmp_path, monkeypatch):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    plan = store.plan([bridge.processor.source_ids(TEXTS, 512)])

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    with pytest.raises(DataError, match=r"23 texts' features.*No space left"):
        store.encode(plan.shards[0])
    assert list(store.folder.iterdir()) == []


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 2**-8), ("int8", 0.02)])
def test_a_store_states_the_error_that_its_precision_has(tiny_models, tmp_path, precision, bound):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path, precision)
    fill(store, bridge)
    wanted, read = [], []
    for text in TEXTS:
        inputs = bridge.processor([text])
        wanted.append(torch.cat(encoded(bridge, inputs)).double())
        read.append(torch.cat(layers_of(store.states(inputs.source_ids, inputs.source_mask, never))).double())
    wanted_LNE, read_LNE = torch.cat(wanted, dim=1), torch.cat(read, dim=1)
    difference_LNE = read_LNE - wanted_LNE
    by_layer_L = difference_LNE.norm(dim=(1, 2)) / wanted_LNE.norm(dim=(1, 2))
    assert store.error.overall == pytest.approx(float(difference_LNE.norm() / wanted_LNE.norm()), rel=1e-3)
    assert store.error.worst_layer == pytest.approx(float(by_layer_L.max()), rel=1e-3)
    assert 0 < store.error.overall <= store.error.worst_layer < bound
    again = store_of(bridge, tmp_path, precision)
    again.open(again.plan([bridge.processor.source_ids(TEXTS, 512)]))
    assert again.error == store.error


def test_states_as_the_encoder_gave_them_state_no_error(tiny_models, tmp_path):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    fill(store, bridge)
    assert store.error == (0.0, 0.0)


@pytest.mark.parametrize(("precision", "value_bytes"), [("encoder", 4), ("bfloat16", 2), ("int8", 1)])
def test_a_plan_knows_the_size_of_its_files(tiny_models, tmp_path, precision, value_bytes):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path, precision)
    plan = fill(store, bridge)
    (path,) = store.folder.glob("*.safetensors")
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in ("lengths_T", "digests_T")}
    assert plan.num_bytes == sum(tensor.numel() * tensor.itemsize for tensor in kept.values())
    assert kept["states_NLE"].itemsize == value_bytes


def test_each_precision_has_a_folder_of_its_own_and_the_encoders_keeps_its_old_one(tiny_models, tmp_path):
    bridge = build(tiny_models)
    stores = {name: store_of(bridge, tmp_path, name) for name in PRECISIONS}
    assert len({store.folder for store in stores.values()}) == len(stores)
    assert "precision" not in stores["encoder"].kind
    assert stores["int8"].kind == {**stores["encoder"].kind, "precision": "int8"}


def test_all_precisions_keep_the_same_texts_together(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", 30_000)
    bridge = build(tiny_models)
    rows = bridge.processor.source_ids(TEXTS, 512)
    plans = [store_of(bridge, tmp_path, name).plan([rows]) for name in PRECISIONS]
    assert plans[0].shards == plans[1].shards == plans[2].shards
    assert plans[0].num_bytes == 2 * plans[1].num_bytes > 2 * plans[2].num_bytes


def test_an_unknown_precision_is_named_with_the_known_ones(tiny_models, tmp_path):
    with pytest.raises(ConfigError, match="int4.*bfloat16, encoder, int8"):
        store_of(build(tiny_models), tmp_path, "int4")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_states_that_are_no_numbers_are_not_rounded_but_refused(tiny_models, tmp_path, precision):
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path, precision)
    with torch.no_grad():
        bridge.encoder.model.get_input_embeddings().weight[5] = float("inf")
    with pytest.raises(DataError, match=f"not all finite numbers in torch.float32.*kept as {precision}.*encoder.dtype"):
        store.fill(store.plan([[[4, 5, 1]]]))


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_that_fill_the_same_plan_encode_each_shard_once(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", 10_000)
    bridge = build(tiny_models)
    rows = bridge.processor.source_ids(TEXTS, 512)
    written = []
    original = FeatureStore.encode

    def encode(self, shard, **options):
        written.append(shard.name)
        original(self, shard, **options)

    monkeypatch.setattr(FeatureStore, "encode", encode)
    plan = store_of(bridge, tmp_path).plan([rows])
    stores = [store_of(build(tiny_models), tmp_path) for _ in range(3)]
    threads = [threading.Thread(target=store.fill, args=(plan,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plan.shards) > 3
    assert sorted(written) == sorted(shard.name for shard in plan.shards)
    assert all(len(store) == plan.num_texts for store in stores)


def test_a_cache_folder_that_cannot_be_made_is_said(tiny_models, tmp_path):
    (tmp_path / "cache").write_text("a file")
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path / "cache")
    with pytest.raises(DataError, match="Could not keep 23 texts' features in .*cache: .*name another cache folder"):
        fill(store, bridge)


def test_a_cache_folder_that_cannot_be_written_is_said(tiny_models, tmp_path, monkeypatch):
    def denied(self, *_, **__):
        raise PermissionError(13, "Permission denied", "x.lock")

    bridge = build(tiny_models)
    whole = store_of(bridge, tmp_path)
    plan = fill(whole, bridge)
    monkeypatch.setattr(features.FileLock, "acquire", denied)
    store_of(bridge, tmp_path).fill(plan)  # all of it is there, and nothing is to be written
    with pytest.raises(DataError, match=r"Could not keep 1 texts' features in .*Permission denied.*another cache"):
        fill(store_of(bridge, tmp_path), bridge, ["new"])


def test_shards_that_another_process_deletes_meanwhile_are_encoded_again(tiny_models, tmp_path, monkeypatch):
    """Also between the moment a shard is seen and the moment it is opened."""
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", 10_000)
    bridge = build(tiny_models)
    plan = fill(store_of(bridge, tmp_path), bridge)
    assert len(plan.shards) > 3
    store = store_of(bridge, tmp_path)
    original, deleted = features.safe_open, []

    def gone(path, **options):
        if not deleted:
            deleted.append(path)
            path.unlink()
        return original(path, **options)

    monkeypatch.setattr(features, "safe_open", gone)
    texts = []
    store.fill(plan, on_texts=texts.append)
    assert sum(texts) == len(plan.shards[0].rows)
    assert len(store) == plan.num_texts
    for path in store.folder.glob("*.safetensors"):
        path.unlink()
    assert store.missing(plan) == [], "what is open needs no file"
    inputs = bridge.processor(TEXTS)
    assert store.states(inputs.source_ids, inputs.source_mask, never).layer(0).isfinite().all()


def test_what_is_encoded_is_open_at_once_so_that_two_who_delete_each_others_shards_come_to_an_end(
    tiny_models, tmp_path, monkeypatch
):
    monkeypatch.setattr(feature_plan, "SHARD_BYTES", 10_000)
    bridge = build(tiny_models)
    store = store_of(bridge, tmp_path)
    original = FeatureStore.encode

    def encode(self, shard, **options):
        for path in self.folder.glob("*.safetensors"):
            path.unlink()  # another process makes room
        original(self, shard, **options)

    monkeypatch.setattr(FeatureStore, "encode", encode)
    plan = fill(store, bridge)
    assert len(plan.shards) > 3
    assert len(store) == plan.num_texts
