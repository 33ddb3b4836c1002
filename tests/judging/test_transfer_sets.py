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


def test_published_rows_stand_in_the_columns_of_their_data_sets():
    cars = {"SimCLR": 50.3, "SimCLR (by BYOL)": 49.3, "BYOL": 67.8, "supervised": 66.7}
    cars |= {"SimCLR (4x)": 60.0, "supervised (4x)": 68.8}
    found = transfer_sets.published(BY_NAME["cars196"])
    assert found == pytest.approx({method: percent / 100 for method, percent in cars.items()})
    tuned = transfer_sets.published(BY_NAME["flowers102"], transfer_sets.TUNED)
    assert tuned["SimCLR (4x)"] == pytest.approx(0.976) and tuned["from scratch"] == 0.92
    for rows in transfer_sets.PUBLISHED.values():
        assert all(len(row.split()) == 12 for row in rows.values())
        assert set(rows) <= set(transfer_sets.SOURCES)


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
