"""Packed rows against padded batches and against rows alone, on every tiny LLM."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from layerbridge.config import PromptConfig
from layerbridge.errors import DataError
from layerbridge.model import packing
from layerbridge.model.last_layer import trims
from layerbridge.model.packing import Layout, attend, pack_rows, packed_logits, packs
from layerbridge.model.splice import IGNORED
from tests import tiny
from tests.model.test_bridge import TEXTS, make

PACKABLE = {"llama": True, "qwen3": True, "gemma2": False, "gemma3": True, "gpt2": True}
"""Gemma 2 caps its attention scores, which torch's attention does not."""


@pytest.mark.parametrize("kind", tiny.LLMS)
def test_llms_that_attend_through_sdpa_are_packed_and_others_padded(tiny_models, kind):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models[kind]).eval()
    before = llm.config._attn_implementation
    assert packs(llm) is PACKABLE[kind]
    assert llm.config._attn_implementation == before


def test_a_row_without_an_answer_changes_nothing_for_the_others(tiny_models):
    bridge = make(tiny_models)
    whole = bridge.processor(TEXTS, answers=["positive", "no", "one", "two"])
    some = whole.labels.clone()
    some[1:3] = IGNORED
    packed, _ = bridge._packed_logits(whole, some)
    padded, _ = bridge._padded_logits(whole, some)
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)
    with pytest.raises(DataError, match="No row of this batch has an answer"):
        bridge.loss(dataclasses.replace(whole, labels=torch.full_like(some, IGNORED)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packing_and_trimming_are_found_out_in_every_dtype_and_attention(tiny_models, dtype):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models["llama"], dtype=dtype).eval()
    with torch.inference_mode():  # evaluated first, trained later
        assert packs(llm)
        assert trims(llm)
    llm.set_attn_implementation("eager")
    assert not packs(llm)


def test_a_window_that_only_the_mask_knows_is_not_packed(tiny_models, monkeypatch):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models["gemma3"]).eval()
    for layer in llm.model.layers:
        layer.self_attn.sliding_window = None  # its masks still have one
    assert not packs(llm)


@pytest.mark.parametrize("prompt", ["", "two three"])
@pytest.mark.parametrize("kind", [kind for kind, packable in PACKABLE.items() if packable])
def test_packed_and_padded_batches_have_the_same_loss_and_gradients(tiny_models, kind, prompt):
    bridge = make(tiny_models, llm=kind, prompt=PromptConfig(text=prompt))
    inputs = bridge.processor(TEXTS, answers=["positive", "negative one", "no", "one"])
    found = {}
    for form in ("_packed_logits", "_padded_logits"):
        bridge.zero_grad(set_to_none=True)
        logits_AV, targets_A = getattr(bridge, form)(inputs, inputs.labels)
        torch.nn.functional.cross_entropy(logits_AV, targets_A).backward()
        found[form] = (logits_AV.detach(), targets_A, {n: p.grad for n, p in bridge.trained_parameters().items()})
    packed, padded = found.values()
    assert torch.equal(packed[1], padded[1])
    torch.testing.assert_close(packed[0], padded[0], atol=1e-4, rtol=1e-4)
    for name, gradient in padded[2].items():
        torch.testing.assert_close(packed[2][name], gradient, atol=2e-5, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_the_llm_reads_no_padding_and_no_end_token(tiny_models):
    bridge = make(tiny_models)
    inputs = bridge.processor(TEXTS, answers=["positive", "negative one", "no", "one"])
    assert packs(bridge.llm)
    read = []
    hook = bridge.llm.model.layers[0].register_forward_pre_hook(lambda layer, args: read.append(args[0].shape[:2]))
    bridge.loss(inputs)
    hook.remove()
    answers = (inputs.labels != IGNORED).sum() - len(TEXTS)
    assert read == [(1, int(inputs.source_mask.sum() + answers) + 2 * len(TEXTS))]  # bos and boundary of each row


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_rows_longer_than_a_sliding_window_equal_rows_alone(tiny_models, kind):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models[kind]).eval()  # gemma3's window has 8 positions
    lengths = [25, 3, 12]
    ids_T = torch.randint(0, tiny.VOCABULARY, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds_TD = llm.get_input_embeddings()(ids_T)
        packed = packed_logits(llm, embeds_TD, Layout.of(torch.tensor(lengths)), torch.arange(sum(lengths)))
        alone = [llm(inputs_embeds=part[None]).logits[0] for part in embeds_TD.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_an_llm_of_another_attention_trains_on_padded_batches(tiny_models):
    bridge = make(tiny_models, llm="gemma2")
    inputs = bridge.processor(TEXTS, answers=["positive"] * 4)
    logits_AV, targets_A = bridge._padded_logits(inputs, inputs.labels)
    torch.testing.assert_close(bridge.loss(inputs), torch.nn.functional.cross_entropy(logits_AV, targets_A))


def test_attention_with_a_cap_or_without_a_layout_is_refused():
    states = torch.randn(1, 2, 5, 4)
    layout = Layout.of(torch.tensor([3, 2]))
    with pytest.raises(NotImplementedError, match="softcap"):
        attend(torch.nn.Module(), states, states, states, None, layout=layout, softcap=30.0)
    with pytest.raises(NotImplementedError, match="a_thing_to_come"):
        attend(torch.nn.Module(), states, states, states, None, layout=layout, a_thing_to_come=1)
    with pytest.raises(NotImplementedError, match="no layout"):
        attend(torch.nn.Module(), states, states, states, None)


def test_an_llm_is_left_as_it_was_when_packing_fails(tiny_models, monkeypatch):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    assert not packs(llm)
    assert llm.config._attn_implementation == "sdpa"


def test_out_of_memory_while_finding_out_is_not_taken_for_an_answer(tiny_models, monkeypatch):
    llm = AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(packing, "packed_logits", fail)
        with pytest.raises(RuntimeError, match="memory"):
            packs(llm)
    monkeypatch.undo()
    assert packs(llm)


masks = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=5)
"""Source, prompt and answer tokens of each row; answers may be missing."""


@settings(max_examples=60, deadline=None)
@given(lengths=masks, bos_id=st.sampled_from([None, 2]))
def test_packed_rows_are_the_rows_one_after_another(lengths, bos_id):
    def batch(column, value):
        """Rows of different ids, filled up with `value`."""
        longest = max(1, *(row[column] for row in lengths))
        ids = torch.full((len(lengths), longest), value)
        for row, sizes in enumerate(lengths):
            ids[row, : sizes[column]] = 100 * (row + 1) + 10 * column + torch.arange(sizes[column])
        return ids

    source, prompt, labels = batch(0, 0), batch(1, 0), batch(2, IGNORED)
    rows = pack_rows(source > 0, prompt, prompt > 0, labels, bos_id=bos_id)
    soft, boundary = -1, -2
    wanted = []
    for row, (_, num_prompt, num_answer) in enumerate(lengths):
        bos = [] if bos_id is None else [bos_id]
        read = [*bos, *([soft] * lengths[row][0]), boundary, *prompt[row, :num_prompt].tolist()]
        wanted.append([*read, *labels[row, : max(0, num_answer - 1)].tolist()])
    flat = [value for row in wanted for value in row]

    found = rows.ids_T.clone()
    real = source > 0
    found[rows.soft_BS[real]] = soft
    found[rows.boundaries_B] = boundary
    assert found.tolist() == flat
    assert rows.layout.positions_T.tolist() == [place for row in wanted for place in range(len(row))]
    answers = [token for row, sizes in enumerate(lengths) for token in labels[row, : sizes[2]].tolist()]
    assert rows.answers_A.tolist() == answers
    starts = [sum(map(len, wanted[:row])) for row in range(len(wanted))]
    before = [
        starts[row] + len(wanted[row]) - sizes[2] + step
        for row, sizes in enumerate(lengths)
        for step in range(sizes[2])
    ]
    assert rows.before_answers_A.tolist() == before


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_layout_leads_from_packed_to_padded_and_back(lengths):
    layout = Layout.of(torch.tensor(lengths))
    packed = torch.arange(1.0, sum(lengths) + 1)
    padded_BS = packed[layout.packed_BS]
    assert torch.equal(padded_BS.flatten()[layout.padded_T], packed)
    assert [row[:length].tolist() for row, length in zip(padded_BS, lengths, strict=True)] == [
        part.tolist() for part in packed.split(lengths)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 3])
def test_packed_attention_has_the_gradients_of_rows_alone(window, dtype):
    torch.manual_seed(0)
    lengths, layout = [6, 2, 4], Layout.of(torch.tensor([6, 2, 4]))
    query, key, value = (torch.randn(1, heads, 12, 4, dtype=dtype) for heads in (4, 2, 2))
    for tensor in (query, key, value):
        tensor.requires_grad_(True)
    upstream = torch.randn(1, 12, 4, 4, dtype=dtype)
    module = torch.nn.Module()
    attend(module, query, key, value, None, layout=layout, sliding_window=window)[0].backward(upstream)
    found = [tensor.grad.double() for tensor in (query, key, value)]
    query, key, value = (tensor.detach().double().requires_grad_(True) for tensor in (query, key, value))
    parts = []
    for q, k, v in zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True):
        k, v = (states.repeat_interleave(2, dim=1) for states in (k, v))
        age = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        hidden = (age < 0) if window is None else (age < 0) | (age >= window)
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(hidden, float("-inf"))
        parts.append((scores.softmax(-1) @ v).transpose(1, 2))
    torch.cat(parts, dim=1).backward(upstream.double())
    tolerance = 1e-7 if dtype == torch.float64 else 0.05
    for gradient, tensor in zip(found, (query, key, value), strict=True):
        torch.testing.assert_close(gradient, tensor.grad, atol=tolerance, rtol=tolerance)
