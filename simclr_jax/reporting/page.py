"""One HTML page that needs nothing but itself: no script, no request, light and dark."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from simclr_jax.reporting.style import CSS


class Html(str):
    """Markup. Any other string is text, and is escaped where it enters the page."""


def markup(value: object) -> str:
    """Return markup as it is, and anything else as escaped text."""
    return str(value) if isinstance(value, Html) else _text(value)


def _text(value: object) -> str:
    """Escape text; half characters, which names of files may have, are none in UTF-8."""
    return html.escape(str(value).encode(errors="backslashreplace").decode())


def join(parts: Iterable[object], between: str = "\n") -> Html:
    """Put parts one after another."""
    return Html(between.join(markup(part) for part in parts))


def element(tag: str, *parts: object, **attributes: object) -> Html:
    """Return `<tag ...>parts</tag>`; `class_` stands for the attribute class."""
    written = "".join(f' {name.rstrip("_")}="{_text(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{written}>{join(parts, '')}</{tag}>")


class Section(NamedTuple):
    """A part of the page under a heading."""

    title: str
    body: Html


def section(title: str, *parts: object) -> Section:
    """Put parts under a heading."""
    return Section(title, join(parts))


def page(title: str, header: object, sections: Sequence[Section]) -> str:
    """Return the whole document, with links to its sections below the header."""
    # The policy makes a browser refuse what this page must not contain: any request, any script.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
    )
    style = Html(f"<style>{CSS}</style>")
    links = [element("a", s.title, href=f"#{_anchor(s)}") for s in sections]
    body = [header, element("nav", *links)] + [
        element("section", element("h2", s.title), s.body, id=_anchor(s)) for s in sections
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{element("title", title)}{style}</head>\n'
        f"<body><main>\n{join(body)}\n</main></body></html>\n"
    )


def _anchor(section: Section) -> str:
    return "".join(c if c.isalnum() else "-" for c in section.title.lower())


def paragraph(*parts: object, kind: str = "") -> Html:
    """Return a paragraph; `kind` is a class of the style sheet, such as "note"."""
    return element("p", *parts, **({"class_": kind} if kind else {}))


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    text: int = 1,
    stacks: bool = True,
) -> Html:
    """Return a table whose first `text` columns are words and the others numbers.

    Args:
      header: of the columns; empty: there is none.
      rows: of cells.
      text: how many columns are words.
      stacks: on a phone each row is a block, with a line for each cell that begins with the header
        of its column. Else, and without a header, the table scrolls sideways there.
    """
    named = stacks and len(header) > 0

    def cells(tag: str, row: Sequence[object]) -> Html:
        found = []
        for i, cell in enumerate(row):
            attributes = {} if i < text else {"class_": "number"}
            if named and tag == "td" and i:
                attributes["data-label"] = _without_markup(header[i])
            found.append(element(tag, cell, **attributes))
        return join(found, "")

    head = element("thead", element("tr", cells("th", header))) if header else ""
    body = element("tbody", *(element("tr", cells("td", row)) for row in rows))
    return element(
        "div", element("table", head, body), class_="scroll stacks" if named else "scroll"
    )


def _without_markup(cell: object) -> str:
    return html.unescape(re.sub("<[^>]*>", "", cell)) if isinstance(cell, Html) else str(cell)


def figure(title: object, body: object, caption: object = "", legend: object = "") -> Html:
    """Return a picture between its title (and legend) and what is to be said of it."""
    parts: list[object] = [element("h3", title)] if title else []
    parts += [legend, body]
    parts += [element("figcaption", caption)] if caption else []
    return element("figure", *parts)


def grid(figures: Iterable[object], kind: str = "charts") -> Html:
    """Put figures side by side, as many as there is room for."""
    return element("div", *figures, class_=f"grid {kind}")


def details(summary: object, *parts: object) -> Html:
    """Return parts that are shown when asked for."""
    return element("details", element("summary", summary), *parts)


def picture(content: bytes, alt: str, kind: str = "") -> Html:
    """Return a PNG or JPEG within the page; `kind` is a class of the style sheet."""
    described = f'alt="{_text(alt)}" class="{kind}"' if kind else f'alt="{_text(alt)}"'
    return Html(f'<img {described} src="{picture_data(content)}">')


def picture_data(content: bytes) -> str:
    """Return a PNG or JPEG as an address that holds it."""
    form = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"
