"""A page as its tests look at it: elements, ids, tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

EMPTY = {"meta", "link", "br", "input", "img", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""
    """All that is in it."""
    children: list["Element"] = field(default_factory=list)

    def find(self, *tags: str) -> list["Element"]:
        found = [child for child in self.children if child.tag in tags]
        return found + [item for child in self.children for item in child.find(*tags)]


@dataclass
class Page(HTMLParser):
    text: str

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)
        self.elements: list[Element] = []
        self.unclosed: list[str] = []
        self._open = [Element("", {})]
        self.feed(self.text)
        self.unclosed += [element.tag for element in self._open[1:]]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        self._open[-1].children.append(element)
        if tag not in EMPTY:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self._open.pop()

    def handle_endtag(self, tag):
        if self._open[-1].tag == tag:
            self._open.pop()
        else:
            self.unclosed.append(tag)

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def by_id(self, name: str) -> Element:
        return next(element for element in self.elements if element.attributes.get("id") == name)

    def rows(self, table: str) -> list[list[tuple[str, str, str]]]:
        """Return a table's lines below its head: of each cell the text, the second line and the exact value."""
        lines = []
        for part in self.by_id(table).find("tbody", "tfoot"):
            for line in part.find("tr"):
                cells = []
                for cell in line.find("th", "td"):
                    small = "".join(element.text for element in cell.find("small"))
                    cells.append((cell.text.removesuffix(small), small, cell.attributes["data-value"]))
                lines.append(cells)
        return lines


def read_page(text: str) -> Page:
    return Page(text)
