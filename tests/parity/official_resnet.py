"""A ResNet-18 as TensorFlow 1's official program builds it, in TensorFlow, by official names.

Written from the architecture alone, to make recordings that owe nothing to this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from interop import official_files

WIDTH = 8  # of h, at width 1/64


def variables(
    stem: int, layers: int, dim: int, classes: int, read: int
) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and fill law of each, in the official order.

    Args:
      stem: side of the first kernel: 3 for small images, otherwise 7.
      layers: of the projection head.
      dim: of its last one.
      classes: of the classifier; 0: none.
      read: numbers that the classifier reads.
    """
    shapes = official_files.shapes(layers=layers) | {"base_model/conv2d/kernel": (stem, stem, 3, 1)}
    for name in shapes:
        if name.startswith(f"head_contrastive/nl_{layers - 1}/"):
            shapes[name] = (WIDTH, dim) if name.endswith("kernel") else (dim,)
    if classes:
        top = "head_supervised/linear_layer/dense"
        shapes |= {f"{top}/kernel": (read, classes), f"{top}/bias": (classes,)}
    return [(name, shape, name.rpartition("/")[2]) for name, shape in shapes.items()]


class Network:
    """Images in, `h`, layers of the head and logits out; moved statistics are kept aside.

    Args:
      values: by official name, numbers or variables of TensorFlow.
      train: normalise by the batch, and move the averages; else by these.
      decay: of the averages.
    """

    def __init__(self, values: Mapping[str, Any], train: bool = False, decay: float = 0.9):
        self._values, self._train = values, train
        self._rate = float(np.float32(1 - decay))
        self._convolutions = self._norms = 0
        self.moved: dict[str, Any] = {}

    def encoder(self, x: Any, cifar: bool) -> Any:
        import tensorflow as tf

        x = tf.nn.relu(self._norm(self._conv(x, 1 if cifar else 2)))
        if not cifar:
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for group in range(4):
            for block in range(2):
                stride = 2 if group and not block else 1
                shortcut = x if block else self._norm(self._conv(x, stride))
                y = tf.nn.relu(self._norm(self._conv(x, stride)))
                x = tf.nn.relu(self._norm(self._conv(y, 1)) + shortcut)
        return tf.reduce_mean(x, [1, 2])

    def head(self, h: Any, layers: int) -> list[Any]:
        import tensorflow as tf

        hiddens = [h]
        for i in range(layers):
            scope = f"head_contrastive/nl_{i}"
            x = hiddens[-1] @ self._values[f"{scope}/dense/kernel"]
            x = self._normalized(x, f"{scope}/batch_normalization")
            hiddens.append(x if i == layers - 1 else tf.nn.relu(x))
        return hiddens

    def logits(self, x: Any) -> Any:
        top = "head_supervised/linear_layer/dense"
        return x @ self._values[f"{top}/kernel"] + self._values[f"{top}/bias"]

    def _conv(self, x: Any, stride: int) -> Any:
        import tensorflow as tf

        number = f"_{self._convolutions}" if self._convolutions else ""
        kernel, self._convolutions = (
            self._values[f"base_model/conv2d{number}/kernel"],
            self._convolutions + 1,
        )
        total = kernel.shape[0] - 1
        sides = [total // 2, total - total // 2]
        x = tf.pad(x, [[0, 0], sides, sides, [0, 0]])
        return tf.nn.conv2d(x, kernel, stride, "VALID")

    def _norm(self, x: Any) -> Any:
        number = f"_{self._norms}" if self._norms else ""
        self._norms += 1
        return self._normalized(x, f"base_model/batch_normalization{number}")

    def _normalized(self, x: Any, scope: str) -> Any:
        import tensorflow as tf

        mean, variance = (self._values[f"{scope}/moving_{of}"] for of in ("mean", "variance"))
        if self._train:
            now = tf.nn.moments(x, list(range(len(x.shape) - 1)))
            for of, old, new in zip(("mean", "variance"), (mean, variance), now, strict=True):
                self.moved[f"{scope}/moving_{of}"] = old - self._rate * (old - new)
            mean, variance = now
        y = (x - mean) / tf.sqrt(variance + 1e-5) * self._values[f"{scope}/gamma"]
        return y + self._values.get(f"{scope}/beta", 0)
