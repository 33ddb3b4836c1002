"""Colourisation, context encoder and autoencoders: losses from their definitions, nothing leaks.

The network is a stand-in that remembers what it was shown and answers with given numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from train import tiny

from simclr_jax import parallel, recipes, validation
from simclr_jax.augment.lab import lab_to_rgb, rgb_to_lab
from simclr_jax.errors import UserError
from simclr_jax.frame.keys import Keys
from simclr_jax.losses.colour_bins import BINS
from simclr_jax.methods import autoencoder, colourisation, context_encoder, denoising_autoencoder
from simclr_jax.models.inputs import INPUTS
from simclr_jax.stages import pretrain
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train.stage import Update

pytestmark = pytest.mark.x64

N, SIDE = 4, 8
SETTING = smallest.setting(48, 4, tiny.BATCH)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(size=(N, SIDE, SIDE, 3))


class Net:
    """Answers each part of the network with given numbers."""

    def __init__(self, answer):
        self.answer, self.seen, self.trained = jnp.asarray(answer), [], []

    def __call__(self, name, x, train=True):
        self.trained.append(train)
        if name == "encoder":
            self.seen.append(np.asarray(x))
            return {"h": x.mean((1, 2)), "block_group4": x}
        return [x] if name == "head" else self.answer


def keys(step=0, first=0):
    positions = np.stack([np.zeros(N), first + np.arange(N)], 1).astype(np.uint32)
    return Keys(3, jnp.asarray(step), jnp.asarray(positions))


def build(module, **fields):
    name = module.__name__.rpartition(".")[2]
    fields = {f"{name}__{field}": value for field, value in fields.items()}
    return module.make(smallest.recipe(name, train__dtype="float64", **fields), SETTING)


def forward(method, answer, images=IMAGES, extra=None, **when):
    net, views = Net(answer), {"views": jnp.asarray(images)[:, None]}
    outputs = method.forward(net, method.look(views, keys(**when)), extra or {}, {}, keys(**when))
    return outputs, net


def loss(method, outputs, extra=None):
    """Return loss and metrics of one device."""
    of_all = jax.vmap(
        lambda o: method.loss(o, extra or {}, keys(), parallel.AXIS), axis_name=parallel.AXIS
    )
    found, metrics = of_all(jax.tree.map(lambda x: jnp.asarray(x)[None], outputs))
    return float(found[0]), {name: float(value[0]) for name, value in metrics.items()}


# Autoencoders -------------------------------------------------------------------------------------


def test_an_autoencoder_is_shown_the_image_and_asked_for_it():
    made = RANDOM.normal(size=IMAGES.shape)
    method = build(autoencoder, width=12, code=3)
    decoder = method.modules["decoder"]
    assert (decoder.width, decoder.code, decoder.side, decoder.channels) == (12, 3, SIDE, 3)
    outputs, net = forward(method, made)
    np.testing.assert_array_equal(net.seen[0], IMAGES)
    found, metrics = loss(method, outputs)
    assert found == pytest.approx(np.mean((made - IMAGES) ** 2), rel=1e-12)
    flat = np.mean(IMAGES.var((1, 2)))
    assert metrics["one_colour_loss"] == pytest.approx(flat, rel=1e-12)


def test_noise_is_masking_after_gauss_and_the_clean_image_is_asked_for():
    made = RANDOM.normal(size=IMAGES.shape)
    method = build(denoising_autoencoder, mask=0.4, sigma=0.2, width=12, code=3)
    assert (method.modules["decoder"].width, method.modules["decoder"].code) == (12, 3)
    outputs, net = forward(method, made)
    assert loss(method, outputs)[0] == pytest.approx(np.mean((made - IMAGES) ** 2), rel=1e-12)
    given = net.seen[0]
    black = (given == 0).all(-1)
    assert 0.25 < black.mean() < 0.55 and not (given == 0)[~black].any()
    noise = (given - IMAGES)[~black]
    assert 0.17 < noise.std() < 0.23 and abs(noise.mean()) < 0.03
    # The picture shows the same noise; others, and later visits of an image, have other noise.
    shown = method.show({"views": jnp.asarray(IMAGES)[:, None]}, keys()).pictures["given"]
    np.testing.assert_allclose(shown[:, 0], given)
    again = forward(method, made, first=N)[1].seen[0]
    assert not np.allclose(again, given) and not np.allclose(
        given[0] - IMAGES[0], given[1] - IMAGES[1]
    )


def test_masking_alone_and_gauss_alone():
    made = np.zeros(IMAGES.shape)
    masked = forward(build(denoising_autoencoder, mask=0.5, sigma=0.0), made)[1].seen[0]
    kept = (masked != 0).all(-1)
    np.testing.assert_array_equal(masked[kept], IMAGES[kept])
    assert 0.3 < kept.mean() < 0.7
    gauss = forward(build(denoising_autoencoder, mask=0.0, sigma=0.3), made)[1].seen[0]
    assert (gauss != IMAGES).all()


# Context encoder ----------------------------------------------------------------------------------


def holes(method, made, **when):
    """Return loss, what was shown, and where the hole was, `[n, 8, 8]`."""
    outputs, net = forward(method, made, **when)
    return loss(method, outputs), net.seen[0]


def test_a_hole_in_the_middle_whose_border_stays_and_weighs_more():
    made = RANDOM.normal(size=IMAGES.shape)
    method = build(context_encoder, hole=4, overlap=1, border_weight=7.0, fill="255,0,51", width=12)
    assert method.modules["decoder"].width == 12
    (found, metrics), given = holes(method, made)
    want = IMAGES.copy()
    want[:, 3:5, 3:5] = 1.0, 0.0, 0.2
    np.testing.assert_allclose(given, want, rtol=1e-12)
    weight = np.full((4, 4, 1), 7.0)
    weight[1:3, 1:3] = 1
    error = ((made - (2 * IMAGES - 1)) ** 2)[:, 2:6, 2:6] * weight
    assert found == pytest.approx(error.mean(), rel=1e-12)
    hidden = (2 * IMAGES - 1)[:, 3:5, 3:5]  # the border is there to be copied
    flat = np.mean(hidden.var((1, 2)).sum(-1) * 4 / (16 * 3))
    assert metrics["one_colour_loss"] == pytest.approx(flat, rel=1e-12)


def test_nothing_outside_the_hole_is_asked_and_nothing_inside_is_shown():
    made, method = RANDOM.normal(size=IMAGES.shape), build(context_encoder, overlap=0, hole=0)
    (before, _), given = holes(method, made)
    other = made.copy()
    other[:, :2], other[:, 6:], other[:, :, :2], other[:, :, 6:] = 5, 5, 5, 5
    assert holes(method, other)[0][0] == pytest.approx(before, rel=1e-12)  # half of 8 is the hole
    images = IMAGES.copy()
    images[:, 2:6, 2:6] = 0.5
    np.testing.assert_array_equal(forward(method, made, images)[1].seen[0], given)


def test_holes_anywhere_are_drawn_by_image_and_shown():
    made = RANDOM.normal(size=IMAGES.shape)
    method = build(context_encoder, place="anywhere", overlap=0, hole=3)
    found = set()
    for first in range(0, 40, N):
        outputs, net = forward(method, made, first=first)
        gone = (net.seen[0] != IMAGES).any(-1)
        assert gone.sum((1, 2)).tolist() == [9] * N
        error = np.mean(((made - 2 * IMAGES + 1) ** 2)[gone])
        assert loss(method, outputs)[0] == pytest.approx(error, rel=1e-12)
        corners = [np.argwhere(one)[0] for one in gone]
        found |= {tuple(map(int, corner)) for corner in corners}
    views = {"views": jnp.asarray(IMAGES)[:, None]}
    shown = method.show(views, keys(first=first)).pictures
    for i, (y, x) in enumerate(corners):
        np.testing.assert_array_equal(shown["hole"][i, 0], IMAGES[i, y : y + 3, x : x + 3])
    np.testing.assert_array_equal(shown["given"][:, 0], net.seen[0])
    assert len(found) > 12 and {y for y, _ in found} | {x for _, x in found} == set(range(6))


def test_the_hole_alone_is_painted_in():
    made = RANDOM.uniform(-1, 1, size=IMAGES.shape)
    method, net = build(context_encoder), Net(made)
    shown = method.paint(net, {"views": jnp.asarray(IMAGES)[:, None]}, keys())
    assert list(shown) == ["given", "made", "wanted"] and not any(net.trained)
    inside = slice(2, 6)
    want = IMAGES.copy()
    want[:, inside, inside] = (made[:, inside, inside] + 1) / 2
    np.testing.assert_allclose(shown["made"], want)


def test_gray_images_have_a_gray_hole():
    assert context_encoder.colour("117,104,123", 1) == pytest.approx([344 / 3 / 255])
    assert context_encoder.colour("51", 3) == pytest.approx([0.2] * 3)


# Colourisation ------------------------------------------------------------------------------------


def by_hand(logits, images, prior, c):
    """Return loss, the loss without weights, that of the frequencies, and frequencies, by pixel."""
    mixed = (1 - c.uniform) * prior + c.uniform / len(BINS)
    weights = mixed**-c.alpha
    weights /= prior @ weights
    guess = np.log(prior * weights / (prior @ weights))
    losses, plain, blind, counted = [], [], [], np.zeros(len(BINS))
    for image, of_image in zip(images, logits, strict=True):
        ab = np.asarray(rgb_to_lab(jnp.asarray(image)))[..., 1:]
        coloured = float((np.abs(ab) > 5).any())
        side = len(of_image)
        ab = ab.reshape(side, SIDE // side, side, SIDE // side, 2).mean((1, 3))
        for y, x in np.ndindex(side, side):
            distance = ((ab[y, x] - BINS) ** 2).sum(1)
            nearest = np.argsort(distance, kind="stable")[: c.neighbours]
            share = np.zeros(len(BINS))
            share[nearest] = np.exp(-distance[nearest] / (2 * c.sigma**2))
            share /= share.sum()
            log_p = of_image[y, x] - np.log(np.exp(of_image[y, x]).sum())
            w = weights[nearest[0]] * coloured
            losses.append(-w * (share @ log_p))
            plain.append(-coloured * (share @ log_p))
            blind.append(-w * (share @ guess))
            counted += share * coloured
    return *map(np.mean, (losses, plain, blind)), counted / counted.sum()


GRAY = np.repeat(IMAGES[:1, ..., :1], 3, -1)


@pytest.mark.parametrize(
    "fields",
    [{}, {"neighbours": 4, "sigma": 9.0, "alpha": 0.5, "uniform": 0.2, "shrink": 4, "width": 12}],
    ids=["as published", "other"],
)
def test_bins_are_weighed_by_how_frequent_colours_have_been(fields):
    images = np.concatenate([IMAGES[:3], GRAY])
    name, recipe = "colourisation", {f"colourisation__{n}": v for n, v in fields.items()}
    c = smallest.recipe(name, **recipe).colourisation
    method = build(colourisation, **fields)
    decoder = method.modules["decoder"]
    assert (decoder.side, decoder.width) == (SIDE // c.shrink, c.width)
    logits = RANDOM.normal(size=(N, SIDE // c.shrink, SIDE // c.shrink, len(BINS)))
    prior = RANDOM.uniform(0.1, 1, len(BINS))
    prior /= prior.sum()
    extra = {"prior": jnp.asarray(prior)}
    outputs, _ = forward(method, logits, images, extra)
    found, metrics = loss(method, outputs, extra)
    want = by_hand(logits, images, prior, c)
    assert found == pytest.approx(want[0], rel=1e-9)
    assert metrics["cross_entropy"] == pytest.approx(want[1], rel=1e-9)
    assert metrics["blind_loss"] == pytest.approx(want[2], rel=1e-9)
    assert metrics["coloured"] == 0.75

    step = 4  # updates before this one, and the one batch that the mean starts from
    update = jax.tree.map(lambda x: jnp.asarray(x)[None], outputs)
    moved = jax.vmap(
        lambda o: method.next(extra, Update({}, {}, {}, o, jnp.asarray(step))),
        axis_name=parallel.AXIS,
    )(update)
    np.testing.assert_allclose(moved["prior"][0], (5 * prior + want[3]) / 6, rtol=1e-9)


def test_regression_is_the_squared_error_of_a_and_b():
    images = np.concatenate([IMAGES[:3], GRAY])
    method = build(colourisation, form="regression")
    made = RANDOM.normal(size=(N, SIDE // 2, SIDE // 2, 2))
    outputs, _ = forward(method, made, images)
    found, metrics = loss(method, outputs)
    ab = np.asarray(rgb_to_lab(jnp.asarray(images)))[..., 1:] / 110
    ab = ab.reshape(N, SIDE // 2, 2, SIDE // 2, 2, 2).mean((2, 4))
    assert found == pytest.approx(np.mean((made - ab)[:3] ** 2) * 3 / 4, rel=1e-9)
    assert metrics["blind_loss"] == pytest.approx(np.mean(ab[:3] ** 2) * 3 / 4, rel=1e-9)
    assert method.first(outputs, None) == method.next({}, None) == {}


def test_frequencies_start_even_and_a_batch_without_colours_moves_nothing():
    method = build(colourisation)
    made = np.zeros((N, SIDE // 2, SIDE // 2, len(BINS)))
    outputs, _ = forward(method, made, np.repeat(GRAY, N, 0))
    extra = method.first(outputs, None)
    np.testing.assert_allclose(extra["prior"], 1 / len(BINS))
    found, metrics = loss(method, outputs, extra)
    assert found == metrics["coloured"] == 0
    moved = jax.vmap(
        lambda o: method.next(extra, Update({}, {}, {}, o, jnp.asarray(0))),
        axis_name=parallel.AXIS,
    )(jax.tree.map(lambda x: jnp.asarray(x)[None], outputs))
    np.testing.assert_array_equal(moved["prior"][0], extra["prior"])


def test_the_encoder_of_the_recipe_is_shown_no_colours():
    """What it makes of an image is what it makes of the gray image of the same lightness."""
    c = smallest.recipe("colourisation")
    assert c.model.input == "lightness"
    lab = rgb_to_lab(jnp.asarray(IMAGES))
    gray = lab_to_rgb(lab.at[..., 1:].set(0))
    shown = INPUTS[c.model.input]
    np.testing.assert_allclose(shown(gray), shown(jnp.asarray(IMAGES)), atol=1e-4)


def test_painted_colours_lie_on_the_lightness_that_was_given():
    logits = np.full((N, SIDE // 2, SIDE // 2, len(BINS)), -1e9)
    gray = BINS.tolist().index([0, 0])
    logits[..., gray] = 0
    views = {"views": jnp.asarray(IMAGES)[:, None]}
    method, net = build(colourisation), Net(logits)
    shown = method.paint(net, views, keys())
    assert list(shown) == ["given", "made", "wanted"] and not any(net.trained)
    lab = np.asarray(rgb_to_lab(shown["made"]))
    np.testing.assert_allclose(lab[..., 1:], 0, atol=0.1)
    np.testing.assert_allclose(lab[..., :1] / 100, shown["given"], atol=1e-3)
    seen = method.show({"views": jnp.asarray(np.concatenate([IMAGES[:3], GRAY]))[:, None]}, keys())
    assert list(seen.answers) == ["its colours"] * 3 + ["gray, counts for nothing"]
    assert seen.pictures["given"].shape == (N, 1, SIDE, SIDE, 1)
    assert seen.pictures["colours"].shape == (N, 1, SIDE // 2, SIDE // 2, 3)


@pytest.mark.parametrize("method", ["autoencoder", "colourisation", "context_encoder"])
def test_losses_and_pictures_are_made_in_float32_of_what_is_computed_in_bfloat16(method):
    stage, _ = tiny.make_stage(smallest.recipe(method, train__dtype="bfloat16"), 1)
    state = jax.eval_shape(stage.init)
    inputs = Inputs(smallest.recipe(method), tiny.sorted_images(), tiny.sorted_images())
    batch = inputs.held_out(5)
    shown = jax.eval_shape(stage.paint, state.variables, batch)
    assert shown["made"].dtype == jnp.float32
    batch |= {"row": np.arange(5), "example": np.arange(5), "label": np.zeros(5, np.int32)}

    def forward(state, batch):
        return stage.forward(state.params, state.batch_stats, state.extra, batch, state.step)[0]

    outputs = jax.eval_shape(
        jax.vmap(forward, (None, 0), axis_name=parallel.AXIS),
        state,
        jax.tree.map(lambda x: np.asarray(x)[None], batch),
    )
    assert outputs["error"].dtype == jnp.float32


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, fields, message",
    [
        ("context_encoder", {"hole": 32}, r"hole is 32, no smaller than the view of 32 .*hole=16"),
        ("context_encoder", {"overlap": 8}, r"overlap is 8, but .* hole of 16 .*overlap=3"),
        (
            "context_encoder",
            {"overlap": 0, "border_weight": 3.0},
            r"weight is 3.0, but .*overlap=1",
        ),
        ("context_encoder", {"fill": "12,300,1"}, r"fill is 12,300,1: it must be R,G,B or one"),
        ("context_encoder", {"place": "left"}, r"place is left: it must be one of centre, anywh"),
        ("denoising_autoencoder", {"mask": 0.0, "sigma": 0.0}, r"mask=0.25, or take method auto"),
        ("denoising_autoencoder", {"mask": 1.0}, r"mask is 1.0: it must be in \[0, 1\)"),
        (
            "colourisation",
            {"model__input": "rgb"},
            r"input is rgb, .*--config.model.input=lightness",
        ),
        ("colourisation", {"shrink": 3}, r"shrink is 3: it must be 1, 2, 4 or 8"),
        ("colourisation", {"form": "regression", "sigma": 2.0}, r"sigma is 2.0, but .*form=bins"),
        ("colourisation", {"alpha": 0.0, "uniform": 0.1}, r"uniform is 0.1, but .*alpha=1.0"),
        ("autoencoder", {"data__image_size": 36}, r"is 36, which doublings .* 5x5 .*image_size=40"),
        (
            "colourisation",
            {"augment__views__first__size": 20, "shrink": 4},
            r"views.first.size is 20 by 4, which .* 3x3 pixels do not .*views.first.size=24",
        ),
    ],
)
def test_mistakes_are_said_in_one_line_before_the_work(method, fields, message):
    c = recipes.base(method)
    recipes.on_cifar10(c)
    if method == "context_encoder":
        c.context_encoder.overlap = 1
    for name, value in fields.items():
        recipes.put(c, name.replace("__", ".") if "__" in name else f"{method}.{name}", value)
    with pytest.raises(UserError, match=message) as raised:
        validation.validate(c, 1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("gray, words", [(1, r"1 channel\(s\), .*from colours"), (3, "none of 24")])
def test_gray_images_are_refused_for_colours(gray, words):
    images = tiny.sorted_images().take(np.arange(24))
    pixels = np.repeat(images.pixels[..., :1], gray, -1)
    c = smallest.recipe("colourisation")
    with pytest.raises(UserError, match=words):
        pretrain.check_sample(c, type(images)(pixels, images.labels, images.classes))
    pretrain.check_sample(c, images)
    pretrain.check_sample(smallest.recipe("autoencoder"), images)
