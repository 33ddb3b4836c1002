"""Data sets that TFDS prepares, from images in memory."""

from __future__ import annotations

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from simclr_jax.data.sources import tfds

library = pytest.importorskip("tensorflow_datasets")

TRAIN, TEST = 48, 9
NAMES = ["ant", "bee", "cat"]


def encode(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def photo(i, kind="JPEG"):
    """Return an image file whose size and pixels tell it from the others."""
    random = np.random.RandomState(i)
    height, width = 20 + i, 70 - i
    return encode(random.randint(0, 256, (height, width, 3), dtype=np.uint8), kind)


def pixels(encoded):
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))


def builder_class(title, features, records, register=False, configs=()):
    """Return a TFDS builder that makes `records`, of each split, in their order."""

    class Builder(library.core.GeneratorBasedBuilder, skip_registration=not register):
        name = title
        VERSION = library.core.Version("1.2.0")
        BUILDER_CONFIGS = [library.core.BuilderConfig(name=config) for config in configs]  # noqa: RUF012

        def _info(self):
            return library.core.DatasetInfo(
                builder=self,
                features=library.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in records}

        def _generate_examples(self, split):
            yield from enumerate(records[split])

    return Builder


def prepare(root, *args, file_format="array_record", config=None, shards=1, **kwargs):
    cls = builder_class(*args, **kwargs)
    builder = cls(data_dir=root, file_format=file_format, config=config)
    how = library.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=how)


def photos(count, offset=0):
    return [
        {"image": photo(i), "label": NAMES[i % 3], "file_name": f"{i}.jpg"}
        for i in range(offset, offset + count)
    ]


def write(root):
    """Write one data set of each kind below a data_dir."""
    image, text = library.features.Image(), library.features.Text()
    label = library.features.ClassLabel(names=NAMES)
    prepare(
        root,
        "photos",
        {"image": image, "label": label, "file_name": text},
        {"train": photos(TRAIN), "test": photos(TEST, 48)},
        shards=3,
    )

    random = np.random.RandomState(0)
    small = random.randint(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    png = library.features.Image(shape=(32, 32, 3), encoding_format="png")
    mask = library.features.Image(shape=(32, 32, 1))
    shapes = [
        {
            "mask": one[..., :1],
            "image": one,
            "id": i,
            "coarse": i % 2,
            "label": i % 3,
            "zone": i % 2,
        }
        for i, one in enumerate(small)
    ]
    pair = library.features.ClassLabel(num_classes=2)
    kinds = {"coarse": pair, "label": label, "zone": pair}
    prepare(root, "small", {"mask": mask, "image": png, "id": np.int64, **kinds}, {"train": shapes})

    unlabelled = [{"picture": photo(i), "title": "a"} for i in range(4)]
    prepare(root, "plain", {"picture": image, "title": text}, {"train": unlabelled})
    half = {"train": photos(3), "unlabelled": [{"image": photo(i), "label": -1} for i in range(3)]}
    half["train"] = [{"image": one["image"], "label": one["label"]} for one in half["train"]]
    half["mixed"] = [half["train"][0], half["unlabelled"][0]]
    half["late"] = [*half["unlabelled"], *half["train"]]
    prepare(root, "half", {"image": image, "label": label}, half)

    kinds = library.features.Sequence(label)
    lists = {"labels": kinds, "labels_no_difficult": kinds, "image/filename": text}
    objects = [
        {"labels": ["ant", "cat"], "labels_no_difficult": ["cat"]},
        {"labels": ["bee", "bee"], "labels_no_difficult": ["bee"]},
        {"labels": [], "labels_no_difficult": []},
        {"labels": [-1], "labels_no_difficult": [-1]},  # nobody has looked
        {"labels": [1, -1], "labels_no_difficult": [1, -1]},
    ]
    objects = [
        one | {"image": photo(i), "image/filename": f"{i}.jpg", "views": [i % 2]}
        for i, one in enumerate(objects)
    ]
    lists["views"] = library.features.Sequence(pair)
    prepare(root, "scenes", {"image": image, **lists}, {"train": objects})

    words = [{"text": "none"}]
    prepare(root, "words", {"text": text}, {"train": words})
    old = {"train": unlabelled}
    prepare(root, "old", {"picture": image, "title": text}, old, file_format="tfrecord")
    both = ("one", "two")
    prepare(root, "many", {"picture": image, "title": text}, old, config="two", configs=both)


def options(name="", path="", **fields):
    data = {"name": name, "path": str(path), "split": "train", "eval_split": "test"}
    rest = {"source": "tfds", "labels": True, "holdout_fraction": 0.25, "index": ""}
    return ConfigDict(data | rest | fields)


def opened(root, name="photos", split="train", **fields):
    return tfds.splits(options(name, root, split=split, **fields))[split]()
