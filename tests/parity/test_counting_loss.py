"""The counting loss against recordings, and recordings made here of any settings.

There is no code of the authors: those recordings are of NumPy in float64, from equation 5.
"""

from __future__ import annotations

import golden
import jax
import made
import numpy as np
import pytest

from simclr_jax.losses.counting import counting

pytestmark = pytest.mark.x64

FORMS = {"paper": "length", "elementwise": "elementwise"}


@pytest.mark.parametrize("recording", golden.cases("counting"))
def test_counts(recording, record_parity):
    """Value and the gradient of all three, in float64."""
    s, arrays = recording.settings, recording.arrays
    n, dim = s["n"], s["dim"]
    shapes = {"down_x": (n, dim), "down_y": (n, dim), "tiles": (4, n, dim)}
    for name, shape in shapes.items():
        assert arrays[name].shape == shape, f"{recording.name}: shape of {name}"

    def loss(down_x, down_y, tiles):
        tiles = np.swapaxes(tiles, 0, 1)
        return counting(down_x, tiles, down_y, margin=s["margin"], form=FORMS[s["form"]])[0]

    given = [arrays[name] for name in shapes]
    value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*given)
    found = {"loss": value, **{f"grad_{k}": g for k, g in zip(shapes, slopes, strict=True)}}
    blur = recording.spec.get("sensitivity", {})
    for name, got in found.items():
        limit = max(1e-12, 4 * blur.get(name.partition("_")[0], 0.0))
        error = golden.error(got, arrays[name])
        record_parity(recording.spec["kind"], recording.name, error, limit, "float64")


def recorded(folder, **changes):
    """Write a recording of some settings, image by image, correct for these."""
    s = {"n": 3, "dim": 4, "margin": 60.0, "form": "paper"} | changes
    shapes = {"down_x": (s["n"], s["dim"]), "down_y": (s["n"], s["dim"])}
    shapes["tiles"] = (4, s["n"], s["dim"])
    given = {k: golden.fill(k, shape, 3, "normal").astype(float) for k, shape in shapes.items()}

    def loss(down_x, down_y, tiles):
        each = []
        for i in range(s["n"]):
            gap = (down_x[i] - tiles[:, i].sum(0)) ** 2
            far = (down_y[i] - tiles[:, i].sum(0)) ** 2
            if s["form"] == "paper":
                each.append(gap.sum() + max(0, s["margin"] - far.sum()))
            else:
                each.append(np.mean(gap) + np.mean(np.maximum(0, s["margin"] - far)))
        return float(np.mean(each))

    arrays = given | {"loss": loss(**given)}
    for name in shapes:

        def moved(x, name=name):
            return loss(**{**given, name: x})

        arrays[f"grad_{name}"] = made.slope(moved, given[name])
    # Slopes are taken by central differences.
    return made.write(folder, "counting", s, arrays, "numpy", sensitivity={"grad": 1e-9})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", [{}, {"margin": 0.7}, {"n": 2, "dim": 7}])
def test_counts_of_any_settings(form, change, tmp_path):
    assert made.judge(test_counts, recorded(tmp_path, form=form, **change)) == 4


@pytest.mark.parametrize("change", [{"margin": 60.01}, {"form": "elementwise"}])
def test_counts_of_other_settings_fail(change, tmp_path):
    with pytest.raises(AssertionError, match="above"):
        made.judge(test_counts, recorded(tmp_path, margin=60.0).with_settings(**change))
