"""A TensorFlow SavedModel by jax2tf: any number of images, weights as variables.

model = tf.saved_model.load(OUT)
model(images)["h"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from simclr_jax import documents, extras
from simclr_jax.interop.network import Network

ABOUT = "about.json"


def check() -> str:
    """Return the runtime that an export is run by. Raises `UserError` if it is not installed."""
    with extras.needed("--format=savedmodel", "tensorflow"):
        import tensorflow as tf
    with extras.needed("--format=savedmodel (jax2tf, which newer JAX may lack)", "jax"):
        from jax.experimental import jax2tf
    del jax2tf
    return f"TensorFlow {tf.__version__}"


def write(network: Network, out: Path) -> None:
    """Write the directory."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    height, width, channels = network.shape()
    dtype = tf.uint8 if network.sides else tf.float32
    converted = jax2tf.convert(
        network.apply,
        polymorphic_shapes=[None, f"(batch, {height}, {width}, {channels})"],
        with_gradient=False,
        native_serialization_platforms=("cpu", "cuda", "tpu"),
    )
    signature = tf.TensorSpec([None, height, width, channels], dtype, name="images")

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.variables_of_it = jax.tree.map(
                lambda x: tf.Variable(x, trainable=False), network.variables
            )

        @tf.function(autograph=False, input_signature=[signature])
        def __call__(self, images: Any) -> Any:
            return converted(self.variables_of_it, images)

    model = Model()
    tf.saved_model.save(model, str(out), signatures=model.__call__.get_concrete_function())
    documents.write(out / ABOUT, network.about())


def run(out: Path, network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the loaded model gives for images `[b, h, w, c]`."""
    import tensorflow as tf

    with tf.device("/CPU:0"):
        found = tf.saved_model.load(str(out))(tf.constant(images))
    return {tap: x.numpy() for tap, x in found.items()}
