"""The official weight decay term, from the roles this package gives to parameters."""

from __future__ import annotations

import golden
import jax
import numpy as np
import pytest
import recorded
import sections
from recorded import Flags

from simclr_jax.interop import official_names as official


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


def trained(params: dict, flags: Flags) -> dict:
    """Return what TensorFlow 2 trains: it counts only that (TensorFlow 1 counts all)."""
    kept = dict(params)
    if flags["train_mode"] == "pretrain" and not flags["lineareval_while_pretraining"]:
        del kept["classifier"]
    after = flags["fine_tune_after_block"]

    def block(module: str) -> int:
        return 0 if module.startswith("stem") else int(module.split("_")[0].removeprefix("group"))

    kept["encoder"] = {m: p for m, p in params["encoder"].items() if block(m) > after}
    return kept


@pytest.mark.parametrize("recording", golden.cases("weight_decay"))
def test_decay_term_is_the_official_one(recording, record_parity):
    base, arrays = recording.flags, recording.arrays

    def check(got, want, limit, precision="float32"):
        error = golden.error(got, np.float64(want))
        record_parity("weight_decay", recording.name, error, limit, precision)

    if recording.tf1:
        params = values(recording)
        got = sections.decay_term(params, base["optimizer"], base["weight_decay"])
        check(got, arrays["value"], 16 * golden.EPS32)
        check(got, arrays["value_float64"], 16 * golden.EPS64, "float64")
        return
    made: dict[tuple, dict] = {}  # few cases have another model
    for i, case in enumerate(recording.settings["cases"]):
        given = {**base, **case["flags"]}
        assert given.keys() <= recorded.DEFAULTS["tf2"].keys() | {"num_classes"}, given
        model = recording.with_settings(flags=given)
        flags = model.flags
        shown = tuple(flags[name] for name in (*recorded.NETWORK, *recorded.HEAD, *recorded.NORM))
        if shown not in made:
            made[shown] = values(model)
        present, decay = trained(made[shown], flags), flags["weight_decay"]
        got = sections.decay_term(present, flags["optimizer"], decay)
        check(got, arrays["weight_decay_term"][i], 16 * golden.EPS32)
        got = sections.decay_term(present, "any other", decay)
        check(got, arrays["without_adjust_per_optimizer"][i], 16 * golden.EPS32)
