"""A picture of what augmentation does, to be looked at before hours are spent on it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 2  # pixels between tiles; twice that between groups of them
TEXT = 11  # pixels, of answers
TALLEST = 96  # the largest views are shown no smaller than half this and no larger than it


def contact_sheet(
    originals: Sequence[np.ndarray], views: Mapping[str, np.ndarray], answers: Sequence[str] = ()
) -> bytes:
    """Draw images and their views as a PNG: each column an image, above its views.

    Groups of views follow one another from the largest views to the smallest. Smaller views are
    shown to scale, but not shrunk to less than half the side of the largest, and stand beside one
    another where there is room. A group that is no picture, for it has neither 1 nor 3 channels,
    is left out; where none is one, the images stand alone.

    Args:
      originals: `n` images, uint8 `[h, w, c]` of any sizes, c 1 or 3; shown whole.
      views: of each group floats, `[n, v, h', w', c]`; what is outside [0, 1] is clipped.
      answers: a text for each image, below its views; or none.
    """
    pictures = [group for group in views.values() if group.shape[-1] in (1, 3)]
    ordered = sorted(pictures, key=_size, reverse=True)
    largest = _size(ordered[0]) if ordered else max(max(image.shape[:2]) for image in originals)
    side = max(TALLEST // 2, min(TALLEST, largest))
    blocks = [([[image] for image in originals], side, 1)]
    for group in ordered:
        tile = max(round(_size(group) * side / largest), min(_size(group), side // 2))
        pixels = np.rint(np.clip(group, 0, 1) * 255).astype(np.uint8)
        blocks.append(([list(some) for some in pixels], tile, side // tile))

    width = max(_length(abreast, tile) for _, tile, abreast in blocks)
    apart = 4 * GAP if any(abreast > 1 for _, _, abreast in blocks) else GAP  # columns
    rows = [-(-len(columns[0]) // abreast) for columns, _, abreast in blocks]
    heights = [_length(count, tile) for count, (_, tile, _) in zip(rows, blocks, strict=True)]
    total = sum(heights) + 2 * GAP * len(blocks)
    texts, needed = _written(answers, width)
    sheet = Image.new(
        "RGB", (len(originals) * (width + apart) - apart + 2 * GAP, total + needed), "white"
    )
    top = GAP
    for (columns, tile, abreast), height in zip(blocks, heights, strict=True):
        for c, images in enumerate(columns):
            for i, image in enumerate(images):
                row, place = divmod(i, abreast)
                left = GAP + c * (width + apart) + place * (tile + GAP)
                sheet.paste(_tile(image, tile), (left, top + row * (tile + GAP)))
        top += height + 2 * GAP
    pen = ImageDraw.Draw(sheet)
    for c, text in enumerate(texts):
        corner = (GAP + c * (width + apart), total)
        pen.multiline_text(corner, text, "black", _font(), spacing=2)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _written(answers: Sequence[str], width: int) -> tuple[list[str], int]:
    """Return answers in lines of at most `width` pixels where words allow, and the room they take.

    No answer takes no room.
    """
    font, texts = _font(), []
    for answer in answers:
        lines = [""]
        for word in answer.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        texts.append("\n".join(lines))
    most = max((text.count("\n") + 1 for text in texts), default=0)
    return texts, most * (TEXT + 4) + (GAP if most else 0)


def _size(views: np.ndarray) -> int:
    """Return the longer side of views `[n, v, h, w, c]`, pixels."""
    return max(views.shape[2:4])


def _length(count: int, tile: int) -> int:
    """Return what so many tiles take in a row, with the gaps between them."""
    return count * (tile + GAP) - GAP


def _tile(image: np.ndarray, side: int) -> Image.Image:
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    tile = Image.fromarray(np.ascontiguousarray(image))
    return ImageOps.pad(tile, (side, side), Image.Resampling.BOX, color="white")
