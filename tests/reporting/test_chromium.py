"""The page in a real Chromium: it renders, fetches nothing, fits a phone, and its scripts are legible."""

import shutil

import pytest

from layerbridge.analysis import TokenWeights
from layerbridge.reporting.page import render_text
from tests.reporting.sample import TEXTS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

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


@pytest.fixture(scope="module")
def browser():
    place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if place is None:
        pytest.skip("no Chromium on the PATH (chromium, chromium-browser, google-chrome)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Open a file at a width; return the page, what it asked for and what it complained of."""
    pages = []

    def open_file(width, path=report / "index.html", **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        requests, complaints = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        return page, requests, complaints

    yield open_file
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_renders_fetches_nothing_and_fits(opened, report, width):
    page, requests, complaints = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.title() == "Topics in 26 languages never trained on"
    assert page.locator(".claim .finding").bounding_box()["y"] < 900
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(TOO_WIDE) == []
    assert [drawing for drawing in page.locator("svg:visible").all() if drawing.bounding_box()["height"] < 100] == []
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    assert [url for url in requests if not url.startswith("data:")] == [(report / "index.html").as_uri()]
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_four_and_a_half(opened, scheme):
    page, _, _ = opened(1440, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("code", TEXTS)
def test_every_letter_is_drawn_and_is_no_empty_box(opened, code):
    page, _, _ = opened(768)
    words = page.locator(f"p.coloured[lang={code}]").first
    style = words.evaluate("(element) => getComputedStyle(element).fontFamily")
    font = f"24px {style}"
    # Unassigned code points and a private one: whatever this machine draws for a letter that no font has.
    boxes = [page.evaluate(INK, [text, code, font])[0] for text in ("\u0378", "\U0010fffd", "\ufdd0", "\U000e1234")]
    assert all("1" in box for box in boxes), "a missing letter leaves no ink here, so this test could not see one"
    for letter in sorted(set(TEXTS[code][0]) - set(" \u200d")):
        ink, width = page.evaluate(INK, [letter, code, font])
        assert "1" in ink, f"{letter!r} leaves no ink"
        assert ink not in boxes, f"{letter!r} is drawn as a missing letter"
        if letter.isalpha():
            assert width > 0, f"{letter!r} has no width"


@pytest.mark.parametrize("code", ["si", "ta", "ar", "th", "hi"])
def test_colouring_does_not_change_how_a_text_is_shaped(opened, code):
    page, _, _ = opened(1440)
    words = page.locator(f"p.coloured[lang={code}]").first
    plain, coloured = words.evaluate(
        """(element) => {
          const width = (node) => { const r = document.createRange(); r.selectNodeContents(node);
            return r.getBoundingClientRect().width; };
          element.querySelectorAll(".special").forEach((special) => special.remove());
          element.style.whiteSpace = "nowrap";
          const coloured = width(element);
          element.textContent = element.textContent;
          return [width(element), coloured];
        }"""
    )
    assert coloured == pytest.approx(plain, abs=1.0)


def test_arabic_runs_from_right_to_left(opened):
    page, _, _ = opened(768)
    tokens = page.locator("p.coloured[lang=ar] .token").all()
    assert tokens[0].bounding_box()["x"] > tokens[2].bounding_box()["x"]


def test_one_task_is_shown_at_a_time_and_all_are_printed(opened):
    page, _, _ = opened(768)
    shown = "section[data-view]:visible"
    assert page.locator(shown).count() == 1
    page.get_by_role("radio", name="XNLI, label scoring").check(force=True)
    assert page.locator(shown).get_attribute("id") == "task-xnli-score"
    page.get_by_role("link", name="SIB-200, generate and match").click()
    assert page.locator(shown).get_attribute("id") == "task-sib200-generate"
    page.get_by_role("radio", name="XNLI, label scoring").check(force=True)
    page.get_by_role("link", name="SIB-200, generate and match").click()  # the same again: the hash stays
    assert page.locator(shown).get_attribute("id") == "task-sib200-generate"
    assert abs(page.locator(shown).bounding_box()["y"]) < 5
    page.emulate_media(media="print")
    assert page.locator(shown).count() == 3


def test_all_is_there_without_javascript(opened):
    page, _, _ = opened(360, java_script_enabled=False)
    assert page.locator("section[data-view]:visible").count() == 3
    assert page.locator(".views").is_hidden()


def test_a_table_sorts_by_its_numbers(opened):
    page, _, _ = opened(1440)
    table = page.locator("#table-sib200-score-languages")
    table.get_by_role("button", name="last layer").click()
    values = table.locator("tbody tr td:nth-child(6)").evaluate_all("(cells) => cells.map((c) => +c.dataset.value)")
    assert values == sorted(values, reverse=True)
    table.get_by_role("button", name="language", exact=True).press("Enter")
    table.get_by_role("button", name="language", exact=True).press("Enter")
    names = table.locator("tbody th").evaluate_all("(cells) => cells.map((c) => c.dataset.value)")
    assert names == sorted(names)
    assert table.locator("tfoot tr").count() == 2


def test_a_token_says_its_weights_when_it_is_reached_by_keys(opened):
    page, _, _ = opened(768)
    sentence = page.locator(".sentence").first
    tokens = sentence.locator(".token")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert sentence.locator(".says").inner_text() == tokens.nth(1).get_attribute("title")


def test_no_table_is_cut_in_print(opened):
    page, _, _ = opened(1040)  # about A4 on its side
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    cut = page.evaluate(
        "[...document.querySelectorAll('table')]"
        ".filter((table) => table.offsetWidth > table.parentElement.clientWidth + 1).map((table) => table.id)"
    )
    assert cut == []
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_of_one_text_renders_and_fits(opened, tmp_path, width):
    text, tokens = TEXTS["ar"]
    tokens = tuple(tokens.split("|"))
    weights = tuple(tuple((i + j) % 5 / 10 for j in range(24)) for i in range(len(tokens)))
    sentence = TokenWeights(language="ar", text=text, tokens=tokens, weights=weights)
    path = tmp_path / "text.html"
    path.write_text(render_text(sentence, range(1, 25), run="runs/x", about="transformer_softmax"), encoding="utf-8")
    page, requests, complaints = opened(width, path)
    assert page.locator("p.coloured").inner_text() == text
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(CONTRAST) == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
