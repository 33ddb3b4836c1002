"""Autoencoder: give the image back from the encoder's map (Hinton and Salakhutdinov 2006).

The loss is the mean squared error of all values. An encoder whose map holds as many numbers as the
image may pass it on and learn nothing: `autoencoder.code` makes less of it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from simclr_jax.declaration import Declaration
from simclr_jax.frame import decoding
from simclr_jax.frame.method import Method, Setting

DECLARATION = Declaration(
    title="Autoencoder",
    views={"views": (1, 1)},
    recipe=decoding.recipe,
    fields={"width": decoding.WIDTH, "code": decoding.CODE},
    check=decoding.check,
    parts=(decoding.PART,),
    charts=(decoding.CHART,),
)


def make(config: ConfigDict, setting: Setting) -> Method:
    """Build the autoencoder."""
    return decoding.reconstruction(config, setting)
