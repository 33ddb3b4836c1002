"""Projection heads against NumPy, and the roles of their parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from simclr_jax import recipes
from simclr_jax.frame import modules
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.normalization import BatchNorm
from simclr_jax.optim import masks

EPSILON = 1e-3
ROWS, WIDTH, HIDDEN, DIM = 12, 6, 7, 4


def head(kind, layers=3, hidden=HIDDEN, **fields):
    dtype = fields.get("param_dtype", jnp.float32)
    norm = functools.partial(BatchNorm, epsilon=EPSILON, param_dtype=dtype)
    layers = recipes.layer_count(kind, layers)
    return ProjectionHead(kind, layers, DIM, norm, hidden=hidden, **fields)


def drawn(module, dtype):
    """Return an input, and variables whose every number differs from its first value."""
    random = np.random.default_rng(0)
    h = jnp.asarray(random.normal(1, 2, (ROWS, WIDTH)), dtype)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), h, True))
    return h, jax.tree.map(lambda x: jnp.asarray(random.uniform(0.5, 2, x.shape), dtype), variables)


def chosen(layers, count):
    """Return which of `count` layers a word means."""
    every = set(range(1, count + 1))
    return {"hidden": every - {count}, "last": {count}, "all": every, "none": set()}[layers]


def names(kind, count, bias="hidden", norm="hidden"):
    """Return the names of the parameters of a head with their roles, and of its statistics."""
    with_bias = chosen(bias, count) if kind == "mlp" else set()
    plain = {count} if kind == "mlp" and norm == "all_plain" else set()
    normalised = chosen("all" if kind != "mlp" or norm == "all_plain" else norm, count)
    centred = normalised - plain - ({count} if kind != "mlp" else set())
    roles = {f"dense{i}/kernel": "kernel" for i in chosen("all", count)}
    roles |= {f"dense{i}/bias": "bias" for i in with_bias}
    roles |= {f"bn{i}/scale": "norm" for i in normalised - plain}
    roles |= {f"bn{i}/bias": "norm" for i in centred}
    return roles, {f"bn{i}/{name}" for i in normalised for name in ("mean", "var")}


def assert_named(variables, kind, count, **fields):
    roles, stats = names(kind, count, **fields)
    paths = flatten_dict(variables.get("params", {}))
    assert {"/".join(path): masks.role(("predictor", *path)) for path in paths} == roles
    assert flatten_dict(variables.get("batch_stats", {}), sep="/").keys() == stats


def written_out(count, variables, h, train, group):
    """Return every layer of a head, in NumPy; what it has no parameters of, it does not do."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    hiddens = [np.asarray(h)]
    for i in range(1, count + 1):
        last = i == count
        dense = params[f"dense{i}"]
        x = hiddens[-1] @ dense["kernel"] + dense.get("bias", 0.0)
        if f"bn{i}" in stats:
            norm, moving = params.get(f"bn{i}", {}), stats[f"bn{i}"]
            mean, var = np.tile(moving["mean"], (ROWS, 1)), np.tile(moving["var"], (ROWS, 1))
            for g in np.unique(group) if train else ():
                mean[group == g] = x[group == g].mean(0)
                var[group == g] = x[group == g].var(0)
            x = (x - mean) / np.sqrt(var + EPSILON)
            x = x * norm.get("scale", 1.0) + norm.get("bias", 0.0)
        hiddens.append(x if last else np.maximum(x, 0))
    return hiddens


@pytest.mark.x64
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "kind, layers, count, hidden",
    [
        ("none", 3, 0, 0),
        ("linear", 3, 1, 0),
        ("nonlinear", 3, 3, 0),
        ("nonlinear", 2, 2, HIDDEN),
        ("mlp", 1, 1, HIDDEN),
        ("mlp", 2, 2, HIDDEN),
        ("mlp", 3, 3, HIDDEN),
        ("mlp", 2, 2, 0),
    ],
)
def test_layers_are_those_written_out(kind, layers, count, hidden, train, groups):
    module = head(kind, layers, hidden, param_dtype=jnp.float64)
    module = module.clone(norm=functools.partial(module.norm, groups=groups))
    h, variables = drawn(module, jnp.float64)
    variables = {"params": {}, "batch_stats": {}} | variables
    group = np.arange(ROWS) % groups
    found, _ = module.apply(variables, h, train, jnp.asarray(group), mutable=["batch_stats"])
    assert_named(variables, kind, count)
    want = written_out(count, variables, h, train, group)
    widths = [WIDTH] + [hidden or WIDTH] * (count - 1) + [DIM] * (count > 0)
    assert [x.shape for x in found] == [(ROWS, width) for width in widths]
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.x64
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("norm", ["hidden", "all", "all_plain", "none"])
@pytest.mark.parametrize("bias", ["hidden", "last", "all", "none"])
def test_an_mlp_has_the_biases_and_normalisations_it_is_told(bias, norm, count, groups, train):
    module = head("mlp", count, biased=bias, normalised=norm, param_dtype=jnp.float64)
    module = module.clone(norm=functools.partial(module.norm, groups=groups))
    h, variables = drawn(module, jnp.float64)
    assert_named(variables, "mlp", count, bias=bias, norm=norm)
    group = np.arange(ROWS) % groups
    found, _ = module.apply(variables, h, train, jnp.asarray(group), mutable=["batch_stats"])
    want = written_out(count, {"batch_stats": {}} | variables, h, train, group)
    assert len(found) == len(want) == count + 1
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


# Layers, hidden width, outputs, (biased, normalised); and how many parameters the official programs
# have there, behind an encoder of 2048 outputs: kernels, biases, scales and biases of BatchNorm.
SIZES = {
    "moco v1": (1, 0, 128, ("all", "none"), 2048 * 128 + 128),
    "moco v2": (2, 0, 128, ("all", "none"), 2048 * 2048 + 2048 + 2048 * 128 + 128),
    "simsiam": (3, 0, 2048, ("last", "all_plain"), 3 * 2048 * 2048 + 2048 + 2 * 2 * 2048),
    "simsiam's predictor": (2, 512, 2048, ("last", "hidden"), 2 * 2048 * 512 + 2048 + 2 * 512),
    "byol": (2, 4096, 256, ("hidden", "hidden"), 2048 * 4096 + 4096 + 2 * 4096 + 4096 * 256),
}


@pytest.mark.parametrize("layers, hidden, dim, which, size", SIZES.values(), ids=SIZES)
def test_heads_of_other_methods_have_the_parameters_of_theirs(layers, hidden, dim, which, size):
    made = modules.mlp(recipes.base(), hidden, dim, layers, *which)
    variables = jax.eval_shape(lambda: made.init(jax.random.key(0), jnp.zeros((2, 2048)), False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == size


@pytest.mark.parametrize("field", ["biased", "normalised"])
def test_a_word_that_no_mlp_knows_is_an_error(field):
    with pytest.raises(KeyError, match="hiden"):
        drawn(head("mlp", **{field: "hiden"}), jnp.float32)


def test_kernels_of_an_mlp_start_as_in_haiku():
    """Normals of variance 1/inputs, cut at two deviations; not widened again, to 1/inputs."""
    inputs = 400
    params = head("mlp", hidden=300).init(jax.random.key(0), jnp.zeros((2, inputs)), True)["params"]
    for name, width in (("dense1", inputs), ("dense2", 300)):
        kernel = np.asarray(params[name]["kernel"]) * np.sqrt(width)
        assert 1.99 < np.max(np.abs(kernel)) <= 2
        # A standard normal cut at 2 has the deviation 0.8796; five deviations of its estimate.
        assert np.std(kernel) == pytest.approx(0.8796, rel=5 / np.sqrt(2 * kernel.size))
        assert not np.any(params[name]["bias"])


def test_kernels_of_other_heads_start_as_officially():
    params = head("nonlinear", hidden=300).init(jax.random.key(0), jnp.zeros((2, 400)), True)
    kernel = np.asarray(params["params"]["dense1"]["kernel"])
    assert np.std(kernel) == pytest.approx(0.01, rel=5 / np.sqrt(2 * kernel.size))


def test_what_is_compared_is_float32_where_the_rest_is_bfloat16():
    module = head("mlp", 2, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    h, variables = drawn(module, jnp.float32)
    dtypes = [x.dtype for x in module.apply(variables, h, False)]
    assert dtypes == [jnp.float32, jnp.bfloat16, jnp.float32]


def test_a_recipe_describes_its_head_and_a_predictor():
    c = recipes.base()
    c.head.kind, c.head.layers, c.head.hidden, c.head.dim = "mlp", 4, HIDDEN, DIM
    c.bn.groups, c.bn.epsilon, c.train.dtype = 2, EPSILON, "bfloat16"
    c.head.bias, c.head.norm = "all", "none"
    made, predictor = modules.projection_head(c), modules.mlp(c, hidden=9, dim=5)
    assert (made.biased, made.normalised) == ("all", "none")
    assert (predictor.biased, predictor.normalised) == ("hidden", "hidden")  # not the head's
    told = modules.mlp(c, hidden=9, dim=5, layers=3, bias="last", norm="all_plain")
    assert (told.layers, told.biased, told.normalised) == (3, "last", "all_plain")
    described = (made.kind, made.layers, made.hidden, made.dim)
    assert described == ("mlp", recipes.head_layers(c), HIDDEN, DIM)
    described = (predictor.kind, predictor.layers, predictor.hidden, predictor.dim)
    assert described == ("mlp", 2, 9, 5)
    for module in (made, predictor):
        assert (module.dtype, module.param_dtype) == (jnp.bfloat16, jnp.float32)
        norm = module.norm()
        assert (norm.groups, norm.epsilon, norm.unbiased_moving) == (2, EPSILON, False)
