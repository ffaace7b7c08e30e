"""Bodies of another form than wanted: few mistakes are told, however many there are, and in words about the request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from layerbridge.serving.errors import ApiError
from layerbridge.serving.forms import MAX_FIELDS
from layerbridge.serving.wire import ChatRequest, ClassifyRequest, CompletionRequest, InspectRequest

MANY = 500_000
CHAT = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}
NAMES = {str(number): 0 for number in range(100_000)}
ZEROS = [0] * MANY


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (CompletionRequest, {"model": "plain", "prompt": ZEROS}),
        (CompletionRequest, {"model": "plain", "prompt": [[]] * MANY}),
        (CompletionRequest, {"model": "plain", "prompt": "x", "stop": ZEROS}),
        (ClassifyRequest, {"model": "plain", "texts": ZEROS}),
        (ClassifyRequest, {"model": "plain", "texts": "x", "labels": ZEROS}),
        (InspectRequest, {"model": "plain", "texts": ZEROS}),
        (InspectRequest, {"model": "plain", "texts": "x", "layerbridge": {"fields": NAMES}}),
        (InspectRequest, {"model": "plain", "texts": "x", "layerbridge": NAMES}),
        (ChatRequest, {"model": "plain", "messages": ZEROS}),
        (ChatRequest, {"model": "plain", "messages": [{"role": "user", "content": ZEROS}] * 2}),
        (ChatRequest, {"model": "plain", "messages": [{"role": "user", "content": [{"type": "text"}] * MANY}]}),
        (ChatRequest, {"model": "plain", "messages": [{"role": "user", "content": [{"type": "text", **NAMES}]}]}),
        (ChatRequest, {**CHAT, "stream": True, "stream_options": NAMES}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_half_a_million_mistakes_are_told_as_a_few(request_type, body):
    with pytest.raises(ValidationError) as found:
        request_type.model_validate(body)
    assert found.value.error_count() <= 4, "each mistake costs a kilobyte and 25 microseconds of the event loop"


def test_objects_may_have_as_many_fields_as_a_prompt_needs():
    fields = {str(number): "x" for number in range(MAX_FIELDS)}
    body = {"model": "plain", "texts": "x", "layerbridge": {"fields": fields}}
    assert InspectRequest.model_validate(body).layerbridge.fields == fields


def test_of_a_long_unknown_name_the_beginning_alone_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("layerbridge.serving.wire.nearest", lambda name, known: compared.append(name))
    with pytest.raises(ApiError, match="Unknown field 'xxx"):
        ChatRequest.model_validate({**CHAT, "x" * 1_000_000: 1})
    assert compared == ["x" * 100]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(["stop", "prompt", "texts", "labels", "content", "layerbridge", "seed"]), value=JSON)
def test_places_of_mistakes_are_places_of_the_request(field, value):
    """Names of members of a union, such as `str` and `list[str]`, are pydantic's own."""
    request_type, body = {
        "prompt": (CompletionRequest, {"model": "plain", "prompt": value}),
        "texts": (ClassifyRequest, {"model": "plain", "texts": value}),
        "labels": (ClassifyRequest, {"model": "plain", "texts": "x", "labels": value}),
        "content": (ChatRequest, {"model": "plain", "messages": [{"role": "user", "content": value}]}),
    }.get(field, (ChatRequest, {**CHAT, field: value}))
    try:
        request_type.model_validate(body)
    except ValidationError as error:
        for mistake in error.errors():
            place = body
            for part in mistake["loc"]:
                if part == "[key]":  # a key that is no text, such as half a character
                    break
                place = place[part]
