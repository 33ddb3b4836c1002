"""A batch in parts against the same batch at once, in float64, on one device and on eight.

At once it is normalised by the same groups. The encoder is one that compiles at once, but for one
test of the real one.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frame import toys
from stages import taught, written
from train import tiny

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.average import Average
from simclr_jax.frame.net import project
from simclr_jax.losses.unit import l2_normalize
from simclr_jax.train import step as step_module
from simclr_jax.train.step import make_step
from simclr_jax.validation import validate

DEVICES = 8
GROUPS = 4
EXACT = 1e-8  # relative to the largest number of an array, after three updates
ZERO = 1e-6  # an array of smaller numbers is rounding: biases that a normalisation takes away
slow = pytest.mark.slow
FIELDS = {"train__dtype": "float64", "bn__groups": GROUPS, "optim__base_lr": 0.1}
KINDS = {  # methods of the package all come in `methods/test_every_method.py` once more
    "simclr": {},
    "memory": {"memory__size": 2 * tiny.BATCH, "memory__momentum": 0.5},
    "byol": {"head__hidden": 7, "byol__hidden": 6, "byol__momentum": 0.6},
    "rotation": {},
    "averages": {},
    "finetune": {"finetune__tap": 1},
    "frozen": {"finetune__tap": 1, "finetune__train_from_block": 5},
    "distill": {"distill__alpha": 0.25, "distill__teacher_dtype": "float64"},
}
LEARNS_A_CLASSIFIER = {"finetune": "finetune", "frozen": "finetune", "distill": "distill"}


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def by_averages(config, setting):
    """A toy that reads moving averages: of the network, in `forward`, and of its average."""

    def forward(net, views, extra, batch, keys):
        calm = project(net, views["views"], train=False)[-1]
        taps = project(net, views["views"])
        return {"taps": taps, "z": taps[-1], "calm": calm}

    def watch(averages, views, extra, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, ()))(keys.of_rows("noise"))
        seen = project(averages["slow"], views["views"] + 0.1 * noise[:, None, None, None, None])
        return {"seen": seen[-1], "example": batch["example"]}

    def loss(outputs, extra, keys, axis_name):
        wanted = outputs["seen"] + 0.01 * (outputs["example"] % 3)[:, None, None]
        apart = jnp.square(outputs["calm"] - wanted).sum(-1) + outputs["z"].sum(-1)
        return toys.mean(apart, axis_name), {}

    return toys.simplest(
        config,
        setting,
        forward=forward,
        watch=watch,
        loss=loss,
        averages={"slow": Average(("encoder", "head"), 0.5)},
    )


@functools.cache
def toy():
    return toys.declare(by_averages)


def make_stage(kind, parts, devices, tmp_path=None):
    """Return a stage that remembers gradients at the front of its optimiser's state, its mesh."""
    fields = {**FIELDS, **KINDS[kind], "train__accumulate": parts}
    if kind in LEARNS_A_CLASSIFIER:
        if kind == "distill":
            teacher = tmp_path / "teacher"
            fields["distill__teacher"] = str(
                teacher if teacher.exists() else written.write_run(teacher, seed=5)
            )
        config = taught.recipe(LEARNS_A_CLASSIFIER[kind], **fields)
        stage, mesh = taught.make_stage(config, devices)
    else:
        names = {"memory": "simclr", "averages": toy()}
        config = toys.recipe(names.get(kind, kind), **fields)
        # Draws of colours and flips, which passes must repeat.
        for view in config.augment.views.values():
            view.jitter, view.brightness = 0.8, 0.4
        stage, mesh = tiny.make_stage(config, devices)
    return dataclasses.replace(stage, optimizer=tiny.recording(stage.optimizer)), mesh


def trained(kind, parts, devices, tmp_path=None, change=lambda stage: stage):
    """Return what three updates leave: the state, with the last gradients, and all metrics."""
    stage, mesh = make_stage(kind, parts, devices, tmp_path)
    state = tiny.perturbed(stage.init())
    state = parallel.replicate(mesh, state._replace(opt_state=stage.optimizer.init(state.params)))
    stage, metrics = change(stage), []
    step = make_step(stage, mesh)
    for _, batch in stage.batches(0, tiny.STEPS):
        state, found = step(state, batch, stage.frozen)
        metrics.append(found)
    return jax.tree.map(np.asarray, {"state": state, "metrics": metrics})


def error(found, want):
    """Return the largest error of all arrays, each relative to its largest number, and where."""

    def of_array(a, b):
        apart = np.max(np.abs(np.subtract(a, b, dtype=np.float64)), initial=0)
        return apart / max(np.max(np.abs(b), initial=0), ZERO)

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(of_array, found, want))
    return max((float(value), jax.tree_util.keystr(path)) for path, value in errors)


QUICK, REAL = {"simclr"}, {"distill"}


@pytest.mark.x64
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in QUICK else slow) for kind in KINDS if kind not in REAL],
)
def test_a_batch_in_parts_is_the_batch_at_once(kind):
    want = trained(kind, 1, 1)
    for devices, parts in ((1, GROUPS), (DEVICES, 2)):
        assert error(trained(kind, parts, devices), want) < (EXACT, "")


@slow
@pytest.mark.x64
@pytest.mark.parametrize("kind", ["simclr", *REAL])
def test_and_so_is_that_of_the_real_encoder(kind, tmp_path):
    want = trained(kind, 1, 1, tmp_path)
    for devices in (1, DEVICES):
        assert error(trained(kind, 2, devices, tmp_path), want) < (EXACT, "")


@slow
@pytest.mark.x64
@pytest.mark.usefixtures("small")
def test_parts_in_a_loop_are_parts_written_out(monkeypatch):
    """Which CPUs do, and accelerators do not."""
    want = trained("memory", 2, 1)
    monkeypatch.setattr(step_module, "_on_cpus", lambda mesh: False)
    assert error(trained("memory", 2, 1), want) < (EXACT, "")


@pytest.mark.usefixtures("small")
def test_parts_take_less_memory(monkeypatch):
    monkeypatch.setattr(step_module, "_on_cpus", lambda mesh: False)

    def temporaries(parts):
        config = toys.recipe(
            "simclr", bn__groups=GROUPS, train__accumulate=parts, data__image_size=32
        )
        stage, mesh = tiny.make_stage(config, 1)
        _, batch = next(stage.batches(0, 1))
        larger = {
            name: jax.ShapeDtypeStruct((1, 4 * tiny.BATCH, *rows.shape[2:]), rows.dtype)
            for name, rows in batch.items()
        }
        program = make_step(stage, mesh).lower(jax.eval_shape(stage.init), larger).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(GROUPS) < 0.6 * temporaries(1)


# What would be wrong -----------------------------------------------------------------------------


def contrast_within_parts(stage):
    """Average the losses of small batches: each image sees the images of its part alone."""

    def objective(outputs, extra, step, axis_name):
        def of_part(k):
            part = jax.tree.map(lambda x: x[k :: stage.parts], outputs)
            return stage.objective(part, extra, step, axis_name)

        shares = [of_part(k) for k in range(stage.parts)]
        return jax.tree.map(lambda *some: sum(some) / stage.parts, *shares)

    return dataclasses.replace(stage, objective=objective)


def second_pass(change):
    """Return a plant that changes statistics and batch of all passes but the first."""

    def plant(stage):
        passes = []

        def forward(params, stats, extra, batch, step):
            passes.append(len(passes))
            if passes[-1]:
                stats, batch = change(stats, batch)
            return stage.forward(params, stats, extra, batch, step)

        return dataclasses.replace(stage, forward=forward)

    return plant


def moved(stats, batch):
    """Normalise by averages that the first pass has moved, where averages are read."""
    return jax.tree.map(lambda leaf: 0.9 * leaf + 0.05, stats), batch


def drawn_again(stats, batch):
    return stats, batch | {"position": batch["position"] + np.uint32(1)}


def grouped_otherwise(stats, batch):
    return stats, batch | {"row": batch["row"] // 2}


@pytest.mark.x64
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "kind, plant",
    [
        pytest.param("simclr", contrast_within_parts, id="contrast within parts"),
        pytest.param("averages", second_pass(moved), id="moved averages", marks=slow),
        pytest.param("simclr", second_pass(drawn_again), id="other draws", marks=slow),
        pytest.param("simclr", second_pass(grouped_otherwise), id="other groups", marks=slow),
    ],
)
def test_the_comparison_sees(kind, plant):
    want = trained(kind, 1, 1)
    assert error(trained(kind, 2, 1, change=plant), want) > (1e-3, "")


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"train__accumulate": 3}, r"bn\.groups=4 is no multiple of it.*--config\.bn\.groups=3"),
        (
            {"train__accumulate": 2, "bn__groups": 1},
            r"bn\.groups=1 is no multiple.*--config\.bn\.groups=2",
        ),
        ({"train__accumulate": 2, "bn__groups": 0}, r"bn\.groups=0 is no multiple"),
        ({"train__accumulate": 0}, r"train\.accumulate is 0: it must be 1 or more"),
    ],
)
def test_parts_that_would_change_the_result_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        validate(tiny.recipe(**{"bn__groups": 4, **fields}), 1)


def test_parts_that_do_not_divide_the_images_of_a_device_are_refused():
    said = r"does not divide the 2 images of each of 8 device\(s\): set .*batch_size=32"
    with pytest.raises(UserError, match=said):
        validate(tiny.recipe(bn__groups=4, train__accumulate=4), DEVICES)


@pytest.mark.usefixtures("small")
def test_groups_that_are_shuffled_over_parts_are_refused():
    def make(config, setting):
        def watch(averages, views, extra, batch, keys):
            slow = averages["slow"]
            group = slow.rows.shuffled(keys.of_batch("shuffle"), setting.batch_size)
            return {"key": project(slow, views["views"], group=group)[-1]}

        average = Average(("encoder", "head"), 0.5)
        return toys.simplest(config, setting, watch=watch, averages={"slow": average})

    config = toys.recipe(toys.declare(make), bn__groups=4, train__accumulate=2)
    stage, _ = tiny.make_stage(config, 1)
    with pytest.raises(UserError, match=r"train\.accumulate is 2.*shuffles.*accumulate=1"):
        stage.init()


@pytest.mark.usefixtures("small")
def test_averages_that_parts_have_moved_are_not_read():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": project(net, views["views"], train=False)[-1]}

        return toys.simplest(config, setting, forward=forward)

    config = toys.recipe(toys.declare(make), bn__groups=4, train__accumulate=2)
    stage, _ = tiny.make_stage(config, 1)
    with pytest.raises(UserError, match=r"accumulate is 2.*part encoder by moving.*accumulate=1"):
        stage.init()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("value", ["a number", "statistics"])
def test_outputs_without_a_row_for_each_image_are_an_error_that_names_them(value):
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            odd = jnp.mean(taps[-1]) if value == "a number" else jnp.mean(taps[-1], (0, 1))
            return {"taps": taps, "z": l2_normalize(taps[-1]), "odd": odd}

        return toys.simplest(config, setting, forward=forward)

    config = toys.recipe(toys.declare(make), bn__groups=4, train__accumulate=2)
    stage, mesh = tiny.make_stage(config, 1)
    state = stage.init()
    with pytest.raises(ValueError, match=r"output \['odd'\] of a part is .* each of 8 images"):
        make_step(stage, mesh)(state, next(stage.batches(0, 1))[1])
