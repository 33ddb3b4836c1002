"""What opens, what is refused and in which words, and that a split is the same one every time."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax import recipes
from simclr_jax.data import sources
from simclr_jax.data.sources import numbering
from simclr_jax.errors import UserError
from simclr_jax.stages import build

RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(0, 256, (40, 6, 5, 3)).astype(np.uint8)
LABELS = (np.arange(40) % 7).astype(np.int64)
SEVERAL = np.random.RandomState(1).randint(-1, 2, (40, 5))


def options(path="", source="memory", **fields):
    data = recipes.base().data
    data.source, data.path = source, str(path)
    data.update(fields)
    return data


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "train_"])
def test_pairs_of_arrays_are_splits(tmp_path, prefix):
    path = archive(
        tmp_path,
        **{f"{prefix}images": PIXELS[:30], f"{prefix}labels": LABELS[:30]},
        test_images=PIXELS[30:],
        test_labels=LABELS[30:] % 3,
    )
    train, test = sources.open_splits(options(path))
    np.testing.assert_array_equal(train.pixels, PIXELS[:30])
    np.testing.assert_array_equal(train.labels, LABELS[:30])
    np.testing.assert_array_equal(test.pixels, PIXELS[30:])
    assert (train.pixels.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert train.classes == test.classes == 7  # of the whole archive, not of a split


def test_labels_are_optional(tmp_path):
    train = sources.open_splits(options(archive(tmp_path, images=PIXELS)))[0]
    assert train.labels is None and train.classes == 0
    assert train.take(np.arange(3)).labels is None


@pytest.mark.parametrize("labelled, bare", [("", "test_"), ("test_", "")])
@pytest.mark.parametrize("labels", [LABELS, SEVERAL])
def test_a_split_without_labels_has_no_classes(tmp_path, labelled, bare, labels):
    arrays = {"images": PIXELS, "test_images": PIXELS, f"{labelled}labels": labels}
    path = archive(tmp_path, **arrays, class_names=list("abcdefg"[: 7 if labels.ndim == 1 else 5]))
    found = dict(zip(("", "test_"), sources.open_splits(options(path)), strict=True))
    assert found[labelled].classes == len(found[labelled].class_names) > 0
    assert (found[bare].classes, found[bare].class_names) == (0, ())
    assert found[bare].labels is None and not found[bare].multi_label
    recipe = recipes.base()
    recipe.eval.probe = recipe.eval.knn = True
    with pytest.raises(UserError, match=r"no labels, which eval\.probe needs: set .*eval\.knn=Fal"):
        build.check_images(recipe, found[""], found["test_"])


def test_an_image_may_have_several_labels(tmp_path):
    path = archive(tmp_path, images=PIXELS, labels=SEVERAL, test_images=PIXELS, test_labels=SEVERAL)
    train, test = sources.open_splits(options(path))
    assert train.multi_label and test.multi_label and train.classes == 5
    np.testing.assert_array_equal(train.labels, SEVERAL)
    assert train.labels.dtype == np.int8
    part = train.take(np.array([7, 3]))
    np.testing.assert_array_equal(part.labels, SEVERAL[[7, 3]])
    assert part.multi_label and part.example(0)[1] == sources.NO_LABEL
    assert train.fingerprint() != sources.open_splits(options(path, labels=False))[0].fingerprint()


@pytest.mark.parametrize("dtype", [np.int64, np.uint32])
def test_identifiers_are_numbered_anew_over_all_splits(tmp_path, dtype):
    train, test = 900_000 + 3 * LABELS[:30], 900_001 + 3 * LABELS[30:]
    path = archive(
        tmp_path,
        **{"images": PIXELS[:30], "labels": train.astype(dtype)},
        **{"test_images": PIXELS[30:], "test_labels": test.astype(dtype)},
    )
    numbers = np.unique(np.concatenate([train, test]))
    for source, labels in zip(sources.open_splits(options(path)), (train, test), strict=True):
        assert source.classes == len(numbers) == 14 and source.labels.dtype == np.int32
        assert source.class_names == tuple(map(str, numbers))
        np.testing.assert_array_equal(numbers[source.labels], labels)
        assert "numbers up to 900019, of which 14 occur" in sources.notes(source)[0]
        assert sources.notes(source.take(np.arange(3))) == sources.notes(source)


@pytest.mark.parametrize(
    "labels, kept",
    [
        ([0, 1, 2, 4, 9], True),  # some classes have no image here
        ([1, 1000], True),  # two of ImageNet's, as the field numbers them
        ([0, 1999], True),
        ([0, 2000], False),
        ([2000, 2001, 2002, 2003], False),
        ([-1, 3, -1, 5], True),
        ([-1, 5000, -1, 5001], False),
        (list(range(0, 42_000, 21)), False),
        (list(range(0, 40_000, 19)), True),
    ],
)
def test_numbers_with_gaps_are_kept_as_they_were(labels, kept):
    labels = np.array(labels)
    numbers = numbering.identifiers([labels, labels[:1]])
    assert (numbers is None) == kept
    if not kept:
        found = numbering.numbered(labels, numbers)
        np.testing.assert_array_equal(np.where(found < 0, -1, numbers[found]), labels)
        assert found.max() + 1 == len(np.unique(labels[labels >= 0]))
        with pytest.raises(KeyError, match="7"):
            numbering.numbered(np.array([labels.max(), 7]), numbers)


def test_classes_may_have_names(tmp_path):
    names = tuple("abcdefgh")  # of the last there is no image
    path = archive(tmp_path, images=PIXELS, labels=LABELS, class_names=names)
    train, test = sources.open_splits(options(path, holdout_fraction=0.25))
    assert train.class_names == test.class_names == names and train.classes == 8
    assert not train.multi_label
    assert sources.open_splits(options(path, labels=False))[0].class_names == ()
    assert digits().class_names == tuple("0123456789")


def test_floats_become_bytes_and_grey_images_get_a_channel(tmp_path):
    path = archive(tmp_path, images=PIXELS[..., 0] / 255, test_images=PIXELS[..., :1])
    train, test = sources.open_splits(options(path))
    np.testing.assert_array_equal(train.pixels, test.pixels)
    assert train.pixels.shape == (40, 6, 5, 1)


def test_held_out_images_are_no_training_images_and_stay_the_same(tmp_path):
    path = archive(tmp_path, images=PIXELS, labels=LABELS)
    data = options(path, holdout_fraction=0.25)
    train, test = sources.open_splits(data)
    assert (len(train), len(test)) == (30, 10)
    ids = {image.tobytes(): i for i, image in enumerate(PIXELS)}
    rows = [[ids[image.tobytes()] for image in part.pixels] for part in (train, test)]
    assert sorted(rows[0] + rows[1]) == list(range(40))
    np.testing.assert_array_equal(train.labels, LABELS[rows[0]])
    # Recorded once: a resumed run must not start to learn from what it is tested on.
    assert rows[1] == [3, 9, 13, 14, 19, 20, 22, 27, 29, 30]


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"pictures": PIXELS}, 'has no array "images" \\(it has pictures\\)'),
        ({"images": PIXELS.astype(np.int32)}, "is int32: give uint8, uint16 or floats"),
        ({"images": PIXELS.astype(np.float32)}, r"outside \[0, 1\]"),
        ({"images": np.full((4, 5, 5, 3), np.nan)}, r"outside \[0, 1\]"),
        ({"images": PIXELS - 1.0}, r"outside \[0, 1\]"),
        ({"images": PIXELS.transpose(0, 3, 1, 2)}, "has 5 channels"),
        ({"images": PIXELS[0, 0]}, "has shape"),
        ({"images": PIXELS[:0]}, "has shape"),
        ({"images": PIXELS[:1]}, "too few to hold out"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "one integer for each of the 40 images"),
        ({"images": PIXELS, "labels": LABELS / 2}, "float64"),
        (
            {"images": PIXELS, "labels": np.eye(40, dtype=int)},
            "one integer for each image, labels.a",
        ),
        ({"images": PIXELS, "labels": LABELS[:, None]}, "one integer for each of the 40 images"),
        ({"images": PIXELS, "labels": SEVERAL * 2}, r"int64 \(40, 5\): where .* several"),
        ({"images": PIXELS, "labels": SEVERAL / 1}, r"float64 \(40, 5\): where .* several"),
        ({"images": PIXELS, "labels": SEVERAL, "class_names": list("abcd")}, "4 class_names for 5"),
        ({"images": PIXELS, "labels": SEVERAL, "class_names": list("abcdef")}, "6 class_names fo"),
        (
            {"images": PIXELS, "labels": LABELS, "class_names": np.arange(7)},
            "is int64 .7,.: give on",
        ),
        (
            {"images": PIXELS, "labels": LABELS, "test_images": PIXELS, "test_labels": SEVERAL},
            r"are \(40,\), \(40, 5\): give all splits the same classes",
        ),
        ({"images": PIXELS, "labels": LABELS - 2}, "go down to -2: .* 0 or more, or -1 for none"),
        ({"images": PIXELS, "labels": np.full(40, 2**64 - 1, np.uint64)}, "go up to 184467440737"),
        (
            {"images": PIXELS, "labels": LABELS + 9000, "class_names": list("abcdefg")},
            "7 numbers up to 9006, which are no places in its 7 class_names",
        ),
        ({"images": np.array([{}])}, "images has Python objects"),  # needs pickle: code, not data
    ],
)
def test_archives_that_do_not_fit_are_refused(tmp_path, arrays, message):
    path = archive(tmp_path, **arrays)
    with pytest.raises(UserError, match=message):
        sources.open_splits(options(path))


def test_files_that_are_no_archive_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.path is empty: set data\.path=FILE\.npz"):
        sources.open_splits(options())
    with pytest.raises(UserError, match="does not exist"):
        sources.open_splits(options(tmp_path / "no.npz"))
    whole = archive(tmp_path, images=PIXELS).read_bytes()
    np.save(tmp_path / "one.npy", PIXELS)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for contents in (
        b"",
        b"text",
        whole[: len(whole) // 2],
        damaged,
        (tmp_path / "one.npy").read_bytes(),
    ):
        path = tmp_path / "bad.npz"
        path.write_bytes(contents)
        with pytest.raises(UserError, match=r"no archive to use \(.+\): give") as caught:
            sources.open_splits(options(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        sources.open_splits(options(tmp_path))  # a directory


@pytest.mark.parametrize("with_test", [False, True])
def test_unknown_split_is_refused(tmp_path, with_test):
    more = {"test_images": PIXELS} if with_test else {}
    path = archive(tmp_path, images=PIXELS, **more)
    with pytest.raises(UserError, match=r'"tran" .did you mean "train"'):
        sources.open_splits(options(path, split="tran"))


# Digits -----------------------------------------------------------------------------------------


def digits(name="placed", split="train"):
    other = "test" if split == "train" else "train"
    return sources.open_splits(options(source="digits", name=name, split=split, eval_split=other))[
        0
    ]


@pytest.mark.parametrize("split, size", [("train", 1437), ("test", 360)])
def test_digits_are_the_same_for_everybody(split, size):
    recorded = {
        ("placed", "train"): "5045d2b9aba30f6e",
        ("placed", "test"): "a10116f9f3a67535",
        ("plain", "train"): "28998f4836ad1d94",
        ("plain", "test"): "3ff1fb61d220daee",
    }
    for name in ("placed", "plain"):
        images = digits(name, split)
        assert images.pixels.shape == (size, 32, 32, 1) and images.pixels.dtype == np.uint8
        assert images.classes == 10
        assert np.bincount(images.labels).min() > size / 10 * 0.75
        found = hashlib.sha256(images.pixels.tobytes() + images.labels.astype("<i4").tobytes())
        assert found.hexdigest()[:16] == recorded[name, split]


@pytest.mark.parametrize("split", ["train", "test"])
def test_several_digits_are_those_of_the_same_split(split):
    """Each quarter is empty or shows one of the placed digits, whose labels the image has."""
    single, several = digits("placed", split), digits("several", split)
    label = {one.tobytes(): int(k) for one, k in zip(single.pixels, single.labels, strict=True)}
    assert several.multi_label and several.labels.shape == (len(single), 10)
    counts = np.zeros(5, int)
    for image, labels in zip(several.pixels, several.labels, strict=True):
        quarters = [image[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
        shown = [label[quarter.tobytes()] for quarter in quarters if quarter.any()]
        assert sorted(set(shown)) == np.flatnonzero(labels).tolist()
        counts[len(shown)] += 1
    assert counts[0] == 0 and counts[1:].min() > len(single) / 6


def test_raw_pixels_say_little_about_placed_digits_and_much_about_plain_ones():
    accuracy = {}
    for name in ("placed", "plain"):
        train, test = digits(name, "train"), digits(name, "test")
        flat = [images.pixels.reshape(len(images), -1) / 255 for images in (train, test)]
        neighbours = KNeighborsClassifier(5).fit(flat[0], train.labels)
        accuracy[name] = neighbours.score(flat[1], test.labels)
    assert accuracy["placed"] < 0.6
    assert accuracy["plain"] > 0.95


@pytest.mark.parametrize("fields, wrong", [({"name": "tiny"}, "tiny"), ({"split": "val"}, "val")])
def test_unknown_digits_are_refused(fields, wrong):
    with pytest.raises(UserError, match=f'"{wrong}"'):
        digits(**fields)


def test_fingerprint_tells_data_sets_of_one_size_apart():
    pixels, labels = np.zeros((3, 4, 4, 1), np.uint8), np.arange(3, dtype=np.int32)
    found = {sources.Images(pixels, labels, 3).fingerprint()}
    found.add(sources.Images(pixels, labels[::-1], 3).fingerprint())
    changed = pixels.copy()
    changed[2, 3, 3] = 1
    found.add(sources.Images(changed, labels, 3).fingerprint())
    assert len(found) == 3
    assert sources.Images(pixels.copy(), labels.copy(), 3).fingerprint() in found
