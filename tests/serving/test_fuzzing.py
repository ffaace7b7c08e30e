"""The API, fuzzed from its own OpenAPI description: no answer is a 5xx, and every answer is as described."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.serving.running import running

ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/inspect"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def small(bridges):
    with running(bridges, default_new_tokens=4, max_new_tokens=16, batch_wait_ms=0) as found:
        yield found


@pytest.fixture(scope="module")
def schema(small):
    return schemathesis.openapi.from_url(f"{small.url}/openapi.json")


def test_the_description_has_every_route_and_no_other(schema):
    found = {(one.ok().method.upper(), one.ok().path) for one in schema.get_all_operations()}
    assert found == set(ROUTES)
    assert "422" not in str(schema.raw_schema["paths"])


BY_THE_FORM, AGAINST_IT = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, BY_THE_FORM) for method, path in ROUTES),
        *((method, path, AGAINST_IT) for method, path in ROUTES if method == "POST"),  # the others have no body
    ],
    ids=lambda value: str(getattr(value, "value", value)),
)
def test_nothing_by_the_form_or_against_it_is_a_5xx(schema, small, method, path, mode):
    @QUICK
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        if isinstance(case.body, dict) and "model" in case.body and isinstance(case.body["model"], str):
            case.body["model"] = "plain"  # an unknown one is refused before anything else is looked at
        response = case.call()
        case.validate_response(
            response, checks=[not_a_server_error, response_schema_conformance, status_code_conformance]
        )

    ask()
    assert small.get("/readyz").status_code == 200


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = ["max_tokens", "stop", "temperature", "top_p", "top_k", "seed", "stream", "stream_options", "layerbridge", "n"]


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2}),
        ("/v1/completions", {"prompt": "the cat", "max_tokens": 2}),
        ("/v1/classify", {"texts": ["the cat"], "labels": ["yes", "no"]}),
        ("/v1/inspect", {"texts": ["the cat"]}),
    ],
)
def test_one_wrong_field_in_a_right_request_is_never_a_5xx(small, path, whole):
    with httpx.Client(base_url=small.url, timeout=60) as client:

        @settings(QUICK, max_examples=60)
        @given(field=st.sampled_from([*whole, *FIELDS]), value=JSON)
        def ask(field, value):
            import json

            body = json.dumps({"model": "plain", **whole, field: value}).encode("utf-8", "surrogatepass")
            found = client.post(path, content=body, headers={"content-type": "application/json"})
            assert found.status_code in (200, 400), found.text
            if found.status_code == 400:
                assert set(found.json()["error"]) == {"message", "type", "param", "code"}

        ask()
