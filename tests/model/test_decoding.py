"""Batches whose rows have their own options: each row's text is the one it has alone, and comes in pieces that stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from layerbridge.errors import ConfigError, DataError
from layerbridge.model.decoding import MOST_PROBABLE, Decoding, RowOptions, _most_probable, sample
from layerbridge.model.generation import cut_at_stop
from layerbridge.model.row_text import RowText
from tests import tiny
from tests.model.test_bridge import TEXTS, make

SAMPLED = {"temperature": 1.5, "top_p": 0.9}


def read(bridge, texts, options):
    return Decoding(bridge, bridge.processor(texts), options)


def run(decoding, *, drop=()):
    """Decode to the end; returns texts, reasons and steps. `drop` holds (step, row)."""
    texts, reasons, steps = [""] * len(decoding.options), [None] * len(decoding.options), 0
    while decoding.rows:
        decoding.drop({row for step, row in drop if step == steps})
        for one in decoding.step():
            texts[one.row] += one.text
            reasons[one.row] = one.finish
        steps += 1
    return texts, reasons, steps


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_rows_with_lengths_of_their_own_write_what_they_write_alone(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    lengths = [3, 12, 1, 20]
    texts, reasons, steps = run(read(bridge, TEXTS, [RowOptions(max_new_tokens=n) for n in lengths]))
    alone = [bridge.generate([text], max_new_tokens=n)[0] for text, n in zip(TEXTS, lengths, strict=True)]
    assert texts == alone
    assert len(set(texts)) > 1
    assert set(reasons) <= {"stop", "length"}
    assert steps <= 20


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_stop_strings_cut_their_own_row_as_generate_does(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    whole = bridge.generate(TEXTS, max_new_tokens=16)
    stops = [(text[len(text) // 2 :][:3],) if text.strip() else () for text in whole]
    stops[1] = ()
    options = [RowOptions(max_new_tokens=16, stop=stop) for stop in stops]
    texts, reasons, _ = run(read(bridge, TEXTS, options))
    assert texts == [cut_at_stop(text, stop) for text, stop in zip(whole, stops, strict=True)]
    assert "stop" in reasons


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_end_tokens_end_their_row_and_are_not_counted(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    first = Decoding(bridge, bridge.processor(TEXTS), [RowOptions()] * len(TEXTS))
    first.step()
    first.step()
    ends = [text.ids[1] for text in first._texts]
    bridge.llm.generation_config.eos_token_id = sorted({1, ends[0]})
    decoding = read(bridge, TEXTS, [RowOptions(max_new_tokens=8)] * len(TEXTS))
    counts = {}
    texts = [""] * len(TEXTS)
    while decoding.rows:
        for one in decoding.step():
            texts[one.row] += one.text
            counts[one.row] = (one.num_tokens, one.finish)
    assert counts[0][0] <= 1
    assert counts[0][1] == "stop"
    assert texts == bridge.generate(TEXTS, max_new_tokens=8)


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_a_seed_gives_the_same_text_whatever_shares_the_batch(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    wanted = RowOptions(max_new_tokens=12, seed=7, **SAMPLED)
    (alone,), _, _ = run(read(bridge, TEXTS[:1], [wanted]))
    others = [RowOptions(max_new_tokens=5), RowOptions(max_new_tokens=15, temperature=2.0), RowOptions()]
    before = torch.get_rng_state()
    texts, _, _ = run(read(bridge, TEXTS, [wanted, *others]))
    assert texts[0] == alone
    assert texts[1] == bridge.generate([TEXTS[1]], max_new_tokens=5)[0], "greedy rows beside sampled ones"
    assert torch.equal(torch.get_rng_state(), before), "torch's global state is left alone"
    another, _, _ = run(read(bridge, TEXTS[:1], [RowOptions(max_new_tokens=12, seed=8, **SAMPLED)]))
    assert another != [alone]


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_a_dropped_row_leaves_the_others_as_they_are(tiny_models, llm):
    bridge = make(tiny_models, llm=llm)
    options = [RowOptions(max_new_tokens=10)] * len(TEXTS)
    texts, reasons, _ = run(read(bridge, TEXTS, options), drop={(0, 3), (3, 1)})
    alone = bridge.generate(TEXTS, max_new_tokens=10)
    assert texts[0] == alone[0]
    assert texts[2] == alone[2]
    assert texts[3] == ""
    assert reasons[3] is None
    assert alone[1].startswith(texts[1])


def test_ended_and_dropped_rows_are_not_read_further(tiny_models):
    bridge = make(tiny_models)
    read(bridge, TEXTS, [RowOptions()] * 4)  # what is found out once about an LLM is found out here
    rows = []
    bridge.llm.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    bridge.llm.generation_config.eos_token_id = [tiny.VOCABULARY - 1]
    bridge.processor.llm_tokenizer.eos_token = "<unk>"
    options = [RowOptions(max_new_tokens=n) for n in (1, 2, 4, 9)]
    decoding = read(bridge, TEXTS, options)
    assert rows == [4], "the prefix is read once"
    run(decoding, drop={(5, 3)})
    assert rows == [4, 3, 2, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=2, max_size=12, unique=True),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.05, 1),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
)
def test_sampling_draws_from_what_transformers_warpers_leave(logits, temperature, top_p, top_k):
    scores = torch.tensor([logits]) / temperature
    if top_k is not None:
        scores = TopKLogitsWarper(min(top_k, len(logits)))(None, scores)
    ours = set()
    generator = torch.Generator().manual_seed(0)
    options = RowOptions(temperature=temperature, top_p=top_p, top_k=top_k)
    for _ in range(50):
        ours.add(sample(torch.tensor(logits), options, generator))
    # A sum on the limit may fall on either side by rounding, so the neighbours of the limit are let through.
    loose = TopPLogitsWarper(min(1.0, top_p + 1e-4))(None, scores) if top_p < 1 else scores
    assert ours <= set(torch.isfinite(loose[0]).nonzero().flatten().tolist())


def test_sampling_frequencies_are_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [sample(logits, RowOptions(temperature=2.0), generator) for _ in range(4000)]
    found = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    torch.testing.assert_close(found, (logits / 2).softmax(-1), atol=0.03, rtol=0)
    assert {sample(logits, RowOptions(temperature=1e-300), generator) for _ in range(20)} == {0}


@pytest.mark.parametrize("flat", [True, False])
def test_top_p_keeps_the_same_tokens_of_a_large_vocabulary_as_transformers_does(flat):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * (0.01 if flat else 4)
    kept = torch.isfinite(TopPLogitsWarper(0.9)(None, logits[None])[0])
    ours, _ = _most_probable(logits.double().softmax(-1), 0.9)
    assert abs(len(ours) - int(kept.sum())) <= 1  # a sum on the limit may fall on either side by rounding
    assert (len(ours) > MOST_PROBABLE) == flat


def test_a_row_that_is_not_numbers_ends_alone(tiny_models, monkeypatch):
    bridge = make(tiny_models)
    options = [RowOptions(max_new_tokens=8), RowOptions(max_new_tokens=8, temperature=1.0, seed=0)] * 2
    wanted, _, _ = run(read(bridge, TEXTS, options))
    real = Decoding._read

    def overflow(self):
        logits_RV = real(self)
        for index, row in enumerate(self._held):
            if row in (0, 1):
                logits_RV[index, 3] = float("nan")
        return logits_RV

    monkeypatch.setattr(Decoding, "_read", overflow)
    texts, reasons, _ = run(read(bridge, TEXTS, options))
    assert reasons[:2] == ["failed", "failed"]
    assert texts[2:] == wanted[2:]


def test_what_cannot_be_decoded_is_refused(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    with pytest.raises(DataError, match=r"Got 4 texts and 1 options"):
        read(bridge, TEXTS, [RowOptions()])
    with pytest.raises(DataError, match=r"have to read 2\d\d positions and takes 128"):
        read(bridge, TEXTS[:2], [RowOptions(), RowOptions(max_new_tokens=200)])
    with pytest.raises(ConfigError, match=r"top_p 0\.0"):
        read(bridge, TEXTS[:1], [RowOptions(top_p=0.0)])


# -------------------------------------------------------------------------------------------------------------------
# Text


def byte_fallback():
    """A tokenizer with byte fallback, as SentencePiece models have: a run of bytes decodes as a whole or not at all."""
    pieces = ["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁the", "▁cat", "s", ".", "▁n't"]
    core = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def word_pieces():
    """A tokenizer that tidies spaces before punctuation."""
    pieces = ["<unk>", "</s>", "the", "cat", "##s", ".", ",", "n't", "'", "s", "'s", "!", "do"]
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", clean_up_tokenization_spaces=True
    )


TOKENIZERS = {
    "byte level": lambda: tiny.tokenizer(ends_texts=False),
    "byte fallback": byte_fallback,
    "word pieces": word_pieces,
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make_one() for name, make_one in TOKENIZERS.items()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_whole_texts_decoding(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    sinhala = tokenizer("ශ්‍රී ලංකාව 👍🏽", add_special_tokens=False)["input_ids"] or [3]
    some = st.one_of(
        st.lists(st.integers(0, len(tokenizer) - 1), max_size=60), st.just(sinhala), st.just([len(tokenizer) - 1] * 70)
    )
    ids = [token for part in data.draw(st.lists(some, max_size=4)) for token in part]
    text = RowText(tokenizer)
    joined = "".join([*(text.push(token) for token in ids), text.close()])
    assert joined == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="abcශ්රී ", max_size=40), stops=st.lists(st.text("abcශ්", min_size=1, max_size=4), max_size=3)
)
def test_pieces_with_stop_strings_join_to_the_cut_text(tokenizers, text, stops):
    tokenizer = tokenizers["byte level"]
    row = RowText(tokenizer, stops)
    joined = ""
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        joined += row.push(token)
        if row.stopped:
            break
    assert joined + row.close() == cut_at_stop(tokenizer.decode(row.ids), stops), "as `generate`, which ends there too"
    assert row.stopped == any(stop in text for stop in stops)


def test_text_goes_out_as_soon_as_it_is_certain(tokenizers):
    tokenizer = tokenizers["byte level"]
    ids = tokenizer("the cat sat ලං the mat", add_special_tokens=False)["input_ids"]
    row = RowText(tokenizer)
    for count, token in enumerate(ids, start=1):
        row.push(token)
        assert row._sent == len(tokenizer.decode(ids[:count]).rstrip("�"))


def test_long_texts_are_decoded_a_window_at_a_time(tokenizers):
    tokenizer = tokenizers["byte level"]
    row = RowText(tokenizer)
    longest = 0
    for token in tokenizer("one two three positive " * 200, add_special_tokens=False)["input_ids"]:
        row.push(token)
        longest = max(longest, len(row.ids) - row._start)
    assert len(row.ids) > 500
    assert longest <= 128
