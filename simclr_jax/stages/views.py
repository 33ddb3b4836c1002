"""The views of each image, made on the device from what the placement sends there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import files, processes
from simclr_jax.augment.draws import draw_views
from simclr_jax.augment.on_device import augment, augment_from_canvas, to_float
from simclr_jax.stages import build
from simclr_jax.stages.contact_sheet import contact_sheet
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.stage import Batch, Seen, Stage, TrainState, views_alone
from simclr_jax.train.workdir import Workdir

SHOWN = 12  # images on the contact sheet
PAINTED = "reconstructions.png"

Views = dict[str, jax.Array]  # by the name of their group, `[n, v, h, w, c]`


def view_maker(config: ConfigDict) -> Callable[[Batch], Views]:
    """Return the function from a batch to its views, in the compute dtype, by group.

    What is random about a view is decided by `augment.draws.draw_views`, wherever it is made.
    """
    groups = build.policies(config)
    cropped = {
        group: tuple(dataclasses.replace(policy, crop=False) for policy in policies)
        for group, policies in groups.items()
    }
    dtype = jnp.dtype(config.train.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)  # what a step computes in says nothing of views
    shared_sigma = config.augment.sigma_per == "batch"

    def from_image(image, position, start):  # [h, w, c], [2], [2]
        image, size = to_float(image).astype(wide), image.shape[:2]
        drawn = draw_views(groups, config.seed, position, start, *size, shared_sigma=shared_sigma)
        return {
            group: [augment(image, *view) for view in zip(drawn[group], policies, strict=True)]
            for group, policies in groups.items()
        }

    def from_canvas(batch, position, start):  # [s, s, c] and [2], [2], [2]
        canvas, (height, width) = batch["canvas"], batch["size"]
        drawn = draw_views(
            groups, config.seed, position, start, height, width, shared_sigma=shared_sigma
        )
        if wide != jnp.float32:
            canvas = canvas.astype(wide)
        return {
            group: augment_from_canvas(canvas, drawn[group], policies)
            for group, policies in groups.items()
        }

    def from_crops(crops, position, start):  # {group: [v, h, w, c]}, cut and resized by the host
        # No box is read of these draws, so that they may be of any size.
        drawn = draw_views(cropped, config.seed, position, start, 1, 1, shared_sigma=shared_sigma)
        return {
            group: [
                augment(*view)
                for view in zip(
                    to_float(crops[group]).astype(wide), drawn[group], policies, strict=True
                )
            ]
            for group, policies in cropped.items()
        }

    def views(batch: Batch) -> Views:
        ready = _of_kind(batch, "views")
        if ready:
            return {group: made.astype(dtype) for group, made in ready.items()}
        make: Callable
        source: Any
        if "canvas" in batch:
            make, source = from_canvas, {name: batch[name] for name in ("canvas", "size")}
        elif crops := _of_kind(batch, "crops"):
            make, source = from_crops, crops
        else:
            make, source = from_image, batch["image"]
        made = jax.vmap(make)(source, batch["position"], batch["start"])
        # Stacked view-major, as networks take them: the two turns then cancel when compiled.
        return {
            group: jnp.moveaxis(jnp.stack(some).astype(dtype), 0, 1) for group, some in made.items()
        }

    return views


def _of_kind(batch: Batch, kind: str) -> Views:
    """Return the arrays `KIND/GROUP` of a batch by their group."""
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}


def pair(views: Mapping[str, jax.Array]) -> list[jax.Array]:
    """Return two views of each image, `[n, h, w, c]` each: the largest that there are two of.

    One alone, if no group has two.
    """
    several = [made for made in views.values() if made.shape[1] > 1] or list(views.values())
    largest = max(several, key=lambda made: made.shape[2])
    return [largest[:, view] for view in range(min(2, largest.shape[1]))]


def draw(
    inputs: Inputs,
    workdir: Workdir,
    look: Callable[[Batch], Mapping[str, jax.Array]],
    show: Callable[[Mapping[str, jax.Array], Batch], Seen] = views_alone,
) -> None:
    """Draw the views of the first images of the run, once, to be looked at.

    Those that are no pictures, such as two channels of a colour space, are left out.

    Args:
      inputs: of the run.
      workdir: where the picture is written, as `views.png`, and whose loggers show it.
      look: from a batch to what the network looks at, see `train.stage.Stage`.
      show: what people are shown of that, likewise.
    """
    path = workdir.path / "views.png"
    if path.exists() and not workdir.fresh:
        return
    batch = inputs.first(SHOWN)
    seen = show(jax.jit(look)(batch), batch)
    shown = {group: np.asarray(some, np.float32) for group, some in seen.pictures.items()}
    sheet = contact_sheet(inputs.originals(SHOWN), shown, seen.answers)
    files.write_atomically(path, sheet)
    if workdir.fresh:
        workdir.loggers.picture("views", sheet)


def painted(stage: Stage, inputs: Inputs, workdir: Workdir) -> Stage:
    """Return a stage that draws what its network makes of held-out images at every evaluation.

    The picture is `reconstructions.png`; that of a later evaluation takes its place. A stage that
    makes no pictures is returned as it is.

    Args:
      stage: of the run.
      inputs: its images.
      workdir: where the picture is written.
    """
    if stage.paint is None or processes.rank() > 0:
        return stage
    paint = jax.jit(stage.paint)

    def evaluate(state: TrainState) -> dict[str, float]:
        made = paint(jax.device_get(state.variables), inputs.held_out(SHOWN))
        first, *others = (np.asarray(picture, np.float32) for picture in made.values())
        top = list(np.rint(np.clip(first, 0, 1) * 255).astype(np.uint8))
        below = {str(row): picture[:, None] for row, picture in enumerate(others)}
        files.write_atomically(workdir.path / PAINTED, contact_sheet(top, below))
        return stage.evaluate(state)

    return dataclasses.replace(stage, evaluate=evaluate)
