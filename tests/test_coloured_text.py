"""A text cut into coloured pieces is the text, whole letter by whole letter, and no weight is lost."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerbridge import coloured_text
from layerbridge.analysis import TokenWeights
from layerbridge.coloured_text import clings, cut

SCRIPTS = (
    "ශ්‍රී ලංකාවේ විද්‍යාඥයෝ", "க்ஷேத்திரம் தமிழ் மொழி", "กำลังทำน้ำแข็ง", "السَّلامُ عليكم", "कर्म क्षेत्र में",
    "天气很好。", "한국어 각", "👩‍👩‍👧 🇱🇰👍🏽", "e\u0301\u0302 ﬁne Ⅷ", "\u0301x \u200d\u0dca", "",
)  # fmt: skip


def sentence(text, tokens, num_layers=3):
    weights = tuple(tuple((1 + (7 * i + 3 * j) % 5) / 10 for j in range(num_layers)) for i in range(len(tokens)))
    return TokenWeights(language="si", text=text, tokens=tuple(tokens), weights=weights)


@st.composite
def tokenised(draw):
    """Return a text with a SentencePiece-like cut of it: bytes, unknown and special tokens among them."""
    scripts = sorted(set("".join(SCRIPTS)) | set("ab <>#▁"))
    text = draw(st.one_of(st.sampled_from(SCRIPTS), st.text(st.sampled_from(scripts)), st.text()))
    tokens = draw(st.sampled_from([[], ["<s>"], ["sin_Sinh"]]))[:]
    rest = text.replace(" ", "▁")
    while rest:
        length = draw(st.integers(1, 4))
        part, rest = rest[:length], rest[length:]
        kind = draw(st.sampled_from(["plain", "plain", "plain", "bytes", "unknown", "dropped", "normal", "lone"]))
        tokens += {
            "plain": [part],
            "bytes": [f"<0x{byte:02X}>" for byte in part.encode()],
            "unknown": ["<unk>"],
            "dropped": [],
            "normal": [unicodedata.normalize("NFKC", part)],
            "lone": ["▁", part],
        }[kind]
    return sentence(text, [*tokens, *draw(st.sampled_from([[], ["</s>"], ["[SEP]"]]))])


@given(tokenised())
@example(sentence("", ["</s>"]))
@example(sentence("abc", []))
@example(sentence("  ", ["▁"]))
def test_the_pieces_joined_are_the_text_and_every_token_is_in_one_piece(found):
    pieces = cut(found)
    assert "".join(piece.text for piece in pieces) == found.text
    assert "".join(piece.lead + piece.body for piece in pieces) == found.text
    assert tuple(token for piece in pieces for token in piece.tokens) == found.tokens


@given(tokenised())
def test_the_weights_of_all_pieces_are_the_weights_of_all_tokens(found):
    pieces = cut(found)
    for layer in range(3):
        total = sum(len(piece.tokens) * piece.weights[layer] for piece in pieces if piece.tokens)
        assert total == pytest.approx(sum(row[layer] for row in found.weights))


@given(tokenised())
def test_no_piece_starts_or_ends_inside_a_letter(found):
    pieces = [piece for piece in cut(found) if piece.text]
    for before, after in pairwise(pieces):
        assert not clings(before.text[-1], after.text[0])
        assert unicodedata.category(after.text[0])[0] != "M"
        is_joining = unicodedata.combining(before.text[-1]) == 9 or before.text[-1] == "\u200d"
        assert not is_joining or after.text[0].isspace()
    for piece in pieces[1:]:
        assert not piece.body or unicodedata.category(piece.body[0])[0] != "M"


@given(st.lists(st.sampled_from(["ශ්‍රී", "தமிழ்", "น้ำ", "كتاب", "word"]), min_size=1))
def test_a_plain_cut_at_words_comes_back_word_by_word(words):
    pieces = cut(sentence(" ".join(words), [f"▁{word}" for word in words]))
    assert [piece.body for piece in pieces] == words


@pytest.mark.parametrize(
    ("text", "tokens", "wanted"),
    [
        ("ශ්‍රී", ["▁ශ", "්", "\u200d", "රී"], ["ශ්‍රී"]),
        ("කර", ["▁ක", "<0xE0>", "<0xB6>", "<0xBB>"], ["ක", "ර"]),
        ("น้ำดี", ["▁น", "้", "ำ", "ดี"], ["น้ำ", "ดี"]),
        ("கல்வி", ["▁கல", "்வி"], ["கல்வி"]),
        ("a b", ["a", "Ġb"], ["a", "b"]),
        ("ไทย", ["à¹Ħà¸", "Ĺà¸¢"], ["ไทย"]),
        ("playing é", ["play", "##ing", "e"], ["play", "ing", "é"]),
        ("ﬁne", ["▁fi", "ne"], ["ﬁ", "ne"]),
        ("ab☃cd", ["▁ab", "<unk>", "cd"], ["ab", "☃", "cd"]),
        ("天气", ["▁", "天", "气"], ["天", "气"]),
    ],
)
def test_markers_bytes_and_normalised_spellings_find_their_letters(text, tokens, wanted):
    assert [piece.body for piece in cut(sentence(text, tokens)) if piece.body] == wanted


def test_special_tokens_stand_for_no_text_and_keep_their_place():
    pieces = cut(sentence("ab cd", ["<s>", "sin_Sinh", "▁ab", "▁cd", "</s>"]))
    assert [(piece.body, piece.is_special) for piece in pieces] == [
        ("", True), ("", True), ("ab", False), ("cd", False), ("", True),
    ]  # fmt: skip
    assert pieces[3].lead == " "


def test_a_lone_space_marker_keeps_its_weights_to_itself():
    found = sentence("ab cd ", ["▁", "ab", "▁", "c", "d", "</s>"])
    pieces = cut(found)
    assert [(piece.text, piece.tokens, piece.is_special) for piece in pieces] == [
        ("", ("▁",), False), ("ab", ("ab",), False), (" ", ("▁",), False), ("c", ("c",), False), ("d", ("d",), False),
        (" ", (), False), ("", ("</s>",), True),
    ]  # fmt: skip
    assert pieces[3].weights == found.weights[3]
    assert pieces[2].body == ""


def test_merged_tokens_have_the_mean_of_their_weights():
    weights = TokenWeights(language="si", text="කි", tokens=("ක", "ි"), weights=((1.0, 0.0), (0.5, 0.5)))
    (piece,) = cut(weights)
    assert piece.weights == pytest.approx((0.75, 0.25))
    assert piece.mean_layer((3, 7)) == pytest.approx(4.0)


def test_text_that_was_cut_off_is_shown_without_weights():
    pieces = cut(sentence("one two three", ["▁one", "▁two", "</s>"]))
    assert [(piece.text, bool(piece.weights)) for piece in pieces] == [
        ("one", True), (" two", True), (" three", False), ("", True),
    ]  # fmt: skip


@pytest.fixture
def in_one_walk(monkeypatch):
    """Texts are aligned in the way that is kept for those that would take long."""
    monkeypatch.setattr(coloured_text, "MAX_EFFORT", -1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokenised())
def test_an_alignment_in_one_walk_loses_no_text_and_no_token(in_one_walk, found):
    pieces = cut(found)
    assert "".join(piece.text for piece in pieces) == found.text
    assert tuple(token for piece in pieces for token in piece.tokens) == found.tokens


def test_an_alignment_in_one_walk_goes_on_after_what_it_does_not_know(in_one_walk):
    pieces = cut(
        sentence("one ☃☃ two 天气 three four", ["▁one", "▁", "<unk>", "▁two", "▁", "<unk>", "▁three", "▁four"])
    )
    assert [piece.body for piece in pieces if piece.body] == ["one", "☃☃", "two", "天气", "three", "four"]


@pytest.mark.parametrize("length", [1, 4, 16])
def test_a_text_made_to_take_long_is_cut_in_one_walk(length, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the exact alignment of this text takes minutes")

    monkeypatch.setattr(coloured_text, "SequenceMatcher", never)
    found = sentence(("a" * length + "☃") * 256, ["a" * length, "<unk>"] * 256)
    pieces = cut(found)
    assert "".join(piece.text for piece in pieces) == found.text
    assert tuple(token for piece in pieces for token in piece.tokens) == found.tokens
