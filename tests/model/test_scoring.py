"""One pass for scores and greedy text: the same answers as `score` and `generate` apart, on every pair."""

import itertools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from layerbridge.config import PromptConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.model import answer_passes, chunks, found_out, scoring
from layerbridge.model import trie as trie_module
from layerbridge.model.generation import _generate, generation_options
from layerbridge.model.splice import splice
from layerbridge.model.trie import add_up, build_trie, sight
from tests import tiny
from tests.model.test_bridge import ANSWERS, TEXTS, make

PAIRS = list(itertools.product((*tiny.ENCODERS, *tiny.OTHER_ENCODERS), tiny.LLMS))


class Pass(NamedTuple):
    rows: int
    positions: int
    cached: bool


@pytest.fixture
def counted(monkeypatch):
    """Count a bridge's passes of the encoder and of its LLM."""

    def count(bridge):
        passes = {"encoder": [], "llm": []}

        def note(model, kind):
            def noting(module, args, kwargs):
                given = kwargs.get("inputs_embeds", args[0] if args else None)
                passes[kind].append(Pass(*given.shape[:2], bool(kwargs.get("use_cache"))))

            model.register_forward_pre_hook(noting, with_kwargs=True)

        note(bridge.encoder, "encoder")
        note(bridge.llm, "llm")
        return passes

    return count


def known_to_take_tries(bridge):
    """Return what was found out about a bridge's LLM."""
    return next(found for (what, *_), found in found_out._FOUND[bridge.llm].items() if what == "tries")


@pytest.fixture
def together(monkeypatch):
    """Let all rows of a batch be read in one pass."""
    monkeypatch.setitem(chunks.PASS_COSTS, "cpu", 10**6)


def greedy_ids(bridge, max_new_tokens):
    """The tokens that `generate` decodes."""
    return _generate(bridge, TEXTS, None, 512, generation_options(bridge, max_new_tokens))


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_one_pass_answers_as_score_and_generate_do_apart(tiny_models, encoder, llm):
    bridge = make(tiny_models, encoder, llm, prompt=PromptConfig(text="two three"))
    scores, texts = bridge.score(TEXTS, ANSWERS), bridge.generate(TEXTS, max_new_tokens=12)
    together, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=12)
    torch.testing.assert_close(together, scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.argmax(1), scores.argmax(1))
    assert written == texts
    assert together.dtype == torch.float32


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_rows_that_end_early_leave_the_others_as_they_are(tiny_models, llm):
    """End tokens are chosen so that rows end at different steps, and one of them is no special token."""
    bridge = make(tiny_models, llm=llm)
    ids_BA = greedy_ids(bridge, 10)
    bridge.llm.generation_config.eos_token_id = sorted({int(ids_BA[0, 2]), int(ids_BA[1, 4])})
    texts = bridge.generate(TEXTS, max_new_tokens=10)
    scores, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=10)
    assert written == texts
    torch.testing.assert_close(scores, bridge.score(TEXTS, ANSWERS), atol=1e-4, rtol=1e-4)


TAKES_TRIES = [llm for llm in tiny.LLMS if not llm.startswith("gemma")]  # their window here is shorter than the texts
MANY = ["yes", "yes no", "yes no no", "no", "no yes", "maybe not", "maybe", "yes no no yes"]


@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_answers_side_by_side_score_as_each_after_its_own_prefix(tiny_models, monkeypatch, llm):
    bridge = make(tiny_models, llm=llm, prompt=PromptConfig(text="two three"))
    together = bridge.score(TEXTS, MANY)
    assert known_to_take_tries(bridge)
    monkeypatch.setattr(answer_passes, "takes_tries", lambda *_: False)
    torch.testing.assert_close(together, bridge.score(TEXTS, MANY), atol=1e-4, rtol=1e-4)
    for column, answer in enumerate(MANY):
        torch.testing.assert_close(together[:, [column]], bridge.score(TEXTS, [answer]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["read_trie", "read_trie_after"])
@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_an_llm_that_takes_no_trie_is_found_out_and_reads_copies(tiny_models, monkeypatch, llm, form):
    bridge = make(tiny_models, llm=llm)
    wanted, texts = bridge.answer(TEXTS, MANY, max_new_tokens=6)
    read = getattr(answer_passes, form)

    def wrong(*args, **kwargs):
        found = read(*args, **kwargs)
        return found._replace(logits_BKV=found.logits_BKV.flip(1))

    for broken in (wrong, lambda *_, **__: (_ for _ in ()).throw(ValueError("a 4D mask"))):
        found_out._FOUND.pop(bridge.llm, None)
        monkeypatch.setattr(answer_passes, form, broken)
        torch.testing.assert_close(bridge.score(TEXTS, MANY), wanted, atol=1e-4, rtol=1e-4)
        found, written = bridge.answer(TEXTS, MANY, max_new_tokens=6)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert written == texts
        assert not known_to_take_tries(bridge)


def test_beyond_a_sliding_window_answers_read_copies(tiny_models, monkeypatch):
    bridge = make(tiny_models, llm="gemma3")
    wanted = bridge.score(TEXTS, MANY)
    monkeypatch.setattr(bridge.llm.config.get_text_config(), "sliding_window", 3)
    monkeypatch.setattr(answer_passes, "read_trie", None)
    assert bridge.score(TEXTS, MANY).shape == wanted.shape


token_rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8)


@given(token_rows)
def test_a_trie_has_each_beginning_once_and_every_answers_path(answers):
    rows = [[*answer, 9] for answer in answers]
    trie = build_trie(rows)
    paths = [()]
    for node, parent in enumerate(trie.parents, start=1):
        assert parent < node
        assert trie.children[parent, trie.tokens[node - 1]] == node
        paths.append((*paths[parent], trie.tokens[node - 1]))
    assert sorted(paths) == sorted({tuple(row[:end]) for row in rows for end in range(len(row))})
    assert [len(path) for path in paths[1:]] == trie.depths
    assert len(trie.children) == len(trie.tokens)
    for number, row in enumerate(rows):
        steps = [(paths[node], token) for answer, node, token in trie.steps if answer == number]
        assert steps == [(tuple(row[:end]), row[end]) for end in range(len(row))]


@given(token_rows, st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3))
def test_a_node_sees_the_prefix_and_its_own_beginning_alone(answers, masks):
    trie = build_trie([[*answer, 9] for answer in answers])
    mask = torch.tensor(masks)
    mask[:, -1] = True
    whole = sight(trie, mask, dtype=torch.float32, behind_cache=False)[:, 0] == 0
    assert torch.equal(whole[:, 4:], sight(trie, mask, dtype=torch.float32, behind_cache=True)[:, 0] == 0)
    for row, real in enumerate(mask.tolist()):
        for place in range(4):
            seen = {place} | {other for other in range(place) if real[other]}
            assert set(whole[row, place].nonzero().flatten().tolist()) == seen
        for node in range(1, len(trie.tokens) + 1):
            seen = {place for place in range(4) if real[place]}
            above = node
            while above:
                seen.add(3 + above)
                above = trie.parents[above - 1]
            assert set(whole[row, 3 + node].nonzero().flatten().tolist()) == seen


@given(token_rows, st.integers(1, 200))
def test_answers_add_up_their_tokens_log_probabilities_whatever_is_done_at_once(answers, at_once):
    trie = build_trie([[*answer, 4] for answer in answers])
    logits = torch.randn(3, len(trie.tokens) + 1, 5, generator=torch.Generator().manual_seed(len(trie.steps)))
    log_probs = logits.double().log_softmax(-1)
    wanted = torch.zeros(3, len(answers), dtype=torch.float64)
    for answer, node, token in trie.steps:
        wanted[:, answer] += log_probs[:, node, token]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trie_module, "LOGITS_AT_ONCE", at_once)
        torch.testing.assert_close(add_up(trie, logits).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_many_answers_in_several_passes_after_one_prefix(tiny_models, monkeypatch, llm):
    bridge = make(tiny_models, llm=llm)
    scores, texts = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    monkeypatch.setattr(scoring, "MAX_SCORED_LOGITS", 1)
    again, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    torch.testing.assert_close(again, scores, atol=1e-4, rtol=1e-4)
    assert written == texts


@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_scoring_is_one_pass_without_a_cache(tiny_models, counted, llm):
    bridge = make(tiny_models, llm=llm)
    bridge.score(TEXTS, ANSWERS)  # finds out whether the LLM takes tries
    passes = counted(bridge)
    bridge.score(TEXTS, ANSWERS)
    assert sum(part.rows for part in passes["encoder"]) == len(TEXTS)
    assert sum(one.rows for one in passes["llm"]) == len(TEXTS)  # in passes of texts of like length
    assert not any(one.cached for one in passes["llm"])


def test_answers_are_tokenised_once_however_many_batches_ask(tiny_models, monkeypatch):
    bridge = make(tiny_models)
    asked = []
    tokenise = bridge.processor.answer_ids
    monkeypatch.setattr(bridge.processor, "answer_ids", lambda answers: asked.append(answers) or tokenise(answers))
    for _ in range(3):
        bridge.score(TEXTS, ANSWERS)
    assert len(asked) == 1
    for number in range(2 * scoring.ANSWER_SETS):
        bridge.score(TEXTS[:1], [f"no {number}"])
    assert len(scoring._ANSWER_SETS[bridge.processor]) == scoring.ANSWER_SETS


def ask_tokens(bridge, rows, **options):
    """`answer` with answers given as rows of tokens."""
    bridge.processor.answer_ids = lambda answers: rows
    try:
        return bridge.answer(TEXTS, [str(rows), *map(str, range(len(rows) - 1))], **options)
    finally:
        del bridge.processor.answer_ids


@pytest.mark.parametrize("llm", TAKES_TRIES)
def test_greedy_texts_that_are_answers_take_one_pass(tiny_models, counted, llm):
    """The answers are made of what the LLM writes: each row's tokens up to the first that is made an end token."""
    bridge = make(tiny_models, llm=llm)
    ids_BA = greedy_ids(bridge, 8).tolist()
    ends = {row[min(4, 1 + number)] for number, row in enumerate(ids_BA)}
    bridge.llm.generation_config.eos_token_id = sorted(ends)
    firsts = [next(place for place, token in enumerate(row) if token in ends) for row in ids_BA]
    rows = [[*(row[:first] or [5]), 1] for row, first in zip(ids_BA, firsts, strict=True)]
    texts = bridge.generate(TEXTS, max_new_tokens=8)
    bridge.score(TEXTS, ANSWERS)
    passes = counted(bridge)
    _, written = ask_tokens(bridge, rows, max_new_tokens=8)
    assert written == texts
    assert sum(one.rows for one in passes["llm"]) == len(TEXTS)
    assert sum(part.rows for part in passes["encoder"]) == len(TEXTS)


@pytest.fixture(scope="module")
def writers(tiny_models):
    """Bridges with what their LLMs write, by LLM; made once, for a property test that cannot make them itself."""
    made = {llm: make(tiny_models, llm=llm) for llm in tiny.LLMS}
    return {llm: (bridge, greedy_ids(bridge, 10).tolist()) for llm, bridge in made.items()}


@pytest.mark.parametrize("llm", tiny.LLMS)
@settings(max_examples=25, deadline=None)
@given(
    inside=st.lists(st.integers(0, 6), min_size=len(TEXTS), max_size=len(TEXTS)),
    ending=st.sets(st.tuples(st.integers(0, len(TEXTS) - 1), st.integers(0, 9)), max_size=3),
    max_new_tokens=st.integers(1, 10),
)
def test_wherever_greedy_texts_leave_the_trie_they_are_those_of_generate(writers, llm, inside, ending, max_new_tokens):
    """`inside` says how many tokens of each row's text are an answer; `ending`, whose tokens are made end tokens."""
    bridge, ids_BA = writers[llm]
    rows = [[*(row[:depth] or [5]), 1] for row, depth in zip(ids_BA, inside, strict=True)]
    bridge.llm.generation_config.eos_token_id = sorted({1, *(ids_BA[row][place] for row, place in ending)})
    texts = bridge.generate(TEXTS, max_new_tokens=max_new_tokens)
    _, written = ask_tokens(bridge, rows, max_new_tokens=max_new_tokens)
    assert written == texts


@pytest.mark.parametrize("llm", ["gemma2", "gemma3"])
@pytest.mark.parametrize("window", [44, 60, 200])
def test_texts_that_grow_beyond_a_sliding_window_are_those_of_generate(tiny_models, monkeypatch, llm, window):
    """The trie lies inside the window; what is written after it does not, or only just."""
    bridge = make(tiny_models, llm=llm)
    monkeypatch.setattr(bridge.llm.config.get_text_config(), "sliding_window", window)
    ids_BA = greedy_ids(bridge, 40).tolist()
    rows = [[*row[: 1 + 2 * number], 1] for number, row in enumerate(ids_BA[:2])]
    texts = bridge.generate(TEXTS, max_new_tokens=40)
    _, written = ask_tokens(bridge, rows, max_new_tokens=40)
    assert known_to_take_tries(bridge)
    assert written == texts


def test_a_cache_that_cannot_be_cut_back_is_read_again(tiny_models, monkeypatch):
    bridge = make(tiny_models)
    texts = bridge.generate(TEXTS, max_new_tokens=8)

    def refuse(*_):
        raise RuntimeError("only grows")

    monkeypatch.setattr(DynamicCache, "crop", refuse)
    _, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=8)
    assert written == texts


def test_the_encoder_and_the_prefix_are_read_once(tiny_models, counted, together):
    bridge = make(tiny_models)
    bridge.score(TEXTS, ANSWERS)  # finds out whether the LLM takes tries
    passes = counted(bridge)
    bridge.answer(TEXTS, ANSWERS, max_new_tokens=4)
    assert sum(part.rows for part in passes["encoder"]) == len(TEXTS)  # in passes of texts of like length
    first, *steps = passes["llm"]
    inputs = bridge.processor(TEXTS)
    nodes = len(build_trie(bridge.processor.answer_ids(ANSWERS)).tokens)
    assert first == Pass(len(TEXTS), splice(bridge.prefix_pieces(inputs)).mask_BT.shape[1] + nodes, True)
    assert [step.positions for step in steps] == [1] * 3


def test_the_llm_reads_rows_of_like_length_together_and_each_once(tiny_models, counted):
    bridge = make(tiny_models)
    texts = ["one", "the cat sat on the mat " * 6] * 4
    wanted = torch.cat([bridge.score([text], ANSWERS) for text in texts])
    passes = counted(bridge)
    torch.testing.assert_close(bridge.score(texts, ANSWERS), wanted, atol=1e-4, rtol=1e-4)
    assert [one.rows for one in passes["llm"]] == [4, 4]
    assert passes["llm"][0].positions > passes["llm"][1].positions


def test_ended_rows_are_not_decoded_further(tiny_models, counted, together):
    bridge = make(tiny_models)
    first_B = greedy_ids(bridge, 1)[:, 0].tolist()
    bridge.llm.generation_config.eos_token_id = first_B[0]
    left = len(TEXTS) - first_B.count(first_B[0])
    assert left, "the rows are too much alike for this test"
    bridge.score(TEXTS, ANSWERS)
    passes = counted(bridge)
    bridge.answer(TEXTS, ANSWERS, max_new_tokens=2)
    assert [step[:2] for step in passes["llm"][1:]] == [(left, 1)]


def test_per_row_prompts_reach_both(tiny_models):
    bridge = make(tiny_models)
    prompts = ["two", "three"]
    scores, texts = bridge.answer(["cat", "cat"], ANSWERS, prompts=prompts, max_new_tokens=6)
    torch.testing.assert_close(scores, bridge.score(["cat", "cat"], ANSWERS, prompts=prompts), atol=1e-4, rtol=1e-4)
    assert texts == bridge.generate(["cat", "cat"], prompts=prompts, max_new_tokens=6)


def test_what_cannot_be_answered_is_refused(tiny_models):
    bridge = make(tiny_models, llm="gpt2")
    with pytest.raises(DataError, match="Got no answers"):
        bridge.answer(TEXTS, [])
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        bridge.answer(TEXTS, ANSWERS, max_new_tokens=0)
    with pytest.raises(DataError, match="takes 128"):
        bridge.answer(TEXTS, ANSWERS, max_new_tokens=500)


def test_fewer_texts_at_once_come_before_parts_of_the_answers(tiny_models, counted, together, monkeypatch):
    """A vocabulary of 256k words and a large batch still take one pass a text, without a cache."""
    bridge = make(tiny_models)
    scores, texts = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    nodes = len(build_trie(bridge.processor.answer_ids(ANSWERS)).tokens)
    monkeypatch.setattr(scoring, "MAX_SCORED_LOGITS", (nodes + 1) * tiny.VOCABULARY)
    passes = counted(bridge)
    torch.testing.assert_close(bridge.score(TEXTS, ANSWERS), scores, atol=1e-4, rtol=1e-4)
    assert [one.rows for one in passes["llm"]] == [1] * len(TEXTS)
    assert not any(one.cached for one in passes["llm"])
    again, written = bridge.answer(TEXTS, ANSWERS, max_new_tokens=6)
    torch.testing.assert_close(again, scores, atol=1e-4, rtol=1e-4)
    assert written == texts


def test_a_text_is_scored_while_another_is_streamed(tiny_models):
    bridge = make(tiny_models)
    wanted, whole = bridge.score(TEXTS, ANSWERS), bridge.generate([TEXTS[0]], max_new_tokens=8)[0]
    pieces = []
    for piece in bridge.stream(TEXTS[0], max_new_tokens=8):
        pieces.append(piece)
        torch.testing.assert_close(bridge.score(TEXTS, ANSWERS), wanted)
    assert "".join(pieces) == whole
