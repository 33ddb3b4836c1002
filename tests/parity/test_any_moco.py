"""Recordings of MoCo as a program in float64 NumPy makes them, with settings that no file has.

Each is judged by its own settings, and fails under another that its numbers contradict.
"""

from __future__ import annotations

import made
import numpy as np
import pytest
import test_moco_steps

pytestmark = pytest.mark.x64

SETTINGS = {
    "width": 5,
    "dim": 3,
    "queue": 9,
    "momentum": 0.8,
    "temperature": 0.3,
    "mlp": False,
    "n": 3,
    "steps": 4,
    "rate": 0.2,
    "weight_decay": 0.03,
    "sgd_momentum": 0.7,
    "bn": True,
    "world_size": 1,
}


def unit(x, axis=1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def embedded(p, x):
    """Return projections `[n, d]`, what their gradient needs, and mean and variance of `x`."""
    moments, hat = (x.mean(0), x.var(0)), None
    if "bn.weight" in p:
        hat = (x - moments[0]) / np.sqrt(moments[1] + 1e-5)
        x = hat * p["bn.weight"] + p["bn.bias"]
    inputs = [x]
    if "fc.0.weight" in p:
        inputs.append(np.maximum(x @ p["fc.0.weight"].T + p["fc.0.bias"], 0))
    last = "fc.2" if "fc.0.weight" in p else "fc"
    return inputs[-1] @ p[f"{last}.weight"].T + p[f"{last}.bias"], (inputs, hat), moments


def slopes(p, kept, d):
    """Return the gradients of the parameters from that of projections `[n, d]`."""
    (inputs, hat), found = kept, {}
    for name, x in zip(("fc.2", "fc.0") if len(inputs) > 1 else ("fc",), inputs[::-1], strict=True):
        found |= {f"{name}.weight": d.T @ x, f"{name}.bias": d.sum(0)}
        d = d @ p[f"{name}.weight"]
        if name == "fc.2":
            d = d * (x > 0)
    if hat is not None:
        found |= {"bn.weight": (d * hat).sum(0), "bn.bias": d.sum(0)}
    return found


def contrasted(q, k, queue, t):
    """Return logits `[n, 1 + K]`, loss, and the gradient in `q`; `queue` is `[d, K]`."""
    logits = np.concatenate([np.sum(q * k, 1, keepdims=True), q @ queue], 1) / t
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    pull = shares[:, :1] * k + shares[:, 1:] @ queue.T - k
    return logits, -np.mean(np.log(shares[:, 0])), pull / (t * len(q))


def first(random, s):
    """Return first parameters."""
    sizes = {"fc.0": (s["width"],) * 2, "fc.2": (s["dim"], s["width"])}
    p = {}
    for name, shape in (sizes if s["mlp"] else {"fc": sizes["fc.2"]}).items():
        p[f"{name}.weight"] = random.normal(size=shape)
        p[f"{name}.bias"] = random.normal(size=shape[0])
    if s["bn"]:
        p |= {f"bn.{leaf}": random.normal(size=s["width"]) for leaf in ("weight", "bias")}
    return p


def named(prefix, tree):
    return {f"{prefix}/{name}": array.copy() for name, array in tree.items()}


def steps(folder, **changes):
    """Write what `moco/builder.py` and `torch.optim.SGD` make of random vectors."""
    s, random = SETTINGS | changes, np.random.default_rng(0)
    q, buffer, pointer, m = first(random, s), {}, 0, s["momentum"]
    k, queue = dict(q), unit(random.normal(size=(s["dim"], s["queue"])), 0)
    stats = {name: [np.zeros(s["width"]), np.ones(s["width"])] for name in "qk"}
    arrays = {"queue0": queue.copy()} | named("q0", q)
    for step in range(s["steps"]):
        images = {name: random.normal(size=(s["n"], s["width"])) for name in ("query", "key")}
        k = {name: m * k[name] + (1 - m) * q[name] for name in q}
        (z, kept, own), (of_key, _, other) = (
            embedded(q, images["query"]),
            embedded(k, images["key"]),
        )
        length, z, of_key = np.linalg.norm(z, axis=1, keepdims=True), unit(z), unit(of_key)
        logits, loss, d = contrasted(z, of_key, queue, s["temperature"])
        gradient = slopes(q, kept, (d - np.sum(d * z, 1, keepdims=True) * z) / length)
        queue[:, (pointer + np.arange(s["n"])) % s["queue"]] = of_key.T
        pointer = (pointer + s["n"]) % s["queue"]
        for name, (mean, var) in {"q": own, "k": other}.items():
            unbiased = var * s["n"] / (s["n"] - 1)
            stats[name] = [
                0.9 * a + 0.1 * b for a, b in zip(stats[name], (mean, unbiased), strict=True)
            ]
        made_here = images | {"logits": logits, "loss": loss, "queue": queue.copy()}
        made_here["pointer"] = pointer
        arrays |= {f"step{step}_{name}": array for name, array in made_here.items()}
        arrays |= named(f"step{step}_k", k) | (named("grad0", gradient) if step == 0 else {})
        for name, slope in gradient.items():
            slope = slope + s["weight_decay"] * q[name]
            buffer[name] = s["sgd_momentum"] * buffer[name] + slope if step else slope
            q[name] = q[name] - s["rate"] * buffer[name]
    arrays |= named(f"q{s['steps']}", q)
    for name, (mean, var) in stats.items() if s["bn"] else ():
        last = {"bn.running_mean": mean, "bn.running_var": var}
        arrays |= named(f"{name}{s['steps']}_stats", last)
    return made.write(folder, "moco", s, arrays, "torch")


@pytest.mark.parametrize(
    "change",
    [
        {"queue": 7, "n": 5},  # a ring that turns inside a batch, which officially must not be
        pytest.param({"mlp": True, "bn": False, "temperature": 0.05}, marks=pytest.mark.slow),
    ],
)
def test_steps_are_judged_by_their_own_settings(change, tmp_path, monkeypatch):
    recording = steps(tmp_path, **change)
    assert made.judge(test_moco_steps.test_steps, recording, monkeypatch=monkeypatch) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.81},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in (
                {"temperature": 0.31},
                {"rate": 0.21},
                {"weight_decay": 0.0},
                {"sgd_momentum": 0.71},
            )
        ),
    ],
)
def test_steps_of_other_settings_fail(change, tmp_path, monkeypatch):
    recording = steps(tmp_path).with_settings(**change)
    with pytest.raises(AssertionError, match="above"):
        made.judge(test_moco_steps.test_steps, recording, monkeypatch=monkeypatch)


def shuffled(folder, **changes):
    """Write one forward pass of several processes, each of which normalises what it is sent."""
    s = {"width": 5, "dim": 3, "queue": 16, "momentum": 0.9, "temperature": 0.3, "bn_eps": 1e-5}
    s |= {"n_per_process": 2, "processes": 4, "bn_momentum": 0.2} | changes
    random, (n, processes) = np.random.default_rng(1), (s["n_per_process"], s["processes"])
    q = first(random, s | {"mlp": False, "bn": True})
    queue = unit(random.normal(size=(s["dim"], s["queue"])), 0)
    query, key = random.normal(size=(2, n * processes, s["width"]))
    order = random.permutation(n * processes)
    arrays = {"queue0": queue.copy()} | named("q0", q)
    keys, of_rank = np.zeros((n * processes, s["dim"])), {}
    for rank in range(processes):
        rows = order[rank * n : (rank + 1) * n]
        z, _, (mean, var) = embedded(q, key[rows])
        keys[rows] = unit(z)
        b = s["bn_momentum"]
        of_rank[rank] = {
            "key_stats_mean": b * mean,
            "key_stats_var": (1 - b) + b * var * n / (n - 1),
            "shuffled_key": key[rows],
        }
    after = queue.copy()
    after[:, : n * processes] = keys.T
    for rank in range(processes):
        rows = slice(rank * n, (rank + 1) * n)
        z = unit(embedded(q, query[rows])[0])
        logits, loss, _ = contrasted(z, keys[rows], queue, s["temperature"])
        of_rank[rank] |= {"query": query[rows], "key": key[rows], "logits": logits, "loss": loss}
        of_rank[rank] |= {"unshuffle": np.argsort(order), "queue1": after}
        of_rank[rank]["pointer1"] = n * processes % s["queue"]
        arrays |= {f"rank{rank}_{name}": array for name, array in of_rank[rank].items()}
    return made.write(folder, "moco_shuffle", s, arrays, "torch")


def test_shuffling_is_judged_by_its_own_settings(tmp_path, monkeypatch):
    test, recording = test_moco_steps.test_shuffled_groups, shuffled(tmp_path)
    assert made.judge(test, recording, monkeypatch=monkeypatch, spread=False) == 1


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"bn_momentum": 0.1}, {"temperature": 0.31}, {"bn_eps": 1e-3}])
def test_shuffling_of_other_settings_fails(change, tmp_path, monkeypatch):
    test, recording = test_moco_steps.test_shuffled_groups, shuffled(tmp_path)
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(**change), monkeypatch=monkeypatch, spread=True)


@pytest.mark.slow
def test_keys_in_the_groups_of_their_queries_fail(tmp_path, monkeypatch):
    recording = shuffled(tmp_path)
    recording.arrays["rank0_unshuffle"] = np.arange(8)
    with pytest.raises(AssertionError, match="above"):
        made.judge(
            test_moco_steps.test_shuffled_groups, recording, monkeypatch=monkeypatch, spread=False
        )


def queued(folder):
    """Write three steps of CMC's queue, whose first rows are no unit vectors."""
    s = {"dim": 4, "queue": 7, "n": 3, "temperature": 0.4, "steps": 3}
    random = np.random.default_rng(2)
    queue, pointer = random.normal(size=(s["queue"], s["dim"])), 0
    arrays = {"queue0": queue.copy()}
    for step in range(s["steps"]):
        q, k = (unit(random.normal(size=(s["n"], s["dim"]))) for _ in range(2))
        _, loss, slope = contrasted(q, k, queue.T, s["temperature"])
        queue[(pointer + np.arange(s["n"])) % s["queue"]] = k
        pointer = (pointer + s["n"]) % s["queue"]
        made_here = {"q": q, "k": k, "loss": loss, "grad": slope, "queue": queue.copy()}
        made_here["pointer"] = pointer
        arrays |= {f"step{step}_{name}": array for name, array in made_here.items()}
    return made.write(folder, "moco_queue", s, arrays, "cmc")


def test_a_queue_is_judged_by_its_own_settings(tmp_path):
    test, recording = test_moco_steps.test_queue, queued(tmp_path)
    assert made.judge(test, recording) == 1
    with pytest.raises(AssertionError, match="above"):
        made.judge(test, recording.with_settings(temperature=0.41))
