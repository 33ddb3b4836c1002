"""A toy method in a file of its own, outside the package: how bright was the view?

A linear layer guesses the mean brightness of each view from h; a moving average of the network is
kept beside it, and its guesses are logged.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax.declaration import Chart, Declaration, Field
from simclr_jax.frame import modules
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
        taps, slow = project(net, views["views"]), net.over("slow")
        bright = views["views"].mean((2, 3, 4))  # [n, v]
        guesses = [n("guess", project(n, views["views"])[0])[..., 0] for n in (net, slow)]
        return {"taps": taps, "errors": [jnp.square(guess - bright) for guess in guesses]}

    def loss(outputs, extra, keys, axis_name):
        error, slow_error = outputs["errors"]  # [n, v] each
        rows = error.size * lax.axis_size(axis_name)
        return c.weight * jnp.sum(error) / rows, {"slow_error": jnp.sum(slow_error) / rows}

    return Method(
        modules={
            "encoder": modules.encoder(config),
            "head": modules.projection_head(config),
            "guess": nn.Dense(1),
        },
        forward=forward,
        loss=loss,
        formats={"loss": "loss {:.4f}", "slow_error": "slow {:.4f}"},
        averages={"slow": Average(("encoder", "head", "guess"), c.momentum)},
    )
