"""The 12 data sets as published, typed here from the papers again, and what opens on disk."""

from __future__ import annotations

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image
from scipy.stats import rankdata

from simclr_jax.data import sources
from simclr_jax.errors import UserError
from simclr_jax.judging import transfer_sets
from simclr_jax.judging.transfer_sets import open_set
from simclr_jax.stages.preprocessing import Preprocessing

# Chen et al. (2020), B.8, and Grill et al. (2020), table 10: classes, images to learn from, to
# choose on and to score, metric; then TFDS's name (-: a folder), and the sizes of what is stored.
PAPERS = """
food101    101 68175 7575 25250 | top-1          | food101 | train=75750 validation=25250
cifar10     10 45000 5000 10000 | top-1          | cifar10 | train=50000 test=10000
cifar100   100 44933 5067 10000 | top-1          | cifar100 | train=50000 test=10000
birdsnap   500 42405 4981  2443 | top-1          | - | train=47386 test=2443
sun397     397 15880 3970 19850 | top-1          | sun397/standard-part1-120k | train=19850 test=19850
cars196    196  6494 1650  8041 | top-1          | cars196 | train=8144 test=8041
aircraft   100  3334 3333  3333 | mean per class | - | train=3334 val=3333 test=3333
voc2007     20  2501 2510  4952 | 11-point mAP   | voc/2007 | train=2501 validation=2510 test=4952
dtd         47  1880 1880  1880 | top-1          | dtd | train=1880 validation=1880 test=1880
pets        37  2940  740  3669 | mean per class | oxford_iiit_pet | train=3680 test=3669
caltech101 101  2550  510  6084 | mean per class | caltech101 | train+test=9144
flowers102 102  1020 1020  6149 | mean per class | oxford_flowers102 | train=1020 validation=1020 test=6149
"""  # noqa: E501
LINES = [[part.strip() for part in line.split("|")] for line in PAPERS.strip().splitlines()]
BY_NAME = {one.name: one for one in transfer_sets.SETS}


@dataclasses.dataclass
class Unseen:
    """A split without pixels, sorted by class; `ids` tells where an example is from."""

    ids: np.ndarray
    labels: np.ndarray
    classes: int
    multi_label: bool = False

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        return Unseen(self.ids[rows], self.labels[rows], self.classes)


def test_there_are_twelve():
    assert [one.name for one in transfer_sets.SETS] == [line[0].split()[0] for line in LINES]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0].split()[0])
def test_counts_and_metric_are_the_published_ones(line, monkeypatch, tmp_path):
    name, *numbers = line[0].split()
    classes, *counts = map(int, numbers)
    one, stored = BY_NAME[name], {}
    assert (one.classes, list(one.images), one.metric) == (classes, counts, line[1])
    kinds = classes + (name == "caltech101")  # with the directory of clutter
    for split, size in re.findall(r"(\S+)=(\d+)", line[3]):
        size = int(size)
        at = 100_000 * len(stored)
        stored[split] = Unseen(at + np.arange(size), np.arange(size) * kinds // size, kinds)

    def opened(data, kept):
        asked.append((data.source, data.name or "-"))
        return {split: lambda split=split: stored[split] for split in stored}

    asked = []
    for source in ("tfds", "folder"):
        monkeypatch.setitem(sources.OPENERS, source, opened)
    (tmp_path / name).mkdir()
    first, second = (open_set(one, str(tmp_path)) for _ in range(2))
    assert asked[0] == ("folder" if line[2] == "-" else "tfds", line[2])
    parts = first[:3]
    assert [len(part) for part in parts] == counts and first.notes == ()
    ids = np.concatenate([part.ids for part in parts])
    everything = np.concatenate([split.ids for split in stored.values()])
    np.testing.assert_array_equal(np.sort(ids), np.sort(everything))  # each image in one part
    for part, again in zip(parts, second[:3], strict=True):
        np.testing.assert_array_equal(part.ids, again.ids)
        assert (
            np.mean(np.bincount(part.labels, minlength=kinds) > 0) > 0.98
        )  # of nearly all classes
    if name == "caltech101":
        for part, each in zip(parts[:2], (25, 5), strict=True):
            assert np.bincount(part.labels).tolist() == [each] * 102
    elif "test" in stored:
        np.testing.assert_array_equal(first.test.ids, stored["test"].ids)


# Percent, by data set. Linear: ResNet-50 by SimCLR, by SimCLR as BYOL's authors trained it, by BYOL
# and supervised, then 4x by SimCLR and supervised. Fine-tuned: the same, with a network that was
# trained on the data set alone after each width's supervised one.
ROWS = """
food101     68.4 72.8 75.3 72.3 76.9 75.2 | 88.2 87.5 88.5 88.3 86.9 89.4 88.7 88.3
cifar10     90.6 90.5 91.3 93.6 95.3 95.7 | 97.7 97.4 97.8 97.5 95.9 98.6 98.3 96.0
cifar100    71.6 74.4 78.4 78.3 80.2 81.2 | 85.9 85.3 86.1 86.4 80.2 89.0 88.7 81.9
birdsnap    37.4 42.4 57.2 53.7 48.4 56.4 | 75.9 75.0 76.3 75.8 76.1 78.2 77.8 77.0
sun397      58.8 60.6 62.2 61.9 65.9 64.9 | 63.5 63.9 63.7 64.3 53.6 68.1 67.0 53.7
cars196     50.3 49.3 67.8 66.7 60.0 68.8 | 91.3 91.4 91.6 92.1 91.4 92.1 91.4 91.3
aircraft    50.3 49.8 60.6 61.0 61.2 63.8 | 88.1 87.6 88.1 86.0 85.9 87.0 88.0 84.8
voc2007     80.5 81.4 82.5 82.8 84.2 83.8 | 84.1 84.5 85.4 85.0 67.3 86.6 86.5 69.4
dtd         74.5 75.7 75.5 74.9 78.9 78.7 | 73.2 75.4 76.2 74.6 64.8 77.8 78.8 64.1
pets        83.6 84.6 90.4 91.5 89.2 92.3 | 89.2 89.4 91.7 92.1 81.5 92.1 93.2 82.7
caltech101  90.3 89.3 94.2 94.5 93.9 94.1 | 92.1 91.7 93.8 93.3 72.6 94.1 94.2 72.5
flowers102  91.2 92.6 96.1 94.7 95.0 94.2 | 97.0 96.6 97.0 97.6 92.0 97.6 98.0 92.5
"""
FOUR = ("SimCLR", "SimCLR (by BYOL)", "BYOL", "supervised")
COLUMNS = (
    (*FOUR, "SimCLR (4x)", "supervised (4x)"),
    (*FOUR, "from scratch", "SimCLR (4x)", "supervised (4x)", "from scratch (4x)"),
)
PLACES = {
    "Chen et al. (2020), table B.5": {"SimCLR", "supervised", "from scratch"},
    "Chen et al. (2020), table 8": {"SimCLR (4x)", "supervised (4x)", "from scratch (4x)"},
    "Grill et al. (2020), table 3": {"BYOL", "SimCLR (by BYOL)"},
}


@pytest.mark.parametrize("row", ROWS.strip().splitlines(), ids=lambda row: row.split()[0])
def test_what_was_published_stands_in_the_column_of_its_data_set(row):
    name, rest = row.split(maxsplit=1)
    for how, columns, numbers in zip(
        ("linear", "fine-tuned"), COLUMNS, rest.split("|"), strict=True
    ):
        expected = {c: float(n) / 100 for c, n in zip(columns, numbers.split(), strict=True)}
        assert transfer_sets.published(BY_NAME[name], how) == pytest.approx(expected)
    assert transfer_sets.published(BY_NAME[name]) == transfer_sets.published(
        BY_NAME[name], "linear"
    )


def test_the_published_numbers_say_where_they_are_from():
    found = {method: place for place, methods in PLACES.items() for method in methods}
    assert found == transfer_sets.SOURCES


def test_mean_ranks_are_those_of_scipy():
    table = np.random.RandomState(0).randint(0, 4, (6, 5)) / 4  # of few values, so there are ties
    scores = {str(i): dict(zip("abcde", row.tolist(), strict=True)) for i, row in enumerate(table)}
    expected = np.mean([rankdata(-row) for row in table], axis=0)
    np.testing.assert_allclose(list(transfer_sets.mean_ranks(scores).values()), expected)


def test_the_short_side_is_resized_and_the_centre_is_cut_out():
    y, x = np.mgrid[:66, :90] / 90
    image = np.stack([y, x, np.sin(6 * x) / 2 + 0.5], -1).astype(np.float32)
    own = Preprocessing(size=44, grid="antialias", channels=3, proportion=0.875)
    found = transfer_sets.whole_image(own)(image)
    channels = [
        np.asarray(Image.fromarray(c).resize((60, 44), Image.Resampling.BICUBIC))[:, 8:52]
        for c in np.moveaxis(image, -1, 0)
    ]
    expected = np.stack(channels, -1)
    assert found.shape == (44, 44, 3)
    # Pillow resizes before it cuts, so at the cut edges it sees pixels that are outside here.
    np.testing.assert_allclose(found[:, 2:-2], expected[:, 2:-2], atol=2e-3)
    assert np.abs(own(image) - expected).max() > 0.02


# On disk ------------------------------------------------------------------------------------------


def photo(i, kind="PNG"):
    pixels = np.full((9, 12, 3), i, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a directory of tiny data sets under their real names."""
    library = pytest.importorskip("tensorflow_datasets")
    from data.test_tfds import prepare

    root = tmp_path_factory.mktemp("transfer")
    image, label = library.features.Image(), library.features.ClassLabel(names=["a", "b"])
    rows = [{"image": photo(i), "label": i % 2} for i in range(80)]
    single = {"image": image, "label": label}
    splits = {"train": rows[:4], "validation": rows[4:6], "test": rows[6:9]}
    prepare(root, "dtd", single, splits)
    prepare(root, "food101", single, {"train": rows[:20], "validation": rows[20:25]})
    prepare(root, "caltech101", single, {"train": rows[:40], "test": rows[40:]})
    kinds = library.features.Sequence(label)
    objects = [
        {"image": photo(i), "labels": ["a", "b"], "labels_no_difficult": ["b"]} for i in range(3)
    ]
    lists = {"image": image, "labels": kinds, "labels_no_difficult": kinds}
    splits = {"train": objects[:1], "validation": objects[1:2], "test": objects[2:]}
    prepare(root, "voc", lists, splits, config="2007", configs=("2007", "2012"))
    for name, counts in {"aircraft": (4, 2, 2), "birdsnap": (20, 0, 2)}.items():
        for split, count in zip(("train", "val", "test"), counts, strict=True):
            for i in range(count):
                path = root / name / split / "ab"[i % 2] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(photo(i))
    return root


@pytest.mark.parametrize(
    "name, counts",
    [
        ("dtd", (4, 2, 3)),
        ("food101", (18, 2, 5)),
        ("caltech101", (50, 10, 20)),
        ("voc2007", (1, 1, 1)),
        ("aircraft", (4, 2, 2)),
        ("birdsnap", (18, 2, 2)),
    ],
)
def test_what_opens_on_disk_and_how_it_differs_is_said(root, name, counts):
    one = BY_NAME[name]
    found = open_set(one, str(root))
    assert tuple(len(part) for part in found[:3]) == counts
    here, there = (" + ".join(map(str, numbers)) for numbers in (counts, one.images))
    assert f"{here} images to learn from, choose on and score; published: {there}" in found.notes
    assert any(note.endswith(f"classes; published: {one.classes}") for note in found.notes)
    seen = [part.example(i)[0] for part in found[:3] for i in range(len(part))]
    assert all(image.shape == (9, 12, 3) for image in seen)
    assert found.test.multi_label == (one.metric == "11-point mAP")
    if one.tfds and name not in ("voc2007", "dtd"):  # no image twice
        assert len({image.tobytes() for image in seen}) == sum(counts)


def test_what_is_not_there_is_said_with_the_remedy(root, tmp_path):
    with pytest.raises(UserError, match=r"data\.name=cifar10 is not prepared in .*: python -c "):
        open_set(BY_NAME["cifar10"], str(root))
    with pytest.raises(UserError, match=r"aircraft is no directory: .*train\|val\|test/CLASS"):
        open_set(BY_NAME["aircraft"], str(tmp_path))
    for split in ("train/a", "train/b", "test/a"):
        (tmp_path / "aircraft" / split).mkdir(parents=True)
        (tmp_path / "aircraft" / split / "1.png").write_bytes(photo(1))
    with pytest.raises(UserError, match=r"has no split validation in .* add it beside test, train"):
        open_set(BY_NAME["aircraft"], str(tmp_path))
