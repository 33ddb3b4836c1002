"""Recordings of PCL's steps made by NumPy: two layers, which those in the folders may lack."""

from __future__ import annotations

import functools

import made
import numpy as np
import pytest
import test_pcl_steps
from losses import brute_force

pytestmark = [pytest.mark.x64, pytest.mark.slow]

SETTINGS = {"width": 3, "dim": 2, "queue_and_sampled": 4, "clusters": [8, 9], "momentum": 0.6}
SETTINGS |= {"temperature": 0.3, "mlp": True, "n": 2, "images": 9, "steps": 2, "rate": 0.2}
SETTINGS |= {"weight_decay": 0.05, "sgd_momentum": 0.7}
LAYERS = {"fc.0.weight": (3, 3), "fc.0.bias": (3,), "fc.2.weight": (2, 3), "fc.2.bias": (2,)}


def encode(params, x):
    hidden = np.maximum(x @ params["fc.0.weight"].T + params["fc.0.bias"], 0)
    return brute_force.unit(hidden @ params["fc.2.weight"].T + params["fc.2.bias"])


def info_nce(queries, keys, queue):
    losses = []
    for query, key in zip(queries, keys, strict=True):
        logits = np.array([query @ key, *(query @ queue)]) / SETTINGS["temperature"]
        losses.append(np.log(np.sum(np.exp(logits))) - logits[0])
    return np.mean(losses)


def recording(folder):
    s, random = SETTINGS, np.random.default_rng(0)
    online = {name: random.normal(size=shape) for name, shape in LAYERS.items()}
    average, velocity = dict(online), {name: np.zeros(shape) for name, shape in LAYERS.items()}
    queue = brute_force.unit(random.normal(size=(s["dim"], 4)), 0)
    arrays = {"queue0": queue, **{f"q0/{name}": value for name, value in online.items()}}
    for g, clusters in enumerate(s["clusters"]):
        arrays[f"prototypes{g}"] = brute_force.unit(random.normal(size=(clusters, s["dim"])))
        arrays[f"density{g}"] = np.linspace(0.2, 0.5, clusters)
        arrays[f"assignment{g}"] = np.arange(s["images"]) % clusters
    for step in range(s["steps"]):
        index = np.array([3, 5]) + step
        batch = {name: random.normal(size=(2, s["width"])) for name in ("query", "key")}
        clusterings = []
        for g in range(2):
            prototypes, phi = arrays[f"prototypes{g}"], arrays[f"density{g}"]
            negatives = np.array([0, 1, 2, 7])  # of none of the images above
            clusterings.append((prototypes, phi, arrays[f"assignment{g}"][index], negatives))
            arrays[f"step{step}_negatives{g}"] = negatives
        average = {
            k: s["momentum"] * v + (1 - s["momentum"]) * online[k] for k, v in average.items()
        }
        keys = encode(average, batch["key"])

        def terms(params, batch=batch, keys=keys, queue=queue, clusterings=clusterings):
            queries = encode(params, batch["query"])
            return info_nce(queries, keys, queue), brute_force.proto_nce(queries, clusterings)

        found = dict(zip(("info_nce", "proto_nce"), terms(online), strict=True))
        found |= {"loss": sum(found.values()), "index": index, **batch}
        queries = encode(online, batch["query"])
        for g, (prototypes, phi, assigned, negatives) in enumerate(clusterings):
            chosen = np.concatenate([assigned, negatives])
            found[f"proto_logits{g}"] = queries @ prototypes[chosen].T / phi[chosen]
        queue = np.concatenate([keys.T, queue[:, 2:]] if step == 0 else [queue[:, :2], keys.T], 1)
        arrays |= {f"step{step}_{name}": value for name, value in found.items()}
        arrays[f"step{step}_queue"] = queue
        for name in LAYERS:
            slope = made.slope(lambda x, n=name: sum(terms(online | {n: x})), online[name])  # noqa: B023
            if step == 0:
                arrays[f"grad0/{name}"] = slope
            decayed = slope + s["weight_decay"] * online[name]
            velocity[name] = s["sgd_momentum"] * velocity[name] + decayed
        online = {name: value - s["rate"] * velocity[name] for name, value in online.items()}
    for prefix, params in (("q2", online), ("k2", average)):
        arrays |= {f"{prefix}/{name}": value for name, value in params.items()}
    variables = [[name, shape, "kernel"] for name, shape in LAYERS.items()]
    return made.write(folder, "pcl", s, arrays, "torch", variables=variables)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    return recording(tmp_path_factory.mktemp("made"))


@pytest.fixture
def judge(monkeypatch):
    """Return the judgement of the suite, by what differences in NumPy are good for."""
    return functools.partial(judged, monkeypatch)


def judged(monkeypatch, recording):
    errors = []
    record = lambda kind, file, error, *_: errors.append(error)  # noqa: E731
    test_pcl_steps.test_steps(recording, monkeypatch, record)
    recording.check_all_read()
    return max(errors)


def test_steps_of_two_layers(two_layers, judge):
    assert judge(two_layers) < 1e-7


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.31},
        {"momentum": 0.61},
        {"rate": 0.21},
        {"weight_decay": 0.06},
        {"sgd_momentum": 0.71},
    ],
)
def test_steps_of_other_settings_fail(wrong, two_layers, judge):
    assert judge(two_layers.with_settings(**wrong)) > 1e-5


def test_shapes_that_contradict_the_settings_fail(two_layers, judge):
    for wrong in ({"clusters": [8, 8]}, {"mlp": False}, {"images": 8}, {"n": 3}):
        with pytest.raises(AssertionError, match="pcl-torch-made"):
            judge(two_layers.with_settings(**wrong))
