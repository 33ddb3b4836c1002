"""A toy method in a file of its own, outside the package: how bright was the view?

A linear layer guesses the mean brightness of each view from h. A moving average of the network is
kept beside it, and its guesses are logged; before each epoch it encodes all images.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from simclr_jax.declaration import Chart, Declaration, Field
from simclr_jax.frame.average import Average
from simclr_jax.frame.method import Method
from simclr_jax.frame.net import project


def recipe(config):
    config.head.kind = "none"


DECLARATION = Declaration(
    title="Brightness",
    views={"views": (1, None)},
    recipe=recipe,
    fields={
        "weight": Field(1.0, "of the loss", "greater than 0", lambda weight: weight > 0),
        "momentum": Field(0.9, "of the average", "in [0, 1)", lambda momentum: 0 <= momentum < 1),
    },
    chance=lambda config: config.toy_method.weight * 0.05,
    parts=("guess",),
    charts=(Chart("Error of the average", {"slow_error": "error"}, caption="Squared."),),
)


def make(config, setting):
    c = config.toy_method

    def forward(net, views, extra, batch, keys):
        taps = project(net, views["views"])
        return {"taps": taps, "error": error(net("guess", taps[0]), views)}

    def watch(averages, views, extra, batch, keys):
        slow = averages["slow"]
        return {"slow": error(slow("guess", project(slow, views["views"])[0]), views)}

    def error(guess, views):
        return jnp.square(guess[..., 0] - views["views"].mean((2, 3, 4)))  # [n, v]

    def loss(outputs, extra, keys, axis_name):
        rows = outputs["error"].size * lax.axis_size(axis_name)
        found = c.weight * jnp.sum(outputs["error"]) / rows
        return found, {
            "slow_error": jnp.sum(outputs["slow"]) / rows,
            "seen": extra["seen"] / lax.axis_size(axis_name),
        }

    def before_epoch(extra, epoch, encode):
        features, examples = encode("slow", "h")
        assert features.shape[0] == len(examples) == setting.examples
        return {"seen": np.float32(extra["seen"] + features.mean())}

    return Method(
        forward=forward,
        loss=loss,
        modules={"guess": nn.Dense(1)},
        watch=watch,
        first=lambda outputs, key: {"seen": jnp.zeros(())},
        before_epoch=before_epoch,
        formats={"loss": "loss {:.4f}", "slow_error": "slow {:.4f}"},
        averages={"slow": Average(("encoder", "head", "guess"), c.momentum)},
    )
