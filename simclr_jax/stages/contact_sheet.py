"""A picture of what augmentation does, to be looked at before hours are spent on it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

GAP = 2  # pixels between tiles
TALLEST = 96  # tiles are shown no smaller than half this and no larger than it, in pixels


def contact_sheet(originals: Sequence[np.ndarray], views: np.ndarray) -> bytes:
    """Draw images and their views as a PNG: each column an image, above its views.

    Args:
      originals: `n` images, uint8 `[h, w, c]` of any sizes, c 1 or 3; shown whole.
      views: floats in [0, 1], `[v, n, h', w', c]`.
    """
    side = max(TALLEST // 2, min(TALLEST, views.shape[2]))
    rows = [[_tile(image, side) for image in originals]]
    rows += [[_tile(np.rint(view * 255), side) for view in row] for row in views]
    columns = len(originals)
    pitch = side + GAP
    sheet = Image.new("RGB", (columns * pitch + GAP, len(rows) * pitch + 2 * GAP), "white")
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            below_originals = GAP if r else 0
            sheet.paste(tile, (GAP + c * pitch, GAP + r * pitch + below_originals))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _tile(image: np.ndarray, side: int) -> Image.Image:
    image = np.broadcast_to(np.asarray(image, np.uint8), (*image.shape[:2], 3))
    tile = Image.fromarray(np.ascontiguousarray(image))
    return ImageOps.pad(tile, (side, side), Image.Resampling.BOX, color="white")
