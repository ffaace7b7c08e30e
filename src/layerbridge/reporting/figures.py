"""An SVG drawing of matplotlib's, as a file of its own and as part of a page.

Text stays text and takes the reader's fonts. In a page, ids carry the figure's name, so that no two figures clash, and
ink and paper follow the page's colours, dark or light.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from layerbridge.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK, SOFT, GRID, PAPER = "#1b1e22", "#59616a", "#d9dde1", "#fefefe"
"""Colours that a page replaces by its own."""
_PAGE_COLOURS = {INK: "--ink", SOFT: "--soft", GRID: "--line", PAPER: "--paper"}

FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans Sinhala', 'Noto Sans Tamil', "
    "'Noto Sans Arabic', 'Noto Sans Thai', 'Noto Sans Devanagari', 'Noto Sans Bengali', 'Noto Sans Telugu', "
    "'Noto Sans Kannada', 'Noto Sans Malayalam', 'Noto Sans Gujarati', 'Noto Sans Gurmukhi', 'Noto Sans CJK SC', "
    "'Noto Sans CJK JP', 'Iskoola Pota', Latha, 'Nirmala UI', 'Leelawadee UI', 'Microsoft YaHei', 'DejaVu Sans', "
    "sans-serif"
)

_FONT_STYLE = f"<style>text {{ font-family: {FONTS} !important }}</style>"

WIDTH = 345.0
"""Points; about the width of a phone, so that letters are legible there."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "layerbridge",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the layout is the same everywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A drawing and what it is called."""

    key: str
    """Name of its file, and start of its ids."""
    title: str
    says: str
    """What it shows, for those who do not see it."""
    svg: str

    @property
    def inline(self) -> str:
        """The drawing as an element of a page."""
        body = self.svg[self.svg.index("<svg") :].replace(_FONT_STYLE, "")  # the page's own fonts
        body = re.sub(r"<style[^>]*>svg \*\{.*?</style>", "", body, count=1)
        body = re.sub(r'\bid="([^"]+)"', rf'id="{self.key}-\1"', body)
        body = re.sub(r'(aria-labelledby=")(title desc)"', rf'\1{self.key}-title {self.key}-desc"', body)
        body = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.key}-", body)
        for colour, name in _PAGE_COLOURS.items():
            body = body.replace(f": {colour}", f": var({name}, {colour})")
        return body


@contextmanager
def canvas(height: float, *, width: float = WIDTH) -> Iterator[tuple["Canvas", Any]]:
    """Open a drawing of so many points, with one pair of axes, in the report's style.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise ConfigError("Charts need matplotlib, which is not installed: pip install 'layerbridge[study]'") from None
    import warnings

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it only measures; the reader's fonts draw
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        drawing = Canvas(figsize=(width / 72, height / 72), layout="constrained")
        yield drawing, drawing.add_subplot()


def finish(drawing: "Canvas", *, key: str, title: str, says: str) -> Figure:
    """Return an open drawing as SVG."""
    file = io.StringIO()
    drawing.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<!--.*?-->\n?|<!DOCTYPE.*?>\n?|<metadata>.*?</metadata>\n?", "", file.getvalue(), flags=re.S)
    svg = svg.replace('<style type="text/css">*{', '<style type="text/css">svg *{')
    svg = svg.replace("'DejaVu Sans'", "sans-serif")
    # Without width and height it takes the width that there is.
    svg = re.sub(r'(<svg [^>]*?) ?\bwidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) ?\bheight="[^"]*"', r"\1", svg, count=1)
    words = f'<title id="title">{escape(clean(title))}</title><desc id="desc">{escape(clean(says))}</desc>'
    svg = re.sub(
        r"<svg ([^>]*)>",
        lambda found: f'<svg role="img" aria-labelledby="title desc" {found[1]}>\n {words}{_FONT_STYLE}',
        svg,
        count=1,
    )
    return Figure(key=key, title=title, says=says, svg=svg)


def clean(text: str) -> str:
    """Leave out what XML cannot hold: control characters, lone surrogates and the like."""
    return re.sub(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
