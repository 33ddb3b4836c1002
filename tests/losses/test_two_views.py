"""Losses of two views against their definitions by hand, closed forms, and eight devices."""

from __future__ import annotations

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from losses import by_hand

from simclr_jax import parallel
from simclr_jax.errors import UserError
from simclr_jax.losses import debiased as debiased_file
from simclr_jax.losses import decoupled as decoupled_file
from simclr_jax.losses import info_nce as info_nce_file
from simclr_jax.losses import margin as margin_file
from simclr_jax.losses import nt_logistic as nt_logistic_file
from simclr_jax.losses.debiased import debiased
from simclr_jax.losses.decoupled import decoupled
from simclr_jax.losses.info_nce import cpc, info_nce
from simclr_jax.losses.margin import margin_loss
from simclr_jax.losses.nt_logistic import nt_logistic
from simclr_jax.losses.nt_xent import nt_xent

DEVICES = 8
P = jax.P(parallel.AXIS)

# The loss, its definition by hand, settings of both.
CASES = {
    "info_nce": (info_nce, by_hand.info_nce, {"temperature": 0.3}),
    "decoupled": (decoupled, by_hand.decoupled, {"temperature": 0.2}),
    "decoupled, weighted": (decoupled, by_hand.decoupled, {"temperature": 0.3, "sigma": 0.7}),
    # Of 32 anchors 9 are at the lower bound of the estimate, then 1.
    "debiased": (
        debiased,
        by_hand.debiased,
        {"temperature": 0.4, "tau_plus": 0.4, "scale": "sum"},
    ),
    "hard": (debiased, by_hand.debiased, {"temperature": 0.4, "tau_plus": 0.4, "beta": 1.5}),
    "margin": (margin_loss, by_hand.margin_loss, {"margin": 0.3}),
    "margin, semi-hard": (
        margin_loss,
        by_hand.margin_loss,
        {"margin": 0.6, "negatives": "semi_hard"},
    ),
    "nt_logistic, sum": (
        nt_logistic,
        by_hand.nt_logistic,
        {"temperature": 0.3, "negatives": "sum", "normalize": False},
    ),
    "nt_logistic, semi-hard": (
        nt_logistic,
        by_hand.nt_logistic,
        {"temperature": 0.2, "negatives": "semi_hard", "margin": 0.5, "scale": "sum"},
    ),
}


IMAGES = 16


def draw(n=IMAGES, d=4, seed=0):
    """Return two views of n images, `[2, n, d]`, which have something in common."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(1, n, d)) + 0.8 * rng.normal(size=(2, n, d))


WEIGHTS = np.arange(IMAGES) % 4 / 2  # one of four is 0


def each(views, weights, **options):
    """Return of each case loss and metrics, and the gradient."""

    def of(loss, settings):
        share = functools.partial(loss, weights=weights, **options, **settings)
        return jax.value_and_grad(lambda views: share(*views), has_aux=True)(views)

    return {name: of(loss, settings) for name, (loss, _, settings) in CASES.items()}


@functools.cache
def on_one():
    """Return that of one device and of all rows at once, from one program for all cases."""
    return jax.jit(each)(draw(), WEIGHTS)


@functools.cache
def on_eight():
    """Return that of eight devices, each of which compares its two images one after the other."""

    def local(views, weights):
        shares = each(views, weights, axis_name=parallel.AXIS, at_once=1)
        return {name: (lax.psum(s, parallel.AXIS), slope) for name, (s, slope) in shares.items()}

    along = jax.P(None, parallel.AXIS)
    specs = dict.fromkeys(CASES, (jax.P(), along))
    mesh = parallel.make_mesh(DEVICES)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=(along, P), out_specs=specs)
    return jax.jit(sharded)(draw(), WEIGHTS)


@pytest.mark.x64
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_definition(name):
    (loss, _), gradient = on_one()[name]
    _, definition, settings = CASES[name]
    wanted = functools.partial(definition, weights=WEIGHTS, **settings)
    np.testing.assert_allclose(loss, wanted(*draw()), rtol=1e-13)
    for seed in range(1, 5):
        way = draw(seed=seed) / 10
        ahead, behind = (wanted(*(draw() + by * way)) for by in (1e-5, -1e-5))
        along = np.sum(gradient * way)
        assert abs(along - (ahead - behind) / 2e-5) < 1e-8 + 1e-7 * np.linalg.norm(gradient)


@pytest.mark.x64
@pytest.mark.parametrize("name", CASES)
def test_eight_devices_and_tiles_give_the_value_and_gradient_of_one(name):
    """Loss, metrics and gradients, with weights."""
    got, want = on_eight()[name], on_one()[name]
    assert got[0][1].keys() >= {"loss_mean", "contrast_accuracy"}
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


CPC = {"steps": 3, "context": 3, "dim": 4}


def draw_cpc(n=IMAGES):
    rng, k, c, d = np.random.default_rng(2), *CPC.values()
    context = rng.normal(size=(n, c))
    return context, rng.normal(size=(k, n, d)) / 2, rng.normal(size=(k, d, c)) / 2


@pytest.mark.x64
@pytest.mark.parametrize("over", ["candidates", "contexts"])
def test_cpc_on_eight_devices_and_in_tiles_is_its_definition(over):
    given = draw_cpc()

    def local(*given):
        *arrays, weights = given
        loss = functools.partial(
            cpc, over=over, weights=weights, axis_name=parallel.AXIS, at_once=1
        )
        shares, (d_context, d_z, d_predictors) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
            *arrays
        )
        return *lax.psum((shares, d_predictors), parallel.AXIS), d_context, d_z

    along = jax.P(None, parallel.AXIS)
    sharded = jax.shard_map(
        local,
        mesh=parallel.make_mesh(DEVICES),
        in_specs=(P, along, jax.P(), P),
        out_specs=(jax.P(), jax.P(), P, along),
        check_vma=False,
    )
    (loss, metrics), d_predictors, d_context, d_z = jax.jit(sharded)(*given, WEIGHTS)
    wanted = functools.partial(by_hand.cpc, over=over, weights=WEIGHTS)
    np.testing.assert_allclose(loss, wanted(*given), rtol=1e-13)
    np.testing.assert_allclose(loss, metrics["loss_mean"], rtol=1e-15)
    for place, gradient in enumerate((d_context, d_z, d_predictors)):
        way = np.random.default_rng(5).normal(size=given[place].shape) / 10
        moved = [
            wanted(*given[:place], given[place] + by * way, *given[place + 1 :])
            for by in (1e-5, -1e-5)
        ]
        np.testing.assert_allclose(
            np.sum(gradient * way), (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-9
        )


@pytest.mark.x64
@pytest.mark.parametrize("name", ["decoupled, weighted", "hard"])
def test_a_temperature_that_is_learned_has_its_gradient_in_tiles(name):
    loss, definition, settings = CASES[name]
    settings = dict(settings)
    t, views = settings.pop("temperature"), draw(5)
    of = functools.partial(loss, *views, at_once=2, **settings)
    slope = jax.jit(jax.grad(lambda t: of(temperature=t)[0]))(t)
    ahead, behind = (definition(*views, temperature=t + by, **settings) for by in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)


# What an encoder loses that has learned nothing, or all

LEARNED = {
    "info_nce": (info_nce, info_nce_file, {"temperature": 0.3}),
    "decoupled": (decoupled, decoupled_file, {"temperature": 0.3, "scale": "mean"}),
    "decoupled, weighted": (decoupled, decoupled_file, {"temperature": 0.3, "sigma": 0.5}),
    "debiased": (debiased, debiased_file, {"temperature": 1.0, "tau_plus": 0.2, "scale": "sum"}),
    "hard": (debiased, debiased_file, {"temperature": 0.5, "beta": 2.0}),
    "margin": (margin_loss, margin_file, {"margin": 0.4, "scale": "sum"}),
    "margin, sum": (margin_loss, margin_file, {"margin": 1.3, "negatives": "sum"}),
    "margin, semi-hard": (margin_loss, margin_file, {"margin": 1.3, "negatives": "semi_hard"}),
    "nt_logistic": (nt_logistic, nt_logistic_file, {"temperature": 0.5, "scale": "sum"}),
    "nt_logistic, sum": (nt_logistic, nt_logistic_file, {"temperature": 0.5, "negatives": "sum"}),
    "nt_logistic, semi-hard": (
        nt_logistic,
        nt_logistic_file,
        {"temperature": 0.5, "margin": 0.4, "negatives": "semi_hard"},
    ),
    "nt_logistic, all semi-hard": (
        nt_logistic,
        nt_logistic_file,
        {"temperature": 0.5, "margin": 1.1, "negatives": "semi_hard"},
    ),
}


@functools.cache
def measured():
    """Return losses of embeddings that are all equal, that know nothing, and that know all."""
    random = np.random.default_rng(0).normal(size=(2, IMAGES, 20_000))  # cosines of 0 +- 0.007
    equal = np.broadcast_to(np.arange(1.0, 5), (2, IMAGES, 4))
    known = np.broadcast_to(np.eye(IMAGES), (2, IMAGES, IMAGES))

    def each_of(views):
        return {name: loss(*views, **given)[0] for name, (loss, _, given) in LEARNED.items()}

    return [jax.jit(each_of)(jnp.asarray(x, jnp.float32)) for x in (equal, random, known)]


def said(function, settings):
    read = inspect.signature(function).parameters
    return function(IMAGES, **{name: value for name, value in settings.items() if name in read})


@pytest.mark.parametrize("name", LEARNED)
def test_an_encoder_that_has_learned_nothing_has_the_loss_that_is_chance(name):
    _, file, settings = LEARNED[name]
    equal, random, _ = (float(of[name]) for of in measured())
    semi_hard = settings.get("negatives") == "semi_hard"  # one anchor of 31 has none, by chance
    assert random == pytest.approx(said(file.chance, settings), rel=0.06 if semi_hard else 0.02)
    if file is nt_logistic_file:
        t, count = (
            settings["temperature"],
            {"sum": 2 * IMAGES - 2}.get(settings.get("negatives"), 1),
        )
        lost = math.log1p(math.exp(-1 / t))
        lost += 0 if semi_hard else count * math.log1p(math.exp(1 / t))
        assert equal == pytest.approx(lost * (2 if settings.get("scale") == "sum" else 1))
    else:
        assert equal == pytest.approx(0 if semi_hard else said(file.chance, settings), rel=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_an_encoder_that_tells_all_images_apart_has_the_loss_that_is_the_floor(name):
    _, file, settings = LEARNED[name]
    floor = said(file.floor, settings)
    assert float(measured()[2][name]) == pytest.approx(floor, rel=1e-5, abs=1e-5)
    assert floor < said(file.chance, settings)


# What is odd about them


@pytest.mark.x64
def test_an_estimate_at_its_bound_does_not_move_negatives():
    """Each anchor then has a loss of its partner alone, though all others are near."""
    t, count = 0.5, 10
    near = np.random.default_rng(0).uniform(1, 2, size=(1, 6, 4)) + 0.01 * draw(6)
    unit = by_hand.unit(near)

    def loss(views):
        return debiased(*views, temperature=t, tau_plus=0.99, beta=1.0, normalize=False)[0]

    got, gradient = jax.jit(jax.value_and_grad(loss))(unit)
    positive = np.sum(unit[0] * unit[1], axis=-1)
    bound = count * np.exp(-(1 + positive) / t)
    np.testing.assert_allclose(got, np.mean(np.log1p(bound)), rtol=1e-13)
    slope = -(bound / (1 + bound) / t / 6)[:, None] * unit[::-1]
    np.testing.assert_allclose(gradient, slope, atol=1e-15)


@pytest.mark.x64
def test_debiased_without_bias_is_nt_xent():
    settings = [{"scale": "sum"}, {"scale": "mean", "weights": WEIGHTS}]

    @jax.jit
    def both(views):
        loss = functools.partial(debiased, tau_plus=0.0)
        return [[f(*views, temperature=0.3, **s) for s in settings] for f in (loss, nt_xent)]

    for one, other in zip(*map(jax.tree.leaves, both(draw())), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


@pytest.mark.parametrize("name", ["info_nce", "decoupled", "hard", "nt_logistic, semi-hard"])
def test_a_low_temperature_does_not_overflow(name):
    """exp(1 / t) is beyond float32, by far."""
    loss, definition, settings = CASES[name]
    settings = settings | {"temperature": 0.004}
    got, gradient = jax.jit(jax.value_and_grad(lambda views: loss(*views, **settings)[0]))(draw(5))
    assert float(got) == pytest.approx(definition(*draw(5), **settings), rel=1e-4)
    assert np.all(np.isfinite(gradient))


def test_without_semi_hard_negatives_nothing_is_repelled():
    """All negatives are as similar as the positive, or less so by more than the margin."""
    z1 = z2 = np.array([[1.0, 0], [1, 0], [0, 1]])
    some = {"margin": 0.5, "negatives": "semi_hard"}

    @jax.jit
    def losses(z1):
        triplet = jax.value_and_grad(lambda z1: margin_loss(z1, z2, **some)[0])(z1)
        wider = margin_loss(z1, z2, margin=1.25, negatives="semi_hard")[0]
        return *triplet, wider, nt_logistic(z1, z2, temperature=0.2, **some)[0]

    triplet, slope, wider, logistic = losses(z1)
    assert float(triplet) == 0 and not np.any(slope)
    assert float(wider) == pytest.approx(0.25)
    assert float(logistic) == pytest.approx(math.log1p(math.exp(-5)))


def test_of_bfloat16_and_tiles_losses_are_float32_and_hold_no_matrix_of_all_pairs():
    images, dim = 4096, 8
    views = jax.ShapeDtypeStruct((2, images, dim), jnp.bfloat16)
    names = ("info_nce", "decoupled, weighted", "hard", "margin, semi-hard", "nt_logistic, sum")

    def total(views):
        some = [CASES[name] for name in names]
        return sum(loss(*views, at_once=8, **settings)[0] for loss, _, settings in some)

    assert jax.eval_shape(total, views).dtype == jnp.float32
    program = jax.jit(jax.grad(total)).lower(views).compile()
    assert program.memory_analysis().temp_size_in_bytes < images * 2 * images * 4


def test_what_cannot_be_is_an_error():
    views, of = np.ones((2, 3, 4)), np.ones((1, 4, 4))

    def fails(message, loss, *arrays, kind=UserError, **settings):
        with pytest.raises(kind, match=message):
            jax.eval_shape(lambda *arrays: loss(*arrays, **settings), *arrays)

    fails("negatives of NT-Logistic .*hard", nt_logistic, *views, temperature=1.0, negatives="all")
    fails("negatives of the margin loss .*hard", margin_loss, *views, margin=1.0, negatives="all")
    fails("loss scale", decoupled, *views, temperature=1.0, scale="total")
    fails("softmax over", cpc, views[0], views[:1], of, over="z")
    for which, margin in (("mean", 0.4), ("semi_hard", None)):
        settings = {"temperature": 1.0, "negatives": which, "margin": margin}
        message = f"margin is {margin} with {which}"
        fails(message, nt_logistic, *views, kind=ValueError, **settings)
    for name in ("decoupled", "debiased", "margin"):
        loss, _, settings = CASES[name]
        fails("2 images or more", loss, *views[:, :1], kind=ValueError, **settings)
    fails("shape", info_nce, views[0], views[1, :2], temperature=1.0, kind=AssertionError)
    fails("shape", cpc, views[0], views[:1], of[:, 1:], kind=AssertionError)
