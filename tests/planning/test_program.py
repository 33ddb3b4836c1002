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

from simclr_jax.losses import instance, tiles
from simclr_jax.losses.nt_xent import nt_xent
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


def test_bytes_sent_count_in_loops():
    def loop(a):
        return lax.scan(lambda carry, _: (carry + lax.psum(a, "d"), None), a, length=7)[0]

    traced = jax.make_jaxpr(loop, axis_env=[("d", 2)])(described(4, 6))
    assert program.collectives(program.flatten(traced.jaxpr)) == {"all-reduce": 7 * F32 * 4 * 6}


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


def test_a_loop_needs_what_its_fullest_turn_needs():
    """Of (x[i] @ a) ** 2 @ b, added up: its slice, the product, and what becomes of it."""
    x, a, b = described(10, 8, 16), described(16, 32), described(32, 4)

    def loop(a, b, x):
        def turn(total, part):
            return total + jnp.square(part @ a) @ b, None

        return lax.scan(turn, jnp.zeros((8, 4)), x)[0]

    found = footprint.analyse(flat(loop, a, b, x), state_arrays=2)
    assert found.batch == F32 * 10 * 8 * 16
    sliced, wide, narrow = F32 * 8 * 16, F32 * 8 * 32, F32 * 8 * 4
    # The square takes the place of the product; beside the turn lies what the loop begins with, and
    # what it leaves.
    assert found.temporary == sliced + wide + narrow + 2 * narrow


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


@pytest.mark.parametrize("fields", [{}, {"bn__groups": 4, "train__accumulate": 2}])
def test_every_batch_size_follows_from_two(fields):
    config = tiny.recipe(**fields)
    stage, _ = tiny.make_stage(config, DEVICES)
    mesh, parts = program.abstract_mesh(DEVICES), config.train.accumulate
    step, (state, batch) = make_step(stage, mesh), arguments(stage)

    def read(images):
        rows = images * DEVICES
        described_batch = {
            name: described(1, rows, *values.shape[2:], dtype=values.dtype)
            for name, values in batch.items()
        }
        return program.read(step, state, described_batch)

    steps = AnyBatch.of(read, len(jax.tree.leaves(state)), parts)
    other = parts * (3 * LARGE - SMALL)
    direct = read(other)
    assert steps.flops(other) == program.flops(direct)
    assert steps.collectives(other) == program.collectives(direct)
    for rules in (footprint.GPU, footprint.TPU):
        assert steps.footprint(other, rules) == footprint.analyse(direct, steps.state_arrays, rules)
    room = steps.footprint(other, footprint.GPU).peak
    assert steps.most_images(room, footprint.GPU) == other
    assert steps.most_images(room - 1, footprint.GPU) == other - parts
    assert steps.most_images(1, footprint.GPU) == 0
    room += 3 * steps.footprint(other, footprint.GPU).batch
    assert steps.most_images(room, footprint.GPU, waiting=3) == other
    assert steps.most_images(room - 1, footprint.GPU, waiting=3) == other - parts


def test_a_loss_that_goes_by_tiles_is_planned_so(monkeypatch):
    """Above some size; up to it, matrices of all pairs take most of the room."""
    dim, at_once = 5, 4

    def read(images):
        def loss(z):
            return nt_xent(z[0], z[1], temperature=0.1)[0]

        return flat(jax.grad(loss), described(2, images, dim))

    monkeypatch.setattr(tiles, "WHOLE", F32 * 100 * 200)
    monkeypatch.setattr(tiles, "TILE", at_once * F32 * 2 * 400)
    steps = AnyBatch.of(read, 0)
    below, above = (steps.footprint(n, footprint.GPU).temporary for n in (100, 400))
    assert below > 2 * F32 * 100 * 200 and above < F32 * 400 * 800 / 4
    assert above == footprint.analyse(read(400), 0).temporary
    # Where 150 images would fit by matrices of all pairs, more do by tiles.
    room = 5 * F32 * 150 * 300
    most = steps.most_images(room, footprint.GPU)
    assert most > 150
    assert footprint.analyse(read(most), 0).peak <= room
    assert footprint.analyse(read(int(1.03 * most)), 0).peak > room


def test_tiles_that_begin_below_the_two_sizes_are_read_as_they_are(monkeypatch):
    """As where an image is compared with a bank of a million rows: of 13 images some are left."""
    rows, dim = 300, 5

    def read(images):
        def loss(z, bank, example):
            return instance.softmax(z, bank, example, temperature=0.1)[0]

        example = described(images, dtype=jnp.int32)
        return flat(jax.grad(loss), described(images, dim), described(rows, dim), example)

    monkeypatch.setattr(tiles, "TILE", 4 * F32 * rows)
    for whole in (20 * F32 * rows, F32):  # between the two sizes, or below both
        monkeypatch.setattr(tiles, "WHOLE", whole)
        steps = AnyBatch.of(read, 0)
        assert not steps.alike
        for images in (13, 40):
            direct = read(images)
            assert steps.flops(images) == program.flops(direct)
            assert steps.flops(images) >= 2 * 2 * images * rows * dim
            assert steps.footprint(images, footprint.GPU) == footprint.analyse(direct, 0)
    room = footprint.analyse(read(203), 0).peak  # with three beside the tiles
    most = steps.most_images(room, footprint.GPU)
    assert 190 <= most <= 210 and footprint.analyse(read(most), 0).peak <= room
    assert steps.most_images(1, footprint.GPU) == 0


def test_a_view_of_a_number_that_is_written_out_takes_no_memory():
    found = flat(lambda x: x * lax.reshape(2.0, (1,)) @ jnp.ones((3, 3)), described(4, 3))
    assert any(op.name == "reshape" and not op.inputs for op in found.ops)
    assert footprint.analyse(found, 0).temporary == F32 * (12 + 9 + 12)  # the product and its sides


@pytest.mark.parametrize("most", [0, 1, 2, 3, 31, 32, 33, 1000])
def test_largest_finds_the_last_that_fits(most):
    assert largest(lambda images: images <= most) == most
