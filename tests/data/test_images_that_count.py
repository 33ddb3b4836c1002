"""Which images count in a score: readable ones of the held-out split, each with its own label.

The network has random weights and the images much noise, so that scores are in the middle: an image
too many or too few, or the label of its neighbour, gives another number.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from frame import toys
from PIL import Image
from stages import taught
from train import tiny

from simclr_jax import parallel
from simclr_jax.data import sources
from simclr_jax.data.sources import NO_LABEL
from simclr_jax.errors import UserError
from simclr_jax.stages import pretrain
from simclr_jax.stages.encoder import embedder
from simclr_jax.stages.inputs import Inputs
from simclr_jax.train import timetable as timetables

COUNTS = {"train": 64, "val": 50, "test": 41}
TORN = {"train": (3, 17, 40), "val": (0, 11, 12, 49), "test": (5,)}
UNLABELLED = {"train": (2, 3, 30, 31, 50), "val": (1, 11, 20, 33, 34, 35)}
K, TEMPERATURE = 7, 0.2


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by one that compiles at once."""
    with toys.known():
        yield


def pixels_of(split):
    """Return images of 8 pixels, each class with faint stripes of its own, and their labels."""
    random = np.random.default_rng(list(COUNTS).index(split))
    label = random.permutation(np.arange(COUNTS[split]) % tiny.CLASSES)
    shade = random.integers(0, 60, (len(label), 1, 1, 3)) + 28 * label[:, None, None, None]
    noise = random.integers(0, 90, (len(label), 8, 8, 3))
    stripes = 30 * (np.arange(8) // 2 == label[:, None])[:, None, :, None]
    return (shade + noise + stripes).astype(np.uint8), label


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of three splits. Names sort as the images are numbered only within a class."""
    root = tmp_path_factory.mktemp("photographs")
    for split in COUNTS:
        for number, (image, label) in enumerate(zip(*pixels_of(split), strict=True)):
            path = root / split / f"class{label}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            if number in TORN[split]:
                path.write_bytes(path.read_bytes()[:40])
    return root


def recipe(root, placement="device", **fields):
    grid = "opencv" if placement == "split" else "corner"
    data = {"data__source": "folder", "data__path": str(root), "data__max_bad_fraction": 0.2}
    data |= {"augment__placement": placement, "augment__grid": grid, "data__eval_split": "val"}
    data |= {"eval__knn_k": K, "eval__knn_temperature": TEMPERATURE}
    return tiny.recipe(**data | fields)


def numbers(source):
    """Return the numbers of the images of a folder, in its order."""
    return [int(source.name(row).rpartition("/")[2][:2]) for row in range(len(source))]


def counted(split, hidden=()):
    """Return pixels in [0, 1] and labels of the images that count, in the order of a folder."""
    pixels, labels = pixels_of(split)
    left_out = {*TORN[split], *hidden}
    rows = [n for n in np.lexsort((np.arange(len(labels)), labels)) if n not in left_out]
    return np.float32(pixels[rows] / 255), labels[rows]


def without_labels(source, split):
    """Return the split with some labels hidden, by the numbers of the images."""
    hidden = np.flatnonzero(np.isin(numbers(source), UNLABELLED[split]))
    return sources.hide_labels(source, hidden)


def nearest(bank, labels, queries):
    """Classify by the votes of the nearest, written out."""
    bank, queries = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (np.asarray(x, np.float64) for x in (bank, queries))
    )
    found = []
    for similarity in queries @ bank.T:
        near = np.argsort(-similarity, kind="stable")[:K]
        votes = np.bincount(
            labels[near], np.exp(similarity[near] / TEMPERATURE), minlength=tiny.CLASSES
        )
        found.append(votes.argmax())
    return np.array(found)


@pytest.fixture(scope="module")
def monitored(root):
    """A function that evaluates a pretraining run of random weights, and what it should find."""

    @functools.cache
    def evaluated(placement, some_labels):
        c = recipe(root, placement)
        train, held_out = sources.open_splits(c.data)
        if some_labels:
            train, held_out = without_labels(train, "train"), without_labels(held_out, "val")
        mesh, inputs = parallel.make_mesh(1), Inputs(c, train, held_out)
        stage = pretrain.make_stage(c, timetables.make(c, len(train)), inputs, mesh)
        state = tiny.perturbed(stage.init())
        stats = jax.tree.map(lambda leaf: np.abs(leaf + 0.2), state.batch_stats)
        state = parallel.replicate(mesh, state._replace(batch_stats=stats))
        hidden = UNLABELLED if some_labels else {"train": (), "val": ()}
        (bank, known), (queries, label) = (counted(s, hidden[s]) for s in ("train", "val"))
        h = jax.jit(lambda images: embedder(c, ("h",))(state.variables, images)["h"])
        dense = jax.tree.map(np.asarray, state.params["probe"]["dense"])
        guess = (np.asarray(h(queries)) @ dense["kernel"] + dense["bias"]).argmax(1)
        flat = [images.reshape(len(images), -1) for images in (bank, queries)]
        want = {
            "knn": np.mean(nearest(h(bank), known, h(queries)) == label),
            "probe": np.mean(guess == label),
            "pixels": np.mean(nearest(flat[0], known, flat[1]) == label),
        }
        return stage, state, want

    return evaluated


CASES = pytest.mark.parametrize(
    "placement, some_labels", [("device", False), ("split", False), ("device", True)]
)


@CASES
def test_a_monitored_run_is_scored_on_images_that_can_be_read_and_have_a_label(
    monitored, placement, some_labels
):
    stage, state, want = monitored(placement, some_labels)
    found = stage.evaluate(state)
    assert found["knn_accuracy"] == pytest.approx(want["knn"])
    assert found["probe_accuracy"] == pytest.approx(want["probe"])
    assert 0.3 < want["knn"] < 0.9 and 0.1 < want["probe"] < 0.9


def test_and_so_is_what_it_is_compared_with(monitored):
    stage, state, want = monitored("device", True)
    found = stage.compare(state)
    assert found["raw pixels"]["kNN"]["accuracy"] == pytest.approx(want["pixels"])
    assert found["pretrained encoder"]["kNN"]["accuracy"] == pytest.approx(want["knn"])
    assert 0.3 < want["pixels"] < 0.9


@CASES
def test_a_classifier_is_scored_on_images_that_can_be_read_and_have_a_label(
    root, placement, some_labels
):
    plain = recipe(root, placement)
    c = taught.recipe(train__batch_size=8)
    c.data, c.augment.placement, c.augment.grid = plain.data, placement, plain.augment.grid
    train, held_out = sources.open_splits(c.data)
    if some_labels:
        held_out = without_labels(held_out, "val")
    mesh, inputs = parallel.make_mesh(1), Inputs(c, train, held_out)
    stage = taught.run.STAGES["finetune"](c, timetables.make(c, len(train)), inputs, mesh)
    state = parallel.replicate(mesh, tiny.perturbed(stage.init()))
    images, label = counted("val", UNLABELLED["val"] if some_labels else ())
    h = jax.jit(lambda images: embedder(c, ("h",))(state.variables, images)["h"])(images)
    dense = jax.tree.map(np.asarray, state.params["classifier"]["dense"])
    logits = np.asarray(h, np.float64) @ dense["kernel"] + dense["bias"]
    found = stage.evaluate(state)
    right, top = logits.argmax(1) == label, logits.max(1)
    losses = (
        np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(label)), label]
    )
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["held_out_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert stage.compare(state)["classifier"]["top-1"]["accuracy"] == pytest.approx(right.mean())


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_images_held_out_are_those_of_the_split_that_is_named(root, split):
    c = recipe(root, data__eval_split=split)
    train, held_out = sources.open_splits(c.data)
    for source, name in ((train, "train"), (held_out, split)):
        pixels, labels = pixels_of(name)
        assert sorted(numbers(source)) == list(range(COUNTS[name]))
        for row, number in enumerate(numbers(source)):
            assert source.labels[row] == labels[number]
            if number not in TORN[name]:
                image, label = source.example(row)
                assert label == labels[number]
                np.testing.assert_array_equal(image, pixels[number])


@pytest.mark.parametrize("bad, limit, allowed", [(4, 0.08, True), (4, 0.079, False)])
def test_exactly_the_largest_share_of_the_held_out_may_be_torn(root, bad, limit, allowed):
    """Four of 50, met as an evaluation reads them."""
    assert bad == len(TORN["val"]) and COUNTS["val"] == 50
    c = recipe(root, "split")
    c.data.max_bad_fraction = limit
    train, held_out = sources.open_splits(c.data)
    inputs = Inputs(c, train, held_out)
    images = inputs.for_evaluation(held_out)
    if not allowed:
        with pytest.raises(UserError, match=r"of 50 images \(held_out\) are unreadable"):
            images[0:50]
        return
    images[0:50]
    readable = inputs.readable(held_out, images)
    assert [numbers(held_out)[row] for row in readable] == [
        n for n in numbers(held_out) if n not in TORN["val"]
    ]


def test_hidden_labels_are_none_in_a_batch(root):
    train, _ = sources.open_splits(recipe(root).data)
    hidden = without_labels(train, "train")
    inputs = Inputs(recipe(root), hidden, hidden)
    batch = inputs.first(48)
    number = np.array(numbers(train))[batch["example"]]
    want = np.where(np.isin(number, UNLABELLED["train"]), NO_LABEL, pixels_of("train")[1][number])
    np.testing.assert_array_equal(batch["label"], want)
