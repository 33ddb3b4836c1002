"""The suite itself: recordings of losses of two views are judged by their settings, whatever these.

They are made here anchor by anchor in NumPy (`losses/by_hand.py`), with settings that those in the
folders do not have. Where a setting is wrong by a little, the same file must fail.
"""

from __future__ import annotations

import functools

import golden
import made
import numpy as np
import pytest
from losses import by_hand
from test_two_view_losses import test_loss_and_gradients as judged

pytestmark = pytest.mark.x64

SLOPE = {"loss": 0.0, "grad": 1e-9}  # by central differences


def recorded(folder, kind, settings, loss, inputs, grads, flavour):
    """Write a recording of a loss of some inputs, correct for its settings."""
    arrays = inputs | {"loss": loss(*inputs.values())}
    for place, key in enumerate(grads):
        given = list(inputs.values())

        def moved(x, place=place, given=given):
            return loss(*given[:place], x, *given[place + 1 :])

        arrays[key] = made.slope(moved, given[place])
    return made.write(folder, kind, settings, arrays, flavour, sensitivity=SLOPE)


def inputs(unit=False, **shapes):
    filled = {name: golden.fill(name, shape, 3, "normal") for name, shape in shapes.items()}
    wide = {name: x.astype(np.float64) for name, x in filled.items()}
    return {name: by_hand.unit(x) for name, x in wide.items()} if unit else wide


def info_nce(folder, **changes):
    s = {"n": 4, "dim": 3, "temperature": 0.4} | changes
    loss = functools.partial(by_hand.info_nce, temperature=s["temperature"])
    given = inputs(q=(s["n"], s["dim"]), k=(s["n"], s["dim"]))
    return recorded(folder, "infonce", s, loss, given, ("grad_q", "grad_k"), "numpy")


def cpc(folder, **changes):
    s = {"n": 4, "context_dim": 2, "dim": 3, "steps": 2, "over": "contexts"} | changes
    n, c, d, k = (s[name] for name in ("n", "context_dim", "dim", "steps"))
    given = inputs(context=(n, c), z=(k, n, d), W=(k, d, c))
    loss = functools.partial(by_hand.cpc, over=s["over"])
    grads = [f"grad_{name}" for name in given]
    return recorded(folder, "infonce_cpc", s, loss, given, grads, "numpy")


def of_views(folder, kind, settings, loss, torch):
    shape = settings["n"], settings["dim"]
    given = inputs(torch, z1=shape, z2=shape)
    grads = ("grad1", "grad2") if torch else ("grad_z1", "grad_z2")
    loss = functools.partial(loss, **({"normalize": False} if torch else {}))
    return recorded(folder, kind, settings, loss, given, grads, "torch" if torch else "numpy")


def decoupled(folder, **changes):
    """So cold that what is added to own views does not hide them."""
    s = {"n": 3, "dim": 3, "temperature": 0.03, "sigma": 0.3, "both_directions": False}
    s |= {"own_and_partner_added_to_logits": -40.0, "weight_carries_gradient": True} | changes
    loss = functools.partial(
        by_hand.decoupled,
        temperature=s["temperature"],
        sigma=s["sigma"],
        views=(0, 1) if s["both_directions"] else (0,),
        leak=s["own_and_partner_added_to_logits"],
    )
    return of_views(folder, "decoupled", s, loss, torch=True)


def debiased(folder, **changes):
    s = {"n": 4, "dim": 3, "temperature": 0.6, "tau_plus": 0.15, "debiased": True} | changes
    s |= {"anchors_clamped": 0, "embeddings": "of unit length"}
    tau = s["tau_plus"] if s["debiased"] else 0.0
    loss = functools.partial(by_hand.debiased, temperature=s["temperature"], tau_plus=tau)
    return of_views(folder, "debiased", s, loss, torch=True)


def hard_negative(folder, **changes):
    s = {"n": 4, "dim": 3, "temperature": 0.6, "tau_plus": 0.15, "beta": 0.7, "estimator": "hard"}
    s |= changes
    some = {"tau_plus": s["tau_plus"], "beta": s["beta"]}
    some = some if s["estimator"] == "hard" else dict.fromkeys(some, 0.0)
    loss = functools.partial(by_hand.debiased, temperature=s["temperature"], **some)
    return of_views(folder, "hard_negative", s, loss, torch=True)


def margin(folder, **changes):
    s = {"n": 4, "dim": 3, "margin": 0.55, "negatives": "semi_hard"} | changes
    loss = functools.partial(by_hand.margin_loss, margin=s["margin"], negatives=s["negatives"])
    return of_views(folder, "margin", s, loss, torch=False)


def nt_logistic(folder, **changes):
    s = {"n": 4, "dim": 3, "temperature": 0.7, "negatives": "semi_hard", "margin": 0.9} | changes
    some = {name: s[name] for name in ("temperature", "negatives", "margin")}
    return of_views(
        folder, "nt_logistic", s, functools.partial(by_hand.nt_logistic, **some), torch=False
    )


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (info_nce, {}),
        (cpc, {}),
        (decoupled, {}),
        (debiased, {"debiased": False}),
        (debiased, {"temperature": 0.25}),
        (hard_negative, {}),
        (hard_negative, {"estimator": "easy"}),
        (margin, {}),
        (nt_logistic, {}),
        (nt_logistic, {"negatives": "sum"}),
    ],
)
def test_a_loss_is_judged_by_its_own_settings(make, changes, tmp_path):
    assert made.judge(judged, make(tmp_path, **changes)) >= 3


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (info_nce, {"temperature": 0.401}),
        (cpc, {"over": "candidates"}),
        (decoupled, {"sigma": 0.31}),
        (decoupled, {"both_directions": True}),
        (decoupled, {"own_and_partner_added_to_logits": -41.0}),
        (debiased, {"debiased": False}),
        (hard_negative, {"beta": 0.71}),
        (margin, {"margin": 0.551}),
        (nt_logistic, {"negatives": "mean"}),
    ],
)
def test_a_loss_of_other_settings_fails(make, wrong, tmp_path):
    with pytest.raises(AssertionError, match="above"):
        made.judge(judged, make(tmp_path).with_settings(**wrong))


def test_a_setting_that_is_not_known_fails(tmp_path):
    for wrong, message in (
        ({"weight_carries_gradient": False}, "weight_carries_gradient"),
        ({"dim": 4}, "shape of z1"),
    ):
        with pytest.raises(AssertionError, match=f"decoupled-torch-made.npz: {message}"):
            made.judge(judged, decoupled(tmp_path).with_settings(**wrong))
