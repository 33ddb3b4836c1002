"""Fine-tuning: what learns and what does not, from which layer, on which labels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import taught, written
from train import tiny

import simclr_jax
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.losses.cross_entropy import cross_entropy
from simclr_jax.stages import labels
from simclr_jax.stages.labelled_network import LabelledNetwork
from simclr_jax.train import manifest, saved

DEVICES = 8
EXACT = 1e-10  # float64, relative to the largest number of an array, after three updates


def test_a_zero_classifier_is_zero():
    """At step 0 it knows nothing: equal logits, a loss of exactly ln(classes)."""
    images = np.random.default_rng(0).random((5, 8, 8, 3)).astype(np.float32)
    random = LabelledNetwork(taught.recipe(finetune__zero_classifier=False), tiny.CLASSES)
    state, classify = taught.initial_state(), jax.jit(random)
    zero = {"params": state.params, "batch_stats": state.batch_stats}
    logits = classify(zero, images)
    np.testing.assert_array_equal(logits, np.zeros((5, tiny.CLASSES)))
    loss, _ = cross_entropy(logits, jnp.arange(5) % tiny.CLASSES)
    assert loss == np.float32(math.log(tiny.CLASSES))

    made = jax.jit(lambda: random.first(3))()
    assert np.all(np.ptp(classify(made, images), axis=1) > 0)
    assert made["params"].keys() == state.params.keys()


# What learns --------------------------------------------------------------------------------------

BLOCKS = ("stem", "group1", "group2", "group3", "group4")  # counted by `train_from_block`


def learns(name, block, head):
    """Say whether a parameter such as `encoder/group2_block1/...` is to learn, at tap 1."""
    part, module = name.split("/")[:2]
    if part == "encoder":
        return BLOCKS.index(module.split("_")[0]) >= block
    if part == "head":
        return head and int(module[-1]) <= 1
    return True


@functools.cache
def made(block, head, **fields):
    fields |= {"train_from_block": block, "train_head": head, "tap": 1}
    named = {f"finetune__{name}": value for name, value in fields.items()}
    return taught.make_stage(taught.recipe(**named))


@functools.cache
def after(block, head, **fields):
    """Return state and metrics after two steps."""
    return taught.trained(*made(block, head, **fields), steps=2)


CASES = list(itertools.product((0, 2, 5), (True, False)))


@pytest.mark.parametrize("block, head", CASES)
def test_the_optimiser_keeps_nothing_of_what_does_not_learn(block, head):
    stage, _ = made(block, head)
    params = manifest.named_leaves(taught.first_state().params)
    state = jax.eval_shape(stage.optimizer.init, taught.first_state().params)
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert kept == sorted(p.shape for name, p in params.items() if learns(name, block, head))


@pytest.mark.parametrize("block, head", [(0, True), (2, False), (5, True)])
def test_frozen_blocks_are_not_differentiated(block, head):
    """Forward once; by kernel where it learns; by input where something below it learns."""
    named = manifest.named_leaves(taught.first_state().params)
    convolutions = [name for name, leaf in named.items() if leaf.ndim == 4]
    learning = [name for name in convolutions if learns(name, block, head)]
    # What reads the images, or the output of the last frozen block, needs no gradient by input.
    first = ("stem",) if block == 0 else ("group2_block1/conv1/", "group2_block1/shortcut_conv/")
    by_input = [n for n in learning if not n.removeprefix("encoder/").startswith(first)]
    found = taught.convolutions(taught.lowered(*made(block, head)))
    assert found == len(convolutions) + len(learning) + len(by_input)
    assert (found == len(convolutions)) == (block == 5)


@pytest.mark.parametrize("block, head, bn", [(2, False, "batch"), (5, True, "moving")])
def test_a_step_changes_what_learns_and_nothing_else(block, head, bn):
    """Not even weight decay, which asks for no gradient, reaches what is frozen."""
    state, _ = after(block, head, encoder_bn=bn)
    before = taught.first_state()
    wanted = manifest.named_leaves(before.params)
    for name, leaf in manifest.named_leaves(state.params).items():
        assert np.array_equal(leaf, wanted[name]) != learns(name, block, head), name
    wanted = manifest.named_leaves(before.batch_stats)
    for name, leaf in manifest.named_leaves(state.batch_stats).items():
        stays = bn == "moving" and name.startswith("encoder/")
        assert np.array_equal(leaf, wanted[name]) == stays, name


def test_an_encoder_with_moving_statistics_does_not_look_at_its_batch():
    (_, batch), (_, moving) = (
        after(2, False, encoder_bn="batch"),
        after(5, True, encoder_bn="moving"),
    )
    assert abs(batch["loss"][0] - moving["loss"][0]) > 1e-3


# Where the classifier sits, which labels, which weights -------------------------------------------


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return written.write_run(tmp_path_factory.mktemp("before") / "run")


def test_the_tap_is_what_the_classifier_reads(before):
    """The same vectors through the Python API, and the classifier's weights by hand."""
    encoder, random = simclr_jax.load(str(before)), np.random.default_rng(0)
    images = random.random((8, 8, 8, 3)).astype(np.float32)
    names = {0: "h", 1: "head1", 2: "z", -1: "z"}
    x = encoder.extract(images, ("h", "head1", "z"), prepared=True)
    weights = {name: random.normal(size=(x[name].shape[1], tiny.CLASSES)) for name in x}
    bias = random.normal(size=tiny.CLASSES)

    def classify(tap):
        dense = {"kernel": jnp.asarray(weights[names[tap]], jnp.float32), "bias": bias}
        params = encoder.variables["params"] | {"classifier": {"dense": dense}}
        return LabelledNetwork(taught.recipe(finetune__tap=tap), tiny.CLASSES)(
            encoder.variables | {"params": params}, images
        )

    found = jax.jit(lambda: {tap: classify(tap) for tap in names})()
    for tap, name in names.items():
        np.testing.assert_allclose(found[tap], x[name] @ weights[name] + bias, atol=1e-5)


def pairs(images, labels):
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


def test_images_outside_the_share_never_occur():
    config, train = taught.recipe(labels__use="4"), tiny.sorted_images()
    chosen, seen = labels.restrict(config, train), set()
    for _, batch in taught.make_stage(config, train=train)[0].batches(0, 30):
        seen |= pairs(np.asarray(batch["image"][0]), np.asarray(batch["label"][0]))
    assert seen == pairs(chosen.pixels, chosen.labels)
    assert len(seen) == len(chosen) == 4 * tiny.CLASSES


def test_a_run_starts_from_all_the_parts_it_names(before):
    """What pretraining calls a probe is the classifier."""
    there = saved.read(str(before)).leaves
    for parts in ("encoder,head,classifier", "encoder,head"):
        init = {"init__run": str(before), "init__parts": parts}
        stage, _ = taught.make_stage(taught.recipe(**init))
        for name, leaf in manifest.named_leaves(stage.warm_start(taught.initial_state())).items():
            if name.startswith(("params/", "batch_stats/")):
                want = there[name.replace("/classifier/", "/probe/")]
                taken = name.split("/")[1] in parts
                np.testing.assert_array_equal(leaf, want if taken else 0, err_msg=name)


# Devices ------------------------------------------------------------------------------------------


def partly_labelled(batches, *steps):
    """Take away labels of some rows, not as many on each device and all on the first."""
    hide = np.isin(np.arange(tiny.BATCH), [0, 1, 2, 7, 9])
    for chunk, batch in batches(*steps):
        yield chunk, batch | {"label": jnp.where(hide, NO_LABEL, batch["label"])}


@pytest.mark.x64
def test_result_does_not_depend_on_the_number_of_devices():
    def after(devices):
        config = taught.recipe(
            finetune__tap=1, finetune__train_from_block=4, train__dtype="float64"
        )
        stage, mesh = taught.make_stage(config, devices)
        batches = functools.partial(partly_labelled, stage.batches)
        return taught.trained(dataclasses.replace(stage, batches=batches), mesh, dtype="float64")

    taught.close(after(DEVICES), after(1), EXACT)
