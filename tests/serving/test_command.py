"""`layerbridge serve` as a user starts it: a process, an address, a signal."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.serving.running import tiny_bridges


@pytest.fixture(scope="module")
def runs(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, bridge in tiny_bridges(tiny_models).items():
        bridge.save_pretrained(folder / name / "checkpoint")
    return folder


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "layerbridge.cli", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_process_serves_and_ends_at_a_signal_once_its_answers_are_whole(runs):
    options = ["--port", 0, "--device", "cpu", "--limit", "max_new_tokens=300"]
    process = start(runs / "topic", runs / "plain", *options, LAYERBRIDGE_API_KEY="a-secret-key")
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving topic, plain at (http://127\.0\.0\.1:\d+), with the API key\n", line)
        assert found, (line, process.stderr.read() if process.poll() is not None else "")
        assert "a-secret-key" not in line
        url, key = found[1], {"authorization": "Bearer a-secret-key"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        body = {"model": "plain", "prompt": "the cat", "max_tokens": 300, "temperature": 1.0, "seed": 1, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=key, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" in rest
        process.wait(20)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "Set LAYERBRIDGE_API_KEY, or give a file with --api-key-file"),
        (["--engine", "locl"], "Unknown engine 'locl'. Did you mean 'local'"),
        (["--engine", "vllm"], "--engine vllm needs --engine-url"),
        (["--engine-url", "http://h"], "--engine-url is of --engine vllm"),
        (["--engine-route", "chat"], "--engine-route is of --engine vllm"),
        (["--engine", "vllm", "--engine-url", "h:1"], "wanted http://HOST:PORT"),
        (["--engine", "vllm", "--engine-url", "http://h", "--engine-route", "talk"], "unknown route 'talk'"),
        (["--limit", "max_queue"], "--limit 'max_queue' is not of the form NAME=NUMBER"),
        (["--limit", "max_queu=5"], "Did you mean 'max_queue'"),
        (["--api-key-file", "nowhere"], "nowhere cannot be read"),
    ],
)
def test_what_a_user_can_mend_is_one_message(monkeypatch, arguments, words):
    from typer.testing import CliRunner

    from layerbridge.cli import app
    from layerbridge.errors import ConfigError

    monkeypatch.delenv("LAYERBRIDGE_API_KEY", raising=False)
    found = CliRunner().invoke(app, ["serve", "runs/any", *arguments])
    assert isinstance(found.exception, ConfigError)
    assert words in str(found.exception)


def test_the_command_loads_no_llm_that_runs_elsewhere(monkeypatch, tiny_models, runs):
    from typer.testing import CliRunner

    from layerbridge.cli import app
    from layerbridge.serving import server
    from tests.serving.fake_vllm import faking

    def serve(bridges, config, upstream):
        assert {parameter.device.type for parameter in bridges["topic"].llm.model.layers.parameters()} == {"meta"}
        made = server.build_server(bridges, config, upstream=upstream)
        made._gate.app.state.engine._upstream._ended.set()
        print(made._gate.app.state.engine.models.keys(), upstream.model, upstream.route)

    monkeypatch.setattr(server, "serve", serve)
    with faking(tiny_models["llama"], key="the-engines-key") as fake:
        arguments = [
            "--engine",
            "vllm",
            "--engine-url",
            f"{fake.url}/v1",
            "--engine-model",
            "tiny-llm",
            "--device",
            "cpu",
        ]
        environment = {"LAYERBRIDGE_ENGINE_API_KEY": "the-engines-key"}
        found = CliRunner().invoke(app, ["serve", str(runs / "topic"), *arguments], env=environment)
    assert found.exception is None, found.exception
    assert found.output == "dict_keys(['topic']) tiny-llm completions\n"


def test_without_the_extra_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from layerbridge.cli import app\n"
        "try: app(['serve', 'runs/any'], standalone_mode=False)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ConfigError" in done.stdout
    assert "pip install 'layerbridge[serve]'" in done.stdout


def test_the_wire_and_the_seam_load_no_torch():
    code = (
        "import layerbridge.serving.wire, layerbridge.serving.engine, layerbridge.serving.conversation, sys\n"
        "print([m for m in ('torch', 'fastapi', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
