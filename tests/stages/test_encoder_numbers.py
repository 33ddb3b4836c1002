"""What is read off a frozen encoder: which layer, of which images, in which dtype."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from stages import noisy
from stages.written import write_run
from train import tiny

import simclr_jax
from simclr_jax import documents
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.stages import encoder as encoders
from simclr_jax.stages.encoder import Encoder
from simclr_jax.train import saved
from simclr_jax.train.checkpoints import Checkpoints
from simclr_jax.train.stage import TrainState

SIZE = 40  # above 32, so that only the middle of an image is looked at
IMAGES = np.random.RandomState(0).randint(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), data__image_size=SIZE)


@pytest.fixture(scope="module")
def encoder(workdir):
    return simclr_jax.load(str(workdir))


def test_prepared_images_and_others_do_not_share_a_program(encoder):
    """The same taps of the same images: once as they are, once their middle."""
    views = np.stack([noisy.evaluation_view(image, SIZE) for image in IMAGES]).astype(np.float32)
    config = encoder.config
    middle, whole = (
        noisy.features(config, encoder.variables, x) for x in (views, np.float32(IMAGES / 255))
    )
    for _ in range(2):  # now both are compiled
        for prepared, want in ((True, whole), (False, middle)):
            found = encoder.extract(IMAGES, ("h", "z"), prepared=prepared)
            np.testing.assert_allclose(found["h"], want[0], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(found["z"], want[2], rtol=1e-3, atol=1e-3)
        found = encoder.extract(IMAGES, ("z",), prepared=True)
        assert found.keys() == {"z"}
    assert np.abs(middle[0] - whole[0]).max() > 0.05
    np.testing.assert_allclose(encoder(IMAGES), middle[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(encoder(IMAGES, tap="head1"), middle[1], rtol=1e-3, atol=1e-3)


def test_raw_pixels_are_shrunk_to_32(encoder):
    """Triangles as wide as the shrinking asks for, each weighted to one."""
    views = np.stack([noisy.evaluation_view(image, SIZE) for image in IMAGES])
    scale = SIZE / 32
    centres = (np.arange(32) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(SIZE)) / scale)
    weights /= weights.sum(1, keepdims=True)
    want = np.einsum("oh,bhwc,pw->bopc", weights, views, weights).reshape(5, -1)
    found = encoder.extract(IMAGES, ("pixels",))["pixels"]
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert encoders.PIXELS == 32


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_the_head_are_counted_from_h_or_from_the_end(layers):
    kind = "linear" if layers == 1 else "nonlinear"
    c = tiny.recipe(head__kind=kind, head__layers=layers)
    names = ["h", *(f"head{i}" for i in range(1, layers + 1))]
    assert [encoders.tap_name(c, k) for k in range(layers + 1)] == names
    assert [encoders.tap_name(c, -k) for k in range(1, layers + 2)] == names[::-1]
    taps = encoders.taps(c)
    groups = ("group1", "group2", "group3", "group4")
    assert encoders.vectors(c) == (*names, "z", *groups)
    assert taps == (*names, "z", *groups, "map1", "map2", "map3", "map4", "pixels")


def test_without_a_head_there_is_h_alone():
    c = tiny.recipe(head__kind="none")
    assert [encoders.tap_name(c, k) for k in (0, -1)] == ["h", "h"]
    assert encoders.vectors(c) == ("h", "group1", "group2", "group3", "group4")


def test_a_map_is_the_block_group_before_its_mean(workdir, encoder):
    """Pooled from the module's own end point; whole, its mean over the image is the group's tap."""
    names = ("map2_64", "map2", "map3_1000000", "group2", "group3", "map4_1", "h")
    found = encoder.extract(IMAGES, names)
    prepared = encoder.preprocessing.on_device(IMAGES)
    module = modules.encoder(encoder.config)
    host = jax.device_get(encoder.variables)
    variables = {kind: tree["encoder"] for kind, tree in host.items()}
    ends = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, prepared)
    second, third = (np.asarray(ends[f"block_group{i}"]) for i in (2, 3))
    b, side, _, channels = second.shape
    assert side > 4 and channels == 8  # 64 numbers are 8 cells, a square of 3
    cells = round((64 / channels) ** 0.5)
    fine = second.repeat(cells, 1).repeat(cells, 2)
    want = fine.reshape(b, cells, side, cells, side, channels).mean((2, 4)).reshape(b, -1)
    np.testing.assert_allclose(found["map2_64"], want, atol=1e-5)
    np.testing.assert_allclose(found["map2"], second.reshape(b, -1), atol=1e-5)
    whole = found["map3_1000000"].reshape(third.shape)
    np.testing.assert_allclose(whole, third, atol=1e-5)
    np.testing.assert_allclose(whole.mean((1, 2)), found["group3"], atol=1e-5)
    np.testing.assert_allclose(found["map4_1"], found["h"], atol=1e-5)


@pytest.mark.parametrize("tap", ["map5", "map0", "map2_", "map2_0", "map2_-3", "map2_09", "mapx"])
def test_a_map_that_there_is_not_is_named_in_one_line(encoder, tap):
    with pytest.raises(UserError, match=f'tap is "{tap}".*choose one of h.*map1, map2') as found:
        encoder(IMAGES, tap=tap)
    assert "\n" not in str(found.value)


def test_any_leaf_changes_the_fingerprint(workdir, encoder):
    """A weight, a statistic of encoder or head, a hair's breadth; or two that change places."""
    config = saved.read(str(workdir)).config
    host = jax.device_get(encoder.variables)
    flat, tree = jax.tree.flatten(host)
    found = {encoder.fingerprint}
    for i in range(0, len(flat), 5):
        changed = [leaf.copy() for leaf in flat]
        changed[i].ravel()[-1] = np.nextafter(changed[i].ravel()[-1], np.float32(9))
        other = Encoder(config, jax.tree.unflatten(tree, changed), "run", 7, encoder.mesh)
        found.add(other.fingerprint)
    assert len(found) == 1 + len(range(0, len(flat), 5))
    norm = host["batch_stats"]["encoder"]["stem_bn"]
    swapped = {"mean": norm["var"], "var": norm["mean"]}
    stats = host["batch_stats"] | {"encoder": host["batch_stats"]["encoder"] | {"stem_bn": swapped}}
    other = Encoder(config, host | {"batch_stats": stats}, "run", 7, encoder.mesh)
    assert other.fingerprint not in found


# Which classifier ---------------------------------------------------------------------------------


def write(workdir, parts, record=None, **fields):
    """Write a run that has linear layers, and what its record says beside the recipe."""
    random = np.random.default_rng(0)
    params = {}
    for part in parts:
        dense = {"kernel": random.normal(size=(32, 4)), "bias": random.normal(size=4)}
        params[part] = {"dense": jax.tree.map(np.float32, dense)}
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(3, TrainState(np.int32(3), params, {}, {}))
    checkpoints.close()
    config = tiny.recipe(**fields).to_dict()
    documents.write(workdir / "config.json", config | (record or {}))
    return saved.read(str(workdir)), params


@pytest.mark.parametrize(
    "parts, record, tap, part",
    [
        (("probe",), {}, "head1", "probe"),
        (("classifier",), {}, "head2", "classifier"),
        (("probe", "classifier"), {}, "head2", "classifier"),
        (("classifier",), {"converted": {"classifier_tap": 0}}, "h", "classifier"),
        (("probe",), {"converted": {"classifier_tap": 2}}, "head2", "probe"),
    ],
)
def test_the_classifier_is_the_run_s_own_on_the_layer_it_was_taught_on(
    tmp_path, parts, record, tap, part
):
    run, params = write(tmp_path, parts, record, eval__probe_tap=1, finetune__tap=-1)
    found, weights = encoders.classifier_of(run)
    assert found == tap
    np.testing.assert_array_equal(weights.kernel, params[part]["dense"]["kernel"])
    np.testing.assert_array_equal(weights.bias, params[part]["dense"]["bias"])


def test_there_may_be_no_classifier_or_none_whose_layer_is_known(tmp_path):
    assert encoders.classifier_of(write(tmp_path / "a", ("head",))[0]) is None
    unknown = {"converted": {"classifier_tap": None}}
    assert encoders.classifier_of(write(tmp_path / "b", ("probe",), unknown)[0]) is None


def test_a_single_precision_encoder_is_not_one_of_half(encoder):
    """And a crop of another share is another view."""
    narrow = encoder.changed({"train.dtype": "bfloat16"})
    exact, rounded = encoder(IMAGES), narrow(IMAGES)
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.2
    closer = dataclasses.replace(encoder.preprocessing, proportion=0.5)
    assert np.abs(encoder.changed(preprocessing=closer)(IMAGES) - exact).max() > 0.01
