"""The smallest recipe of every method, for tests that ask all of them the same.

A method that is added is asked too, with nothing but `COMMON`. If that is not enough for it, the
tests say so, and it gets a line in `SMALL`.
"""

from __future__ import annotations

from typing import Any

import pytest
from frame import toys
from train import tiny

from simclr_jax import declaration, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame.method import Setting
from simclr_jax.stages import pretrain

METHODS = declaration.known()
LOCAL = " with local crops"  # after the name of a method that can use them: it is asked so too
WITH_LOCAL = tuple(m + LOCAL for m in METHODS if declaration.LOCAL in declaration.find(m).views)
CASES = (*METHODS, *WITH_LOCAL)
GROUPS = 8  # of normalisation, of two images each: as many as there are devices

COMMON: dict[str, Any] = {"bn__groups": GROUPS}
SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"autoencoder__width": 8},
    "byol": {"head__hidden": 7, "byol__hidden": 6, "byol__momentum": 0.6},
    "colourisation": {"colourisation__width": 8, "colourisation__shrink": 2},
    "context_encoder": {
        "context_encoder__width": 8,
        "context_encoder__hole": 4,
        "context_encoder__overlap": 1,
    },
    "denoising_autoencoder": {"denoising_autoencoder__width": 8},
    "counting": {"head__hidden": 7, "counting__margin": 0.5},
    "exemplar": {"augment__views__first__copies": 2},
    "fnc": {"fnc__memory": 11 * tiny.BATCH, "fnc__momentum": 0.6, "fnc__top_k": 5},
    "instdisc": {"instdisc__negatives": 9, "loss__temperature": 0.3},
    "jigsaw": {
        **{"jigsaw__patch": 2, "jigsaw__jitter": 0, "jigsaw__embed": 5, "jigsaw__hidden": 7},
        **{"jigsaw__permutations": 6, "jigsaw__drawn": 3, "optim__base_lr": 0.01},
    },
    "moco": {"moco__queue": tiny.BATCH + 8, "moco__momentum": 0.6},
    "pcl": {
        "pcl__queue": tiny.BATCH + 8,
        "pcl__momentum": 0.6,
        "pcl__clusters": "22,26",  # of 48 images
        "pcl__negatives": 6,
        "pcl__warmup_epochs": 0,
        "pcl__iterations": 3,
        "pcl__starts": 2,
    },
    "relative_patch": {
        **{"relative_patch__patch": 2, "relative_patch__jitter": 0, "relative_patch__embed": 5},
        **{"relative_patch__gap": 1, "relative_patch__hidden": 7, "optim__base_lr": 0.01},
    },
    "rotation": {"optim__base_lr": 0.01},
    "simclr": {"memory__size": tiny.BATCH + 8},
    "simsiam": {"head__hidden": 7, "simsiam__hidden": 3},
}


def setting(examples: int, classes: int, batch_size: int, steps: int = 100) -> Setting:
    """Return what a method knows of a run at a constant rate of 0.1, of images with 3 channels."""
    return Setting(
        examples=examples,
        classes=classes,
        channels=3,
        batch_size=batch_size,
        total_steps=steps,
        peak_rate=0.1,
        rate=lambda step: 0.1,
        done=lambda step: step / steps,
        peak=lambda step: 0.1,
    )


def recipe(case: str, **fields):
    """Return the smallest recipe of one of `CASES`, with other `fields`; fail if it is none."""
    method, local = case.removesuffix(LOCAL), case.endswith(LOCAL)
    c = toys.recipe(method, **{**COMMON, **SMALL.get(method, {}), **fields})
    if local:
        recipes.local_crops(c, 3, size=5, area=(0.2, 0.5))
    try:
        validation.validate(c, 1)
        pretrain.check(c, tiny.timetable(c), tiny.sorted_images())
    except UserError as error:
        table = f"give it what it needs in SMALL of {__file__}"
        pytest.fail(f"the smallest recipe is none for method {method} ({error}): {table}")
    return c
