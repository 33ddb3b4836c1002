"""Optimisers against rules that can be written down: scale invariance, exclusions, hand loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax.optim import optimizers

RATE, DECAY, TRUST = 0.5, 0.1, 0.001


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    return {
        "encoder": {
            "conv1": {"conv": {"kernel": draw(3, 3, 2, 4)}},
            "bn1": {"scale": draw(4), "bias": draw(4)},
        },
        "head": {"dense1": {"kernel": draw(4, 4)}},
        "classifier": {"dense": {"kernel": draw(4, 3), "bias": draw(3)}},
    }


PARAMS, GRADIENT = tree(0), tree(1)


def first_update(optimizer, gradient=GRADIENT):
    return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]


def check(updates, rule, tolerance=2e-6):
    """Hold every update against `rule(path, parameter, gradient)`."""

    def compare(path, update, w, g):
        want = rule(tuple(key.key for key in path), w, g)
        np.testing.assert_allclose(update, want, rtol=tolerance, atol=1e-9, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, updates, PARAMS, GRADIENT)


def is_kernel(path):
    return path[-1] == "kernel" and path[0] != "classifier"


@pytest.mark.parametrize("classic", [True, False])
def test_lars_adapts_kernels_and_gives_the_rest_the_raw_rate(classic):
    def rule(path, w, g):
        if is_kernel(path):
            g = g + DECAY * w
            return -RATE * TRUST * jnp.linalg.norm(w) / jnp.linalg.norm(g) * g
        return -RATE * (g + DECAY * w if path[-1] == "kernel" else g)

    optimizer = optimizers.lars(RATE, weight_decay=DECAY, classic_momentum=classic)
    check(first_update(optimizer), rule)


def test_lars_steps_of_kernels_do_not_depend_on_the_size_of_the_gradient():
    optimizer = optimizers.lars(RATE)
    small, large = first_update(optimizer), first_update(optimizer, tree(1, scale=1000.0))
    np.testing.assert_allclose(
        small["encoder"]["conv1"]["conv"]["kernel"],
        large["encoder"]["conv1"]["conv"]["kernel"],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        1000 * small["encoder"]["bn1"]["bias"], large["encoder"]["bn1"]["bias"], rtol=1e-5
    )


def test_lars_moves_a_kernel_of_zeros_at_the_raw_rate():
    params = {"head": {"dense1": {"kernel": jnp.zeros((2, 2))}}}
    gradient = {"head": {"dense1": {"kernel": jnp.ones((2, 2))}}}
    optimizer = optimizers.lars(RATE, weight_decay=DECAY)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["head"]["dense1"]["kernel"], -RATE * np.ones((2, 2)))


def test_sgd_is_nesterov_with_decay_of_all_but_normalisation():
    rates = jnp.asarray([0.1, 0.3, 0.2], jnp.float32)
    optimizer = optimizers.sgd(lambda k: rates[k], momentum=0.9, weight_decay=DECAY)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in rates:
        updates, state = optimizer.update(GRADIENT, state, params)
        params = optax.apply_updates(params, updates)

    def follow(path, got, w, g):
        w, g, buffer = np.float64(w), np.float64(g), 0.0
        decay = 0 if path[-2].key.startswith("bn") else DECAY
        for rate in np.float64(rates):
            slope = g + decay * w
            buffer = 0.9 * buffer + slope
            w = w - rate * (slope + 0.9 * buffer)
        np.testing.assert_allclose(got, w, rtol=1e-5, atol=1e-6, err_msg=str(path))

    jax.tree_util.tree_map_with_path(follow, params, PARAMS, GRADIENT)


def test_the_rate_may_stand_inside_or_outside_the_momentum_of_sgd():
    rates = jnp.asarray([1.0, 0.5], jnp.float32)
    for inside, second in ((False, 0.5 * (1 + 0.9 * 1.9)), (True, 0.5 + 0.9 * (0.5 + 0.9))):
        optimizer = optimizers.sgd(lambda k: rates[k], momentum=0.9, rate_in_momentum=inside)
        params = {"encoder": {"conv": {"kernel": jnp.zeros(1)}}}
        gradient, state = jax.tree.map(jnp.ones_like, params), optimizer.init(params)
        for step in (1.9, second):
            updates, state = optimizer.update(gradient, state, params)
            np.testing.assert_allclose(updates["encoder"]["conv"]["kernel"], -step, rtol=1e-6)


def test_adamw_decays_kernels_only():
    def rule(path, w, g):
        return -RATE * (jnp.sign(g) + (DECAY * w if path[-1] == "kernel" else 0))

    # 1 - 0.999 has a relative error of 6e-6 in float32.
    check(first_update(optimizers.adamw(RATE, weight_decay=DECAY)), rule, tolerance=2e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-8])  # with the smaller one epsilon is what counts
def test_adam_is_the_loop_of_tensorflow_written_by_hand(scale):
    params, gradient = PARAMS, jax.tree.map(lambda g: scale * g, GRADIENT)
    decay = scale * DECAY
    optimizer = optimizers.adam(RATE, weight_decay=decay)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)

    def follow(path, got, w, g):
        w, g, m, v = np.float64(w), np.float64(g), 0.0, 0.0
        for k in range(1, 4):
            slope = g if path[-2].key.startswith("bn") else g + decay * w
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            rate = RATE * np.sqrt(1 - 0.999**k) / (1 - 0.9**k)
            w = w - rate * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(got, w, rtol=2e-4, atol=2e-4, err_msg=str(path))

    jax.tree_util.tree_map_with_path(follow, params, PARAMS, gradient)
