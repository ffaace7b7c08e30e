"""docs/serving.md says what is so: its limits, its routes, its examples."""

import json
import re
from pathlib import Path

from layerbridge.serving.limits import Limits
from tests.serving.test_fuzzing import ROUTES

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_table_has_every_limit_with_its_default():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,.]+) \|", TEXT, flags=re.M)
    assert {name: float(value.replace(",", "")) for name, value in rows} == {
        name: float(value) for name, value in Limits().model_dump().items()
    }


def test_every_route_is_described():
    for _, path in ROUTES:
        assert path.replace("{model_id}", "{id}") in TEXT, path


def test_the_client_example_runs_as_written(served, capsys, bridges):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    code = code.replace("http://127.0.0.1:8000", served.url).replace("own_data", "topic")
    exec(compile(code, "serving.md", "exec"), {})
    wanted = bridges["topic"].generate([bridges["topic"].render("Nilitozwa mara mbili mwezi huu.")], max_new_tokens=32)
    assert capsys.readouterr().out == wanted[0]


def test_the_bodies_of_the_curl_examples_are_answered(served):
    found = re.findall(r"curl -s http://127\.0\.0\.1:8000(\S+) .*?-d '(.*?)'", TEXT, flags=re.S)
    assert [path for path, _ in found] == ["/v1/chat/completions", "/v1/classify"]
    for path, body in found:
        assert served.post(path, json.loads(body.replace("own_data", "topic"))).status_code == 200
