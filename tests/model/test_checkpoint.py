"""Checkpoints: exactly what trained, strict, on the right bases, and never half written."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerbridge.config import BridgeConfig, EncoderConfig, LLMConfig, LoraConfig
from layerbridge.errors import CheckpointError
from layerbridge.model.checkpoint import load_bridge, read_header, save_bridge
from layerbridge.model.fingerprint import tensors_fingerprint
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make

FUSIONS = [
    "last_layer",
    "layer_mean",
    "global_softmax",
    "global_softmax_published",
    "transformer_softmax",
    "attention_pool",
    "low_rank_softmax",
    {"name": "single_layer", "layer": 2},
]


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_save_and_load_give_identical_outputs(tiny_models, tmp_path, fusion):
    bridge = make(tiny_models, fusion=fusion)
    bridge.save_pretrained(tmp_path)
    again = load_bridge(tmp_path)
    assert torch.equal(again.score(TEXTS, ANSWERS), bridge.score(TEXTS, ANSWERS))
    assert again.generate(TEXTS, max_new_tokens=6) == bridge.generate(TEXTS, max_new_tokens=6)
    assert again.fingerprint() == bridge.fingerprint()


@pytest.mark.parametrize("llm", tiny.LLMS)
@pytest.mark.parametrize("encoder", tiny.ENCODERS)
def test_every_pair_saves_and_loads(tiny_models, tmp_path, encoder, llm):
    bridge = make(tiny_models, encoder, llm)
    save_bridge(bridge, tmp_path)
    assert torch.equal(load_bridge(tmp_path).score(TEXTS, ANSWERS), bridge.score(TEXTS, ANSWERS))


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("mt5", {}),
        ("xlmr", {"encoder_options": {"train_biases": True}}),
        ("mt5", {"llm_options": {"lora": LoraConfig(rank=2)}, "encoder_options": {"lora": LoraConfig(rank=2)}}),
    ],
)
def test_the_file_holds_exactly_what_trains(tiny_models, tmp_path, encoder, options):
    bridge = make(tiny_models, encoder, **options)
    with torch.no_grad():
        for parameter in bridge.trained_parameters().values():
            parameter.add_(0.01)
    save_bridge(bridge, tmp_path)
    saved = load_file(tmp_path / "bridge.safetensors")
    assert set(saved) == {name for name, p in bridge.named_parameters() if p.requires_grad}
    assert torch.equal(load_bridge(tmp_path).score(TEXTS, ANSWERS), bridge.score(TEXTS, ANSWERS))


def test_loading_does_not_depend_on_the_readable_copy(tiny_models, tmp_path):
    bridge = make(tiny_models)
    save_bridge(bridge, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    load_bridge(tmp_path)


def test_model_card_names_bases_fusion_and_origin(tiny_models, tmp_path):
    bridge = make(tiny_models)
    bridge.trained_on = {
        "task": "sib200", "task_version": 1, "encoder_prompt": "Sentence: {text}", "answers": ["Sports"],
        "languages": ["en"], "seed": 0,
    }  # fmt: skip
    save_bridge(bridge, tmp_path, results={"si": 50.0})
    card = (tmp_path / "README.md").read_text()
    for wanted in ("library_name: layerbridge", "transformer_softmax", "| si | 50.0 |", "languages seen", "sib200"):
        assert wanted in card
    assert load_bridge(tmp_path).trained_on == bridge.trained_on
    assert "pooling" not in card, "of what is as in the paper there is no row"


@pytest.mark.parametrize(
    ("pooling", "row"),
    [
        ("mean", "| pooling | mean |"),
        ({"name": "every", "size": 3}, "| pooling | every, 3 source tokens a soft token |"),
    ],
)
def test_the_model_card_names_the_pooling_where_there_is_one(tiny_models, tmp_path, pooling, row):
    save_bridge(make(tiny_models, pooling=pooling), tmp_path)
    assert row in (tmp_path / "README.md").read_text().splitlines()


def test_a_bridge_on_another_base_is_refused_with_both_fingerprints(tiny_models, tmp_path):
    bridge = make(tiny_models)
    save_bridge(bridge, tmp_path / "bridge")
    other = tiny.save_llm("llama", tmp_path / "other", seed=99)
    with pytest.raises(CheckpointError) as error:
        load_bridge(tmp_path / "bridge", llm=other)
    assert bridge.bases["llm"]["fingerprint"] in str(error.value)
    assert "trained on another llm: its weights" in str(error.value)
    other_print = make(tiny_models | {"llama": other}).bases["llm"]["fingerprint"]
    assert other_print in str(error.value)


def test_another_tokenizer_is_refused(tiny_models, tmp_path):
    save_bridge(make(tiny_models), tmp_path / "bridge")
    other = tiny.save_llm("llama", tmp_path / "other", seed=1)
    tiny.tokenizer(ends_texts=True).save_pretrained(other)
    with pytest.raises(CheckpointError, match="another llm: its tokenizer had fingerprint"):
        load_bridge(tmp_path / "bridge", llm=other)


def test_moved_bases_load_from_their_new_place(tiny_models, tmp_path):
    bridge = make(tiny_models)
    save_bridge(bridge, tmp_path / "bridge")
    moved = tiny.save_llm("llama", tmp_path / "moved", seed=1)
    again = load_bridge(tmp_path / "bridge", llm=moved)
    assert again.fingerprint() == bridge.fingerprint()


def test_the_same_base_in_another_dtype_has_the_same_fingerprint(tiny_models):
    low = make(tiny_models, llm_options={"dtype": "bfloat16"})
    assert low.bases == make(tiny_models).bases


def test_truncated_safetensors_are_refused(tiny_models, tmp_path):
    save_bridge(make(tiny_models), tmp_path)
    path = tmp_path / "bridge.safetensors"
    data = path.read_bytes()
    for size in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=rf"\({size} bytes\) is cut off or not a safetensors file"):
            load_bridge(tmp_path)


def test_foreign_safetensors_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "bridge.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="format 'pt', not a layerbridge checkpoint"):
        load_bridge(tmp_path)


def test_another_format_version_is_refused(tiny_models, tmp_path):
    bridge = make(tiny_models)
    save_bridge(bridge, tmp_path)
    header = read_header(tmp_path) | {"format_version": 99}
    save_file(
        bridge.trained_state(),
        tmp_path / "bridge.safetensors",
        metadata={"format": "layerbridge", "layerbridge": json.dumps(header)},
    )
    with pytest.raises(CheckpointError, match="checkpoint format 99; .* reads format 1"):
        load_bridge(tmp_path)


def rewrite(folder, change, *, honest=True):
    """Save the checkpoint's tensors again after `change` altered them."""
    path = folder / "bridge.safetensors"
    tensors, header = load_file(path), read_header(folder)
    change(tensors)
    if honest:
        header["tensors_sha256"] = tensors_fingerprint(tensors)
    save_file(tensors, path, metadata={"format": "layerbridge", "layerbridge": json.dumps(header)})


def test_bridges_that_differ_in_the_fusion_alone_have_other_fingerprints(tiny_models):
    """Fusions without parameters hold the same tensors; so do defaults of different kinds."""
    prints = [make(tiny_models, fusion=fusion).fingerprint() for fusion in FUSIONS]
    assert len(set(prints)) == len(FUSIONS)


def test_missing_extra_and_misshapen_tensors_are_named(tiny_models, tmp_path):
    save_bridge(make(tiny_models), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update(stray=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"Missing: none\. Unexpected: stray"):
        load_bridge(tmp_path)
    rewrite(tmp_path, lambda tensors: (tensors.pop("stray"), tensors.pop("boundary")))
    with pytest.raises(CheckpointError, match=r"Missing: boundary\. Unexpected: none"):
        load_bridge(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update(boundary=torch.zeros(5)))
    with pytest.raises(CheckpointError, match=r"boundary has shape \(5,\), wanted \(32,\)"):
        load_bridge(tmp_path)


def test_changed_values_and_damaged_headers_are_noticed(tiny_models, tmp_path):
    save_bridge(make(tiny_models), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors["boundary"].add_(1e-3), honest=False)
    with pytest.raises(CheckpointError, match=r"holds other values than were saved \(sha256"):
        load_bridge(tmp_path)
    for header, message in (("{", "header that is not JSON"), ("{}", "header without bases, config")):
        metadata = {"format": "layerbridge", "layerbridge": header}
        save_file({"boundary": torch.zeros(1)}, tmp_path / "bridge.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match=message):
            load_bridge(tmp_path)


def test_a_mistyped_run_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for path in ("runs/x", "mine/x", "./x/y"):
        with pytest.raises(CheckpointError, match="No checkpoint at"):
            load_bridge(path)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"wanted bridge\.safetensors there or in its folder"):
        load_bridge(tmp_path)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def build_and_save(tiny_models, folder, before_second_save, env=None):
    """In a process of its own: save a bridge, change it, run `before_second_save`, save again."""
    script = textwrap.dedent(
        f"""
        import os, resource, signal, sys
        import torch
        from layerbridge.config import BridgeConfig, EncoderConfig, LLMConfig
        from layerbridge.errors import CheckpointError
        from layerbridge.model.bridge import Bridge
        from layerbridge.model import checkpoint
        config = BridgeConfig(encoder=EncoderConfig(name={tiny_models["mt5"]!r}),
                              llm=LLMConfig(name={tiny_models["llama"]!r}))
        bridge = Bridge.build(config, seed=0)
        checkpoint.save_bridge(bridge, {str(folder)!r})
        with torch.no_grad():
            bridge.boundary.fill_(7.0)
        """
    ) + textwrap.dedent(before_second_save)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=300)


def test_a_kill_in_the_middle_of_a_save_keeps_the_previous_checkpoint(tiny_models, tmp_path):
    done = build_and_save(
        tiny_models,
        tmp_path / "bridge",
        f"""
        original = checkpoint.save_file
        def killed(tensors, path, metadata):
            original(tensors, path, metadata=metadata)
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save_file = killed
        checkpoint.save_bridge(bridge, {str(tmp_path / "bridge")!r})
        """,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not load_bridge(tmp_path / "bridge").boundary.any()


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_so(tiny_models, tmp_path):
    """A file size limit stands in for the disk: the kernel refuses the write in its middle."""
    done = build_and_save(
        tiny_models,
        tmp_path / "bridge",
        f"""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoint.save_bridge(bridge, {str(tmp_path / "bridge")!r})
        except CheckpointError as error:
            print(error)
            sys.exit(5)
        """,
    )
    assert done.returncode == 5, done.stderr
    assert "A checkpoint that was there before is untouched" in done.stdout
    assert not load_bridge(tmp_path / "bridge").boundary.any()
    assert sorted(os.listdir(tmp_path / "bridge")) == ["README.md", "bridge.safetensors", "config.json"]


def test_pushing_uploads_the_checkpoint_and_its_card(tiny_models, monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            seen.update(repo=repo_id, private=private)
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
            seen["files"] = sorted(os.listdir(folder_path))
            load_bridge(folder_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert make(tiny_models).push_to_hub("someone/bridge", token="t") == "https://hub/someone/bridge"
    assert seen == {
        "token": "t",
        "repo": "someone/bridge",
        "private": True,
        "files": ["README.md", "bridge.safetensors", "config.json"],
    }


def test_a_hub_name_loads_from_a_snapshot(tiny_models, tmp_path, monkeypatch):
    import huggingface_hub

    save_bridge(make(tiny_models), tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tmp_path / "snapshot"))
    monkeypatch.chdir(tmp_path)
    load_bridge("someone/bridge")


def test_a_checkpoint_cannot_ask_for_remote_code(tiny_models, tmp_path):
    config = BridgeConfig(
        encoder=EncoderConfig(name=tiny_models["mt5"], trust_remote_code=True), llm=LLMConfig(name=tiny_models["llama"])
    )
    from layerbridge.model.bridge import Bridge

    save_bridge(Bridge.build(config), tmp_path)
    assert read_header(tmp_path)["config"]["encoder"]["trust_remote_code"] is True
    assert load_bridge(tmp_path).config.encoder.trust_remote_code is False
