"""A page of thumbnails in rows: images, and those like them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from simclr_jax.reporting import page
from simclr_jax.reporting.page import Html

SIDE = 160  # pixels of a thumbnail's longer side, at most
SMALL = 64  # pixels: up to here, images are kept as they are and shown with their pixels
PNG = b"\x89PNG"
FOLDED, UNFOLDED = 240, 160  # images: with more than the first, about the second are shown at once
LONGEST = 22  # characters of a name that are shown below its image


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of a row.

    Attributes:
      name: by which a person finds it.
      caption: what is said of it, such as a similarity; a short line.
      picture: what `thumbnail` gives, or None where the image could not be read.
    """

    name: str
    caption: str
    picture: bytes | None


def sheet(
    title: str,
    about: Sequence[str],
    sections: Sequence[tuple[str, Sequence[Sequence[Cell]]]],
    listed: Sequence[str] = (),
) -> str:
    """Return the page: its title, what it is about, then sections of rows.

    Args:
      title: of the page.
      about: sentences below it.
      sections: title and rows, the first cell of a row being what the others are compared with.
      listed: lines of text at the end, for what there is no room to show.
    """
    notes = (page.paragraph(sentence, kind="note") for sentence in about)
    header = page.join((page.element("h1", title), *notes))
    parts = [page.section(name, _rows(rows)) for name, rows in sections]
    if listed:
        lines = page.element("pre", "\n".join(listed), style="overflow-x:auto")
        parts.append(page.section("And more", page.details(f"{len(listed)} pairs", lines)))
    return page.page(title, header, parts)


def thumbnail(pixels: np.ndarray, side: int = SIDE) -> bytes:
    """Shrink an image, uint8 `[h, w, 1 or 3]`, and encode it: JPEG, or PNG up to `SMALL`.

    `side` is that of the longer side at most, if the image has more than `SMALL` pixels there.
    """
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG")
    else:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _rows(rows: Sequence[Sequence[Cell]]) -> Html:
    """Put rows below each other, and those of two images side by side; many are folded away."""
    ends = np.cumsum([len(row) for row in rows])
    if len(rows) and ends[-1] > FOLDED:
        at_once = max(1, int(np.searchsorted(ends, UNFOLDED, side="right")))
        more = page.details(f"{len(rows) - at_once} more", _rows_all(rows[at_once:]))
        return page.join((_rows_all(rows[:at_once]), more))
    return _rows_all(rows)


def _rows_all(rows: Sequence[Sequence[Cell]]) -> Html:
    if all(len(row) == 2 for row in rows):
        pairs = (page.element("div", *map(_figure, row), class_="row pair") for row in rows)
        return page.element("div", *pairs, class_="pairs")
    return page.join(
        page.element(
            "div",
            _figure(first),
            page.element("div", *map(_figure, others), class_="others"),
            class_="row alike",
        )
        for first, *others in rows
    )


def _figure(cell: Cell) -> Html:
    if cell.picture is None:
        shown: object = page.element("em", "not readable")
    else:
        small = cell.picture.startswith(PNG)
        shown = page.picture(cell.picture, cell.name, "pixels" if small else "")
    text = (page.element("b", cell.caption), Html("<br>"), _shortened(cell.name))
    return page.element("figure", shown, page.element("figcaption", *text), title=cell.name)


def _shortened(name: str) -> str:
    """Leave out the middle of a long name."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
