"""The page in a real Chromium: it renders, fetches nothing, fits a phone, and its scripts are legible."""

import pytest

from layerbridge.analysis import TokenWeights
from layerbridge.reporting.page import render_text
from tests.browser import CONTRAST, FITS, TOO_WIDE, WIDTH_PLAIN_AND_COLOURED, WIDTHS, empty_boxes
from tests.reporting.sample import TEXTS


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
    assert page.evaluate(FITS)
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
    assert empty_boxes(page, "".join(sorted(set(TEXTS[code][0]) - set(" \u200d"))), code, font) == []


@pytest.mark.parametrize("code", ["si", "ta", "ar", "th", "hi"])
def test_colouring_does_not_change_how_a_text_is_shaped(opened, code):
    page, _, _ = opened(1440)
    words = page.locator(f"p.coloured[lang={code}]").first
    plain, coloured = words.evaluate(WIDTH_PLAIN_AND_COLOURED)
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
    assert page.evaluate(FITS)
    assert page.evaluate(CONTRAST) == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
