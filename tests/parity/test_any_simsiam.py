"""Any recording of SimSiam is judged by its own settings: some are made here, by hand."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import made
import numpy as np
import pytest
import test_simsiam_steps as suite

pytestmark = pytest.mark.x64

# Unlike those of the folders. Every one is read.
SETTINGS = {
    "width": 5,
    "dim": 4,
    "pred_dim": 3,
    "n": 4,
    "base_rate": 0.7,
    "weight_decay": 0.02,
    "momentum": 0.6,
    "steps": 2,
    "epochs": 3,
    "fix_pred_lr": True,
    "bn_eps": 1e-3,
    "bn_momentum": 0.3,
}
LENGTHS = [("encoder.fc.0", "width", "width"), ("encoder.fc.3", "width", "width")]
LENGTHS += [("encoder.fc.6", "dim", "width")]
LENGTHS += [("predictor.0", "pred_dim", "dim"), ("predictor.3", "dim", "pred_dim")]


def first_parameters(s):
    shapes = {f"{name}.weight": (s[rows], s[columns]) for name, rows, columns in LENGTHS}
    for name, size in (("encoder.fc.1", "width"), ("encoder.fc.4", "width"), ("predictor.1", 0)):
        shapes |= {f"{name}.{leaf}": (s[size or "pred_dim"],) for leaf in ("weight", "bias")}
    shapes |= {f"{name}.bias": (s["dim"],) for name in ("encoder.fc.6", "predictor.3")}
    return {name: golden.fill(name, shape, 3, "normal") for name, shape in shapes.items()}


def network(s, w, stats, x):
    """Return z and p of a view, and the statistics that its pass has moved."""

    def normal(name, x):
        mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        for kind, new in (("mean", mean), ("var", var * len(x) / (len(x) - 1))):
            key = f"{name}.running_{kind}"
            stats[key] = stats[key] * (1 - s["bn_momentum"]) + new * s["bn_momentum"]
        x = (x - mean) / jnp.sqrt(var + s["bn_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"] if f"{name}.weight" in w else x

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    x = jax.nn.relu(normal("encoder.fc.1", linear("encoder.fc.0", x)))
    x = jax.nn.relu(normal("encoder.fc.4", linear("encoder.fc.3", x)))
    z = normal("encoder.fc.7", linear("encoder.fc.6", x))
    p = linear("predictor.3", jax.nn.relu(normal("predictor.1", linear("predictor.0", z))))
    return z, p


def cosine(a, b):
    lengths = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return ((a * b).sum(1) / lengths).mean()


def loss(w, stats, s, x1, x2):
    stats = dict(stats)
    first, second = network(s, w, stats, x1), network(s, w, stats, x2)
    # Officially both views pass the encoder first: the averages of each layer are moved alike.
    targets = [jax.lax.stop_gradient(z) for z, _ in (first, second)]
    return -(cosine(first[1], targets[1]) + cosine(second[1], targets[0])) / 2, stats


def steps(s):
    """Return all that a recording of these settings holds."""
    w = {name: np.float64(x) for name, x in first_parameters(s).items()}
    sizes = {"encoder.fc.1": "width", "encoder.fc.4": "width"}
    sizes |= {"encoder.fc.7": "dim", "predictor.1": "pred_dim"}
    stats = {f"{n}.running_mean": np.zeros(s[size]) for n, size in sizes.items()}
    stats |= {f"{n}.running_var": np.ones(s[size]) for n, size in sizes.items()}
    arrays, buffers, rates = {f"var0/{n}": x for n, x in w.items()}, dict.fromkeys(w, 0.0), []
    step = jax.jit(jax.value_and_grad(lambda *of: loss(*of[:2], s, *of[2:]), has_aux=True))
    for k in range(s["steps"]):
        x = [golden.fill(f"x{v}/{k}", (s["n"], s["width"]), 3, "normal") for v in (1, 2)]
        x1, x2 = (np.float64(view) for view in x)
        arrays |= {f"step{k}_x1": x1, f"step{k}_x2": x2}
        (arrays[f"step{k}_loss"], stats), gradient = step(w, stats, x1, x2)
        falls = s["base_rate"] * (1 + np.cos(np.pi * k / s["epochs"])) / 2
        rates.append([falls, s["base_rate"]] if s["fix_pred_lr"] else [falls])
        del gradient["encoder.fc.6.bias"]
        if k == 0:
            arrays |= {f"grad0/{name}": g for name, g in gradient.items()}
        for name, g in gradient.items():
            rate = rates[-1][-1 if name.startswith("predictor") else 0]
            buffers[name] = s["momentum"] * buffers[name] + g + s["weight_decay"] * w[name]
            w[name] = w[name] - rate * buffers[name]
    last = s["steps"]
    arrays |= {f"var{last}/{n}": x for n, x in w.items()}
    return arrays | {f"stats{last}/{n}": x for n, x in stats.items()} | {"rates": np.array(rates)}


@pytest.mark.parametrize("fixed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_steps_of_any_settings(fixed, tmp_path, monkeypatch):
    settings = SETTINGS | {"fix_pred_lr": fixed, "note": "read by people"}
    recording = made.write(tmp_path, "simsiam", settings, steps(settings), "torch")
    assert made.judge(suite.test_steps, recording, monkeypatch=monkeypatch) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": 0.021},
        {"momentum": 0.61},
        {"epochs": 4},
        {"bn_eps": 1.1e-3},
        {"bn_momentum": 0.31},
        {"base_rate": 0.71},
    ],
)
def test_steps_of_other_settings_fail(change, tmp_path, monkeypatch):
    recording = made.write(tmp_path, "simsiam", SETTINGS, steps(SETTINGS), "torch")
    with pytest.raises(AssertionError, match="above"):
        made.judge(suite.test_steps, recording.with_settings(**change), monkeypatch=monkeypatch)


def test_a_rate_of_the_predictor_that_is_not_recorded_fails(tmp_path, monkeypatch):
    recording = made.write(tmp_path, "simsiam", SETTINGS, steps(SETTINGS), "torch")
    with pytest.raises(AssertionError):
        wrong = recording.with_settings(fix_pred_lr=False)
        made.judge(suite.test_steps, wrong, monkeypatch=monkeypatch)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_losses_of_any_vectors(scale, tmp_path):
    p1, p2, z1, z2 = (golden.fill(k, (3, 7), 3, "normal") for k in ("p1", "p2", "z1", "z2"))
    p1, p2, z1, z2 = (scale * np.float64(x) for x in (p1, p2, z1, z2))

    def by_hand(p1, p2):
        return float(-(cosine(p1, z2) + cosine(p2, z1)) / 2)

    arrays = {"p1": p1, "p2": p2, "z1": z1, "z2": z2, "loss": by_hand(p1, p2)}
    recording = made.write(tmp_path, "simsiam_loss", {"n": 3, "dim": 7}, arrays, "torch")
    gradient = jax.grad(lambda p: -(cosine(p[0], z2) + cosine(p[1], z1)) / 2)((p1, p2))
    arrays |= {"grad1": gradient[0], "grad2": gradient[1]}
    recording = made.write(tmp_path, "simsiam_loss", {"n": 3, "dim": 7}, arrays, "torch")
    assert made.judge(suite.test_loss, recording) == 1
    wrong = made.write(tmp_path, "simsiam_loss", {}, arrays | {"loss": 2 * arrays["loss"]}, "torch")
    with pytest.raises(AssertionError, match="above"):
        made.judge(suite.test_loss, wrong)
