"""The optimisers against the official ones: every variable and momentum after every step."""

from __future__ import annotations

import re
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from recorded import Settings

from simclr_jax.interop import official_names as official
from simclr_jax.optim import masks, optimizers

OFFICIAL_LISTS = (["batch_normalization", "bias", "head_supervised"], None)


def by_role(name: str) -> official.Path:
    """Return a path that has the role of an official variable, whatever model it is from.

    The recordings are of a few loose variables, which no architecture has.
    """
    top, *modules, leaf = name.split("/")
    top = {"head_supervised": "classifier", "projection_head": "head"}.get(top, top)
    if modules and "batch_normalization" in modules[-1]:
        modules[-1] = "bn"
    return (top, *modules, official.LEAVES[leaf][1])


def history(recording: golden.Recording):
    """Return by variable: initial values, and gradients, values and momenta per step."""
    names, arrays = list(recording.variables), recording.arrays
    if not recording.tf1:
        rows = {name: i for i, name in enumerate(names)}
        initial = {n: arrays[f"var{i}"][0] for n, i in rows.items()}
        gradients = {n: arrays[f"grad{i}"] for n, i in rows.items()}
        values = {n: arrays[f"var{i}"][1:] for n, i in rows.items()}
        momenta = {n: arrays.get(f"momentum{i}") for n, i in rows.items()}
        return initial, gradients, values, momenta
    settings, steps = recording.settings, range(len(recording.settings["learning_rates"]))
    initial = recording.filled()
    gradients, values, momenta = {}, {}, {}
    for name in names:
        shape = initial[name].shape
        drawn = [recording.fill(f"grad/step{k}/{name}", shape, "normal") for k in steps]
        gradients[name] = np.float32(settings["gradient_scale"]) * np.stack(drawn)
        values[name] = np.stack([arrays[f"step{k}_var/{name}"] for k in steps])
        momenta[name] = np.stack([arrays[f"step{k}_momentum/{name}"] for k in steps])
    for key, zeroed in (("zero_var", initial), ("zero_grad", gradients)):
        if settings[key]:
            zeroed[settings[key]] = np.zeros_like(zeroed[settings[key]])
    return initial, gradients, values, momenta


def official_lists(recording: golden.Recording) -> bool:
    """Return whether the excluded names are the official ones, so that our own masks must do."""
    settings = recording.settings
    keys = ("exclude_from_weight_decay", "exclude_from_layer_adaptation")
    return tuple(settings[key] for key in keys) == OFFICIAL_LISTS


def listed_masks(recording: golden.Recording, paths: dict) -> dict[str, dict]:
    """Return the recorded lists of excluded names as masks; no second list means the first."""
    settings, suffix = recording.settings, "" if recording.tf1 else ":0"

    def mask(patterns):
        return {
            path: not any(re.search(pattern, name + suffix) for pattern in patterns or ())
            for name, path in paths.items()
        }

    undecayed = settings["exclude_from_weight_decay"]
    unadapted = settings["exclude_from_layer_adaptation"] or undecayed
    return {
        "decayed": unflatten_dict(mask(undecayed)),
        "adapted": unflatten_dict(mask(unadapted)),
    }


def build(recording: golden.Recording, paths: dict) -> optax.GradientTransformation:
    """Build our optimiser for the recorded settings."""
    settings = recording.settings
    rates = jnp.asarray(settings["learning_rates"], jnp.float64)
    name, momentum = settings.get("optimizer", "lars"), settings["momentum"]
    if name == "momentum":
        # Keras, under TensorFlow 2, keeps the rate inside the momentum; TensorFlow 1 outside.
        return optimizers.sgd(
            lambda step: rates[step],
            momentum=momentum,
            nesterov=keras(settings, "nesterov", settings.get("use_nesterov", True)),
            rate_in_momentum=not recording.tf1,
        )
    if name == "adam":
        return optimizers.adam(
            lambda step: rates[step],
            b1=keras(settings, "beta_1", 0.9),
            b2=keras(settings, "beta_2", 0.999),
            epsilon=keras(settings, "epsilon", 1e-8),
        )
    assert name == "lars", f"{recording.name}: optimizer = {name}"
    return optimizers.lars(
        lambda step: rates[step],
        momentum=momentum,
        weight_decay=settings["weight_decay"],
        trust_coefficient=settings["eeta"],
        nesterov=settings["use_nesterov"],
        classic_momentum=settings["classic_momentum"],
        **({} if official_lists(recording) else listed_masks(recording, paths)),
    )


UNUSED = ("weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "amsgrad")


def keras(settings: Settings, name: str, default: Any) -> Any:
    """Return what Keras says of its optimiser, which is to use nothing that ours have not."""
    config = settings.get("keras_config", {})
    assert not any(config.get(unused) for unused in UNUSED), dict(config)
    return config.get(name, default)


def run(recording: golden.Recording, initial: dict, gradients: dict):
    """Yield parameters and optimiser state by official name after each step."""
    paths = {name: by_role(name) for name in recording.variables}
    optimizer = build(recording, paths)
    lars, own = recording.settings.get("optimizer", "lars") == "lars", False
    if lars and (own := official_lists(recording)):
        decay = recording.settings["weight_decay"]

    @jax.jit
    def step(params, state, gradient):
        if own:
            # The official loss holds the decay of classifiers, so the recorded gradient of one
            # contains it; ours is added by the optimiser.
            classifier = masks.mask(params, ("classifier",))
            gradient = jax.tree.map(
                lambda g, w, c: g - decay * w if c else g, gradient, params, classifier
            )
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def tree(values):
        return unflatten_dict({paths[name]: values[name] for name in paths})

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree(initial))
    state = optimizer.init(params)
    for k in range(len(recording.settings["learning_rates"])):
        params, state = step(params, state, tree({n: g[k] for n, g in gradients.items()}))
        trace = optax.tree_utils.tree_get(state, "trace")
        flat, trace = flatten_dict(params), flatten_dict(trace) if trace else {}
        yield {n: flat[p] for n, p in paths.items()}, {n: trace.get(p) for n, p in paths.items()}


@pytest.mark.x64  # so that the difference is the noise of the float32 recording alone
@pytest.mark.parametrize("recording", golden.cases("lars"))
def test_every_step_is_the_official_one(recording, record_parity):
    initial, gradients, values, momenta = history(recording)
    settings = recording.settings
    assert settings.get("steps", len(settings["learning_rates"])) == len(settings["learning_rates"])
    limit = golden.float32_tolerance(max(recording.spec["sensitivity"].values()))
    # optax scales by the negative rate before a momentum that holds the rate.
    sign = -1 if recording.settings.get("classic_momentum") else 1
    for k, (params, trace) in enumerate(run(recording, initial, gradients)):
        for name in recording.variables:
            error = golden.error(params[name], values[name][k])
            record_parity("lars", recording.name, error, limit)
            if momenta[name] is not None:
                error = golden.error(sign * trace[name], momenta[name][k])
                record_parity("lars", recording.name, error, limit)
