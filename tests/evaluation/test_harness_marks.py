"""Marks in harness prompts: what is marked comes back to the character, or is refused with a reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.errors import DataError
from layerbridge.evaluation.harness.marks import escape, mark, read_context

TRAPS = ("<encoder>", "</encoder>", r"<\encoder>", r"<\\/encoder>", "{{ text }}", "{% if", "42", "\n")

pieces = st.lists(st.one_of(st.sampled_from([*TRAPS, r"<\\\encoder>", "<", "\\"]), st.text(max_size=8)), max_size=6)
texts = pieces.map("".join)
spoken = texts.filter(str.strip)


@settings(deadline=None)
@given(text=spoken, prompt=texts, space=st.sampled_from(["", "\n", "  "]))
def test_what_is_marked_and_what_follows_come_back_to_the_character(text, prompt, space):
    reading = read_context(space + mark(text) + escape(prompt))
    assert reading.text == text
    assert reading.prompt == (prompt if prompt.strip() else None)


@settings(deadline=None)
@given(text=spoken)
def test_a_context_without_marks_goes_through_the_encoder_as_it_is(text):
    assert read_context(escape(text)) == (text, None)


@settings(deadline=None)
@given(context=texts)
def test_every_context_is_read_or_refused(context):
    try:
        reading = read_context(context)
    except DataError:
        return
    assert reading.text.strip()
    assert reading.prompt is None or reading.prompt.strip()
    assert len(reading.text) + len(reading.prompt or "") <= len(context)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("", r"The context is empty.*no unconditional text"),
        (" \n", "The context is empty"),
        ("<encoder> </encoder> x", "The marked part is empty"),
        ("<encoder>a", r"has 1 <encoder> and 0 </encoder> that do not pair.*<\\encoder>"),
        ("a</encoder>", "has 0 <encoder> and 1 </encoder>"),
        ("</encoder>a<encoder>", "in this order: </encoder> <encoder>"),
        ("<encoder>a<encoder>b</encoder></encoder>", "has 2 <encoder> and 2 </encoder> that do not pair"),
        ("<encoder>a</encoder> x\n\n<encoder>b</encoder>", "has 2 marked parts; wanted one.*num_fewshot to 0"),
        ("Translate: <encoder>a</encoder>", "Text stands before <encoder>: 'Translate:'.*drop those"),
    ],
)
def test_contexts_that_a_bridge_cannot_read_are_refused_and_say_what_to_do(context, message):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_context(context)
