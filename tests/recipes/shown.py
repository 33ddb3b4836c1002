"""Views as a run draws them, of a recipe whose views do nothing but what is asked of them."""

from __future__ import annotations

import functools

import jax
import numpy as np

from simclr_jax import recipes, validation
from simclr_jax.data.sources import Images
from simclr_jax.stages.inputs import Inputs
from simclr_jax.stages.views import view_maker

COUNT, SIDE = 64, 24
OFF = {"crop": False, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}
VIEWS = ("first", "second")

_random = np.random.default_rng(0)
# No value so near black or white that a jitter of 0.3 would be clipped.
NOISE = _random.integers(90, 166, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
# Row and column are written into red and green.
RAMP = np.zeros((COUNT, 40, 40, 3), np.uint8)
RAMP[..., 0], RAMP[..., 1] = 6 * np.arange(40)[:, None], 6 * np.arange(40)
DOT = np.zeros((COUNT, 40, 40, 3), np.uint8)
DOT[:, 20, 20] = 255


def recipe(**fields):
    """Return the recipe; `second__flip` is a field of a view, `augment__grid` any other."""
    c = recipes.base()
    c.data.image_size, c.train.batch_size = SIDE, 16
    for view in c.augment.views.values():
        view.update(OFF)
    for name, value in fields.items():
        group, _, field = name.partition("__")
        name = f"augment.views.{group}.{field}" if group in VIEWS else f"{group}.{field}"
        recipes.put(c, name, value)
    return c


@functools.cache
def groups(pixels="noise", count=COUNT, **fields):
    """Return the views by group, `[n, v, h, w, c]`, and the images they are of, in [0, 1]."""
    c = recipe(**fields)
    of = {"noise": NOISE, "ramp": RAMP, "dot": DOT}[pixels]
    source = Images(of, None, 0)
    batch = Inputs(c, source, source).first(count)
    made = jax.jit(view_maker(c))(batch)
    return {name: np.asarray(x) for name, x in made.items()}, batch["image"] / np.float64(255)


def views(**fields):
    """Return first views, second views and the images, `[n, h, w, c]` each, of a valid recipe."""
    validation.validate(
        recipe(**{k: v for k, v in fields.items() if k not in ("pixels", "count")}), 1
    )
    made, images = groups(**fields)
    return made["views"][:, 0], made["views"][:, 1], images


def apart(view, mine, theirs=None, **common):
    """Return the views of the policy with the fields `mine`, and the images.

    The other policy has the fields `theirs`. What each does to its pixels alone is looked at in
    turn; so the fields of one policy cannot be those of both.
    """
    other = VIEWS[1 - VIEWS.index(view)]
    fields = {
        f"{name}__{k}": v
        for name, of in ((view, mine), (other, theirs or {}))
        for k, v in of.items()
    }
    first, second, images = views(**dict(sorted(fields.items())), **common)
    return (first if view == "first" else second), images


def beside(view, name, names):
    """Return the name that the other view has: by turns, so that two tests share a program."""
    names = list(names)
    step = 1 if view == "first" else -1
    return names[(names.index(name) + step) % len(names)]
