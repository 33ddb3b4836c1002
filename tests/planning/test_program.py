"""Operations, bytes and memory of small programs against what one counts by hand."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from train import tiny
from train.test_step import DEVICES, arguments, expected, inspect

from simclr_jax.planning import footprint, program
from simclr_jax.planning.any_batch import LARGE, SMALL, AnyBatch, largest
from simclr_jax.train.step import make_step

F32 = 4


def described(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flat(function, *arguments):
    return program.flatten(jax.make_jaxpr(function)(*arguments).jaxpr)


@functools.cache
def tiny_step(**fields):
    """Return the real step of the smallest recipe, and its arguments."""
    stage, mesh = tiny.make_stage(tiny.recipe(**fields), DEVICES)
    return make_step(stage, mesh), arguments(stage)


@functools.cache
def tiny_program(**fields):
    step, (state, batch) = tiny_step(**fields)
    return program.read(step, state, batch), len(jax.tree.leaves(state))


# Operations -------------------------------------------------------------------------------------


def products(size, taps, stride, before, outputs):
    """Count, one by one, the products along one axis that do not fall on padding."""
    return sum(
        0 <= stride * place + tap - before < size
        for place, tap in itertools.product(range(outputs), range(taps))
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_of_a_convolution(stride):
    images, kernel = described(2, 9, 7, 3), described(3, 3, 3, 5)

    def convolve(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        pads = [(1, 1), (1, 1)]
        return lax.conv_general_dilated(x, k, (stride, stride), pads, dimension_numbers=layout)

    high, wide = (products(n, 3, stride, 1, (n - 1) // stride + 1) for n in (9, 7))
    forward = 2 * 2 * 3 * 5 * high * wide
    assert program.flops(flat(convolve, images, kernel)) == forward

    def backward(x, k):
        return jax.grad(lambda *a: jnp.sum(jnp.square(convolve(*a))), (0, 1))(x, k)

    # By input and by kernel there are the same products as forward: each is one term of both.
    assert program.flops(flat(backward, images, kernel)) == 3 * forward


def test_operations_of_matrix_products_count_in_loops_and_equal_ones_once():
    a, b = described(4, 6), described(6, 5)
    assert program.flops(flat(lambda a, b: a @ b + a @ b, a, b)) == 2 * 4 * 6 * 5

    def loop(a, b):
        return lax.scan(lambda carry, _: (carry + a @ b, None), jnp.zeros((4, 5)), length=7)[0]

    assert program.flops(flat(loop, a, b)) == 7 * 2 * 4 * 6 * 5


# Memory ----------------------------------------------------------------------------------------


def test_a_chain_keeps_what_its_backward_pass_reads():
    """Of x @ a -> relu -> @ b, squared."""
    x, a, b = described(64, 16), described(16, 32), described(32, 4)

    def gradients(a, b, x):
        return jax.grad(lambda a, b: jnp.sum(jnp.square(jax.nn.relu(x @ a) @ b)), (0, 1))(a, b)

    found = footprint.analyse(flat(gradients, a, b, x), state_arrays=2)
    assert (found.state, found.batch) == (F32 * (16 * 32 + 32 * 4), F32 * 64 * 16)
    hidden, top = F32 * 64 * 32, F32 * 64 * 4
    # Fullest where the gradient of b is made of relu and the gradient of the result, and the
    # product waits to say where the relu was 0.
    assert found.temporary == 2 * hidden + top + F32 * 32 * 4


def test_elementwise_chains_take_no_memory():
    x, w = described(8, 16), described(16, 4)
    one = footprint.analyse(flat(lambda x, w: jnp.tanh(x) @ w, x, w), 0)
    more = footprint.analyse(flat(lambda x, w: jnp.exp(jnp.sin(jnp.tanh(x))) @ w, x, w), 0)
    assert one == more
    assert one.temporary == F32 * (8 * 16 + 8 * 4)  # the argument of the product, and its result


@pytest.mark.parametrize(
    "shape, dtype, size",
    [
        ((64, 56, 56, 64), jnp.bfloat16, 2 * 64 * 56 * 56 * 128),  # half of each tile is empty
        ((256, 56, 56, 64), jnp.bfloat16, 2 * 256 * 56 * 56 * 64),  # images along the tile: full
        ((3, 3, 64, 64), jnp.float32, 4 * 9 * 64 * 128),
        ((256, 112, 112, 3), jnp.bfloat16, 2 * 256 * 112 * 112 * 4),
        ((5,), jnp.float32, 20),
    ],
)
def test_bytes_in_the_tiles_of_a_tpu(shape, dtype, size):
    assert footprint.tiled(described(*shape, dtype=dtype)) == size


def test_remat_keeps_less_and_computes_no_convolution_again():
    (plain, count), (block, _) = tiny_program(), tiny_program(train__remat="block")
    assert footprint.analyse(block, count).temporary < footprint.analyse(plain, count).temporary
    assert program.flops(block) == program.flops(plain)
    assert program.collectives(block) == program.collectives(plain)
    assert len(block.ops) > len(plain.ops)


# The real step ----------------------------------------------------------------------------------


def test_bytes_between_devices_are_those_that_the_algorithm_needs():
    state, _ = tiny_step()[1]
    want = expected(state, tiny.BATCH, tiny.recipe().head.dim, scalars=7)
    assert program.collectives(tiny_program()[0]) == want.sent


def test_remat_sends_and_convolves_nothing_again_in_the_compiled_step():
    step, (state, batch) = tiny_step(train__remat="block")
    found, compiled = tiny_program(train__remat="block")[0], inspect(step, state, batch)
    assert program.collectives(found) == compiled.sent
    assert sum(op.name == "conv_general_dilated" for op in found.ops) == compiled.convolutions
    plain = tiny_program()[0]
    assert compiled.sent == program.collectives(plain)


def test_every_batch_size_follows_from_two():
    step, (state, batch) = tiny_step()

    def read(images):
        rows = images * DEVICES
        described_batch = {
            name: described(1, rows, *values.shape[2:], dtype=values.dtype)
            for name, values in batch.items()
        }
        return program.read(step, state, described_batch)

    steps = AnyBatch.of(read, tiny_program()[1])
    other, direct = 3 * LARGE - SMALL, read(3 * LARGE - SMALL)
    assert steps.flops(other) == program.flops(direct)
    assert steps.collectives(other) == program.collectives(direct)
    for rules in (footprint.GPU, footprint.TPU):
        assert steps.footprint(other, rules) == footprint.analyse(direct, steps.state_arrays, rules)
    room = steps.footprint(other, footprint.GPU).peak
    assert steps.most_images(room, footprint.GPU) == other
    assert steps.most_images(room - 1, footprint.GPU) == other - 1
    assert steps.most_images(1, footprint.GPU) == 0
    room += 3 * steps.footprint(other, footprint.GPU).batch
    assert steps.most_images(room, footprint.GPU, waiting=3) == other
    assert steps.most_images(room - 1, footprint.GPU, waiting=3) == other - 1


@pytest.mark.parametrize("most", [0, 1, 2, 3, 31, 32, 33, 1000])
def test_largest_finds_the_last_that_fits(most):
    assert largest(lambda images: images <= most) == most
