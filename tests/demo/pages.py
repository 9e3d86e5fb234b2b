"""Reads a page as a reader would: its text, its pictures, and every address in it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from PIL import Image

ADDRESS_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "background", "cite", "formaction"}
CSS_ADDRESS = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]?([^'";]+)""")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]


@dataclass
class Read:
    """A parsed page.

    Attributes:
        addresses: Of every element and style sheet.
        images: Alt text and decoded picture.
    """

    text: str = ""
    styles: str = ""
    elements: list[Element] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        found = [
            value
            for element in self.elements
            for name, value in element.attributes.items()
            if name in ADDRESS_ATTRIBUTES or name.endswith(":href")
        ]
        sheets = [self.styles, *(e.attributes.get("style", "") for e in self.elements)]
        for sheet in sheets:
            found += [a or b for a, b in CSS_ADDRESS.findall(sheet)]
        return found

    @property
    def images(self) -> list[tuple[str, Image.Image]]:
        found = []
        for element in self.elements:
            if element.tag == "img":
                head, _, body = element.attributes["src"].partition(",")
                assert head == "data:image/png;base64"
                picture = Image.open(io.BytesIO(base64.b64decode(body, validate=True)))
                picture.load()
                found.append((element.attributes.get("alt", ""), picture))
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.read = Read()
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.read.elements.append(Element(tag, {name: value or "" for name, value in attrs}))
        if tag in {"style", "script"}:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.read.text += data
        elif self._inside[-1] == "style":
            self.read.styles += data


def read(html: str) -> Read:
    """Parse a page; runs of white space in its text become one space."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    reader.read.text = " ".join(reader.read.text.split())
    return reader.read
