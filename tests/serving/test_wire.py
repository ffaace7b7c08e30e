"""Bodies of another form than wanted: few mistakes are told, however many there are, and in words about the request."""

import pytest
from pydantic import ValidationError

from layerbridge.serving.errors import ApiError
from layerbridge.serving.wire import MAX_FIELDS, ChatRequest, ClassifyRequest, CompletionRequest, InspectRequest

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
