"""The page at `/`, one response: its files are in `page/`, put together here once, when the server starts.

It asks the server's own routes and nothing else: the policy in its headers lets a browser run this script and no other,
connect to this server and to no other, and set no text as markup. It holds nothing of the server's but whether there is
a key, so it opens without one.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from string import Template

from layerbridge.colour import shade
from layerbridge.languages import language

SCRIPTS = ("server.js", "coloured.js", "columns.js", "page.js")
"""In their order; together they are one script."""
EXAMPLES = {
    "si": "සිංහල",
    "ta": "தமிழ்",
    "bn": "বাংলা",
    "hi": "हिन्दी",
    "te": "తెలుగు",
    "ml": "മലയാളം",
    "ar": "العربية",
    "ur": "اردو",
    "th": "ไทย",
    "zh": "中文",
    "ru": "Русский",
    "sw": "Kiswahili",
}
"""Languages of the examples, in eleven scripts -> their names in themselves."""
EXAMPLE_ROWS = (1, 2, 3)
"""Of the embedded headlines, the same in each language."""
SCALE_STEPS = 64
"""Of the colours from the first to the last."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The response at `/`."""

    body: bytes
    headers: dict[str, str]


def build_page(*, needs_key: bool) -> Page:
    """Return the page.

    Args:
        needs_key: whether requests need an API key, which the page then asks for before anything else.
    """
    style = _text("look.css") + _text("serving", "page", "page.css")
    script = "".join(_text("serving", "page", name) for name in SCRIPTS)
    data = {
        "needsKey": needs_key,
        "scale": [shade(step / SCALE_STEPS) for step in range(SCALE_STEPS + 1)],
        "examples": [_example(code, name) for code, name in EXAMPLES.items()],
    }
    # Inside <script> nothing but "<" could end it; as an escape it is the same JSON.
    encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    html = Template(_text("serving", "page", "index.html")).substitute(style=style, script=script, data=encoded)
    return Page(body=html.encode(), headers=_headers(style, script))


def _headers(style: str, script: str) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _example(code: str, name: str) -> dict[str, object]:
    known = language(code)
    rows = _text("embedded", "headlines", code, "test.tsv").splitlines()
    texts = [rows[number].split("\t")[2] for number in EXAMPLE_ROWS]
    return {"lang": code, "name": known.name.partition(" (")[0], "own": name, "dir": known.direction, "texts": texts}


def _text(*place: str) -> str:
    return resources.files("layerbridge").joinpath(*place).read_text(encoding="utf-8")
