"""`/v1/inspect` says which characters each token stands for, and whose words they are."""

from hypothesis import given
from hypothesis import strategies as st

from layerbridge.prompt import prompt_parts, render_prompt
from layerbridge.serving.engine import Reading, Weighed
from layerbridge.serving.pieces import cut_readings
from tests.serving.running import LABELS, PAIR_PROMPT, PROMPT

TEXTS = st.text(min_size=1).filter(lambda text: text.strip() and not any("\ud800" <= c <= "\udfff" for c in text))


@given(first=TEXTS, second=TEXTS, length=st.integers(1, 5))
def test_pieces_joined_are_the_text_and_each_is_of_the_field_that_its_letters_are_from(first, second, length):
    fields = {"premise": first, "hypothesis": second}
    parts = prompt_parts(PAIR_PROMPT, fields)
    source = render_prompt(PAIR_PROMPT, fields)
    assert "".join(part.text for part in parts) == source
    spelt = source.replace(" ", "▁")
    tokens = [spelt[at : at + length] for at in range(0, len(spelt), length)] + ["</s>"]
    reading = Reading(source=source, parts=parts)
    (pieces,) = cut_readings([reading], [Weighed(tokens, [[1.0]] * len(tokens))])
    assert "".join(piece.text for piece in pieces) == source
    assert sum(piece.tokens for piece in pieces) == len(tokens)
    owners = [part.field for part in parts for _ in part.text]
    at = 0
    for piece in pieces:
        assert not piece.text[: piece.lead].strip()
        letters = owners[at + piece.lead : at + len(piece.text)]
        assert not letters or piece.field in letters
        if len(set(letters)) == 1:
            assert piece.field == letters[0]
        at += len(piece.text)


def test_inspecting_cuts_only_when_asked(served):
    body = {"model": "topic", "texts": ["the cat sat", "ශ්‍රී"]}
    assert [one["pieces"] for one in served.post("/v1/inspect", body).json()["data"]] == [None, None]
    found = served.post("/v1/inspect", body | {"pieces": True}).json()["data"]
    for text, one in zip(body["texts"], found, strict=True):
        assert one["text"] == PROMPT.format(text=text) == "".join(piece["text"] for piece in one["pieces"])
        assert len(one["tokens"]) == len(one["weights"]) == sum(piece["tokens"] for piece in one["pieces"])
        said = "".join(piece["text"] for piece in one["pieces"] if piece["field"] == "text")
        assert said.strip() == text
    raw = served.post("/v1/inspect", body | {"pieces": True, "layerbridge": {"raw": True}}).json()["data"]
    assert {piece["field"] for one in raw for piece in one["pieces"] if piece["text"]} == {"text"}


def test_a_models_card_tells_what_a_page_needs(served, bridges):
    cards = {card["id"]: card["layerbridge"] for card in served.get("/v1/models").json()["data"]}
    layers = list(bridges["topic"].encoder.layer_numbers)
    about = {"fusion": "transformer_softmax", "layers": layers}
    assert cards["topic"] == about | {"encoder_prompt": PROMPT, "fields": ["text"], "answers": LABELS, "prompt": ""}
    fields = ["premise", "hypothesis"]
    assert cards["pair"] == about | {
        "encoder_prompt": PAIR_PROMPT, "fields": fields, "answers": [], "prompt": "one two"
    }  # fmt: skip
    assert cards["plain"] == about | {"encoder_prompt": None, "fields": ["text"], "answers": [], "prompt": ""}
    assert served.get("/v1/models/pair").json()["layerbridge"] == cards["pair"]
