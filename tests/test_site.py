"""The documentation site, built once, offline, strictly. It fetches nothing; no link, no public name is missing."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from pydantic import BaseModel
from typer.main import get_command

import layerbridge
from layerbridge import config, errors, results
from layerbridge.cli import app

pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install 'layerbridge[docs]')")
pytest.importorskip("material", reason="mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed")

ROOT = Path(__file__).parents[1]
HERE = "http://site.invalid/"
BUILD = """
import socket, sys

def refuse(*args, **kwargs):
    raise OSError("the build asked for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]], standalone_mode=False)
heavy = {"torch", "transformers", "pyarrow", "fastapi"} & set(sys.modules)
sys.exit(f"the build loaded {sorted(heavy)}" if heavy else 0)
"""
LOADING = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src", "embed": "src",
    "object": "data", "use": "href", "image": "href",
}  # fmt: skip
"""Element -> the attribute that makes a browser fetch something."""

SCRIPTED = {
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js": "diagrams in Mermaid, of which there are none",
    "https://unpkg.com/resize-observer-polyfill": "browsers older than 2020",
    "https://api.github.com/": "stars of a `repo_url`, which is not set",
    "https://${e}/api/v4/": "the same of a GitLab",
}
"""Addresses that the theme's script could ask, and when. The pages' policy forbids it in any case."""


class Page(HTMLParser):
    """Ids, links, and what is fetched, of one page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADING and LOADING[tag] in found:
            self.fetched.append(found[LOADING[tag]])
        if "srcset" in found:
            self.fetched += [part.split()[0] for part in found["srcset"].split(",")]
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(found["href"])
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        self.fetched += re.findall(r"url\(\s*['\"]?([^'\")]+)", found.get("style", ""))


def build(folder: Path, **variables: str) -> Path:
    """Build the site as `make site` does, from a process that may not reach the network."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")} | variables
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def text_of(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


@cache
def hook(name: str):
    """Import one of the site's hooks, as MkDocs does."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docsite" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outside(address: str) -> bool:
    return not urljoin(HERE, address).startswith((HERE, "data:", "blob:"))


# --- what a browser fetches ------------------------------------------------------------------------------------------


def test_no_page_loads_anything_from_elsewhere(pages):
    assert len(pages) > 20
    assert [(name, address) for name, page in pages.items() for address in page.fetched if outside(address)] == []
    assert sum(len(page.fetched) for page in pages.values()) > len(pages)


def test_no_style_loads_anything_from_elsewhere(site):
    styles = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    styles |= {
        p.name: "".join(re.findall(r"<style.*?</style>", p.read_text(), flags=re.S)) for p in site.rglob("*.html")
    }
    pattern = r"""@import\s+(?:url\()?['"]?([^'")\s;]+)|url\(\s*['"]?([^'")]+)"""
    found = [a or b for text in styles.values() for a, b in re.findall(pattern, text)]
    assert [address for address in found if outside(address)] == []
    assert found


def test_scripts_name_no_address_but_those_whose_use_is_known(site):
    """And comments: what stands in them is fetched by nobody."""
    for path in site.rglob("*.js"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
        found = set(re.findall(r"""["'`](https?://[^"'`]*)""", code))
        assert [a for a in found if not a.startswith((*SCRIPTED, "http://www.w3.org/"))] == [], path.name


def test_every_pages_policy_forbids_other_origins(pages):
    for name, page in pages.items():
        assert page.policy.startswith("default-src 'self'"), name
        assert "http" not in page.policy, name


def test_nothing_invents_where_the_site_stands(site, pages):
    assert '<link rel="canonical"' not in text_of(site, "index.html")
    assert "sitemap" not in {path.stem for path in site.iterdir()} or "<loc>" not in text_of(site, "sitemap.xml")
    assert not (site / "CNAME").exists()


def test_in_a_browser_pages_fit_search_answers_and_nobody_else_is_asked(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if place is None:
        pytest.skip("no Chromium on the PATH (chromium, chromium-browser, google-chrome)")
    asked, complaints = [], []
    handler = partial(Quiet, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_api.sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in ("method", "reference/recipe", "index"):
            page.goto(f"{address}{name}.html")
            for width in (360, 1440):
                page.set_viewport_size({"width": width, "height": 900})
                fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
                assert page.evaluate(fits), (name, width)
        page.evaluate("document.querySelector('[data-md-toggle=search]').checked = true")
        page.fill(".md-search__input", "entmax")
        page.wait_for_selector(".md-search-result__item", state="attached")
        browser.close()
        server.shutdown()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert complaints == []


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://x.y/z.png">',
        '<script src="//x.y/z.js"></script>',
        '<link rel="stylesheet" href="http://x.y/z.css">',
        '<link rel="preconnect" href="https://x.y">',
        '<p style="background: url(https://x.y/z.png)">',
        '<img srcset="a.png 1x, https://x.y/z.png 2x">',
    ],
)
def test_what_would_be_fetched_from_elsewhere_is_found(html):
    assert any(map(outside, Page(html).fetched))


# --- links -----------------------------------------------------------------------------------------------------------


def test_every_link_and_anchor_inside_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            address = urlsplit(urljoin(HERE + name, link))
            if not address.geturl().startswith(HERE) or name == "404.html":
                continue
            goal, anchor = unquote(address.path).lstrip("/") or "index.html", unquote(address.fragment)
            if goal in pages:
                if anchor and anchor not in pages[goal].ids and anchor != "__codelineno":
                    broken.append((name, link))
            elif not (site / goal).is_file():
                broken.append((name, link))
    assert broken == []


def test_no_id_is_there_twice(pages):
    for name, page in pages.items():
        twice = {an_id for an_id in page.ids if page.ids.count(an_id) > 1}
        assert not twice, name


def test_every_document_is_a_page_in_the_navigation(site, pages):
    documents = {
        path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")
    }
    documents |= {page.replace(".md", ".html") for page in hook("pages_from_elsewhere").PAGES.values()}
    assert documents <= set(pages)
    led_to = {urlsplit(link).path for link in pages["index.html"].links}
    assert documents - led_to == set()


def test_search_knows_every_page(site, pages):
    index = json.loads(text_of(site, "search/search_index.json"))
    found = {entry["location"].split("#")[0] or "index.html" for entry in index["docs"]}
    assert set(pages) - found == {"404.html"}


def test_links_out_of_the_documents_become_pages_names_or_addresses():
    pages = {"index.md", "method.md", "recipes.md", "guides/own-data.md", "contributing.md"}
    rewrite = hook("pages_from_elsewhere").rewrite
    for text, wanted in {
        "[the loss](method.md#loss)": "[the loss](method.md#loss)",
        "[docs/method.md](../docs/method.md)": "[Method](method.md)",
        "[`r`](../recipes/README.md)": "[`r`](recipes.md)",
        "[y](../recipes/sib200.yaml)": "y (`recipes/sib200.yaml`)",
        "[sib200.yaml](../recipes/sib200.yaml)": "`recipes/sib200.yaml`",
        "[sib200](../recipes/sib200.yaml)": "`recipes/sib200.yaml`",
        "[home](../README.md#measured)": "[home](index.md#measured)",
        "[over\ntwo lines](../CONTRIBUTING.md)": "[over\ntwo lines](contributing.md)",
        "[e](https://x.y/z) [h](#here)": "[e](https://x.y/z) [h](#here)",
        "[broken](gone.md)": "[broken](gone.md)",
        "`[c](../README.md)` ``[`d`](../README.md)``": "`[c](../README.md)` ``[`d`](../README.md)``",
        "```\n[d](../README.md)\n```\n[m](method.md)": "```\n[d](../README.md)\n```\n[m](method.md)",
        "![picture](../README.md)": "![picture](../README.md)",
    }.items():
        assert rewrite(text, "docs/serving.md", "serving.md", pages) == wanted
    deep = "[m](../method.md) [s](../../src)"
    assert rewrite(deep, "docs/guides/own-data.md", "guides/own-data.md", pages, "https://x/") == (
        "[m](../method.md) [s](https://x/blob/main/src)"
    )
    root = "[m](docs/method.md) [r](recipes)"
    assert rewrite(root, "README.md", "index.md", pages) == "[m](method.md) [r](recipes.md)"


# --- what is written as Markdown reads as such -----------------------------------------------------------------------


def test_no_paragraph_holds_a_list_or_a_table_that_was_not_read_as_one(site, pages):
    """Code hosts read a list or a table that follows a line of text at once; MkDocs wants an empty line before it."""
    for name in pages:
        article = re.search(r"<article.*?</article>", text_of(site, name), flags=re.S)
        for paragraph in re.findall(r"<p>(.*?)</p>", article[0] if article else "", flags=re.S):
            assert not re.search(r"^\s*(?:[-*] |\d+\. |\|)|\|\s*-{3}|```", paragraph, flags=re.M), (
                name,
                paragraph[:200],
            )


# --- references ------------------------------------------------------------------------------------------------------


def public_names() -> Iterator[tuple[str, str]]:
    """Page of the reference, and the id of a name that it must have."""
    for name in set(layerbridge.__all__) - {"__version__"}:
        found = getattr(layerbridge, name)
        yield "reference/python.html", f"{found.__module__}.{found.__qualname__}"
    bridge = layerbridge.Bridge
    for name in (
        "classify",
        "generate",
        "stream",
        "score",
        "answer",
        "layer_weights",
        "render",
        "build",
        "save_pretrained",
    ):
        found = getattr(bridge, name)
        found = getattr(found, "__func__", found)
        yield "reference/python.html", f"{found.__module__}.{found.__qualname__}"
    for module, page, root in ((errors, "errors", errors.LayerbridgeError), (results, "results", results.Record)):
        for name, kind in vars(module).items():
            ours = isinstance(kind, type) and issubclass(kind, root) and kind.__module__ == module.__name__
            if ours and kind is not results.Record:
                yield f"reference/{page}.html", f"{module.__name__}.{name}"
    for name in ("read_results", "write_results"):
        yield "reference/results.html", f"layerbridge.results.{name}"


def test_every_public_name_is_in_the_reference(pages):
    missing = [(page, name) for page, name in public_names() if name not in pages[page].ids]
    assert missing == []


def test_every_field_of_the_results_is_in_the_reference(pages):
    for name, kind in vars(results).items():
        if isinstance(kind, type) and issubclass(kind, results.Record) and kind is not results.Record:
            for field in kind.model_fields:
                assert f"layerbridge.results.{name}.{field}" in pages["reference/results.html"].ids


def config_classes() -> list[type[BaseModel]]:
    return [
        kind
        for kind in vars(config).values()
        if isinstance(kind, type) and issubclass(kind, config.FrozenConfig) and kind.model_fields
    ]


def test_every_recipe_key_is_in_the_reference_with_what_it_means(site):
    page = re.sub(r"<[^>]+>", "", text_of(site, "reference/recipe.html"))
    shared = {config.BridgeConfig, config.TaskRows}  # what others are made of
    for kind in config_classes():
        if kind is not config.BridgeConfig:
            assert f"(layerbridge.config.{kind.__name__})" in page or kind is config.Recipe, kind
    addresses = set(Page(text_of(site, "reference/recipe.html")).ids)
    assert {
        "encoder.dtype",
        "encoder.lora.rank",
        "fusion.transformer_softmax.dropout",
        "task.OwnTaskConfig.answers",
    } <= addresses
    assert {"training.batch_size", "evaluation.split", "task.train_languages", "name", "translator.prefix"} <= addresses
    for kind in set(config_classes()) - shared:
        for name in kind.model_fields:
            assert any(address.split(".")[-1] == name for address in addresses), (kind, name)


def test_every_recipe_key_has_a_docstring():
    write = hook("recipe_reference")
    fusions = [kind for kind in config_classes() if kind.model_config and write._variant(kind)]
    for kind in config_classes():
        said = write._docstrings(kind, fusions if kind in fusions else ())
        for name, field in kind.model_fields.items():
            has_section = any(True for _ in write._kinds(field.annotation))
            assert name in said or has_section or (name == "name" and kind in fusions), f"{kind.__name__}.{name}"


def test_every_command_and_option_is_in_the_reference(site, pages):
    page = re.sub(r"<[^>]+>", "", text_of(site, "reference/cli.html"))
    commands = dict(get_command(app).commands)
    commands |= {f"tasks-{name}": command for name, command in commands["tasks"].commands.items()}
    for name, command in commands.items():
        assert f"layerbridge-{name}" in pages["reference/cli.html"].ids
        for option in {flag for param in command.params for flag in param.opts if flag.startswith("-")}:
            assert option in page, (name, option)
