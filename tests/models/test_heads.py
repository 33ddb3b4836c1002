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


def written_out(kind, count, variables, h, train, group):
    """Return every layer of a head, in NumPy."""
    params, stats = jax.tree.map(np.asarray, (variables["params"], variables["batch_stats"]))
    hiddens = [np.asarray(h)]
    for i in range(1, count + 1):
        last = i == count
        dense = params[f"dense{i}"]
        x = hiddens[-1] @ dense["kernel"]
        assert ("bias" in dense) == (kind == "mlp" and not last)
        x = x + dense.get("bias", 0.0)
        if kind == "mlp" and last:
            assert f"bn{i}" not in params
        else:
            norm, moving = params[f"bn{i}"], stats[f"bn{i}"]
            mean, var = np.tile(moving["mean"], (ROWS, 1)), np.tile(moving["var"], (ROWS, 1))
            for g in np.unique(group) if train else ():
                mean[group == g] = x[group == g].mean(0)
                var[group == g] = x[group == g].var(0)
            assert ("bias" in norm) == (not last)
            x = (x - mean) / np.sqrt(var + EPSILON) * norm["scale"] + norm.get("bias", 0.0)
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
    want = written_out(kind, count, variables, h, train, group)
    widths = [WIDTH] + [hidden or WIDTH] * (count - 1) + [DIM] * (count > 0)
    assert [x.shape for x in found] == [(ROWS, width) for width in widths]
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_every_parameter_of_an_mlp_has_a_role():
    h = jnp.zeros((2, WIDTH))
    params = head("mlp").init(jax.random.key(0), h, True)["params"]
    roles = {path: masks.role(("predictor", *path)) for path in flatten_dict(params)}
    want = {("dense3", "kernel"): "kernel"}
    for i in (1, 2):
        want |= {(f"dense{i}", "kernel"): "kernel", (f"dense{i}", "bias"): "bias"}
        want |= {(f"bn{i}", "scale"): "norm", (f"bn{i}", "bias"): "norm"}
    assert roles == want


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
    made, predictor = modules.projection_head(c), modules.mlp(c, hidden=9, dim=5)
    described = (made.kind, made.layers, made.hidden, made.dim)
    assert described == ("mlp", recipes.head_layers(c), HIDDEN, DIM)
    described = (predictor.kind, predictor.layers, predictor.hidden, predictor.dim)
    assert described == ("mlp", 2, 9, 5)
    for module in (made, predictor):
        assert (module.dtype, module.param_dtype) == (jnp.bfloat16, jnp.float32)
        norm = module.norm()
        assert (norm.groups, norm.epsilon, norm.unbiased_moving) == (2, EPSILON, False)
