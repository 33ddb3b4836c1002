"""What a run takes over from another: each leaf its own, each inherited field and no other."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from stages import taught
from train import tiny

from simclr_jax import documents, recipes
from simclr_jax.reporting.record import flatten
from simclr_jax.stages.inherit import inherit, pin
from simclr_jax.stages.warm_start import load_parts
from simclr_jax.train import manifest
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState


def numbered(state, offset):
    """Return a state every leaf of which says which one it is, and every place in it."""
    named = manifest.named_leaves(state)
    leaves = [
        (offset + 10 * i + np.linspace(0, 1, max(1, leaf.size)).reshape(leaf.shape)).astype(
            leaf.dtype
        )
        for i, leaf in enumerate(named.values())
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


@pytest.fixture(scope="module")
def state():
    return jax.device_get(tiny.make_stage(tiny.recipe(), 1)[0].init())


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step in (3, 6):
        checkpoints.save(step, numbered(state, 10_000 * step))
    checkpoints.close()
    documents.write(workdir / "config.json", tiny.recipe().to_dict())
    return workdir


@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("parts", ["encoder", "head", "encoder,head", "probe,encoder"])
def test_each_leaf_is_that_of_its_own_name_statistics_too(run, state, step, parts):
    """Mean and variance, scale and bias have one shape: only their values tell them apart."""
    init = ConfigDict({"run": f"{run}@{step}", "parts": parts})
    here = tiny.make_stage(tiny.recipe(seed=3), 1)[0].init()
    found = manifest.named_leaves(load_parts(init, here))
    there = manifest.named_leaves(numbered(state, 10_000 * step))
    before, taken = manifest.named_leaves(here), 0
    for name, leaf in found.items():
        kind, _, rest = name.partition("/")
        part = rest.split("/")[0]
        mine = kind in ("params", "batch_stats") and part in parts.split(",")
        taken += mine
        np.testing.assert_array_equal(leaf, (there if mine else before)[name], err_msg=name)
    assert taken == sum(
        name.startswith(
            tuple(f"{k}/{p}/" for k in ("params", "batch_stats") for p in parts.split(","))
        )
        for name in found
    )
    assert int(found["step"]) == 0


def test_a_probe_becomes_the_classifier_and_a_classifier_the_probe(run, state, tmp_path):
    """Kernel and bias each its own, on the layer it was taught on."""
    init = ConfigDict({"run": str(run), "parts": "encoder,classifier"})
    here = taught.initial_state()
    there = manifest.named_leaves(numbered(state, 60_000))
    found = manifest.named_leaves(load_parts(init, here, tap=0))
    for leaf in ("kernel", "bias"):
        want = there[f"params/probe/dense/{leaf}"]
        np.testing.assert_array_equal(found[f"params/classifier/dense/{leaf}"], want)

    tuned = numbered(jax.device_get(here), 1000)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(9, TrainState(np.int32(9), tuned.params, tuned.batch_stats, {}))
    checkpoints.close()
    documents.write(tmp_path / "config.json", taught.recipe().to_dict())
    init = ConfigDict({"run": str(tmp_path), "parts": "probe"})
    pretrained = tiny.make_stage(tiny.recipe(), 1)[0].init()
    found, before = (manifest.named_leaves(s) for s in (load_parts(init, pretrained), pretrained))
    there = manifest.named_leaves(tuned)
    for name, leaf in found.items():
        own = name.replace("params/probe/", "params/classifier/")
        want = there[own] if name.startswith("params/probe/") else before[name]
        np.testing.assert_array_equal(leaf, want, err_msg=name)


# Fields -------------------------------------------------------------------------------------------

OTHER = {  # in the other run, unlike any default
    "data.source": "memory",
    "data.path": "there.npz",
    "data.split": "some",
    "data.eval_split": "others",
    "data.holdout_fraction": 0.3,
    "data.image_size": 24,
    "data.labels": False,
    "data.max_bad_fraction": 0.07,
    "data.white_level": "range",
    "bn.epsilon": 0.02,
    "bn.momentum": 0.77,
    "bn.groups": 4,
    "head.kind": "mlp",
    "head.layers": 4,
    "head.hidden": 48,
    "head.dim": 12,
    "head.bias": "all",
    "head.norm": "all",
    "model.depth": 34,
    "model.width": 0.5,
    "model.stem": "cifar",
    "model.sk_ratio": 0.125,
    "model.se_ratio": 0.25,
    "model.variant": "torchvision",
    "model.input": "standardised",
    "augment.placement": "host",
    "augment.grid": "antialias",
    "augment.crop_law": "area",
    "augment.brightness_mode": "add",
    "augment.sigma_per": "batch",
    "seed": 5,
    "train.batch_size": 48,
    "train.dtype": "bfloat16",
    "optim.base_lr": 0.123,
    "eval.knn_k": 9,
    "labels.seed": 6,
    "finetune.tap": 1,
    "loss.temperature": 0.77,
}
CROP = {
    "crop": False,
    "area_min": 0.21,
    "area_max": 0.91,
    "min_object_covered": 0.15,
    "aspect_min": 0.6,
    "aspect_max": 1.7,
    "flip": 0.25,
}
INHERITED = {
    "data.image_size",
    "data.white_level",
    "bn.epsilon",
    *(f"head.{field}" for field in ("kind", "layers", "hidden", "dim", "bias", "norm")),
    *(
        f"model.{field}"
        for field in ("depth", "width", "stem", "sk_ratio", "se_ratio", "variant", "input")
    ),
    "augment.placement",
    "augment.grid",
    "augment.crop_law",
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("other")
    c = recipes.base()
    with c.unlocked():
        for name, value in OTHER.items():
            recipes.put(c, name, value)
        c.augment.views.first.update(CROP | {"jitter": 0.11, "strength": 0.3, "copies": 2})
        c.augment.views.second.update({"area_min": 0.5, "flip": 0.9})
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(7, {"step": np.int32(7)})
    checkpoints.close()
    documents.write(workdir / "config.json", c.to_dict())
    return workdir


@pytest.mark.parametrize("stage, pointer", [("finetune", "init"), ("distill", "distill")])
def test_each_field_that_is_inherited_and_no_other_is_that_of_the_run(other, stage, pointer):
    c = importlib.import_module(f"configs.{stage}").get_config()
    with c.unlocked():
        c[pointer]["run" if pointer == "init" else "teacher"] = str(other)
    before, after = flatten(c.to_dict()), flatten(inherit(c)[0].to_dict())
    there = {name: value for name, value in OTHER.items() if name.startswith("data.")}
    want = before | there | {name: OTHER[name] for name in INHERITED} | {"data.labels": True}
    (view,) = c.augment.views
    want |= {f"augment.views.{view}.{field}": value for field, value in CROP.items()}
    assert after == want
    for name in set(OTHER) - INHERITED - set(there):
        assert after[name] != OTHER[name], name


def test_a_field_of_the_images_that_was_changed_here_stays(other):
    c = importlib.import_module("configs.finetune").get_config()
    with c.unlocked():
        c.init.run, c.data.eval_split, c.data.threads = str(other), "mine", 2
    data = inherit(c)[0].data
    assert (data.eval_split, data.threads) == ("mine", 2)
    assert (data.split, data.holdout_fraction, data.path) == ("some", 0.3, "there.npz")


def test_both_the_start_and_the_teacher_are_pinned(other, run):
    c = importlib.import_module("configs.distill").get_config()
    with c.unlocked():
        c.init.run, c.distill.teacher = str(run), str(other)
    pin(c, None)
    assert (c.init.run, c.distill.teacher) == (f"{run}@6", f"{other}@7")
    c = importlib.import_module("configs.finetune").get_config()
    with c.unlocked():
        c.init.run, c.distill.teacher = f"{run}@3", str(other)
    pin(c, None)
    assert (c.init.run, c.distill.teacher) == (f"{run}@3", str(other))
