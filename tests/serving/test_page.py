"""The page at `/` in a real Chromium: what is typed is answered, coloured, and sent to its own server alone."""

import base64
import hashlib
import re
import unicodedata

import pytest

from layerbridge.analysis import TokenWeights
from layerbridge.colour import shade
from layerbridge.coloured_text import cut
from layerbridge.config import BridgeConfig
from layerbridge.languages import language
from layerbridge.model.bridge import Bridge
from layerbridge.reporting.weights import scale
from layerbridge.serving.page import EXAMPLES, SCALE_STEPS, build_page
from tests.browser import CONTRAST, FITS, TOO_WIDE, WIDTH_PLAIN_AND_COLOURED, WIDTHS, empty_boxes
from tests.serving.running import running, wait_until

PROMPT = "News Sentence: {text} Category: "
TOPICS = ["Business", "Sports", "Science"]
SINHALA = "වැසි නිසා ක්‍රිකට් තරගය නැවතුණි"
ARABIC = "توقفت المباراة بسبب المطر"
KEY = "a-secret-key"


@pytest.fixture(scope="module")
def pair():
    """Two untrained bridges between the embedded encoder and LLM."""
    bridges = {}
    for fusion in ("transformer_softmax", "global_softmax"):
        like = next(iter(bridges.values()), None)
        bridges[fusion] = Bridge.build(BridgeConfig(fusion=fusion), device="cpu", seed=1, like=like)
        about = {"task": "tiny", "task_version": 1, "languages": ["en"]}
        bridges[fusion].trained_on = about | {"encoder_prompt": PROMPT, "answers": TOPICS}
    return bridges


@pytest.fixture(scope="module")
def two(pair):
    with running(pair) as found:
        yield found


@pytest.fixture(scope="module")
def one(pair):
    with running({"transformer_softmax": pair["transformer_softmax"]}) as found:
        yield found


@pytest.fixture
def opened(browser):
    """Open a server's page; whatever a test does, it asks that server alone and complains of nothing."""
    pages = []

    def open_page(server, width=1440, *, complains=False, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        requests, complaints = [], []
        pages.append((page, server.url, requests, [] if complains else complaints))
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(20_000)
        page.goto(server.url)
        return page

    yield open_page
    for page, url, requests, complaints in pages:
        page.close()
        assert [asked for asked in requests if not asked.startswith((f"{url}/", "data:"))] == []
        assert complaints == []


def ask(page, text, **options):
    """Type a text, ask by keys, and wait for the whole answer."""
    page.get_by_label("Text", exact=True).fill(text)
    for label, kind in options.items():
        assert kind is True
        page.get_by_role("radio", name=label.replace("_", " ")).check(force=True)
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="Answered in").wait_for()


def words(page, column=0):
    return page.locator(".column").nth(column).locator("p.coloured")


def places(page, column=0):
    return [token.bounding_box() for token in words(page, column).locator(".token").all()]


# ---------------------------------------------------------------------------------------------------------------------
# Without a browser


def test_the_policy_lets_this_script_run_and_nothing_be_fetched_from_elsewhere(one):
    response = one.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert one.raw("/", b"{}").status_code == 405
    assert one.get("/", headers={"host": "evil.example"}).status_code == 403


def test_the_page_holds_no_address_of_another_server_and_writes_no_markup():
    text = build_page(needs_key=False).body.decode()
    assert re.findall(r"(?:https?:)?//[\w.]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text) == []


def test_examples_are_of_ten_scripts_and_more():
    assert len({language(code).script for code in EXAMPLES}) >= 10
    assert {language(code).direction for code in EXAMPLES} == {"ltr", "rtl"}


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


def test_sinhala_typed_gets_an_answer_and_each_token_the_colour_of_its_layers(opened, one, pair):
    page = opened(one)
    page.get_by_label("Text", exact=True).click()
    page.keyboard.type(SINHALA)
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="Answered in").wait_for()
    bridge = pair["transformer_softmax"]
    (wanted,) = bridge.classify([bridge.render(SINHALA)], TOPICS)
    assert page.locator(".bars .label").all_inner_texts() == TOPICS
    assert page.locator(".bars .best .label").inner_text() == wanted.label
    said = [float(text.split()[0]) / 100 for text in page.locator(".bars .percent").all_inner_texts()]
    assert said == pytest.approx([wanted.probabilities[topic] for topic in TOPICS], abs=0.0051)

    assert words(page).inner_text() == SINHALA
    assert page.locator("p.prompt").all_inner_texts() == ["News Sentence:", "Category: </s>"]
    (found,) = bridge.layer_weights([bridge.render(SINHALA)])
    rows = tuple(map(tuple, found.weights.tolist()))
    pieces = cut(TokenWeights(language="si", text=found.text, tokens=found.tokens, weights=rows))
    mine = [piece for piece in pieces if piece.body and any("඀" <= letter <= "෿" for letter in piece.body)]
    means = [piece.mean_layer(found.layers) for piece in mine]
    low, high = scale(means, found.layers)
    tokens = words(page).locator(".token")
    assert tokens.all_inner_texts() == [piece.body for piece in mine]
    assert len(set(means)) > 1
    for token, mean in zip(tokens.all(), means, strict=True):
        red, green, blue = map(int, re.findall(r"\d+", token.evaluate("(e) => getComputedStyle(e).backgroundColor")))
        steps = [
            shade(round((mean - low) / (high - low) * SCALE_STEPS + off) / SCALE_STEPS) for off in (0, -0.01, 0.01)
        ]
        assert f"#{red:02x}{green:02x}{blue:02x}" in steps


def test_free_text_is_shown_while_it_is_written_and_stops_by_a_key(opened, one, endless):
    page = opened(one)
    page.get_by_label("Text", exact=True).fill(SINHALA)
    page.get_by_role("radio", name="free text").check(force=True)
    page.get_by_label("Tokens at most").fill("400")
    page.get_by_role("button", name="Ask").click()
    written = "document.querySelector('.written.writing')?.textContent.length || 0"
    wait_until(lambda: page.evaluate(written) > 5)
    length = page.evaluate(written)
    wait_until(lambda: page.evaluate(written) > length)
    assert page.get_by_role("button", name="Stop").is_enabled()
    page.keyboard.press("Escape")
    page.locator("#status", has_text="Stopped.").wait_for()
    assert page.locator(".writing").count() == 0
    assert page.get_by_role("button", name="Stop").is_disabled()
    wait_until(lambda: one.engine.num_writing == 0)


def test_free_text_is_what_the_bridge_writes(opened, two, pair):
    page = opened(two)
    ask(page, SINHALA, free_text=True)
    for number, bridge in enumerate(pair.values()):
        column = page.locator(".column").nth(number)
        (wanted,) = bridge.generate([bridge.render(SINHALA)], max_new_tokens=64)
        assert column.locator(".answer").inner_text().strip() == (wanted.strip() or "The answer is empty.")
        assert "token" in column.locator(".note").inner_text()


def test_two_runs_stand_side_by_side_or_one_below_the_other(opened, two):
    page = opened(two)
    ask(page, SINHALA)
    for width, beside in ((1440, True), (900, True), (768, False)):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (column.bounding_box() for column in page.locator(".column").all())
        assert (first["x"] + first["width"] <= second["x"]) == beside
        assert (first["y"] + first["height"] <= second["y"]) != beside
    assert page.locator(".column h2").all_inner_texts() == ["transformer_softmax", "global_softmax"]
    assert words(page, 0).inner_text() == words(page, 1).inner_text() == SINHALA
    assert "alike for all of these tokens" in page.locator(".explanation").nth(1).inner_text()
    page.get_by_label("Beside it").select_option("")
    ask(page, SINHALA)
    assert page.locator(".column").count() == 1


def test_arabic_runs_from_right_to_left_by_itself_and_anything_does_when_told(opened, one):
    page = opened(one)
    box = page.get_by_label("Text", exact=True)
    direction = "(element) => getComputedStyle(element).direction"
    ask(page, ARABIC)
    assert box.evaluate(direction) == "rtl"
    assert words(page).evaluate(direction) == "rtl"
    found = places(page)
    assert found[0]["x"] > found[-1]["x"]
    assert found[0]["x"] + found[0]["width"] == pytest.approx(
        words(page).bounding_box()["x"] + words(page).bounding_box()["width"], abs=2
    )
    ask(page, SINHALA)
    assert box.evaluate(direction) == words(page).evaluate(direction) == "ltr"
    found = places(page)
    assert found[0]["x"] < found[-1]["x"]
    page.get_by_role("radio", name="right to left").check(force=True)
    assert box.evaluate(direction) == words(page).evaluate(direction) == "rtl"
    ask(page, f"FIFA: {ARABIC}")
    assert words(page).evaluate(direction) == "rtl"


@pytest.mark.parametrize("name", ["العربية, Arabic", "اردو, Urdu"])
def test_an_example_has_its_language_and_its_direction(opened, one, name):
    page = opened(one)
    page.get_by_role("button", name=name).click()
    box = page.get_by_label("Text", exact=True)
    first = box.input_value()
    assert unicodedata.bidirectional(first[0]) == "AL"
    page.keyboard.press("Enter")  # the button has the focus still
    assert box.input_value() not in ("", first)
    code = box.get_attribute("lang")
    ask(page, box.input_value())
    assert code in EXAMPLES
    page.get_by_role("button", name=name).click()
    page.keyboard.press("Control+Enter")
    page.locator(f"p.coloured[lang={code}]").wait_for()


def test_a_token_says_its_weights_when_it_is_reached_by_keys(opened, one):
    page = opened(one)
    ask(page, SINHALA)
    tokens = page.locator(".texts [tabindex]")
    own = words(page).locator(".token")
    own.first.click()
    for key, wanted in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert own.nth(wanted).evaluate("(element) => element === document.activeElement")
        said = page.locator(".says").text_content()
        assert own.nth(wanted).inner_text() in said
        weights = [float(found) for found in re.findall(r"\d+: ([\d.]+) %", said)]
        assert sum(weights) == pytest.approx(100, abs=3)
    assert page.locator(".texts [tabindex='0']").count() == 1, "one stop for Tab, arrows within"
    page.keyboard.press("Home")
    assert tokens.first.evaluate("(element) => element === document.activeElement")
    shown = page.locator(".weights .value").all_inner_texts()
    assert sum(map(float, shown)) == pytest.approx(100, abs=len(shown))
    ask(page, ARABIC)
    own.first.click()
    page.keyboard.press("ArrowLeft")
    assert own.nth(1).evaluate("(element) => element === document.activeElement"), "to the left is on, in Arabic"


def test_every_control_has_a_name_and_is_reached_by_tab_and_seen_then(opened, two):
    page = opened(two)
    ask(page, SINHALA)
    kinds = ("button", "select", "textarea", "input:checked", "input:not([type=radio])", "[tabindex='0']")
    controls = page.locator(", ".join(f"{kind}:visible:enabled" for kind in kinds))
    html = "(element) => element.outerHTML"
    wanted = {control.evaluate(html) for control in controls.all()}
    assert len(wanted) > 20
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(len(wanted) + 3):
        page.keyboard.press("Tab")
        now = page.locator(":focus")
        if not now.count():
            continue  # the browser's own bar, after the last
        reached.add(now.evaluate(html))
        seen = now.locator("xpath=..") if now.get_attribute("type") == "radio" else now
        assert seen.evaluate("(element) => getComputedStyle(element).outlineStyle") != "none"
    assert wanted - reached == set()
    for control in page.locator("input:visible, select:visible, textarea:visible").all():
        assert control.evaluate("(element) => element.labels.length") == 1


def test_labels_are_added_removed_and_put_back_by_keys(opened, one):
    page = opened(one)
    page.get_by_label("Labels", exact=True).focus()
    page.keyboard.type("කාලගුණය")
    page.keyboard.press("Enter")
    assert page.locator("#labels bdi").all_inner_texts() == [*TOPICS, "කාලගුණය"]
    page.get_by_role("button", name="Remove Business").press("Enter")
    ask(page, SINHALA)
    assert page.locator(".bars .label").all_inner_texts() == ["Sports", "Science", "කාලගුණය"]
    page.get_by_role("button", name="The run's own").click()
    assert page.locator("#labels bdi").all_inner_texts() == TOPICS
    page.get_by_label("Labels", exact=True).focus()
    for _ in TOPICS:
        page.keyboard.press("Backspace")
    page.keyboard.press("Control+Enter")
    page.get_by_role("alert").filter(has_text="There are no labels to choose from").wait_for()


def test_markup_in_a_text_or_a_label_is_shown_as_it_is(opened, two):
    page = opened(two)
    text = '<img src=x onerror=alert(1)> </script><b>"&amp;'
    page.get_by_label("Labels", exact=True).fill("<i>x</i>")
    ask(page, text)
    assert words(page).inner_text() == text
    assert "<i>x</i>" in page.locator(".bars .label").all_inner_texts()
    assert page.locator("img, b, i").count() == 0


def test_what_goes_wrong_is_told_in_words(opened, one):
    page = opened(one, complains=True)  # Chromium itself logs each response that is no success
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="There is no text in “Text”").wait_for()
    page.get_by_label("Text", exact=True).fill("වැසි " * 2000)
    page.keyboard.press("Control+Enter")
    page.locator(".column [role=alert]", has_text="encoder tokens; at most 512 are taken").wait_for()
    page.locator("#stop:disabled").wait_for()  # once the asking has ended, a moment after its failure is told
    page.route("**/v1/*", lambda route: route.abort())
    page.get_by_label("Text", exact=True).fill(SINHALA)
    page.keyboard.press("Control+Enter")
    page.locator(".column [role=alert]", has_text="The server cannot be reached").wait_for()


def test_the_key_is_asked_for_in_the_page_and_kept_in_the_tab_alone(opened, pair):
    with running(pair, api_key=KEY) as server:
        assert KEY not in server.get("/").text
        page = opened(server, complains=True)  # of the wrong key
        box = page.get_by_label("This server asks for its API key")
        box.fill("another-key")
        page.keyboard.press("Enter")
        page.get_by_role("alert").filter(has_text="not the server's key").wait_for()
        assert page.locator("#ask").is_hidden()
        box.fill(KEY)
        page.keyboard.press("Enter")
        ask(page, SINHALA)
        assert page.locator(".bars").count() == 2
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[KEY], 0, ""]
        page.reload()
        ask(page, SINHALA)
        page.get_by_role("button", name="Forget the API key").click()
        assert box.is_visible()
        assert page.evaluate("sessionStorage.length") == 0
        clean = opened(server)
        assert clean.get_by_label("This server asks for its API key").is_visible()


def test_each_field_of_a_runs_prompt_has_an_input_of_its_own(opened, served, bridges):
    page = opened(served)
    page.get_by_label("Model").select_option("pair")
    assert page.get_by_label("Beside it").input_value() == "topic", "two runs change places; one is not asked twice"
    page.get_by_label("Beside it").select_option("")
    page.get_by_label("Premise").fill("the cat sat")
    page.get_by_label("Hypothesis").fill("on the mat")
    page.get_by_role("radio", name="free text").check(force=True)
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="Answered in").wait_for()
    bridge = bridges["pair"]
    source = bridge.render({"premise": "the cat sat", "hypothesis": "on the mat"})
    (wanted,) = bridge.generate([source], max_new_tokens=64)
    assert page.locator(".answer").inner_text().strip() == (wanted.strip() or "The answer is empty.")
    assert words(page).all_inner_texts() == ["the cat sat", "on the mat"]
    assert [text.strip() for text in page.locator("p.prompt").all_inner_texts()][:2] == ["Premise:", "Hypothesis:"]
    page.get_by_label("Beside it").select_option("plain")
    assert page.locator("#fields label").all_inner_texts() == ["Premise", "Hypothesis", "Text"]


@pytest.mark.parametrize("kind", ["labels", "free_text"])
def test_every_text_has_a_contrast_of_four_and_a_half(opened, two, kind):
    page = opened(two)
    ask(page, SINHALA, **{kind: True})
    words(page).locator(".token").first.click()
    for scheme, paper in (("light", "rgb(254, 254, 254)"), ("dark", "rgb(22, 24, 27)")):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert page.evaluate(CONTRAST) == []


def test_the_page_fits_whatever_is_typed(opened, two):
    page = opened(two)
    for text in ("", SINHALA, ARABIC, "Donaudampfschifffahrtsgesellschaft" * 6, "天气" * 80):
        if text:
            page.get_by_label("Labels", exact=True).fill("long " * 30)
            ask(page, text)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(FITS)
            assert page.evaluate(TOO_WIDE) == []


def test_colouring_does_not_change_how_a_text_is_shaped(opened, one):
    page = opened(one)
    for code in ("si", "ta", "ar", "th", "hi"):
        page.get_by_role("button", name=EXAMPLES[code]).click()
        page.keyboard.press("Control+Enter")
        page.locator(f"p.coloured[lang={code}]").wait_for()
        assert words(page).locator(".token").count() > 3
        plain, coloured = words(page).evaluate(WIDTH_PLAIN_AND_COLOURED)
        assert coloured == pytest.approx(plain, abs=1.0), code


def test_every_letter_of_the_examples_is_drawn_and_is_no_empty_box(opened, one):
    page = opened(one)
    font = f"24px {page.evaluate('getComputedStyle(document.body).fontFamily')}"
    for code in EXAMPLES:
        page.get_by_role("button", name=EXAMPLES[code]).click()
        letters = set(page.get_by_label("Text", exact=True).input_value()) - set(" \u200c\u200d")
        assert empty_boxes(page, "".join(sorted(letters)), code, font) == []
