"""The train step on eight devices against the same step on one, and what it sends between them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from train import tiny

from simclr_jax import parallel
from simclr_jax.losses import batch as batch_losses
from simclr_jax.losses.nt_xent import nt_xent
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.models.resnet import ResNet
from simclr_jax.stages import views
from simclr_jax.train import step as step_module
from simclr_jax.train.step import make_step

DEVICES = 8
EXACT = 1e-10  # float64, relative to the largest number of an array, after three updates


class Faulty:
    """`jax.lax` with some functions replaced, to be put in its place in one module."""

    def __init__(self, **replaced):
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(lax, name)


def gather_without_gradient(monkeypatch):
    def all_gather(*args, **options):
        return jax.tree.map(lax.stop_gradient, lax.all_gather(*args, **options))

    monkeypatch.setattr(batch_losses, "lax", Faulty(all_gather=all_gather))


# One device against many, in float64 ------------------------------------------------------------


@functools.cache
def first_state(dtype):
    """Return a host state with random parameters, gradients to be recorded in its `opt_state`."""
    stage, _ = recorded_stage(1, train__dtype=dtype)
    state = tiny.perturbed(stage.init())
    return jax.tree.map(np.asarray, state._replace(opt_state=stage.optimizer.init(state.params)))


def recorded_stage(devices, **fields):
    stage, mesh = tiny.make_stage(tiny.recipe(**fields), devices)
    return dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer)), mesh


def trained(devices, steps=tiny.STEPS, **fields):
    """Return what `steps` updates leave: the state, with the last gradients, and all metrics."""
    stage, mesh = recorded_stage(devices, train__dtype="float64", **fields)
    state, metrics = parallel.replicate(mesh, first_state("float64")), []
    step = make_step(stage, mesh)
    for _, batch in stage.batches(0, steps):
        state, found = step(state, batch)
        metrics.append(found)
    assert state.step == steps
    metrics = jax.tree.map(lambda *each: np.concatenate(each), *metrics)
    return {"state": jax.tree.map(np.asarray, state), "metrics": metrics}


@functools.cache
def on_one_device(steps=tiny.STEPS):
    return trained(1, steps)


def errors(found, want):
    """Return the error of each array, relative to its largest number."""

    def error(a, b):
        return np.max(np.abs(np.subtract(a, b, dtype=np.float64))) / (np.max(np.abs(b)) or 1)

    compared = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, found, want))
    return {jax.tree_util.keystr(path): float(value) for path, value in compared}


@pytest.mark.x64
@pytest.mark.parametrize("devices, steps_per_call", [(8, 1), (2, tiny.STEPS)])
def test_result_does_not_depend_on_the_number_of_devices(devices, steps_per_call):
    calls = {"log__every_steps": tiny.STEPS, "checkpoint__every_steps": tiny.STEPS}
    found = trained(devices, train__steps_per_call=steps_per_call, **calls)
    want = on_one_device()
    assert max(errors(found, want).items(), key=lambda item: item[1])[1] < EXACT


@pytest.mark.x64
def test_float64_is_float64_everywhere():
    floats = jax.tree_util.tree_leaves_with_path(first_state("float64"))
    narrow = [jax.tree_util.keystr(path) for path, leaf in floats if leaf.dtype == np.float32]
    assert not narrow


@pytest.mark.x64
def test_every_parameter_has_a_gradient():
    """Zeros would agree on any number of devices."""
    gradients = on_one_device(1)["state"].opt_state[0]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def average_gradients(monkeypatch):
    monkeypatch.setattr(step_module, "lax", Faulty(psum=lax.pmean))


@pytest.mark.x64
@pytest.mark.parametrize(
    "plant, fields, wrong",
    [
        pytest.param(
            gather_without_gradient,
            {},
            "['state'].opt_state[0]['encoder']['stem_conv']",
            id="gather without gradient",
        ),
        pytest.param(
            average_gradients,
            {},
            "['state'].opt_state[0]['head']['bn1']['scale']",
            id="averaged gradients",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda _: None,
            {"bn__groups": 0},
            "['metrics']['loss']",
            id="statistics of each device",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_comparison_sees(plant, fields, wrong, monkeypatch):
    want = on_one_device(1)
    plant(monkeypatch)
    found = errors(trained(DEVICES, 1, **fields), want)
    assert max(value for path, value in found.items() if path.startswith(wrong)) > 1e-2


def test_a_forgotten_sum_over_devices_does_not_compile(monkeypatch):
    monkeypatch.setattr(step_module, "lax", Faulty(psum=lambda tree, _: tree))
    stage, mesh = tiny.make_stage(tiny.recipe(), DEVICES)
    with pytest.raises(ValueError, match="could not infer replication"):
        jax.eval_shape(make_step(stage, mesh), *arguments(stage))


# What crosses devices, read in the compiled program ---------------------------------------------

COLLECTIVE = re.compile(
    r"= (?P<type>.+?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast)(?P<phase>-start|-done)?\("
)
ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+))\[(?P<shape>[\d,]*)\]")


@dataclasses.dataclass
class Report:
    """What a program does: bytes each device receives by kind of collective, and convolutions."""

    sent: dict[str, int]
    largest_gather: int
    convolutions: int


def inspect(step, *args) -> Report:
    """Lower and compile a step and read both programs."""
    lowered = step.lower(*args)
    sent, largest = collections.Counter(), 0
    for line in lowered.compile().as_text().splitlines():
        # An asynchronous collective is a pair; the type of its end is the result alone.
        if (found := COLLECTIVE.search(line)) and found["phase"] != "-start":
            sizes = [
                math.prod(map(int, filter(None, array["shape"].split(","))))
                * (int(array["bits"] or 8) // 8)
                for array in ARRAY.finditer(found["type"])
            ]
            sent[found["kind"]] += sum(sizes)
            if found["kind"] == "all-gather":
                largest = max(largest, *sizes)
    return Report(dict(sent), largest, lowered.as_text().count("stablehlo.convolution"))


def expected(state, batch_size, dim, scalars) -> Report:
    """Return what the algorithm needs, in float32, for the parameters of `state`."""
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in leaves}
    scales = [size for path, size in sizes.items() if path.endswith("['scale']")]
    channels = sum(scales)
    # Where a residual branch meets its shortcut both normalisations get the same dy: the compiler
    # sends its sum once, as a statistic and as the gradient of the bias.
    shared = sum(size for path, size in sizes.items() if path.endswith("['shortcut_bn']['bias']"))
    convolutions = sum(leaf.ndim == 4 for _, leaf in leaves)
    embeddings = 4 * batch_size * dim  # of one view
    return Report(
        sent={
            # Embeddings, and forward mean and variance of each device.
            "all-gather": 2 * embeddings + 4 * DEVICES * 2 * channels,
            "reduce-scatter": 2 * embeddings // DEVICES,  # the gradient of the gather
            # Backward two sums; all gradients; single numbers.
            "all-reduce": 4 * (2 * channels + sum(sizes.values()) - 2 * shared + scalars),
        },
        largest_gather=max(embeddings, 4 * DEVICES * 2 * max(scales)),
        # Forward, by kernel and by input; the images need no gradient.
        convolutions=3 * convolutions - 1,
    )


def assert_clean(found: Report, want: Report):
    assert found.largest_gather <= want.largest_gather, "all-gather larger than the embeddings"
    for kind in found.sent | want.sent:
        assert found.sent.get(kind, 0) == want.sent.get(kind, 0), f"bytes of {kind}"
    assert found.convolutions == want.convolutions, "convolutions"


def arguments(stage):
    state = jax.eval_shape(stage.init)
    return state, next(stage.batches(0, 1))[1]


def assert_step_is_clean(stage, mesh):
    state, batch = arguments(stage)
    # Loss, its mean, accuracy and entropy of the contrast; labelled rows, loss and accuracy of the
    # probe.
    want = expected(state, tiny.BATCH, tiny.recipe().head.dim, scalars=7)
    assert_clean(inspect(make_step(stage, mesh), state, batch), want)


def test_devices_exchange_statistics_embeddings_and_gradients_and_nothing_else():
    assert_step_is_clean(*tiny.make_stage(tiny.recipe(), DEVICES))


def test_inspection_sees_a_gather_without_gradient(monkeypatch):
    gather_without_gradient(monkeypatch)
    with pytest.raises(AssertionError, match="bytes of reduce-scatter"):
        assert_step_is_clean(*tiny.make_stage(tiny.recipe(), DEVICES))


def test_inspection_sees_a_doubled_forward():
    stage, mesh = tiny.make_stage(tiny.recipe(), DEVICES)

    def forward(params, stats, extra, batch, step):
        first, moved = stage.forward(params, stats, extra, batch, step)
        second, moved = stage.forward(params, moved, extra, batch, step)
        return first | {"z": (first["z"] + second["z"]) / 2}, moved

    with pytest.raises(AssertionError, match="convolutions"):
        assert_step_is_clean(dataclasses.replace(stage, forward=forward), mesh)


def test_inspection_sees_a_view_major_batch():
    """Flattened, a batch sharded on its second axis goes whole to every device."""
    mesh = parallel.make_mesh(DEVICES)
    encoder = ResNet(10, 1 / 16, "cifar", BatchNorm)
    views = parallel.shard(mesh, np.zeros((2, tiny.BATCH, 8, 8, 3), np.float32), axis=1)
    init = functools.partial(encoder.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), views[0, :1])

    def loss(variables, views):
        images = views.reshape(-1, *views.shape[2:])  # [2N, h, w, c]
        h1, h2 = jnp.split(encoder.apply(variables, images, train=False)["h"], 2)
        return nt_xent(h1, h2, temperature=0.1)[0]

    report = inspect(jax.jit(jax.grad(loss)), variables, views)
    with pytest.raises(AssertionError, match="all-gather larger"):
        assert_clean(report, Report({}, 2 * tiny.BATCH * 32 * 4, 0))


# The rest of what a step promises ---------------------------------------------------------------


@functools.cache
def stepped():
    """Return the first of three steps, its argument, its results on the host, and the function."""
    stage, mesh = recorded_stage(DEVICES)
    step, first = make_step(stage, mesh), parallel.replicate(mesh, first_state("float32"))
    batches = [batch for _, batch in stage.batches(0, tiny.STEPS)]
    state, metrics = step(first, batches[0])
    results = jax.tree.map(np.asarray, (state, metrics))
    for batch in batches[1:]:
        state, _ = step(state, batch)
    return first, results, step


def test_state_is_donated():
    first, _, _ = stepped()
    used = first._replace(opt_state=first.opt_state[1])  # the recorded gradients are only written
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(used))


def test_step_compiles_once():
    """Its own result must be no new kind of argument."""
    assert stepped()[2]._cache_size() == 1


def test_first_state_does_not_depend_on_the_devices():
    one, eight = (tiny.make_stage(tiny.recipe(), devices)[0].init() for devices in (1, DEVICES))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_probe_teaches_the_encoder_nothing():
    stage, mesh = recorded_stage(1)

    def only_the_probe(outputs, extra, step, axis_name):
        metrics = stage.objective(outputs, extra, step, axis_name)[1]
        return metrics["probe_loss"], metrics

    step = make_step(dataclasses.replace(stage, objective=only_the_probe), mesh)
    state, _ = step(parallel.replicate(mesh, first_state("float32")), arguments(stage)[1])
    gradients = state.opt_state[0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["head"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["probe"]))


def test_bfloat16_learns_what_float32_does():
    stage, mesh = recorded_stage(DEVICES, train__dtype="bfloat16")
    state = parallel.replicate(mesh, first_state("float32"))
    state, metrics = make_step(stage, mesh)(state, arguments(stage)[1])
    _, (want_state, want), _ = stepped()
    np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=0.02)
    chex.assert_trees_all_equal_dtypes(state, want_state)  # wide, whatever is computed in
    a, b = (ravel_pytree(s.opt_state[0]["head"])[0] for s in (state, want_state))
    assert a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b) > 0.95


# Randomness of the views ------------------------------------------------------------------------


def views_at(positions, starts=0, devices=1, **fields):
    """Return the views `[2, n, 24, 24, 3]` of one image standing at each of `positions`."""
    config = tiny.recipe(data__image_size=24, **fields)
    image = tiny.sorted_images().pixels[:1]
    batch = {
        "image": np.repeat(image, len(positions), axis=0),
        "position": parallel.split64(positions),
        "start": parallel.split64(np.broadcast_to(starts, len(positions))),
    }
    batch = parallel.shard(parallel.make_mesh(devices), batch)
    return np.moveaxis(np.asarray(jax.jit(views.view_maker(config))(batch)["views"]), 1, 0)


POSITIONS = np.array([5, 7, 2**32 + 5, 5 + 2**40, 0, 1, 2, 3])


def test_a_view_depends_on_seed_position_and_branch_alone():
    first = views_at(POSITIONS)
    turned = views_at(POSITIONS[::-1], starts=7, devices=DEVICES)
    np.testing.assert_allclose(turned[:, ::-1], first, atol=1e-6)
    other = views_at(POSITIONS, seed=1)
    several = [*first[0], *first[1], *other[0]]
    for i, a in enumerate(several):
        for b in several[:i]:
            assert np.max(np.abs(a - b)) > 0.01


def test_images_of_a_batch_may_share_the_width_of_the_blur():
    """Where nothing else is random, one blur makes equal views of equal images."""
    off = {"crop": False, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 1.0}
    off["blur_sigma_min"] = 0.5  # much narrower ones leave the pixels as they are
    only_blur = {
        f"augment__views__{name}__{field}": value
        for name in ("first", "second")
        for field, value in off.items()
    }

    def widths(sigma_per, starts):
        made = views_at(POSITIONS, starts, augment__sigma_per=sigma_per, **only_blur)
        return [len(np.unique(np.round(view.std(axis=(1, 2, 3)), 5))) for view in made]

    assert widths("image", 0) == [8, 8]
    assert widths("batch", 0) == [1, 1]
    assert widths("batch", POSITIONS // 4) == [4, 4]


@pytest.mark.slow
@pytest.mark.x64
def test_normalisation_groups_do_not_depend_on_the_number_of_devices():
    """Eight groups on one device are what eight devices make of them, and not what one group is.

    After one update: with two images in a group a rounding grows a thousandfold in each.
    """
    found, want = trained(8, 1, bn__groups=8), trained(1, 1, bn__groups=8)
    assert max(errors(found, want).items(), key=lambda item: item[1])[1] < 1e-12
    together = errors(want, on_one_device(1))
    assert max(value for name, value in together.items() if "opt_state" in name) > 1e-3
