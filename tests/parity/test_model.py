"""The encoders against the official ones: outputs, end points, gradients, moving statistics."""

from __future__ import annotations

import itertools

import agreement
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sections

from simclr_jax.interop import official_names as official

MODES = ("eval", "train")


def cases() -> list:
    """All of them under SIMCLR_PARITY=all; otherwise few that together show all that `shows` says.

    A recording in float64 is preferred: its tolerance is tight. Wide encoders take minutes.
    """
    parameters = golden.cases("model")
    models = [p.values[0] for p in parameters]
    if models == [None]:
        return parameters
    costs = {r.name: r.flags["resnet_depth"] * (1 if in_float64(r) else 2) for r in models}
    shown = {r.name: shows(r) for r in models if r.flags["width_multiplier"] < 0.5}
    left, kept = set().union(*shown.values()), set()
    while left:
        best = max(shown, key=lambda name: len(shown[name] & left) / costs[name])
        kept.add(best)
        left -= shown[best]
    return golden.only(parameters, kept)


def in_float64(recording: golden.Recording) -> bool:
    return any("64" in key for key in recording.arrays)


def shows(recording: golden.Recording) -> set:
    """Return what a comparison exercises: every two choices of how blocks are built, and others.

    Widths and numbers of blocks are no choices: they repeat the same code, and test_architectures
    compares the variables of all recordings. Nor is the flavour: it renames, and tells apart only
    unsynchronised normalisation.
    """
    flags, made = recording.flags, sections.architecture(recording)
    built = {
        "bottlenecks": made.depth >= 50,
        "stem": made.stem,
        "sk": made.sk_ratio > 0,
        "se": made.se_ratio > 0,
    }
    odd = any(size % 2 for size in images(recording).shape[1:3])  # where padding is lopsided
    synchronised = flags["global_bn"] or recording.spec["flavour"]
    return {*itertools.combinations(built.items(), 2), ("odd", odd), ("sync", synchronised)}


def images(recording: golden.Recording) -> np.ndarray:
    """Make the recorded input `[b, h, w, 3]`."""
    how = recording.settings["images"]
    if recording.tf1:  # a formula, of small images if pixels are to be repeated
        x, wanted = recording.fill(*golden.formula(how)), recording.settings["image_shape"]
        for axis in (1, 2):
            x = np.repeat(x, wanted[axis] // x.shape[axis], axis)
        assert x.shape == tuple(wanted), f"{recording.name}: image_shape = {wanted}"
        return x
    x = recording.fill(how["name"], how["shape"], how["law"])
    if "times" in how:
        times = how["times"]
        x = x * recording.fill(times["name"], times["shape"], times["law"])
    return x


def run(recording: golden.Recording, names: official.Names, blur: float = 0.0) -> dict[str, dict]:
    """Return per mode the end points, both gradients and all variables after one pass, by name.

    `blur` is by how much, relatively, every variable is off.
    """
    random = np.random.RandomState(0)
    values = {
        name: value * (1 + blur * random.standard_normal(value.shape))
        for name, value in recording.filled().items()
    }
    model = sections.encoder(recording, jnp.float64)
    tree = official.to_tree(values, names)
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


def noise(what: str, recording: golden.Recording, mode: str) -> float:
    """Return what the official program measured of its own rounding."""
    noise = recording.spec["sensitivity"]
    if recording.tf1:
        keys = {"ends": "endpoints", "grad": "grad_max", "moved": "moved_max"}
        noise = noise[mode][keys.get(what, what)]
    else:
        keys = {"ends": f"act_{mode}", "moved": "updated"}
        noise = noise[keys.get(what, f"{what}_{mode}")]
    return float(np.max(noise))


def tolerance(what: str, recording: golden.Recording, mode: str) -> float:
    """Return 1e-9 for what was recorded in float64, else the recorded float32 noise.

    Two float64 programs differ by some 1e-15 per layer, which batch normalisation over a handful of
    rows amplifies by up to 1e3; the smallest mistake in a formula shows in float32 already.
    """
    if "64" in stored(what, recording, mode):
        return 1e-9
    roundings = 16 + recording.flags["resnet_depth"]
    return golden.float32_tolerance(noise(what, recording, mode), roundings)


def results(recording: golden.Recording, names: official.Names, blur: float = 0.0) -> dict:
    """Return everything comparable, numbers or digests, by what it is and the mode."""
    ends = recording.settings["endpoints" if recording.tf1 else "activations"]
    found, by_mode = {}, run(recording, names, blur)
    for mode in MODES:
        result = by_mode[mode]
        found["h", mode] = result["ends"]["h"]
        (found["ends", mode],) = golden.digest(recording, ends, result["ends"])
        if not recording.tf1:
            (found["image_grad", mode],) = golden.digest(
                recording, ["images"], result["image_grad"]
            )
    sets = [by_mode[mode]["grad"] for mode in MODES] + [by_mode["train"]["moved"]]
    keys = [*(("grad", mode) for mode in MODES), ("moved", "train")]
    found |= zip(keys, golden.digest(recording, recording.variables, *sets), strict=True)
    return found


@pytest.mark.x64
@pytest.mark.parametrize("recording", golden.deep_ones_slow(cases()))
def test_encoder_is_the_official_one(recording, record_parity):
    names = sections.names(recording, "encoder")
    assert list(names) == list(recording.variables)
    off: dict = {}
    for (what, mode), got in (found := results(recording, names)).items():
        key = stored(what, recording, mode)
        digested = isinstance(got, golden.Digests)
        want = golden.Digests.stored(recording, key) if digested else recording.arrays[key]
        error, limit = agreement.difference(got, want), tolerance(what, recording, mode)
        if error > limit and "64" in key:
            # Some networks amplify rounding by more, which shows here: see agreement.tolerance.
            off = off or results(recording, names, agreement.ROUNDINGS * golden.EPS64)
            rounding = agreement.difference(off[what, mode], found[what, mode])
            limit = max(limit, 8 * min(rounding, noise(what, recording, mode)))
        recorded = "float64" if "64" in key else "float32"
        record_parity("model", recording.name, error, limit, recorded)
