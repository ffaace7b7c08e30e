"""MkDocs hook: pages of the site that lie outside docs/, and links of all pages to files of the repository.

A document is written once, with links that work on a code host. Here a link to a file that is a page leads to the page.
One to another file leads to the repository, where `extra.repository` of mkdocs.yml says where that is, and is the
file's name otherwise.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
    "pretraining/README.md": "pretraining.md",
}
"""File of the repository -> page of the site."""

BRANCH = "main"
CODE_OR_LINK = re.compile(
    r"^ *(?P<fence>```+|~~~+).*?^ *(?P=fence) *$"
    r"|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
    r"|(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    flags=re.M | re.S,
)
"""What stands first is taken, so that nothing in code counts as a link, and code in a link's text is its text."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let the links of a page lead where they lead in the site."""
    here = page.file.src_uri
    if here.startswith("reports/"):  # wide tables, and no headings to list beside them
        page.meta.setdefault("hide", []).append("toc")
    source = next((source for source, made in PAGES.items() if made == here), f"docs/{here}")
    repository = config.extra.get("repository") or ""
    return rewrite(markdown, source, here, {file.src_uri for file in files.documentation_pages()}, repository)


def rewrite(markdown: str, source: str, here: str, pages: set[str], repository: str = "") -> str:
    """Return a document with its relative links rewritten.

    Args:
        markdown: the document.
        source: where it lies in the repository.
        here: its page in the site.
        pages: all pages of the site.
        repository: address of the repository, or nothing.
    """

    def lead(match: re.Match[str]) -> str:
        text, target = match["text"], match["target"]
        if target is None or target.startswith("#") or re.match(r"[a-z]+:", target):
            return match[0]
        file, hash_sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
        page = PAGES.get(path) or PAGES.get(f"{path}/README.md") or path.removeprefix("docs/")
        if page in pages and (page != path or path.startswith("docs/")):
            shown = _title(path) if text.strip("`") == path else text
            return f"[{shown}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{hash_sign}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # broken, which MkDocs says better
        if repository:
            return f"[{text}]({repository.rstrip('/')}/blob/{BRANCH}/{path}{hash_sign}{anchor})"
        name = text.strip("`")
        is_path = any(f"/{spelt}".endswith(f"/{name}") for spelt in (path, path.rpartition(".")[0]))
        return f"`{path}`" if is_path else f"{text} (`{path}`)"

    return CODE_OR_LINK.sub(lead, markdown)


def _title(path: str) -> str:
    """Return the heading of a document: a reader of the site does not see its file."""
    text = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
    heading = re.match(r"# +(.+)", text)
    return heading[1] if heading else path
