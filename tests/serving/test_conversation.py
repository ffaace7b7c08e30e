"""Which part of a request goes through the encoder: decided here, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerbridge.serving.conversation import read_chat, read_texts
from layerbridge.serving.engine import Reading, ServedModel
from layerbridge.serving.errors import ApiError
from layerbridge.serving.limits import Limits
from layerbridge.serving.wire import Extension, Message

LIMITS = Limits()


def model(template=None, prompt=""):
    return ServedModel(id="m", created=0, encoder_prompt=template, prompt=prompt, answers=(), layers=(1,))


def chat(*turns, template=None, prompt="", **extension):
    messages = [Message(role=role, content=content) for role, content in turns]
    return read_chat(messages, model(template, prompt), Extension(**extension), LIMITS)


def test_users_go_through_the_encoder_in_order_and_nothing_else_does():
    found = chat(("system", "S"), ("user", "one"), ("assistant", "A"), ("user", "two"), ("developer", "D"), prompt="P")
    assert found == Reading(source="one\ntwo", prompt="S\nA\nD\nP")


def test_without_other_messages_the_llm_reads_what_the_run_configured():
    assert chat(("user", "one"), prompt="P") == Reading(source="one", prompt=None)
    assert chat(("system", " "), ("user", "one"), prompt="P") == Reading(source="one", prompt=None)


def test_the_tasks_prompt_is_put_around_unless_the_text_is_raw():
    assert chat(("user", "one"), template="Text: {t} Label: ").source == "Text: one Label: "
    assert chat(("user", "one"), template="Text: {t} Label: ", raw=True).source == "one"
    (found,) = read_texts(["x"], model("<{t}>"), Extension(), LIMITS, param="prompt")
    assert found == Reading(source="<x>")


def test_the_field_that_is_left_out_is_what_the_users_say():
    template = "{a} - {b} - {c}"
    assert chat(("user", "B"), template=template, fields={"a": "A", "c": "C"}).source == "A - B - C"
    assert chat(("user", ""), template=template, fields={"a": "A", "b": "B", "c": "C"}).source == "A - B - C"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"template": "{a} {b}"}, r"has 2 fields \(a, b\)"),
        ({"template": "{a} {b}", "fields": {"a": "x", "b": "y"}}, "fills the whole prompt"),
        ({"template": "{a} {b}", "fields": {"c": "x"}}, "Unknown field 'c'; the task's prompt has a, b"),
        ({"template": "{a} {b}", "fields": {"a": " "}}, "Field 'a' is empty|field 'a' is empty"),
        ({"fields": {"a": "x"}}, "trained on no task"),
        ({"template": "{a}", "fields": {"a": "x" * 50_001}}, "50001 characters"),
    ],
)
def test_what_cannot_be_put_together_is_refused(asked, words):
    with pytest.raises(ApiError, match=words) as found:
        chat(("user", "text"), **asked)
    assert found.value.status == 400


def test_the_characters_of_all_messages_count():
    with pytest.raises(ApiError, match="characters; at most 50000"):
        chat(("user", "a" * 30_000), ("system", "b" * 30_000))


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "developer"]), st.text(max_size=5)), max_size=6)
)
def test_every_word_is_read_once_by_encoder_or_llm(turns):
    users = [text for role, text in turns if role == "user"]
    others = [text for role, text in turns if role != "user" and text.strip()]
    if not "".join(users).strip():
        return
    found = chat(*turns)
    assert found.source == "\n".join(users)
    assert (found.prompt or "") == "\n".join(others)
