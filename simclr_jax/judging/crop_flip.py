"""Crops and flips of labelled images, new in each epoch: what the papers train their probes on."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from simclr_jax import recipes
from simclr_jax.data.placements import Request
from simclr_jax.data.sources import Images, Source
from simclr_jax.judging.datasets import check_one_label
from simclr_jax.stages.encoder import Encoder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.views import view_maker

CROPS = "a probe on crops and flips"


class Views:
    """Features of new crops and flips of labelled images, in a random order without end.

    Args:
      encoder: makes the features; its recipe has the placement that makes the views, and the grid.
        Crop and flip are SimCLR's, whatever the run was trained by.
      source: of the images, each with one label.
      seed: of order and crops.

    Attributes:
      protocol: what decides the views, in words.
    """

    def __init__(self, encoder: Encoder, source: Source, seed: int):
        check_one_label(source, CROPS)
        c = recipes.copied(encoder.config)
        recipes.usual_crop_and_flip(c)
        c.seed = seed
        if c.augment.placement == "device" and not isinstance(source, Images):
            # Images of any sizes: the host has to crop them, on the grid that it has.
            c.augment.placement, c.augment.grid = "split", "opencv"
        self._encoder, self._inputs = encoder, Inputs(c, source, source)
        (view,), a = c.augment.views.values(), c.augment
        law = "" if a.crop_law == "height" else f", crop law {a.crop_law}"
        self.protocol = {
            "views": "crop and flip, new in each epoch",
            "crop": f"area {view.area_min:g} to {view.area_max:g} of the image",
            "flip": f"{view.flip:.0%} of the images",
            "made by": f"placement {a.placement}, grid {a.grid}{law}",
        }
        self._view = jax.jit(view_maker(c))

    def features(
        self, tap: str, batch_size: int, steps: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features `[b, d]` at a tap and labels `[b]` of `steps` batches."""
        starts = range(0, steps * batch_size, batch_size)
        requests = (Request(start + np.arange(batch_size), start) for start in starts)
        for batch in self._inputs.stream(requests):
            labels = batch.pop("label")
            views = np.asarray(self._view(batch)["views"][:, 0], np.float32)  # [b, h, w, c]
            views = self._encoder.preprocessing.with_channels(views)
            found = self._encoder.extract(views, (tap,), batch_size, prepared=True)
            yield found[tap], np.asarray(labels)
