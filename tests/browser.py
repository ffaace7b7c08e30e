"""What the tests of pages in a real Chromium share; the fixture `browser` is in `tests/conftest.py`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

WIDTHS = (360, 768, 1440)

INK = """
([text, language, font]) => {
  // Draw a text with the page's own fonts and return its pixels' ink and its width.
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [160, 90];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.lang = language;
  context.font = font;
  context.textBaseline = "middle";
  context.fillText(text, 30, 45);
  const data = context.getImageData(0, 0, 160, 90).data;
  let ink = "";
  for (let i = 3; i < data.length; i += 4) ink += data[i] > 100 ? "1" : "0";
  return [ink, context.measureText(text).width];
}
"""

TOO_WIDE = """
() => [...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !element.closest(".scroll, svg");
}).map((element) => element.tagName + "#" + element.id)
"""

FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"

CONTRAST = """
() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("svg, script, style")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return low;
}
"""

WIDTH_PLAIN_AND_COLOURED = """
(element) => {
  const width = (node) => { const r = document.createRange(); r.selectNodeContents(node);
    return r.getBoundingClientRect().width; };
  element.querySelectorAll(".special").forEach((special) => special.remove());
  element.style.whiteSpace = "nowrap";
  const coloured = width(element);
  element.textContent = element.textContent;
  return [width(element), coloured];
}
"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the machine's own Chromium; skip where there is none, or no playwright to drive it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if place is None:
        pytest.skip("no Chromium on the PATH (chromium, chromium-browser, google-chrome)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def empty_boxes(page: Any, letters: str, language: str, font: str) -> list[str]:
    """Return the letters that are drawn as a missing letter, or not at all."""
    # Unassigned code points and a private one: whatever this machine draws for a letter that no font has.
    boxes = [page.evaluate(INK, [text, language, font])[0] for text in ("\u0378", "\U0010fffd", "\ufdd0", "\U000e1234")]
    assert all("1" in box for box in boxes), "a missing letter leaves no ink here, so this test could not see one"
    found = []
    for letter in letters:
        ink, width = page.evaluate(INK, [letter, language, font])
        if "1" not in ink or ink in boxes or (letter.isalpha() and width <= 0):
            found.append(letter)
    return found
