"""What a method may need, each shown by a toy that uses it, on eight devices as on one.

| need | test |
|---|---|
| the step where averages move, own statistics, another start | `test_an_average_*` |
| an average without a pass, or with one in inference mode | the same |
| draws for a row and for a batch | `test_draws_*` |
| a hook before an epoch | `test_before_an_epoch_*` |
| any number of views, groups of other sizes | `test_views_*` |
| what is made of views: patches, targets, turned copies | `test_look_*` |
| a queue that starts filled; rows written before the loss | `test_a_queue_*`, `test_rows_*` |
| normalisation groups and a permutation among them | `test_groups_*` |
| rate and freezing of parts, parameters of no known role | `test_parts_*` |
| the encoder's map before pooling | `test_the_map_*` |
| labels and numbers of examples | `test_labels_*`, `test_a_bank_*` |
"""

from __future__ import annotations

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frame import toys
from jax import lax
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.data import order
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.average import Average
from simclr_jax.frame.drop import drop
from simclr_jax.frame.net import image_major, project, view_major
from simclr_jax.frame.queue import Queue
from simclr_jax.stages import pretrain
from simclr_jax.train.step import make_step

pytestmark = pytest.mark.x64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


WIDE = {"train__dtype": "float64", "eval__probe": False, "optim__base_lr": 0.1}


def close(found, want, tolerance=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Averages ---------------------------------------------------------------------------------------


def test_an_average_moves_by_the_number_of_the_step_and_keeps_statistics_of_its_own():
    def make(config, setting):
        def momentum(step):
            return 1 - 0.5 / (1 + step)  # 0.5, 0.75, ...

        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": taps[-1]}

        def watch(averages, views, extra, batch, keys):
            return {"target": project(averages["slow"], 0.5 * views["views"])[-1]}

        def loss(outputs, extra, keys, axis_name):
            apart = outputs["z"] - outputs["target"]
            return toys.mean(jnp.square(apart), axis_name), {}

        average = Average(("encoder", "head"), momentum, other_start=True)
        return toys.simplest(
            config, setting, forward=forward, watch=watch, loss=loss, averages={"slow": average}
        )

    states, _ = toys.both(toys.recipe(toys.declare(make), **WIDE))
    first = states[0]
    kernel = ("encoder", "conv", "kernel")
    start = [np.asarray(leaf(tree, kernel)) for tree in (first.params, slow(first)["params"])]
    assert not np.allclose(*start)  # it starts from other random values
    for step, (old, new) in enumerate(itertools.pairwise(states)):
        m = 1 - 0.5 / (1 + step)
        want = jax.tree.map(
            lambda a, b, m=m: m * a + (1 - m) * b,
            slow(old)["params"],
            {part: new.params[part] for part in ("encoder", "head")},
        )
        close(slow(new)["params"], want)
    # Darker images: statistics that were copied from the network would be those of the others.
    stats = [
        leaf(tree, ("encoder", "bn", "mean"))
        for tree in (states[-1].batch_stats, slow(states[-1])["batch_stats"])
    ]
    assert not np.allclose(*stats, rtol=0.05)


def slow(state):
    return state.extra["slow"]


def leaf(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_an_average_without_a_pass_averages_the_statistics_too():
    def make(config, setting):
        return toys.simplest(config, setting, averages={"slow": Average(("encoder",), 0.9)})

    states, _ = toys.both(toys.recipe(toys.declare(make), **WIDE))
    assert set(slow(states[0])["params"]) == {"encoder"}
    for old, new in itertools.pairwise(states):
        want = jax.tree.map(
            lambda a, b: 0.9 * a + 0.1 * b,
            slow(old)["batch_stats"]["encoder"],
            new.batch_stats["encoder"],
        )
        close(slow(new)["batch_stats"]["encoder"], want)


@pytest.mark.slow
def test_an_average_in_inference_mode_moves_no_statistics_by_itself():
    """And a part without any pass is averaged, beside parts with one."""

    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": net("predictor", taps[-1])[-1]}

        def watch(averages, views, extra, batch, keys):
            slow, images = averages["slow"], view_major(views["views"])
            h = slow("encoder", 0.5 * images)["h"]  # in train mode
            calm = slow("head", h, train=False)[-1]
            return {"calm": image_major(calm, len(views["views"]))}

        def loss(outputs, extra, keys, axis_name):
            return toys.mean(jnp.square(outputs["z"] - outputs["calm"]), axis_name), {}

        return toys.simplest(
            config,
            setting,
            modules={"predictor": modules.mlp(config, 5, 5)},
            forward=forward,
            watch=watch,
            loss=loss,
            averages={"slow": Average(("encoder", "head", "predictor"), 0.0)},
        )

    states, _ = toys.both(toys.recipe(toys.declare(make, parts=("predictor",)), **WIDE))
    last = states[-1]
    # Momentum 0: what is averaged is that of the network.
    for part in ("head", "predictor"):
        close(slow(last)["batch_stats"][part], last.batch_stats[part])
    own, network = slow(last)["batch_stats"]["encoder"], last.batch_stats["encoder"]
    assert not np.allclose(own["bn"]["mean"], network["bn"]["mean"], rtol=0.05)
    assert not np.allclose(own["bn"]["mean"], 0)


# Draws ------------------------------------------------------------------------------------------


def test_draws_for_rows_and_for_a_batch_depend_on_neither_devices_nor_calls():
    """Eight devices in calls of three steps draw what one draws step by step, each step anew."""

    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            noise = jax.vmap(lambda key: jax.random.normal(key, (), jnp.float64))
            return {
                "taps": taps,
                "z": taps[-1],
                "noise": noise(keys.of_rows("noise")),
                "other": noise(keys.of_rows("other")),
            }

        def loss(outputs, extra, keys, axis_name):
            offset = jax.random.normal(keys.of_batch("offset"), (), jnp.float64)
            z = outputs["z"].mean((1, 2)) * outputs["noise"] + offset  # [n]
            found = toys.mean(jnp.square(z), axis_name)
            return found, {
                "offset": toys.shared(offset, axis_name),
                "noise": toys.mean(outputs["noise"], axis_name),
                "other": toys.mean(outputs["other"], axis_name),
                "spread": toys.mean(jnp.square(outputs["noise"]), axis_name),
            }

        return toys.simplest(config, setting, forward=forward, loss=loss)

    method = toys.declare(make)
    _, one = toys.run(toys.recipe(method, **WIDE), 1)
    calls = dict.fromkeys(
        ("train__steps_per_call", "log__every_steps", "checkpoint__every_steps"), 3
    )
    _, eight = toys.run(toys.recipe(method, **WIDE, **calls), 8)
    for name in ("offset", "noise", "other", "spread", "loss"):
        drawn = np.concatenate([m[name] for m in one])
        close(np.concatenate([m[name] for m in eight]), drawn)
        assert len(set(drawn.round(12))) == len(drawn)  # no step repeats another
    assert not np.allclose([m["noise"] for m in one], [m["other"] for m in one])
    assert all(m["spread"] > 0.1 for m in one)  # rows differ among each other


# Before an epoch --------------------------------------------------------------------------------


def epoch_method(seen):
    def make(config, setting):
        def first(outputs, key):
            return {"centre": jnp.zeros(6, jnp.float64), "count": jnp.zeros((), jnp.int32)}

        def before_epoch(extra, epoch, encode):
            features, examples = encode("", "h")
            assert features.shape == (setting.examples, 6)
            assert examples.tolist() == list(range(setting.examples))
            seen.append(epoch)
            return {"centre": features.mean(0), "count": np.asarray(extra["count"]) + 1}

        def loss(outputs, extra, keys, axis_name):
            h = outputs["taps_h"] - extra["centre"]
            return toys.mean(jnp.square(h), axis_name), {
                "centre": toys.shared(jnp.sum(extra["centre"]), axis_name)
            }

        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "taps_h": taps[0]}

        return toys.simplest(
            config, setting, forward=forward, loss=loss, first=first, before_epoch=before_epoch
        )

    return toys.declare(make)


def test_before_an_epoch_parts_of_extra_are_replaced_from_features_of_all_images():
    seen = []
    config = toys.recipe(epoch_method(seen), train__steps=7, **WIDE)  # 3 steps an epoch
    states, metrics = toys.both(config, steps=7)
    assert seen == [0, 1, 2] * 2
    assert [int(s.extra["count"]) for s in states] == [0, 1, 1, 1, 2, 2, 2, 3]
    centres = [float(m["centre"][0]) for m in metrics]
    assert centres[0] == centres[2] != centres[3] == centres[5] != centres[6]


@pytest.mark.parametrize(
    "steps_per_call, epochs", [(1, [0, 3, 6, 9]), (2, [0, 4, 6, 10]), (3, [0, 3, 6, 9])]
)
def test_before_an_epoch_means_before_the_first_chunk_that_begins_in_it(steps_per_call, epochs):
    c = tiny.recipe(
        train__steps=12,
        train__steps_per_call=steps_per_call,
        **dict.fromkeys(("log__every_steps", "checkpoint__every_steps"), steps_per_call),
    )
    timetable = tiny.timetable(c)
    chunks = [range(first, first + steps_per_call) for first in range(0, 12, steps_per_call)]
    assert [chunk[0] for chunk in chunks if timetable.new_epoch(chunk) is not None] == epochs
    # Which is known of a chunk by itself, so that a resumed run finds the same.
    assert [timetable.new_epoch(chunk) for chunk in chunks if chunk[0] in epochs] == [0, 1, 2, 3]


def test_before_an_epoch_needs_calls_no_longer_than_one():
    c = toys.recipe(epoch_method([]), train__steps=8, **WIDE)
    for name in ("train.steps_per_call", "log.every_steps", "checkpoint.every_steps"):
        recipes.put(c, name, 4)
    train = tiny.sorted_images()
    with pytest.raises(UserError, match=r"steps_per_call is 4, longer than an epoch.*per_call=3"):
        pretrain.check(c, tiny.timetable(c), train)
    recipes.put(c, "train.steps_per_call", 3)
    pretrain.check(c, tiny.timetable(c), train)


# Views ------------------------------------------------------------------------------------------


def test_views_may_be_many_and_of_other_sizes():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            assert {name: v.shape[1:] for name, v in views.items()} == {
                "views": (2, 8, 8, 3),
                "local": (3, 5, 5, 3),
            }
            whole, local = project(net, views["views"]), project(net, views["local"])
            return {"taps": whole, "whole": whole[-1], "local": local[-1]}

        def loss(outputs, extra, keys, axis_name):
            apart = outputs["local"] - lax.stop_gradient(outputs["whole"].mean(1, keepdims=True))
            spread = jnp.square(outputs["local"][:, 0] - outputs["local"][:, 2])
            return toys.mean(jnp.square(apart), axis_name), {"spread": toys.mean(spread, axis_name)}

        return toys.simplest(config, setting, forward=forward, loss=loss)

    def wanted(c):
        with c.unlocked():
            c.augment.views.third = c.augment.views.first.copy_and_resolve_references()
        c.augment.views.third.group, c.augment.views.third.copies = "local", 3

    name = toys.declare(make, views={"views": (2, 2), "local": (1, None)}, recipe=wanted)
    config = toys.recipe(name, **WIDE)
    config.augment.views.third.update({"size": 5, "crop": True, "area_min": 0.3})
    _, metrics = toys.both(config)
    assert all(m["spread"] > 1e-6 for m in metrics)  # copies are drawn one by one
    stage, _ = tiny.make_stage(config, 8)
    assert stage.views_per_image == 5


@pytest.mark.slow
def test_look_makes_patches_and_forward_targets():
    """Four tiles go through the network, and the colours of one of them are the target."""

    def make(config, setting):
        def look(views, keys):
            image = views["views"][:, 0]  # [n, 8, 8, 3]
            tiles = [image[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
            order = jax.vmap(lambda key: jax.random.permutation(key, 4))(keys.of_rows("order"))
            return {"tiles": jax.vmap(jnp.take, (0, 0, None))(jnp.stack(tiles, 1), order, 0)}

        def forward(net, views, extra, batch, keys):
            taps = project(net, views["tiles"])  # [n, 4, d] each
            colours = views["tiles"][:, 0].mean((1, 2))[:, :2]  # [n, 2]
            return {"taps": [tap[:, :1] for tap in taps], "z": taps[-1], "target": colours}

        def loss(outputs, extra, keys, axis_name):
            level = outputs["target"].mean(1)[:, None, None]
            return toys.mean(jnp.square(outputs["z"] - level), axis_name), {}

        return toys.simplest(config, setting, look=look, forward=forward, loss=loss)

    def one_view(c):
        with c.unlocked():
            del c.augment.views["second"]

    name = toys.declare(make, views={"views": (1, 1)}, recipe=one_view)
    config = toys.recipe(name, **WIDE | {"eval__probe": True})
    toys.both(config)
    assert tiny.make_stage(config, 1)[0].views_per_image == 4


# What is kept -----------------------------------------------------------------------------------


def test_a_queue_may_start_filled_and_drops_its_oldest_rows():
    size = tiny.BATCH + 8

    def make(config, setting):
        queue = Queue(size)

        def first(outputs, key):
            return {"queue": queue.random(outputs["z"][:, 0], key)}

        def next_extra(extra, update):
            return {"queue": queue.push(extra["queue"], update.outputs["z"][:, 0])}

        return toys.simplest(config, setting, first=first, next=next_extra)

    states, _ = toys.both(toys.recipe(toys.declare(make), **WIDE))
    start, after = states[0].extra["queue"], states[1].extra["queue"]
    close(np.linalg.norm(start, axis=1), np.ones(size))
    assert len(np.unique(start.round(9), axis=0)) == size
    close(after[:8], start[-8:])
    close(states[2].extra["queue"][:8], after[-8:])


@pytest.mark.slow
def test_rows_may_be_written_before_the_loss_that_reads_them():
    """As in FNC: the batch is in the memory with which it is compared."""

    def make(config, setting):
        queue = Queue(2 * tiny.BATCH)

        def first(outputs, key):
            return {"queue": queue.empty({"z": outputs["z"][:, 0]})}

        def with_batch(extra, outputs):
            return queue.push(extra["queue"], {"z": lax.stop_gradient(outputs["z"][:, 0])})

        def loss(outputs, extra, keys, axis_name):
            kept = with_batch(extra, outputs)["z"]
            level = jnp.sum(jnp.square(kept))
            return toys.mean(jnp.square(outputs["z"]), axis_name), {
                "level": toys.shared(level, axis_name)
            }

        def next_extra(extra, update):
            return {"queue": with_batch(extra, update.outputs)}

        return toys.simplest(config, setting, first=first, next=next_extra, loss=loss)

    states, metrics = toys.both(toys.recipe(toys.declare(make), **WIDE))
    for state, metric in zip(states[1:], metrics, strict=True):
        close(metric["level"][0], np.sum(state.extra["queue"]["z"] ** 2))


@pytest.mark.slow
def test_a_bank_by_example_is_written_where_an_image_stands():
    def make(config, setting):
        def first(outputs, key):
            return {"bank": jnp.zeros((setting.examples, config.head.dim), jnp.float64)}

        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": taps[-1], "example": batch["example"]}

        def next_extra(extra, update):
            rows = parallel.everyone(update.outputs["z"][:, 0])
            return {
                "bank": extra["bank"].at[parallel.everyone(update.outputs["example"])].set(rows)
            }

        return toys.simplest(config, setting, forward=forward, first=first, next=next_extra)

    states, _ = toys.both(toys.recipe(toys.declare(make), **WIDE))
    written = order.examples(0, np.arange(tiny.BATCH), tiny.BATCH * tiny.STEPS)
    rows = np.flatnonzero(np.any(states[1].extra["bank"], axis=1))
    assert rows.tolist() == sorted(written.tolist())
    assert np.all(np.any(states[-1].extra["bank"], axis=1))  # an epoch: every image


def test_labels_reach_the_loss():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": taps[-1], "label": batch["label"]}

        def loss(outputs, extra, keys, axis_name):
            level = outputs["label"][:, None, None] * 1.0
            return toys.mean(jnp.square(outputs["z"] - level), axis_name), {
                "label": toys.mean(outputs["label"] * 1.0, axis_name)
            }

        return toys.simplest(config, setting, forward=forward, loss=loss)

    _, metrics = toys.both(toys.recipe(toys.declare(make, labels=True), **WIDE))
    close([m["label"][0] for m in metrics], [1.5] * tiny.STEPS)  # 4 of each of 4 classes


def test_labels_must_be_there():
    def make(config, setting):
        return toys.simplest(config, setting)

    c = toys.recipe(toys.declare(make, labels=True), **WIDE)
    with pytest.raises(UserError, match="the images have no labels, from which method toys"):
        pretrain.check(
            c, tiny.timetable(c), dataclasses.replace(tiny.sorted_images(), labels=None, classes=0)
        )


# The network ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_groups_are_shuffled_for_one_network_and_not_for_the_other():
    """As MoCo: keys are normalised in groups that a permutation draws, queries in their own."""

    def make(config, setting):
        def watch(averages, views, extra, batch, keys):
            slow, number = averages["slow"], setting.batch_size
            group = slow.rows.shuffled(keys.of_batch("shuffle"), number)
            key = project(slow, views["views"], group=group)[-1]
            return {"key": key, "plain": project(slow, views["views"])[-1], "group": group}

        def loss(outputs, extra, keys, axis_name):
            moved = jnp.square(outputs["key"] - outputs["plain"])
            apart = jnp.square(outputs["z"] - outputs["key"])
            return toys.mean(apart, axis_name), {
                "moved": toys.mean(moved, axis_name),
                "group": toys.mean(outputs["group"] * 1.0, axis_name),
            }

        average = Average(("encoder", "head"), 0.9)
        return toys.simplest(config, setting, watch=watch, loss=loss, averages={"slow": average})

    method = toys.declare(make)
    _, metrics = toys.both(toys.recipe(method, bn__groups=4, **WIDE))
    assert all(m["moved"] > 1e-4 for m in metrics)  # other groups, other statistics
    close([m["group"][0] for m in metrics], [1.5] * tiny.STEPS)  # 4 groups of equal size
    assert len({float(m["moved"][0]) for m in metrics}) == tiny.STEPS
    with pytest.raises(ValueError, match=r"bn.groups is 1: to shuffle them takes 2 or more"):
        tiny.make_stage(toys.recipe(method, **WIDE), 1)[0].init()


def test_parts_have_rates_of_their_own_and_some_never_learn():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": net("predictor", taps[-1])}

        return toys.simplest(
            config,
            setting,
            modules={"predictor": nn.Dense(5, param_dtype=jnp.float64, name="dense")},
            forward=forward,
            rates={"predictor": optax.constant_schedule(setting.peak_rate)},
            learns=lambda path: path[-1] != "bias" or path[0] != "predictor",
        )

    name = toys.declare(make, parts=("predictor",))
    fields = {"optim__name": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0}
    config = toys.recipe(name, optim__warmup_epochs=0.7, **WIDE, **fields)
    states, _ = toys.both(config)
    first, second = states[0].params, states[1].params
    # The first step of a warm-up has rate 0 for all but the predictor.
    close(second["encoder"], first["encoder"], 0)
    assert not np.allclose(second["predictor"]["kernel"], first["predictor"]["kernel"])
    close(states[-1].params["predictor"]["bias"], first["predictor"]["bias"], 0)
    assert not np.allclose(
        states[-1].params["encoder"]["conv"]["kernel"], first["encoder"]["conv"]["kernel"]
    )


class Scale(nn.Module):
    """Multiplies by a learned number, whose name says no role."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("temperature", nn.initializers.ones, (), jnp.float64)


def test_parts_declare_the_roles_of_parameters_whose_names_do_not_say_it():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": net("scale", taps[-1])}

        return toys.simplest(config, setting, modules={"scale": Scale()}, forward=forward)

    fields = {"optim__name": "sgd", "optim__weight_decay": 0.0}
    states, _ = toys.run(
        toys.recipe(
            toys.declare(make, parts=("scale",), roles={"scale/temperature": "bias"}),
            **WIDE,
            **fields,
        ),
        8,
    )
    assert states[-1].params["scale"]["temperature"] != 1
    with pytest.raises(ValueError, match="no role for the parameter scale/temperature"):
        toys.run(toys.recipe(toys.declare(make, parts=("scale",)), **WIDE, **fields), 8)


@pytest.mark.slow
def test_the_map_before_pooling_feeds_a_decoder():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            image = views["views"][:, 0]
            ends = net("encoder", image)
            decoded = net("decoder", ends["block_group4"])  # [n, 4, 4, 12]
            made = decoded.reshape(-1, 4, 4, 2, 2, 3).swapaxes(2, 3).reshape(image.shape)
            hiddens = net("head", ends["h"])
            return {"taps": [h[:, None] for h in hiddens], "made": made, "image": image}

        def loss(outputs, extra, keys, axis_name):
            return toys.mean(jnp.square(outputs["made"] - outputs["image"]), axis_name), {}

        decoder = nn.Conv(12, (1, 1), param_dtype=jnp.float64, name="conv")
        return toys.simplest(
            config, setting, modules={"decoder": decoder}, forward=forward, loss=loss
        )

    _, metrics = toys.both(toys.recipe(toys.declare(make, parts=("decoder",)), **WIDE))
    assert metrics[-1]["loss"] < metrics[0]["loss"]


@pytest.mark.slow
def test_units_are_dropped_by_row():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            dropped = drop(taps[-1], keys.of_rows("drop"), 0.5)
            return {"taps": taps, "z": taps[-1], "dropped": dropped}

        def loss(outputs, extra, keys, axis_name):
            z, dropped = outputs["z"], outputs["dropped"]
            gone = (dropped == 0) * 1.0
            return toys.mean(jnp.square(dropped - 1), axis_name), {
                "gone": toys.mean(gone, axis_name),
                "kept": toys.mean(jnp.where(dropped != 0, jnp.abs(dropped - 2 * z), 0), axis_name),
                "views": toys.mean(jnp.abs(gone[:, 0] - gone[:, 1]), axis_name),
            }

        return toys.simplest(config, setting, forward=forward, loss=loss)

    _, metrics = toys.both(toys.recipe(toys.declare(make), **WIDE))
    for m in metrics:
        assert 0.35 < m["gone"] < 0.65 and m["kept"] < 1e-12
        assert m["views"] > 0.2  # each view has draws of its own


# Making parameters ------------------------------------------------------------------------------


def test_parameters_are_made_purely_and_by_their_names():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            return {"taps": taps, "z": net("predictor", taps[-1])}

        dense = nn.Dense(5, param_dtype=jnp.float64)
        return toys.simplest(config, setting, modules={"predictor": dense}, forward=forward)

    config = toys.recipe(toys.declare(make), **WIDE)
    stage, _ = tiny.make_stage(config, 8)
    state, described = stage.init(), jax.eval_shape(stage.init)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, described)
    close(stage.init().params, state.params, 0)
    other, _ = tiny.make_stage(toys.recipe(toys.declare(make), seed=1, **WIDE), 8)
    assert not np.allclose(
        other.init().params["predictor"]["kernel"], state.params["predictor"]["kernel"]
    )
    # A further part changes no other.
    plain, _ = tiny.make_stage(
        toys.recipe(toys.declare(lambda c, s: toys.simplest(c, s)), **WIDE), 8
    )
    close(plain.init().params["encoder"], state.params["encoder"], 0)
    close(plain.init().params["head"], state.params["head"], 0)


def test_a_part_of_two_shapes_is_an_error():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            taps = project(net, views["views"])
            net("predictor", taps[0])
            return {"taps": taps, "z": net("predictor", taps[-1])}

        return toys.simplest(config, setting, modules={"predictor": nn.Dense(5)}, forward=forward)

    stage, _ = tiny.make_stage(toys.recipe(toys.declare(make), **WIDE), 8)
    with pytest.raises(ValueError, match="the part predictor was made for inputs"):
        stage.init()


@pytest.mark.parametrize(
    "made, words",
    [
        ({"centre": np.zeros(4, np.float32)}, "the hook before epoch 0 makes centre float32.4"),
        ({"centre": np.zeros(3, np.float64)}, "makes centre float64.3,., which was float32.3,."),
        ({"other": np.zeros(3)}, "makes other, which is not kept: make it in `first`"),
    ],
)
def test_what_could_not_be_restored_is_an_error(made, words):
    def make(config, setting):
        return toys.simplest(
            config,
            setting,
            first=lambda outputs, key: {"centre": jnp.zeros(3, jnp.float32)},
            before_epoch=lambda extra, epoch, encode: made,
            next=lambda extra, update: made,
        )

    stage, mesh = tiny.make_stage(toys.recipe(toys.declare(make), **WIDE), 8)
    with pytest.raises(ValueError, match=words):
        stage.before_epoch(stage.init(), 0)
    with pytest.raises(ValueError, match=words.replace("the hook before epoch 0", "`next`.*")):
        make_step(stage, mesh)(stage.init(), next(stage.batches(0, 1))[1])


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rates": {"predictr": None}}, r"rates of method toys.* names \['predictr'\]"),
        ({"averages": {"slow": Average(("encoder", "haed"), 0.9)}}, r"average slow .*\['haed'\]"),
        ({"modules": {"probe": nn.Dense(1)}}, r"has parts \['probe'\]: rename them"),
    ],
)
def test_names_that_are_not_there_or_taken_are_errors(fields, words):
    def make(config, setting):
        return toys.simplest(config, setting, **fields)

    with pytest.raises(ValueError, match=words):
        tiny.make_stage(toys.recipe(toys.declare(make), **WIDE), 8)[0].init()


def test_a_metric_of_the_frame_is_not_replaced():
    def make(config, setting):
        def loss(outputs, extra, keys, axis_name):
            return toys.mean(outputs["z"], axis_name), {"lr": jnp.zeros(())}

        return toys.simplest(config, setting, loss=loss)

    stage, mesh = tiny.make_stage(toys.recipe(toys.declare(make), **WIDE), 8)
    with pytest.raises(ValueError, match="lr is there twice"):
        make_step(stage, mesh)(stage.init(), next(stage.batches(0, 1))[1])


def test_labels_are_hidden_from_methods_that_do_not_learn_from_them():
    def make(config, setting):
        def forward(net, views, extra, batch, keys):
            assert set(batch) == {"example"}
            taps = project(net, views["views"])
            return {"taps": taps, "z": taps[-1]}

        return toys.simplest(config, setting, forward=forward)

    tiny.make_stage(toys.recipe(toys.declare(make), **WIDE), 8)[0].init()
