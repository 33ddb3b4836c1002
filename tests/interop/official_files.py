"""Write what the official programs write: variables by name, or in a graph of objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# A ResNet-18 of 1/64 width, TensorFlow 1, spelt out: kernel shapes in the order of creation.
KERNELS = [
    (3, 3, 3, 1),
    *[(1, 1, 1, 1), (3, 3, 1, 1), (3, 3, 1, 1), (3, 3, 1, 1), (3, 3, 1, 1)],
    *[(1, 1, 1, 2), (3, 3, 1, 2), (3, 3, 2, 2), (3, 3, 2, 2), (3, 3, 2, 2)],
    *[(1, 1, 2, 4), (3, 3, 2, 4), (3, 3, 4, 4), (3, 3, 4, 4), (3, 3, 4, 4)],
    *[(1, 1, 4, 8), (3, 3, 4, 8), (3, 3, 8, 8), (3, 3, 8, 8), (3, 3, 8, 8)],
]
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def shapes(classes: int = 0, layers: int = 0) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the small model."""
    found: dict[str, tuple[int, ...]] = {}
    for i, kernel in enumerate(KERNELS):
        suffix = f"_{i}" if i else ""
        found[f"base_model/conv2d{suffix}/kernel"] = kernel
        for leaf in NORM:
            found[f"base_model/batch_normalization{suffix}/{leaf}"] = kernel[-1:]
    for i in range(layers):
        last = i == layers - 1
        scope = f"head_contrastive/nl_{i}"
        found[f"{scope}/dense/kernel"] = (8, 5 if last else 8)
        for leaf in NORM if not last else ("gamma", *NORM[2:]):
            found[f"{scope}/batch_normalization/{leaf}"] = (5 if last else 8,)
    if classes:
        found["head_supervised/linear_layer/dense/kernel"] = (8, classes)
        found["head_supervised/linear_layer/dense/bias"] = (classes,)
    return found


def values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw values that keep activations small."""
    random = np.random.RandomState(0)
    kernels = {name for name in shapes if name.endswith("kernel")}
    return {
        name: random.uniform(-0.3 if name in kernels else 0.5, 0.6, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_tf1(prefix: Path, variables: Mapping[str, np.ndarray], step: int | None = 7) -> Path:
    """Write a name-based checkpoint, as `tf.compat.v1.train.Saver` does; return its prefix."""
    import tensorflow as tf

    tensors = dict(variables) | ({} if step is None else {"global_step": np.int64(step)})
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


def write_tf2(prefix: Path, variables: Mapping[str, np.ndarray], first: int = 0) -> Path:
    """Write an object-based checkpoint whose Keras counters begin at `first`; return its prefix."""
    import tensorflow as tf

    def named(name: str) -> str:
        *modules, leaf = name.split("/")
        counted = [
            module
            if re.fullmatch(
                r"block_group\d+|n?l_\d+|resnet|projection_head|head_.*|linear_l.*", module
            )
            else _later(module, first)
            for module in modules
        ]
        return "/".join((*counted, leaf))

    module = tf.Module()
    module.variables_of_it = [
        tf.Variable(value, name=named(name)) for name, value in variables.items()
    ]
    counter = tf.Variable(3, dtype=tf.int64, name="iter")
    return Path(tf.train.Checkpoint(model=module, global_step=counter).write(str(prefix)))


def _later(module: str, by: int) -> str:
    match = re.fullmatch(r"(.*?[a-z])(?:_(\d+))?", module)
    assert match, module
    number = int(match[2] or 0) + by
    return f"{match[1]}_{number}" if number else match[1]
