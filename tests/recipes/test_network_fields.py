"""Fields of encoder, head and normalisation: which parameters there are, and what they compute."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from train import tiny

from simclr_jax import parallel, recipes
from simclr_jax.frame import modules
from simclr_jax.stages import build
from simclr_jax.train import manifest

# Shapes -------------------------------------------------------------------------------------------


@functools.cache
def parameters(method="simclr", **fields):
    """Return the shape of each parameter of encoder and head, by its path."""
    c = recipes.base(method)
    tiny.shrink(c)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    made = jax.eval_shape(lambda: build.first_parts(c, 3))["params"]
    return {name: leaf.shape for name, leaf in manifest.named_leaves(made).items()}


def kernels(shapes, part="encoder"):
    return {n: s for n, s in shapes.items() if n.startswith(f"{part}/") and n.endswith("kernel")}


# Of a residual branch two convolutions, from depth 50 on three, and a shortcut in each group.
@pytest.mark.parametrize("depth, blocks, each", [(10, 4, 2), (18, 8, 2), (34, 16, 2), (50, 16, 3)])
def test_depth_is_the_number_of_blocks(depth, blocks, each):
    found = parameters(model__depth=depth)
    assert len(kernels(found)) == 1 + blocks * each + 4
    assert not any("squeeze" in name for name in found)
    h = 4 * 8 * (4 if depth >= 50 else 1)  # 64/16 channels, three times doubled
    assert found["head/dense1/kernel"] == (h, h)


def test_width_multiplies_the_channels():
    for width in (1 / 16, 1 / 8, 0.5):
        found = parameters(model__width=width)
        assert found["encoder/stem_conv/conv/kernel"] == (3, 3, 3, 64 * width)
        assert found["encoder/group4_block1/conv2/conv/kernel"][-1] == 512 * width


def test_the_stem_is_small_or_large():
    for stem, side in (("cifar", 3), ("imagenet", 7)):
        assert parameters(model__stem=stem)["encoder/stem_conv/conv/kernel"][:2] == (side, side)


def test_the_variant_has_the_shortcuts_and_the_pool_of_its_name():
    def shortcuts(**fields):
        return {n.split("/")[1] for n in parameters(**fields) if "shortcut_conv" in n}

    groups = [f"group{i}_block1" for i in range(1, 5)]
    assert shortcuts(model__depth=18) == {*groups}
    assert shortcuts(model__depth=18, model__variant="torchvision") == {*groups[1:]}
    assert shortcuts(model__depth=50, model__variant="torchvision") == {*groups}
    assert pooled_from("official") == (0, 1)
    assert pooled_from("torchvision") == (1, 1)


def pooled_from(variant):
    """Return how many pixels the max-pool of an image of even sides pads before and after it."""
    c = tiny.recipe(model__stem="imagenet", model__variant=variant, data__image_size=16)
    network = modules.encoder(c)
    images = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    variables = network.init(jax.random.key(0), images, False)
    ends = network.apply(variables, images, False)
    norm = 1 / math.sqrt(1 + c.bn.epsilon)  # in inference mode, of mean 0 and variance 1
    shown = np.maximum(norm * np.asarray(ends["initial_conv"][0]), 0)
    found = np.asarray(ends["initial_max_pool"][0])
    for pads in ((0, 1), (1, 1)):
        wide = np.pad(shown, (pads, pads, (0, 0)))  # nothing is below 0
        wanted = [
            [wide[y : y + 3, x : x + 3].max((0, 1)) for x in range(0, 8, 2)] for y in range(0, 8, 2)
        ]
        if np.allclose(found, wanted, rtol=1e-5):
            return pads
    return None


def test_ratios_are_the_widths_of_channel_attention():
    ratios = {"model__sk_ratio": 0.25, "model__se_ratio": 0.125}
    found = parameters(model__depth=50, model__width=1.0, **ratios)
    block = "encoder/group4_block1"
    assert found[f"{block}/sk2/squeeze/conv/kernel"] == (1, 1, 512, 512 // 4)
    assert found[f"{block}/se/squeeze/conv/kernel"] == (1, 1, 2048, 512 // 8)
    assert found["encoder/group1_block1/sk2/squeeze/conv/kernel"] == (1, 1, 64, 32)  # the least


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder, where it does not matter, by one of 6 channels that is made at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


def test_the_head_has_the_layers_and_widths_that_are_asked_for(small):
    def widths(**fields):
        named = {f"head__{name}": value for name, value in fields.items()}
        return list(kernels(parameters.__wrapped__(**named), "head").values())

    assert widths(kind="none") == []
    assert widths(kind="linear", dim=7) == [(6, 7)]
    assert widths(kind="nonlinear", layers=2, dim=7) == [(6, 6), (6, 7)]
    assert widths(kind="nonlinear", layers=3, dim=7) == [(6, 6), (6, 6), (6, 7)]
    assert widths(kind="mlp", layers=2, hidden=9, dim=7) == [(6, 9), (9, 7)]


@pytest.mark.parametrize("choice", ["hidden", "last", "all", "none"])
def test_biases_of_an_mlp(small, choice):
    found = parameters.__wrapped__(head__kind="mlp", head__bias=choice, head__norm="none")
    biased = [f"head/dense{i}/bias" in found for i in (1, 2)]
    assert biased == [choice in ("hidden", "all"), choice in ("last", "all")]


@pytest.mark.parametrize("choice", ["hidden", "all", "all_plain", "none"])
def test_normalisations_of_an_mlp(small, choice):
    def network(**fields):
        return tiny.recipe(head__kind="mlp", head__norm=choice, **fields)

    made = jax.eval_shape(lambda: build.first_parts(network(), 3))
    layers = [f"bn{i}" in made["batch_stats"].get("head", {}) for i in (1, 2)]
    assert layers == [choice != "none", choice.startswith("all")]
    assert ("bn2" in made["params"]["head"]) == (choice == "all")


@pytest.mark.parametrize("method", ["byol", "simsiam"])
def test_the_predictor_is_as_wide_as_asked(small, method):
    for hidden in (6, 11):
        c = recipes.base(method)
        tiny.shrink(c)
        c[method].hidden = hidden
        stage, _ = tiny.make_stage(c, 1)
        predictor = jax.eval_shape(stage.init).params["predictor"]
        assert predictor["dense1"]["kernel"].shape == (5, hidden)
        assert predictor["dense2"]["kernel"].shape == (hidden, 5)


@pytest.mark.parametrize(
    "method, part",
    [
        *(("byol", "predictor"), ("simsiam", "predictor"), ("rotation", "turn")),
        ("context_encoder", "decoder"),
    ],
)
def test_the_method_says_which_parts_there_are(small, method, part):
    c = smallest.recipe(method, bn__groups=1)
    assert part in jax.eval_shape(tiny.make_stage(c, 1)[0].init).params
    assert part not in jax.eval_shape(tiny.make_stage(tiny.recipe(), 1)[0].init).params


@pytest.mark.parametrize("tap, width", [(0, 6), (1, 9), (2, 5), (-1, 5)])
def test_the_probe_sits_where_it_is_asked_to(small, tap, width):
    stage, _ = tiny.make_stage(tiny.recipe(eval__probe_tap=tap, head__hidden=9), 1)
    assert jax.eval_shape(stage.init).params["probe"]["dense"]["kernel"].shape == (width, 4)


@pytest.mark.parametrize("fields, chunk", [({}, 1), ({"train__steps_per_call": 2}, 2)])
def test_steps_are_taken_in_chunks(fields, chunk):
    stage, _ = tiny.make_stage(tiny.recipe(**fields, train__steps=3), 1)
    sizes = [len(batch["label"]) for _, batch in stage.batches(0, 3)]
    assert sizes == ([1, 1, 1] if chunk == 1 else [2, 1])


# Normalisation ------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).normal(size=(8, 5)) * [0.01, 0.1, 1, 3, 9] + 0.5
GROUP = np.arange(8) % 2  # image i belongs to group i mod 2


def normalise(group=None, **fields):
    """Return rows after a layer of the encoder's normalisation, and its moved statistics."""
    c = tiny.recipe(**{f"bn__{name}": value for name, value in fields.items()})
    layer = modules.encoder(c).norm()
    stats = {"mean": jnp.full(5, 2.0), "var": jnp.full(5, 3.0)}
    variables = {"params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)}, "batch_stats": stats}

    def apply(x):
        return layer.apply(variables, x, True, group, mutable=["batch_stats"])

    y, moved = jax.vmap(apply, axis_name=parallel.AXIS)(jnp.asarray(ROWS, jnp.float32)[None])
    return np.asarray(y[0]), {k: np.asarray(v[0]) for k, v in moved["batch_stats"].items()}


def by_hand(rows, epsilon=1e-5):
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + epsilon)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_epsilon_is_added_to_the_variance(epsilon):
    y, _ = normalise(epsilon=epsilon)
    np.testing.assert_allclose(y, by_hand(ROWS, epsilon), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.3])
def test_momentum_is_the_share_that_averages_keep(momentum):
    _, moved = normalise(momentum=momentum)
    for name, old, new in (("mean", 2.0, ROWS.mean(0)), ("var", 3.0, ROWS.var(0))):
        want = momentum * old + (1 - momentum) * new
        np.testing.assert_allclose(moved[name], want, rtol=1e-5)


def test_groups_are_normalised_each_by_itself():
    y, moved = normalise(GROUP, groups=2)
    want = np.empty_like(ROWS)
    for group in (0, 1):
        want[group::2] = by_hand(ROWS[group::2])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    mean = 0.5 * (ROWS[::2].var(0) + ROWS[1::2].var(0))
    np.testing.assert_allclose(moved["var"], 0.9 * 3 + 0.1 * mean, rtol=1e-5)


@pytest.mark.parametrize("groups, unbiased", [(2, 4 / 3), (0, 8 / 7), (1, 1.0)])
def test_moving_variances_may_be_unbiased_where_they_are_not_of_all(groups, unbiased):
    _, moved = normalise(GROUP, groups=groups, unbiased_moving=True)
    parts = [ROWS[::2], ROWS[1::2]] if groups == 2 else [ROWS]
    new = unbiased * np.mean([part.var(0) for part in parts], 0)
    np.testing.assert_allclose(moved["var"], 0.9 * 3 + 0.1 * new, rtol=1e-5)


# What the encoder is shown and computes in --------------------------------------------------------

IMAGES = np.random.default_rng(0).random((4, 8, 8, 3)).astype(np.float32)


@functools.cache
def weights(channels=3):
    """Return random variables of a tiny encoder for images of so many channels."""
    c, random = tiny.recipe(), np.random.default_rng(0)
    made = jax.eval_shape(lambda: build.first_parts(c, channels))
    made = {kind: tree["encoder"] for kind, tree in made.items()}

    def draw(leaf):
        fan_in = max(1, math.prod(leaf.shape[:-1]))
        return (random.uniform(0.5, 1.5, leaf.shape) / fan_in**0.5).astype(np.float32)

    return jax.tree.map(draw, made)


def encoded(images, **fields):
    """Return h, in inference mode, of an encoder with these weights."""
    encoder = modules.encoder(tiny.recipe(**fields))
    channels = 1 if fields.get("model__input") == "lightness" else images.shape[-1]
    images = jnp.asarray(images, fields.get("train__dtype", "float32"))
    return np.asarray(jax.jit(lambda v: encoder.apply(v, images, False)["h"])(weights(channels)))


def standardised(images):
    images = np.float64(images)
    mean, deviation = (f(images, (1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return (images - mean) / deviation


def normalised(images):
    return (images - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def lightness(images):
    linear = np.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    y = linear @ np.array([0.212671, 0.715160, 0.072169])
    return (1.16 * np.cbrt(y) - 0.16)[..., None]


@pytest.mark.parametrize("shown", [standardised, normalised, lightness])
def test_the_encoder_is_shown_what_the_recipe_says(shown):
    found = encoded(IMAGES, model__input=shown.__name__)
    np.testing.assert_allclose(found, encoded(shown(IMAGES)), rtol=2e-4, atol=1e-5)
    if shown is not lightness:
        assert np.abs(found - encoded(IMAGES)).max() > 0.1 * np.abs(found).max()


def test_the_network_computes_in_the_dtype_of_the_recipe():
    wide, narrow = encoded(IMAGES), encoded(IMAGES, train__dtype="bfloat16")
    error = np.abs(narrow - wide).max() / np.abs(wide).max()
    assert 1e-4 < error < 0.05
    for dtype in ("float32", "bfloat16"):
        c = tiny.recipe(train__dtype=dtype)
        encoder, head = modules.encoder(c), modules.projection_head(c)

        def made(encoder=encoder, head=head):
            ends, of_encoder = encoder.init_with_output(jax.random.key(0), IMAGES, False)
            hiddens, of_head = head.init_with_output(jax.random.key(0), ends["h"], False)
            return [ends["block_group4"], hiddens[1]], [ends["h"], hiddens[2], of_encoder, of_head]

        computed, kept = jax.eval_shape(made)
        assert {x.dtype for x in computed} == {jnp.dtype(dtype)}
        assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("remat", ["none", "block"])
def test_blocks_are_computed_again_if_asked(remat):
    encoder = modules.encoder(tiny.recipe(train__remat=remat))

    def loss(variables):
        ends, _ = encoder.apply(variables, IMAGES, True, mutable=["batch_stats"])
        return ends["h"].sum()

    program = str(jax.make_jaxpr(jax.grad(loss), axis_env=[(parallel.AXIS, 1)])(weights()))
    assert ("remat" in program or "checkpoint" in program) == (remat == "block")
