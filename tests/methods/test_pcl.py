"""PCL on eight devices as on one; MoCo before there are clusters; recipes and mistakes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax.sharding import PartitionSpec as P
from losses import brute_force
from recipes.freeze import resolved
from train import tiny

from simclr_jax import declaration, parallel, recipes, validation
from simclr_jax.data import order
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.methods import pcl
from simclr_jax.parallel import AXIS
from simclr_jax.stages import pretrain
from simclr_jax.train import timetable as timetables
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.step import make_step

EXAMPLES = tiny.BATCH * tiny.STEPS
T = 0.3
OWN = {"queue": 24, "momentum": 0.6, "clusters": "22,26", "negatives": 6, "warmup_epochs": 1}
OWN |= {"iterations": 3, "starts": 2}


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def recipe(**fields):
    own = {f"pcl__{name}": value for name, value in OWN.items()}
    fixed = {"train__dtype": "float64", "bn__groups": 8, "loss__temperature": T}
    return toys.recipe("pcl", **{**own, **fixed, "optim__base_lr": 0.1, **fields})


@pytest.mark.x64
def test_eight_devices_do_what_one_does(small):
    """Over three epochs: without clusters, with some, and with others; as written out in NumPy."""
    c = recipe(train__steps=8)
    states, metrics = toys.both(c, steps=8, tolerance=1e-12)
    epochs = [int(s.extra["clusters"]["epoch"]) for s in states]
    assert epochs == [-1] * 4 + [1, 1, 1, 2, 2]  # 3 steps an epoch
    assert all(m["prototype_loss"] == m["prototype_accuracy"] == 0 for m in metrics[:3])
    for step in range(3, 8):
        sets = states[step + 1].extra["clusters"]["sets"]
        assert set(sets) == {"0", "1"}
        example = order.examples(0, step * tiny.BATCH + np.arange(tiny.BATCH), EXAMPLES)
        for g, (name, size) in enumerate((("0", 22), ("1", 26))):
            of = sets[name]
            np.testing.assert_allclose(np.linalg.norm(of["prototypes"], axis=1), 1, rtol=1e-12)
            assert of["concentration"].mean() == pytest.approx(T, rel=0.01)
            assert of["prototypes"].shape == (size, 5)
            drawn = pcl.negatives(
                Keys(c.seed, jnp.asarray(step, jnp.int32)), g, of["assigned"][example], size, 6
            )
            assert len(set(drawn.tolist())) == 6
            assert not set(drawn.tolist()) & set(of["assigned"][example].tolist())
        assert metrics[step]["prototype_loss"] > 0
    old, new = (states[i].extra["clusters"]["sets"]["0"]["prototypes"] for i in (6, 7))
    assert not np.allclose(old, new)  # made anew before the third epoch


@pytest.mark.x64
def test_the_loss_adds_that_of_the_prototypes(small):
    """Value and gradient of one step, against the definition written out in NumPy."""
    c = recipe(pcl__warmup_epochs=0)
    method = pcl.make(c, smallest.setting(EXAMPLES, 0, tiny.BATCH))
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, tiny.BATCH, 5))
    example = random.permutation(EXAMPLES)[: tiny.BATCH]
    extra = method.first({"key": jnp.asarray(key[:2])}, jax.random.key(0))
    extra = jax.tree.map(np.array, extra)
    want = []
    for g, size in enumerate((22, 26)):
        of = extra["clusters"]["sets"][str(g)]
        of["prototypes"] = brute_force.unit(random.normal(size=(size, 5)))
        of["concentration"] = random.uniform(0.1, 0.5, size)
        of["assigned"] = random.integers(size, size=EXAMPLES).astype(np.int32)
        drawn = np.array(pcl.negatives(Keys(0, 3), g, of["assigned"][example], size, 6))
        want.append((of["prototypes"], of["concentration"], of["assigned"][example], drawn))
    mesh = parallel.make_mesh(8)

    def run(query, extra):
        def local(query, key, example):
            outputs = {"query": query, "key": key, "example": example}
            return jax.lax.psum(method.loss(outputs, extra, Keys(0, 3), AXIS)[0], AXIS)

        specs = {"in_specs": (P(AXIS), P(AXIS), P(AXIS)), "out_specs": P()}
        return jax.shard_map(local, mesh=mesh, **specs)(query, key, example)

    compiled = jax.jit(jax.value_and_grad(run))
    without, slope = compiled(query, extra)
    extra["clusters"]["epoch"] = np.int32(0)
    found, steeper = compiled(query, extra)
    unit = brute_force.unit(query)
    assert found - without == pytest.approx(brute_force.proto_nce(unit, want), rel=1e-12)
    place, by = (3, 2), 1e-6
    moved = [query.copy(), query.copy()]
    moved[0][place] += by
    moved[1][place] -= by
    up, down = (brute_force.proto_nce(brute_force.unit(q), want) for q in moved)
    assert (steeper - slope)[place] == pytest.approx((up - down) / (2 * by), rel=1e-6)


@pytest.mark.x64
def test_before_there_are_clusters_it_is_moco(small):
    moco = {"moco__queue": 24, "moco__momentum": 0.6, "bn__groups": 8, "loss__temperature": T}
    plain = toys.recipe("moco", train__dtype="float64", optim__base_lr=0.1, **moco)
    want, of_plain = toys.run(plain, 1)
    states, metrics = toys.run(recipe(), 1)
    for mine, other in zip(states, want, strict=True):
        extra = {name: mine.extra[name] for name in ("queue", "average")}
        for a, b in zip(
            jax.tree.leaves(mine._replace(extra=extra)), jax.tree.leaves(other), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    for name in ("loss", "contrast_accuracy"):
        found, other = ([float(m[name][0]) for m in of] for of in (metrics, of_plain))
        np.testing.assert_allclose(found, other, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.x64
def test_a_killed_run_goes_on_to_the_same_bits(small, tmp_path):
    """Restored inside an epoch, clusters are those of its beginning; at one's begin, new ones."""
    c = recipe(train__steps=8)
    straight, _ = toys.run(c, 8, steps=8)
    for done in (5, 6):
        stage, mesh = tiny.make_stage(c, 8)
        checkpoints = Checkpoints(tmp_path / str(done))
        checkpoints.save(done, parallel.replicate(mesh, straight[done]))
        checkpoints.close()
        described = parallel.describe(mesh, jax.eval_shape(stage.init))
        first, state = Checkpoints(tmp_path / str(done)).restore(described)
        assert first == done
        step, timetable = make_step(stage, mesh), tiny.timetable(c)
        for chunk, batch in stage.batches(done, 8):
            epoch = timetable.new_epoch(chunk)
            if epoch is not None:
                state = stage.before_epoch(state, epoch)
            state, _ = step(state, batch)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(straight[-1]), strict=True):
            np.testing.assert_array_equal(np.asarray(a), b)


def test_each_field_of_its_own_is_read(monkeypatch):
    """What a batch is compared with; when clusters are made, how many, and how."""
    c, asked = recipe(), []

    def kmeans(features, size, key, mesh, iterations, starts):
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
        asked.append((size, iterations, starts, jax.random.key_data(key).tolist()))
        return features[:size]

    monkeypatch.setattr(pcl.clusters, "kmeans", kmeans)
    method = pcl.make(c, smallest.setting(EXAMPLES, 0, tiny.BATCH))
    extra = method.first({"key": jnp.zeros((2, 5))}, jax.random.key(0))
    assert extra["queue"].shape == (OWN["queue"], 5)
    assert method.averages["average"].momentum == OWN["momentum"]
    points = np.random.default_rng(0).normal(size=(EXAMPLES, 5)).astype(np.float32)

    def encode(average, tap):
        assert (average, tap) == ("average", "z")
        return points, np.arange(EXAMPLES)

    assert method.before_epoch(extra, OWN["warmup_epochs"] - 1, encode) == {} and not asked
    for epoch in (1, 2):
        made = method.before_epoch(extra, epoch, encode)
        assert made["clusters"]["epoch"] == epoch
    (first, second, *again), how = asked, (OWN["iterations"], OWN["starts"])
    assert (first[:3], second[:3]) == ((22, *how), (26, *how))
    assert first[3] != second[3] and again == [first, second]  # seeds by granularity alone
    drawn = []
    monkeypatch.setattr(
        pcl.clusters, "draw_others", lambda key, taken, size, count: drawn.append((size, count))
    )
    pcl.negatives(Keys(0, 0), 0, jnp.arange(3), 22, c.pcl.negatives)
    assert drawn == [(22, OWN["negatives"])]


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pcl__clusters": "22,x"}, "pcl.clusters is 22,x: it must be whole numbers of 2 or more"),
        ({"pcl__clusters": ""}, "pcl.clusters is .*: it must be whole numbers"),
        ({"pcl__clusters": "1,30"}, "pcl.clusters is 1,30: it must be whole numbers"),
        (
            {"pcl__negatives": 7},
            "pcl.negatives is 7, but of pcl.clusters=22,26 as few as 6 may be no image's of a "
            "batch of 16: set --config.pcl.negatives=6 or less, or ask for 23 clusters or more",
        ),
        ({"pcl__clusters": "10"}, "as few as 0 may be no image's of a batch of 16: ask for 22 "),
        ({"pcl__queue": 15}, "pcl.queue is 15, less than one batch: set 16 or more"),
        ({"pcl__warmup_epochs": -1}, "pcl.warmup_epochs is -1: it must be 0 or more"),
        ({"bn__groups": 0}, "among which pcl cannot shuffle: .* --config.bn.groups=8"),
        ({"train__accumulate": 2}, r"accumulate is 2, but the method shuffles.*accumulate=1"),
        ({"head__kind": "none", "head__bias": "all"}, "head.kind is none"),
        ({"memory__size": 64}, "memory.size is 64, but method pcl does not read it"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as raised:
        validation.validate(recipe(**fields), 8)
    assert "\n" not in str(raised.value)


def test_more_clusters_than_images_are_refused_before_the_work():
    c = recipe(pcl__clusters=f"30,{EXAMPLES + 1}")
    with pytest.raises(UserError, match="asks for 49 clusters, but there are 48 images: ask for"):
        pretrain.check(c, tiny.timetable(c), tiny.sorted_images())
    c.pcl.clusters = f"30,{EXAMPLES}"
    pretrain.check(c, tiny.timetable(c), tiny.sorted_images())


def test_images_that_cannot_be_read_are_in_no_cluster():
    c = recipe(pcl__clusters="22", pcl__warmup_epochs=0)
    method = pcl.make(c, smallest.setting(EXAMPLES, 0, tiny.BATCH))
    extra = method.first({"key": jnp.zeros((2, 5))}, jax.random.key(0))
    random = np.random.default_rng(0)
    numbers = np.sort(random.permutation(EXAMPLES)[:22])
    points = random.normal(size=(22, 5)).astype(np.float32)
    made = method.before_epoch(extra, 0, lambda average, tap: (points, numbers))["clusters"]
    of = made["sets"]["0"]
    np.testing.assert_allclose(
        of["prototypes"][of["assigned"][numbers]], brute_force.unit(points), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(of["concentration"], T, rtol=1e-6)  # a cluster of one image each
    with pytest.raises(UserError, match="22 clusters, but there are 21 images that can be read"):
        method.before_epoch(extra, 0, lambda average, tap: (points[1:], numbers[1:]))


# What a loss says ---------------------------------------------------------------------------------


def test_embeddings_that_are_all_equal_have_the_loss_declared():
    """When their keys fill the queue: before there are clusters, and with those made of them."""
    c = recipe(train__dtype="float32", train__steps=7)
    method = pcl.make(c, smallest.setting(EXAMPLES, 0, tiny.BATCH))
    z = np.broadcast_to(np.arange(1.0, 6, dtype=np.float32), (EXAMPLES, 5))
    unit = brute_force.unit(z)
    extra = dict(method.first({"key": jnp.asarray(z[:2])}, jax.random.key(0)))
    extra["queue"] = jnp.asarray(unit[: OWN["queue"]])
    batch = {"query": z[:16], "key": unit[:16], "example": np.arange(16)}

    def loss(extra):
        local = lambda batch: jax.lax.psum(method.loss(batch, extra, Keys(0, 0), AXIS)[0], AXIS)  # noqa: E731
        mapped = jax.shard_map(local, mesh=parallel.make_mesh(2), in_specs=P(AXIS), out_specs=P())
        return float(jax.jit(mapped)(batch))

    said = declaration.find("pcl")
    before, after = said.chance_at(c, np.array([2, 3]), EXAMPLES)
    assert loss(extra) == pytest.approx(before, rel=1e-5) == pytest.approx(math.log(25))
    made = method.before_epoch(extra, 1, lambda *_: (z, np.arange(EXAMPLES)))
    extra |= jax.tree.map(jnp.asarray, made)
    assert loss(extra) == pytest.approx(after, rel=1e-5)
    assert after == pytest.approx(math.log(25) + math.log(22))
    assert said.chance(c, EXAMPLES) == pytest.approx(after)
    c.train.steps = 3
    assert said.chance(c, EXAMPLES) == pytest.approx(before)  # a run that is over before
    assert said.floor(c, EXAMPLES) < before


# Recipes ------------------------------------------------------------------------------------------

# `main_pcl.py` and the README of salesforce/PCL.
BOTH = {
    "head.kind": "mlp",
    "head.hidden": 0,
    "head.dim": 128,
    "loss.temperature": 0.2,
    "pcl.queue": 16384,
    "pcl.negatives": 16384,
    "pcl.momentum": 0.999,
    "pcl.clusters": "25000,50000,100000",
    "pcl.warmup_epochs": 20,
    "pcl.iterations": 20,
    "pcl.starts": 5,
    "bn.groups": 8,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.nesterov": False,
    "optim.weight_decay": 1e-4,
    "optim.decayed": "all",
    "train.batch_size": 256,
    "train.epochs": 200.0,
    "model.depth": 50,
}
VERSIONS = {
    "imagenet": {"head.layers": 2, "optim.drops": "", "optim.rate_per": "epoch"},
    "imagenet,v1": {"head.layers": 1, "optim.drops": "120,160", "optim.rate_per": "step"},
}
VIEWS = {  # area, jitter, hue, gray first, blur
    "imagenet": (0.2, 0.8, 0.1, False, 0.5),
    "imagenet,v1": (0.2, 1.0, 0.4, True, 0.0),
}


@pytest.mark.parametrize("argument", VERSIONS)
def test_presets_are_those_published(argument):
    c = resolved("pcl", argument)
    validation.validate(c, 8)
    for name, value in (BOTH | VERSIONS[argument]).items():
        assert recipes.get(c, name) == value, name
    for view in c.augment.views.values():
        found = (view.area_min, view.jitter, view.hue, view.grayscale_first, view.blur)
        assert found == VIEWS[argument]
    assert timetables.make(c, 1_281_167).peak_rate == pytest.approx(0.03)


def test_the_first_version_is_one_of_imagenet():
    with pytest.raises(UserError, match='argument "v1" of the recipe: v1 goes with imagenet'):
        resolved("pcl", "v1")
