"""Every image is encoded once and in order, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from simclr_jax.errors import UserError
from simclr_jax.evaluate.features import extract

IMAGES = np.random.RandomState(0).randint(0, 256, (13, 4, 5, 3)).astype(np.uint8)
VARIABLES = {"kernel": np.random.RandomState(1).normal(size=(60, 7)).astype(np.float32)}
EXPECTED = np.maximum(IMAGES.reshape(13, 60) / 255.0 @ VARIABLES["kernel"].astype(np.float64), 0)


def mesh_of(devices):
    kinds = (AxisType.Auto,)
    return jax.make_mesh((devices,), ("data",), kinds, devices=jax.devices()[:devices])


def encode(variables, images):
    pixels = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return jax.nn.relu(pixels @ variables["kernel"])


def encode_twice(variables, images):
    h = encode(variables, images)
    return {"h": h, "z": h[:, :2] + 1, "brightness": images.mean(axis=(1, 2, 3))}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 8, 13, 32])
def test_every_image_once_in_order(devices, batch_size):
    features = extract(encode, VARIABLES, IMAGES, mesh_of(devices), batch_size)
    assert features.shape == (13, 7)
    np.testing.assert_allclose(features, EXPECTED, rtol=1e-5, atol=1e-5)


def test_several_outputs_at_once():
    outputs = extract(encode_twice, VARIABLES, IMAGES, mesh_of(8), 8)
    np.testing.assert_allclose(outputs["h"], EXPECTED, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["z"], EXPECTED[:, :2] + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["brightness"], IMAGES.mean((1, 2, 3)), rtol=1e-5)


class Slices:
    """A source that only knows how to be sliced, and remembers the most rows it gave."""

    def __init__(self):
        self.most = 0

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, rows):
        assert 0 <= rows.start < rows.stop <= len(IMAGES)
        self.most = max(self.most, rows.stop - rows.start)
        return list(IMAGES[rows])


def test_images_are_read_by_slices_of_a_device_s_rows():
    images = Slices()
    features = extract(encode, VARIABLES, images, mesh_of(8), 16)
    np.testing.assert_allclose(features, EXPECTED, rtol=1e-5, atol=1e-5)
    assert images.most == 2


def test_compiles_once_for_all_batches_sets_and_variables():
    traces = []

    def counted(variables, images):
        traces.append(images.shape)
        return encode(variables, images)

    mesh = mesh_of(8)
    extract(counted, VARIABLES, IMAGES, mesh, 8)
    doubled = jax.tree.map(lambda x: 2 * x, VARIABLES)
    again = extract(counted, doubled, IMAGES[:3], mesh, 8)
    assert traces == [(1, 4, 5, 3)]
    np.testing.assert_allclose(again, 2 * EXPECTED[:3], rtol=1e-5, atol=1e-5)


def test_variables_keep_their_bits_and_their_buffers():
    variables = jax.tree.map(jnp.asarray, VARIABLES)
    extract(encode, variables, IMAGES, mesh_of(8), 8)
    np.testing.assert_array_equal(variables["kernel"], VARIABLES["kernel"])


def test_an_encoder_that_scans():
    def scanning(variables, images):
        total, _ = jax.lax.scan(
            lambda total, row: (total + row.mean(), None), jnp.float32(0), variables["kernel"]
        )
        rows, _ = jax.lax.scan(
            lambda sums, row: (sums + row, None),
            jnp.zeros(len(images), jnp.float32),
            images.reshape(len(images), -1).T.astype(jnp.float32),
        )
        return rows + 0 * total

    features = extract(scanning, VARIABLES, IMAGES, mesh_of(8), 8)
    np.testing.assert_allclose(features, IMAGES.reshape(13, -1).sum(1), rtol=1e-6)


def test_user_errors():
    with pytest.raises(UserError, match="no images"):
        extract(encode, VARIABLES, IMAGES[:0], mesh_of(1))
    with pytest.raises(UserError, match="batch_size is 0"):
        extract(encode, VARIABLES, IMAGES, mesh_of(1), 0)
