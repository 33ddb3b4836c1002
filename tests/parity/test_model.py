"""The encoders against the official ones: outputs, end points, gradients, moving statistics."""

from __future__ import annotations

import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sections

from simclr_jax.interop import official_names as official

MODES = ("eval", "train")


def images(recording: golden.Recording) -> np.ndarray:
    """Make the recorded input `[b, h, w, 3]`."""
    how = recording.settings["images"]
    if recording.tf1:  # a formula, of small images if pixels are to be repeated
        name, shape, law = re.search(r"fill\('(\w+)', \(([\d, ]+)\), .*'(\w+)'\)", how).groups()
        shape, wanted = [int(n) for n in shape.split(",")], recording.settings["image_shape"]
        x = recording.fill(name, shape, law)
        for axis in (1, 2):
            x = np.repeat(x, wanted[axis] // shape[axis], axis)
        return x
    x = recording.fill(how["name"], how["shape"], how["law"])
    if "times" in how:
        times = how["times"]
        x = x * recording.fill(times["name"], times["shape"], times["law"])
    return x


def run(recording: golden.Recording, names: official.Names) -> dict[str, dict]:
    """Return per mode the end points, both gradients and all variables after one pass, by name."""
    model = sections.encoder(recording, jnp.float64)
    tree = official.to_tree(recording.filled(), names)
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
    params, stats = tree["params"]["encoder"], tree["batch_stats"]["encoder"]
    x = jnp.asarray(images(recording), jnp.float64)
    shape = recording.arrays[stored("h", recording, "eval")].shape
    probe = recording.fill("probe/h" if recording.tf1 else "probe_h", shape, "normal")

    def objective(params, x, train):
        variables = {"params": params, "batch_stats": stats}
        ends, moved = model.apply(variables, x, train, mutable=["batch_stats"])
        return jnp.mean(ends["h"] * probe), (ends, moved["batch_stats"])

    @jax.jit  # both modes in one program: compiling is what this test spends its time on
    def both(params, x):
        grad = jax.grad(objective, (0, 1), has_aux=True)
        return {mode: grad(params, x, mode == "train") for mode in MODES}

    results = {}
    for mode, ((grad, image_grad), (ends, moved)) in jax.device_get(both(params, x)).items():
        after = {"params": {"encoder": params}, "batch_stats": {"encoder": moved}}
        results[mode] = {
            "ends": ends | {"final_avg_pool": ends["h"]},
            "grad": official.from_tree({"params": {"encoder": grad}}, names),
            "image_grad": {"images": image_grad},
            "moved": official.from_tree(after, names),
        }
    return results


def stored(what: str, recording: golden.Recording, mode: str) -> str:
    """Return the key of what the flavour recorded, in float64 where it did."""
    for digits in ("64", ""):
        if recording.tf1:
            special = {"ends": f"{mode}_endpoint{digits}", "moved": f"moved{digits}"}
            key = special.get(what, f"{mode}_{what}{digits}")
        else:
            special = {"ends": f"act_{mode}{digits}", "moved": f"updated{digits}"}
            special["h"] = f"h{digits}_{mode}"
            key = special.get(what, f"{what}_{mode}{digits}")
        if {key, f"{key}_norm"} & set(recording.arrays):
            return key
    raise KeyError(f"{recording.name} holds no {what} of mode {mode}")


def tolerance(what: str, recording: golden.Recording, mode: str) -> float:
    """Return 1e-9 for what was recorded in float64, else the recorded float32 noise.

    Two float64 programs differ by some 1e-15 per layer, which batch normalisation over a handful of
    rows amplifies by up to 1e3; the smallest mistake in a formula shows in float32 already.
    """
    if "64" in stored(what, recording, mode):
        return 1e-9
    noise = recording.spec["sensitivity"]
    if recording.tf1:
        keys = {"ends": "endpoints", "grad": "grad_max", "moved": "moved_max"}
        noise = noise[mode][keys.get(what, what)]
    else:
        keys = {"ends": f"act_{mode}", "moved": "updated"}
        noise = noise[keys.get(what, f"{what}_{mode}")]
    roundings = 16 + recording.flags["resnet_depth"]
    return golden.float32_tolerance(float(np.max(noise)), roundings)


@pytest.mark.x64
@pytest.mark.parametrize("recording", golden.cases("model"))
def test_encoder_is_the_official_one(recording, record_parity):
    names = sections.names(recording, "encoder")
    assert list(names) == list(recording.variables)
    ends = recording.settings["endpoints" if recording.tf1 else "activations"]
    results = run(recording, names)

    def check(what, mode, error):
        recorded = "float64" if "64" in stored(what, recording, mode) else "float32"
        limit = tolerance(what, recording, mode)
        record_parity("model", recording.name, error, limit, recorded)

    def check_digests(what, mode, got):
        want = golden.Digests.stored(recording, stored(what, recording, mode))
        check(what, mode, got.error(want))

    for mode in MODES:
        result = results[mode]
        h = recording.arrays[stored("h", recording, mode)]
        check("h", mode, golden.error(result["ends"]["h"], h))
        check_digests("ends", mode, *golden.digest(recording, ends, result["ends"]))
        if not recording.tf1:
            image_grad = golden.digest(recording, ["images"], result["image_grad"])
            check_digests("image_grad", mode, *image_grad)
    gradients = [results[mode]["grad"] for mode in MODES]
    *gradients, moved = golden.digest(
        recording, recording.variables, *gradients, results["train"]["moved"]
    )
    for mode, gradient in zip(MODES, gradients, strict=True):
        check_digests("grad", mode, gradient)
    check_digests("moved", "train", moved)
