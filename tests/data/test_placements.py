"""Four placements, one order, one set of draws: what each hands to the device, and its views."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_jax import parallel, recipes
from simclr_jax.augment import on_device
from simclr_jax.augment.draws import draw_views
from simclr_jax.augment.policy import Policy
from simclr_jax.data import batches, order
from simclr_jax.data.canvas import Canvas
from simclr_jax.data.decode import BadImage
from simclr_jax.data.placements import Loading, split
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import Images
from simclr_jax.errors import UserError
from simclr_jax.stages import build, views

SIZE, BATCH, SEED, SIDE = 30, 12, 5, 16
PLACEMENTS = ("device", "canvas", "split", "host")
CANVAS = 4 * SIDE  # holds all
BAD = (4, 5, 17)


class Photographs:
    """Images of many sizes that know their number, some of them unreadable."""

    classes, channels, multi_label, class_names = SIZE, 3, False, ()
    labels = np.arange(SIZE, dtype=np.int32)

    def __init__(self, bad=()):
        self.bad = set(bad)

    def __len__(self):
        return SIZE

    def name(self, example):
        return f"{example}.jpg"

    def example(self, example):
        if example in self.bad:
            raise BadImage("truncated")
        random = np.random.RandomState(example)
        height, width = random.randint(SIDE // 2, 4 * SIDE, 2)
        return random.randint(0, 256, (height, width, 3)).astype(np.uint8), example


def one_size(channels=3):
    pixels = np.random.RandomState(0).randint(0, 256, (SIZE, SIDE, SIDE, channels))
    return Images(pixels.astype(np.uint8), np.arange(SIZE, dtype=np.int32), SIZE)


class Tagged(Photographs):
    """The images of `one_size`, with labels that are not their numbers."""

    labels = np.arange(SIZE, dtype=np.int32)[::-1]

    def example(self, example):
        super().example(example)  # may be unreadable
        return one_size().pixels[example], int(self.labels[example])


def decoded(source):
    """Return a `Tagged` source in memory: unreadable images are marked and black."""
    bad = np.isin(np.arange(SIZE), list(source.bad))
    pixels = np.where(bad[:, None, None, None], np.uint8(0), one_size().pixels)
    return Images(pixels, source.labels, SIZE, bad if bad.any() else None)


def loading(source, policy=None, **fields):
    policy = policy or Policy(SIDE)
    return Loading(
        reader=Reader(
            source,
            functools.partial(order.examples, SEED, size=len(source)),
            Unreadable("train", len(source), max_fraction=0.2),
        ),
        policies=policy if isinstance(policy, dict) else {"views": (policy, policy)},
        seed=SEED,
        **{"shared_sigma": False, "threads": 3, "canvas": Canvas(CANVAS), **fields},
    )


def read_batches(placement, of, steps=(0,), rows=slice(None)):
    requests = (batches.request(step, BATCH, rows) for step in steps)
    return list(batches.host_batches(placement, of, requests))


def recipe(placement):
    c = recipes.base()
    c.data.image_size, c.seed = SIDE, SEED
    c.augment.placement = placement
    c.augment.grid = "opencv" if placement == "split" else "half_pixel"
    return c


def views_of(c, source):
    """Return the views of the first batch as a stage makes them, `{group: [n, v, s, s, c]}`."""
    batch = read_batches(c.augment.placement, loading(source, build.policies(c)))[0]
    return jax.tree.map(np.asarray, jax.jit(views.view_maker(c))(batch))


def made(placement, source, **augment):
    """Return two views of one policy, `[n, 2, s, s, c]`."""
    c = recipe(placement)
    for view in c.augment.views.values():
        view.update(augment)
    return views_of(c, source)["views"]


def groups(placement, copies=2, **augment):
    """Return a recipe of two unlike views as BYOL has them, and smaller ones drawn alike."""
    c = recipe(placement)
    with c.unlocked():
        c.augment.views.small = recipes.view()
    c.augment.views.first.update(blur=1.0)
    c.augment.views.second.update(blur=0.1, solarize=0.2)
    c.augment.views.small.update(group="local", size=10, copies=copies, area_max=0.4)
    for view in c.augment.views.values():
        view.update(augment)
    return c


@pytest.mark.parametrize("placement", ["canvas", "split", "host"])
@pytest.mark.parametrize("bad", [(), BAD], ids=["all readable", "some not"])
def test_order_is_that_of_the_run_and_the_next_image_replaces_an_unreadable_one(placement, bad):
    expected = []
    for position in range(4 * BATCH):  # an epoch and a half
        while (example := order.examples(SEED, np.array([position]), SIZE)[0]) in bad:
            position += 1
        expected.append(example)
    found = read_batches(placement, loading(Photographs(bad)), range(4))
    assert np.concatenate([batch["label"] for batch in found]).tolist() == expected
    positions = np.concatenate([batch["position"][:, 1] for batch in found])
    assert positions.tolist() == list(range(4 * BATCH))  # they keep their own augmentation


def test_images_decoded_beforehand_are_replaced_alike():
    bad = np.isin(np.arange(SIZE), BAD)
    images = one_size()
    marked = Images(images.pixels, images.labels, SIZE, bad)
    found = read_batches("device", loading(marked), range(4))
    wanted = read_batches("split", loading(Photographs(BAD)), range(4))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["image"], images.pixels[b["label"]])


def whole_images(placement, bad):
    """Return uncropped pixels `[n, h, w, c]` of 0 to 255, and the rest, of an epoch and a half."""
    whole = Policy(SIDE, crop=False, flip=0, jitter=0, grayscale=0, blur=0)
    source = decoded(Tagged(bad)) if placement in ("device", "resident") else Tagged(bad)
    of = loading(source, whole)
    if placement == "resident":
        stream = batches.device_batches(
            "device",
            of,
            parallel.make_mesh(4),
            batch_size=BATCH,
            first_step=0,
            total_steps=4,
            steps_per_call=4,
            resident=True,
        )
        ((_, chunk),) = stream
        found = {name: np.concatenate(np.asarray(values)) for name, values in chunk.items()}
    else:
        parts = read_batches(placement, of, range(4))
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if placement == "host":
        return found["views/views"][:, 0] * 255, found
    if placement == "canvas":
        assert (found["size"] == SIDE).all() and not found["canvas"][:, SIDE:].any()
        return found["canvas"][:, :SIDE, :SIDE], found
    return found["crops/views"][:, 0] if placement == "split" else found["image"], found


@pytest.mark.parametrize("bad", [(), BAD], ids=["all readable", "some not"])
@pytest.mark.parametrize("placement", [*PLACEMENTS, "resident"])
def test_example_is_the_number_of_the_image_whose_pixels_stand_there(placement, bad):
    pixels, found = whole_images(placement, bad)
    apart = np.abs(pixels[:, None].astype(float) - one_size().pixels).max((2, 3, 4))
    assert (apart.min(1) < 0.01).all()
    np.testing.assert_array_equal(found["example"], apart.argmin(1))
    np.testing.assert_array_equal(found["label"], Tagged.labels[found["example"]])
    assert found["example"].dtype == found["label"].dtype == np.int32
    # What was ordered is what was taken, unless it could not be read.
    ordered = order.examples(SEED, np.arange(4 * BATCH), SIZE)
    np.testing.assert_array_equal(found["example"] != ordered, np.isin(ordered, bad))
    assert np.isin(ordered, BAD).sum() >= 3
    np.testing.assert_array_equal(found["position"][:, 1], np.arange(4 * BATCH))
    np.testing.assert_array_equal(found["start"][:, 1], np.arange(4 * BATCH) // BATCH * BATCH)


@pytest.mark.parametrize("placement", ["canvas", "split", "host"])
def test_hosts_and_resumed_runs_see_their_part_of_the_same_batches(placement):
    of = loading(Photographs(BAD))
    straight = read_batches(placement, of, range(3))
    resumed = read_batches(placement, of, (2,))[0]
    jax.tree.map(np.testing.assert_array_equal, resumed, straight[2])
    hosts = [read_batches(placement, of, (1,), slice(k, k + 4))[0] for k in (0, 4, 8)]
    joined = {name: np.concatenate([host[name] for host in hosts]) for name in hosts[0]}
    jax.tree.map(np.testing.assert_array_equal, joined, straight[1])


def test_host_makes_the_views_of_the_device():
    images = one_size()
    device, host = made("device", images, blur=0.5), made("host", images, blur=0.5)
    assert device.std() > 0.1
    # Both are float32; saturation and hue divide by spreads that may be small.
    np.testing.assert_allclose(host, device, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_split_makes_the_views_of_the_device_where_nothing_is_resized(channels):
    images = one_size(channels)
    device, split = (made(p, images, crop=False) for p in ("device", "split"))
    np.testing.assert_allclose(split, device, atol=1e-6)


def cubic(image, size):
    """Keys' cubic with a = -0.75 at half-pixel positions, edges repeated, in float64."""

    def weights(length):
        matrix = np.zeros((size, length))
        for i in range(size):
            position = (i + 0.5) * length / size - 0.5
            for tap in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
                x = abs(position - tap)
                near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x - 1) * (x - 2) ** 2
                matrix[i, np.clip(tap, 0, length - 1)] += near if x <= 1 else far
        return matrix

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float))


def area(image, size):
    """The mean over the part of the image that each pixel of the result covers, in float64."""

    def weights(length):
        edges = np.arange(size + 1) * length / size
        pixels = np.arange(length)
        low, high = edges[:-1, None], edges[1:, None]
        covered = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
        return np.maximum(covered, 0) * size / length

    rows, columns = weights(image.shape[0]), weights(image.shape[1])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(float))


def test_split_cuts_the_drawn_boxes_by_the_law_it_names():
    laws = set()
    of = loading(Photographs(), build.policies(groups("split")))
    batch = read_batches("split", of)[0]
    for row, example in enumerate(batch["label"]):
        image, _ = of.reader.source.example(example)
        position, start = batch["position"][row], batch["start"][row]
        drawn = draw_views(of.policies, SEED, position, start, *image.shape[:2])
        for group, size in (("views", SIDE), ("local", 10)):
            for view, draws in enumerate(drawn[group]):
                y, x, height, width = np.asarray(draws.box)
                law = area if min(height, width) > 2 * size else cubic
                laws.add((group, law))
                expected = np.clip(law(image[y : y + height, x : x + width], size), 0, 255)
                # OpenCV's weights have 11 bits, and the result is rounded.
                found = batch[f"crops/{group}"][row, view]
                assert np.abs(found - expected).max() <= 1.5
    assert len(laws) == 4


def test_several_groups_are_made_alike_by_host_and_device():
    images = one_size()
    host, device = (views_of(groups(placement), images) for placement in ("host", "device"))
    assert list(device) == list(host) == ["local", "views"]
    assert device["local"].shape == (BATCH, 2, 10, 10, 3)
    assert device["views"].shape == (BATCH, 2, SIDE, SIDE, 3)
    for group in device:
        assert device[group].std() > 0.1
        np.testing.assert_allclose(host[group], device[group], atol=2e-5)


def test_split_colours_its_crops_of_several_groups_by_the_draws_of_the_device():
    c = groups("split")
    of = loading(one_size(), build.policies(c))
    batch = read_batches("split", of)[0]
    found = jax.jit(views.view_maker(c))(batch)
    for row in range(BATCH):
        at = batch["position"][row], batch["start"][row]
        drawn = draw_views(of.policies, SEED, *at, SIDE, SIDE)
        for group, policies in of.policies.items():
            for view, policy in enumerate(policies):
                crop = batch[f"crops/{group}"][row, view]
                policy = dataclasses.replace(policy, crop=False)
                wanted = on_device.augment(crop, drawn[group][view], policy)
                np.testing.assert_allclose(found[group][row, view], wanted, atol=2e-6)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_group_sees_the_same_whatever_groups_come_after_it(placement):
    """The views of earlier groups are counted first, so `views` moves and `local` does not."""
    images = one_size()
    both = views_of(groups(placement), images)
    c = groups(placement)
    with c.unlocked():
        del c.augment.views["first"], c.augment.views["second"]
    alone = views_of(c, images)
    np.testing.assert_allclose(alone["local"], both["local"], atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_view_follows_its_own_policy_and_copies_are_drawn_anew(placement):
    still = {"crop": False, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    c = groups(placement, copies=3, **still, size=SIDE)
    c.augment.views.second.update(solarize=1.0)
    c.augment.views.small.update(crop=True, area_max=1.0)
    found, images = views_of(c, one_size()), one_size()
    pixels = images.pixels[order.examples(SEED, np.arange(BATCH), SIZE)] / 255
    np.testing.assert_allclose(found["views"][:, 0], pixels, atol=1e-6)
    solarized = np.where(pixels < 0.5, pixels, 1 - pixels)
    np.testing.assert_allclose(found["views"][:, 1], solarized, atol=1e-6)
    for one, other in itertools.combinations(np.moveaxis(found["local"], 1, 0), 2):
        assert (np.abs(one - other).mean((1, 2, 3)) > 0.01).all()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_eight_devices_make_the_views_of_one_in_several_groups(placement):
    c, found = groups(placement), []
    for devices in (1, 8):
        stream = batches.device_batches(
            placement,
            loading(one_size(), build.policies(c)),
            parallel.make_mesh(devices),
            batch_size=16,
            first_step=0,
            total_steps=2,
            steps_per_call=2,
            resident=placement == "device" and devices == 8,
        )
        (_, batch) = next(stream)
        stream.close()
        found.append(jax.jit(jax.vmap(views.view_maker(c)))(batch))
    one, eight = found
    assert len(eight["local"].sharding.device_set) == 8
    for group in ("local", "views"):
        assert eight[group].shape[:3] == (2, 16, 2)
        np.testing.assert_allclose(eight[group], one[group], atol=2e-6)


def test_large_images_are_shrunk_for_the_largest_views():
    pixels = np.random.RandomState(0).randint(0, 256, (SIZE, 210, 330, 3)).astype(np.uint8)
    whole = Policy(70, crop=False)
    of = loading(Images(pixels, None, 0), {"large": (whole,), "small": (Policy(10, crop=False),)})
    batch = read_batches("split", of)[0]
    first = pixels[order.examples(SEED, np.arange(1), SIZE)[0]]
    # By 70 the image is not shrunk before; by 10 it would be, to a fifth.
    assert np.abs(batch["crops/large"][0, 0] - area(first, 70)).max() <= 1
    assert np.abs(batch["crops/small"][0, 0] - area(first, 10)).max() <= 1


def test_large_images_are_shrunk_by_a_whole_factor_before_they_are_cropped():
    shrink = split.shrinker(SIDE)
    image = np.random.RandomState(0).randint(0, 256, (210, 330, 3)).astype(np.uint8)
    smaller = shrink(image)  # 210 is 3.3 times 4 views
    assert smaller.shape == (70, 110, 3)
    means = image.reshape(70, 3, 110, 3, 3).mean((1, 3))
    assert np.abs(smaller - means).max() <= 1
    assert shrink(smaller) is smaller
    assert shrink(image[:, :, :1]).shape == (70, 110, 1)


def test_a_batch_may_share_the_width_of_its_blur():
    policy = Policy(40, crop=False, flip=0, jitter=0, grayscale=0, blur=1, blur_sigma=(0.5, 3))
    image = np.zeros((40, 40, 3), np.uint8)
    image[20, 20] = 255
    images = Images(np.tile(image, (SIZE, 1, 1, 1)), None, 0)
    shared = read_batches("host", loading(images, policy, shared_sigma=True))[0]["views/views"]
    own = read_batches("host", loading(images, policy))[0]["views/views"]
    assert np.ptp(shared[:, 0, 20, 20, 0]) < 1e-6 and np.ptp(own[:, 0, 20, 20, 0]) > 0.01
    assert abs(shared[0, 0, 20, 20, 0] - shared[0, 1, 20, 20, 0]) > 1e-4  # each view its own


@pytest.mark.parametrize("placement", ["canvas", "split", "host"])
def test_too_many_unreadable_images_stop_the_run(placement):
    with pytest.raises(UserError, match=r"\d of 30 images .*truncated.*max_bad_fraction=0.2"):
        read_batches(placement, loading(Photographs(range(0, 30, 2))), range(3))


def test_workers_are_not_left_behind():
    """A run that stops in the middle of a data set must end, not hang."""
    for placement in PLACEMENTS:
        source = one_size() if placement == "device" else Photographs()
        requests = (batches.request(step, BATCH) for step in itertools.count())
        stream = batches.host_batches(placement, loading(source), requests)
        next(stream)
        stream.close()


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 200),
    hosts=st.sampled_from([1, 2, 4]),
    rows=st.integers(1, 8),
    first=st.integers(0, 10**12),
    seed=st.integers(0, 2**62),
)
def test_every_epoch_is_whole_whatever_the_hosts_and_wherever_a_run_resumes(
    size, hosts, rows, first, seed
):
    """From any step on, over all hosts: each complete epoch has every example once."""
    batch = hosts * rows
    steps = range(first, first + -(-3 * size // batch))
    positions = np.concatenate(
        [
            batches.request(step, batch, slice(host * rows, (host + 1) * rows)).positions
            for step in steps
            for host in range(hosts)
        ]
    )
    examples = order.examples(seed, positions, size)
    epochs = positions // size
    whole = [epoch for epoch in np.unique(epochs) if (epochs == epoch).sum() == size]
    assert whole
    for epoch in whole:
        np.testing.assert_array_equal(np.sort(examples[epochs == epoch]), np.arange(size))
