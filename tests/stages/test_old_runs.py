"""Runs written before methods had files of their own: their recipes and checkpoints are still read.

A checkpoint is found by the names of its leaves. Those below were written by the code before.
"""

from __future__ import annotations

import jax
from stages import taught
from train import tiny

from simclr_jax import recipes, records
from simclr_jax.train import manifest

AVERAGED = (
    "params/encoder/stem_conv/conv/kernel",
    "params/encoder/stem_bn/scale",
    "params/head/dense1/kernel",
    "batch_stats/encoder/stem_bn/mean",
)
OF_SIMCLR = {
    "step",
    *AVERAGED,
    *(f"extra/average/{name}" for name in AVERAGED),
    "extra/queue/example",
    "extra/queue/z",
    "params/probe/dense/kernel",
    "opt_state/2/count",
    "opt_state/3/trace/encoder/stem_bn/bias",
    "opt_state/3/trace/probe/dense/bias",
}
MOVING = "opt_state/inner_states/True/inner_state"
OF_FINE_TUNING = {
    "step",
    "params/classifier/dense/kernel",
    f"{MOVING}/2/count",
    f"{MOVING}/3/trace/classifier/dense/kernel",
    f"{MOVING}/3/trace/encoder/stem_conv/conv/kernel",
    f"{MOVING}/3/trace/head/dense1/kernel",
}


def names(stage):
    return set(manifest.named_leaves(jax.eval_shape(stage.init)))


def test_pretraining_with_a_memory_has_the_leaves_it_had():
    found = names(tiny.make_stage(tiny.recipe(memory__size=32), 1)[0])
    assert found >= OF_SIMCLR
    # Parameters, their momentum and their average (of the probe there is none); statistics twice.
    counted = {kind: sum(name.startswith(kind) for name in found) for kind in ("params", "batch")}
    probe = sum(name.startswith("params/probe") for name in found)
    assert len(found) == 3 * counted["params"] - probe + 2 * counted["batch"] + len(
        ["step", "count", "queue/example", "queue/z"]
    )


def test_fine_tuning_from_a_layer_of_the_head_has_the_leaves_it_had():
    assert names(taught.make_stage(taught.recipe(finetune__tap=1))[0]) >= OF_FINE_TUNING


def test_a_recipe_without_the_newer_fields_is_that_of_simclr():
    c = recipes.base()
    record = c.to_dict()
    del record["method"], record["model"]["input"]
    for field in ("hidden", "bias", "norm"):
        del record["head"][field]
    for view in record["augment"]["views"].values():
        for field in ("solarize", "grayscale_first", "copies", "size", "group"):
            del view[field]
    del record["optim"]["rate_after_momentum"], record["bn"]["groups"]
    record["bn"]["sync"] = True
    assert records.recipe(record).to_dict() == c.to_dict()
