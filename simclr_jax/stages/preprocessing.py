"""What stands between an image and a frozen encoder, in evaluations and for users alike."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.augment.resize import center_box, center_crop, crop_resize, to_float
from simclr_jax.data import depth
from simclr_jax.errors import UserError

WHOLE = 32  # pixels: images for views up to here are taken whole
CANVAS = 64  # pixels: sides are padded to multiples, so that few sizes are compiled
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as the gray of the augmentation


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The evaluation view of an image.

    Attributes:
      size: side of the view, pixels.
      grid: the resize law of the run, see `augment/resize.py`; "opencv" resizes on the host.
      channels: what the encoder takes, 1 or 3.
      proportion: side of the central crop that is looked at, as a share of the image's.
      white_level: of images of more than 8 bits, see `data/depth.py`.
    """

    size: int
    grid: str
    channels: int
    proportion: float
    white_level: str = depth.FULL

    @classmethod
    def of(cls, config: Any, channels: int) -> Preprocessing:
        """Return the preprocessing of a recipe: the central 87.5 %, or all of a small image.

        The official code takes images of up to 32 pixels as they are, and whole
        (`data_util.py:preprocess_for_eval`, `test_crop`); one of another size is resized here.
        """
        size = config.data.image_size
        proportion = 0.875 if size > WHOLE else 1.0
        return cls(size, config.augment.grid, channels, proportion, config.data.white_level)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Prepare an image `[h, w]` or `[h, w, c]`, uint8, uint16 or floats in [0, 1], on the host.

        Returns:
          `[size, size, channels]`: uint8 where OpenCV resizes, else float32.

        Raises:
          UserError: if it is no image.
        """
        image = self.checked(image)
        height, width = image.shape[:2]
        if self.grid == "opencv":
            from simclr_jax.data.placements import split

            box = np.array(center_box(height, width, self.size, self.proportion))
            return split.resizer()(_as_uint8(image), box, self.size)
        crop = self._box(height, width)
        if crop is None:
            return _as_float(image)
        padded = [(0, -side % CANVAS) for side in (height, width)]
        canvas = np.pad(image, (*padded, (0, 0)))
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(_resized(canvas, crop, self.size, self.grid))

    def on_device(self, images: jax.Array) -> jax.Array:
        """Prepare a batch of one size, `[b, h, w, channels]`, as floats `[b, size, size, c]`."""
        if self.grid == "opencv" or self._box(*images.shape[1:3]) is None:
            return to_float(images)  # prepared on the host, or as it should be
        view = functools.partial(
            center_crop, size=self.size, grid=self.grid, proportion=self.proportion
        )
        return jax.vmap(view)(images)

    def checked(self, image: Any) -> np.ndarray:
        """Return an image as `[h, w, channels]`; gray becomes colour, or colour its luminance.

        Raises:
          UserError: if its shape, its dtype or its values are those of no image.
        """
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
            raise UserError(f"an image has shape {image.shape}: give [height, width, 1 or 3]")
        if image.dtype == np.uint16:
            image = self._eight_bits(image)
        if image.dtype != np.uint8:
            if not np.issubdtype(image.dtype, np.floating):
                raise UserError(
                    f"an image is {image.dtype}: give uint8, uint16, or floats in [0, 1]"
                )
            if not (image.min() >= 0 and image.max() <= 1):
                raise UserError(
                    f"an image has values from {image.min():g} to {image.max():g}: "
                    "give uint8, or floats in [0, 1] (no mean and deviation is taken off)"
                )
        return self.with_channels(image)

    def _eight_bits(self, image: np.ndarray) -> np.ndarray:
        made, found = depth.to_bytes(image, self.white_level)
        if found.dark or found.clipped:
            remarks = depth.remarks(found, self.white_level, "this one")
            warnings.warn(list(remarks.values())[-1], stacklevel=4)
        return made

    def with_channels(self, images: np.ndarray) -> np.ndarray:
        """Return images `[..., 1 or 3]` with the encoder's channels."""
        if images.shape[-1] == self.channels:
            return images
        if self.channels == 3:
            return np.repeat(images, 3, axis=-1)
        gray = images.astype(np.float64) @ np.array(LUMINANCE)
        return (np.rint(gray) if images.dtype == np.uint8 else gray).astype(images.dtype)[..., None]

    def _box(self, height: int, width: int) -> np.ndarray | None:
        """Return y, x, height and width of the crop; None: the image is its own view."""
        if self.proportion == 1 and height == width == self.size:
            return None
        return np.array(center_box(height, width, self.size, self.proportion))


@functools.partial(jax.jit, static_argnames=("size", "grid"))
def _resized(canvas: jax.Array, box: jax.Array, size: int, grid: str) -> jax.Array:
    # Weights are zero outside the box, so what pads the canvas has no part in it.
    return jnp.clip(crop_resize(to_float(canvas), box, size, grid), 0, 1)


def _as_uint8(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)


def _as_float(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        return image
    return np.multiply(image, np.float32(1 / 255), dtype=np.float32)
