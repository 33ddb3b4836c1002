"""A folder of images whose labels are partly wrong and of which some cannot be read, and a run.

The features that tests compare with are those of the saved weights in the plain Flax modules.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image
from stages import written
from train import tiny

from simclr_jax.frame import modules
from simclr_jax.train import saved

CLASSES = 6
COUNTS = {"train": 74, "val": 39, "test": 53}
WRONG = {"train": 0.3, "val": 0.2, "test": 0.25}  # share of labels
BAD = {"train": (0, 13, 40), "val": (5,), "test": (0, 21)}  # places of the unreadable, in order
WIDTH = 32  # of h and of every layer of the head


def draw(split, count, classes=CLASSES, side=8):
    """Return images in one of some colours, and labels that are this colour but for some."""
    random = np.random.RandomState(list(COUNTS).index(split))
    colours = np.random.RandomState(50).randint(40, 216, (classes, 3))
    kinds = random.randint(classes, size=count)
    noise = (
        random.normal(size=(count, side, side, 3)) * 40 + random.normal(size=(count, 1, 1, 3)) * 25
    )
    pixels = np.clip(colours[kinds][:, None, None] + noise, 0, 255).astype(np.uint8)
    wrong = random.uniform(size=count) < WRONG[split]
    labels = np.where(wrong, random.randint(classes, size=count), kinds).astype(np.int32)
    return pixels, labels


class Part:
    """A split as it should be opened: files sorted by name, the unreadable left out."""

    def __init__(self, split):
        pixels, labels = draw(split, COUNTS[split])
        names = [f"c{label}/{(37 * i) % 101:03d}.png" for i, label in enumerate(labels)]
        order = np.argsort(names)
        self.split, self.names = split, [names[i] for i in order]
        self.labels_of_all, self.pixels_of_all = labels[order], pixels[order]
        self.examples = np.setdiff1d(np.arange(len(names)), BAD[split])
        self.labels, self.pixels = self.labels_of_all[self.examples], pixels[order][self.examples]

    def write(self, root):
        for i, name in enumerate(self.names):
            path = root / self.split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels_of_all[i]).save(path)
            if i in BAD[self.split]:
                path.write_bytes(path.read_bytes()[:50])

    def fingerprint(self):
        check = zlib.crc32(self.labels_of_all.tobytes(), zlib.crc32("\0".join(self.names).encode()))
        return f"{len(self.names)} files, crc32 {check:08x}"


PARTS = {split: Part(split) for split in COUNTS}


def write_run(workdir, step=7, **fields):
    """Write a run whose classifier tells `CLASSES` apart, from vectors of `WIDTH`."""
    with_classes, tiny.CLASSES = tiny.CLASSES, CLASSES
    try:
        return written.write_run(workdir, step, head__dim=WIDTH, **fields)
    finally:
        tiny.CLASSES = with_classes


def features(config, variables, pixels, tap):
    """Encode images of the size of a view: `variables` are `{params: {encoder, head}, ...}`."""
    if tap == "pixels":
        return (pixels / 255).reshape(len(pixels), -1)
    parts = [
        {kind: tree.get(part, {}) for kind, tree in variables.items()}
        for part in ("encoder", "head")
    ]
    found = _applied(config)(*parts, (pixels / 255).astype(np.float32))
    return np.asarray(found[tap])


def of_run(run, pixels, tap):
    """Return the features of a run's newest checkpoint, or of `WORKDIR@STEP`."""
    read = saved.read(str(run))
    kinds = {part: read.variables(part) for part in ("encoder", "head")}
    variables = {kind: {p: v[kind] for p, v in kinds.items()} for kind in ("params", "batch_stats")}
    return features(read.config, variables, pixels, tap)


_COMPILED: dict[str, Callable] = {}


def _applied(config):
    key = str(config)
    if key not in _COMPILED:
        layers = config.head.layers

        @jax.jit
        def apply(encoder, head, images):
            ends = modules.encoder(config).apply(encoder, images, train=False)
            hiddens = modules.projection_head(config).apply(head, ends["h"], train=False)
            groups = {f"group{i}": ends[f"block_group{i}"].mean((1, 2)) for i in (1, 2, 3, 4)}
            heads = {f"head{i}": hiddens[i] for i in range(1, layers + 1)}
            return {"h": ends["h"], **groups, **heads, "z": hiddens[layers]}

        _COMPILED[key] = apply
    return _COMPILED[key]
