"""The projection head and the classifier against the official ones."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sections

from simclr_jax.interop import official_names as official


def outputs(recording: golden.Recording, variables: dict, x: jax.Array, train: bool):
    """Return the recorded outputs by name, and the statistics afterwards."""
    flags, settings = recording.flags, recording.settings
    params, stats = variables["params"], variables["batch_stats"]
    hiddens, moved = sections.head(recording).apply(
        {"params": params.get("head", {}), "batch_stats": stats.get("head", {})},
        x,
        train,
        mutable=["batch_stats"],
    )
    tapped = hiddens[sections.tap(recording)]
    if recording.tf1:
        named = {"out": tapped if flags["train_mode"] == "finetune" else hiddens[-1]}
    else:
        named = {"out0": hiddens[-1]}
        if settings["layer"] == "ProjectionHead":
            named["out1"] = tapped
    if "classifier" in params:
        logits = sections.classifier(recording).apply(
            {"params": params["classifier"]}, named["out" if recording.tf1 else "out0"]
        )
        named["logits" if recording.tf1 else "out0"] = logits
    return named, {"head": moved.get("batch_stats", {})}


def run(recording: golden.Recording, x: np.ndarray, names: official.Names, train: bool) -> dict:
    """Return outputs, gradients of input and variables, and variables afterwards."""
    variables = official.to_tree(recording.filled(), names)
    probe = "probe/{}" if recording.tf1 else "probe_{}"

    def objective(params, x):
        named, moved = outputs(recording, variables | {"params": params}, x, train)
        parts = [
            jnp.mean(out * recording.fill(probe.format(name), out.shape, "normal"))
            for name, out in named.items()
        ]
        return sum(parts), (named, moved)

    gradient = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    (grad, input_grad), (named, moved) = gradient(variables["params"], x)
    after = {"params": variables["params"], "batch_stats": moved}
    return {
        **named,
        "input_grad": input_grad,
        "grad": official.from_tree({"params": grad}, names),
        "moved": official.from_tree(after, names),
    }


@pytest.mark.parametrize("recording", golden.cases("head"))
def test_head_is_the_official_one(recording, record_parity):
    settings, noise = recording.settings, recording.spec["sensitivity"]
    names = sections.names(recording, "head", "classifier")
    assert list(names) == list(recording.variables)

    def check(key, error):
        limit = golden.float32_tolerance(noise.get(key, 0.0))
        record_parity("head", recording.name, error, limit)

    if recording.tf1:
        x = recording.fill("hiddens", settings["hiddens_shape"], "normal")
        modes = {"": settings["is_training"]}
    else:
        how = settings["inputs"]
        x = recording.fill(how["name"], how["shape"], how["law"])
        modes = {"_eval": False, "_train": True}
    for mode, train in modes.items():
        result = run(recording, x, names, train)
        grad, moved = golden.digest(
            recording, recording.variables, result.pop("grad"), result.pop("moved")
        )
        result["grad_hiddens" if recording.tf1 else "input_grad"] = result.pop("input_grad")
        for name, value in result.items():
            check(name + mode, golden.error(value, recording.arrays[name + mode]))
        check("grad" + mode, grad.error(golden.Digests.stored(recording, "grad" + mode)))
        if recording.tf1 or train:
            key = "moved" if recording.tf1 else "updated"
            check(key, moved.error(golden.Digests.stored(recording, key)))
