"""The official weight decay term, from the roles this package gives to parameters.

LARS decays inside the optimiser, but for the classifiers, whose decay stands in the official loss:
what LARS here decays and does not adapt. The other official optimisers have all of it in the loss.
"""

from __future__ import annotations

from typing import Any

import golden
import jax
import numpy as np
import pytest
import sections
from flax.traverse_util import flatten_dict

from simclr_jax.interop import official_names as official
from simclr_jax.optim import masks, optimizers

DEFAULTS = {"optimizer": "lars", "weight_decay": 1e-6, "train_mode": "pretrain"}


def values(recording: golden.Recording) -> dict:
    """Fill our parameters by their official names."""
    parts = ["encoder", "head"]
    if not recording.tf1 or recording.flags["train_mode"] == "finetune":
        parts.append("classifier")
    names = sections.names(recording, *parts)
    if recording.tf1:  # the variables of the TensorFlow 2 file are those of its last case
        assert list(names) == list(recording.variables)
    shapes = jax.eval_shape(lambda key: sections.init(recording, key), jax.random.key(0))
    leaves = official.from_tree({"params": {p: shapes["params"][p] for p in parts}}, names)
    filled = {n: recording.fill(n, x.shape, n.split("/")[-1]) for n, x in leaves.items()}
    return official.to_tree(filled, names)["params"]


def term(params: dict, optimizer: str, weight_decay: float) -> float:
    """Return weight_decay / 2 times the squares of what the official loss decays."""
    if optimizer == "lars":
        roles = set(optimizers.LARS_DECAYED) - set(optimizers.LARS_ADAPTED)
    else:
        roles = set(optimizers.SGD_DECAYED)
    counted = flatten_dict(masks.mask(params, roles))
    squares = [
        np.sum(np.square(value.astype(np.float64)))
        for path, value in flatten_dict(params).items()
        if counted[path]
    ]
    return 0.5 * weight_decay * sum(squares)


def trained(params: dict, flags: dict[str, Any]) -> dict:
    """Return what TensorFlow 2 trains: it counts only that (TensorFlow 1 counts all)."""
    kept = dict(params)
    if flags["train_mode"] == "pretrain" and not flags.get("lineareval_while_pretraining", True):
        del kept["classifier"]
    after = flags.get("fine_tune_after_block", -1)

    def block(module: str) -> int:
        return 0 if module.startswith("stem") else int(module.split("_")[0].removeprefix("group"))

    kept["encoder"] = {m: p for m, p in params["encoder"].items() if block(m) > after}
    return kept


@pytest.mark.parametrize("recording", golden.cases("weight_decay"))
def test_decay_term_is_the_official_one(recording, record_parity):
    base, arrays = recording.flags, recording.arrays
    params = values(recording)

    def check(got, want, limit):
        error = golden.error(got, np.float64(want))
        record_parity("weight_decay", recording.name, error, limit)

    if recording.tf1:
        got = term(params, base["optimizer"], base["weight_decay"])
        check(got, arrays["value"], 16 * golden.EPS32)
        check(got, arrays["value_float64"], 16 * golden.EPS64)
        return
    for i, case in enumerate(recording.settings["cases"]):
        flags = DEFAULTS | base | case["flags"]
        present, decay = trained(params, flags), flags["weight_decay"]
        got = term(present, flags["optimizer"], decay)
        check(got, arrays["weight_decay_term"][i], 16 * golden.EPS32)
        got = term(present, "any other", decay)
        check(got, arrays["without_adjust_per_optimizer"][i], 16 * golden.EPS32)
