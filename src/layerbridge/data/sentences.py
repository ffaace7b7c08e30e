"""Sentences to show layer weights on: the embedded headlines, the same in 17 languages, without any prompt."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from layerbridge.data.files import read_table

SHOWN = ("test-03", "test-09")
"""Ids of the headlines: a runner who loses a shoe, and mud that tells of droughts."""


def example_sentences(languages: Iterable[str]) -> dict[str, list[str]]:
    """Return language code -> sentences, for those of `languages` that the headlines are in."""
    folder = Path(str(resources.files("layerbridge").joinpath("embedded", "headlines")))
    found = {}
    for code in languages:
        path = folder / code / "test.tsv"
        if path.is_file():
            texts = {row.fields["id"]: row.fields["text"] for row in read_table(path, name=path.name).rows}
            found[code] = [texts[name] for name in SHOWN]
    return found
