"""PCL's steps, with our ProtoNCE as the prototype term of its loss, against its official code.

The recorded encoder is one linear layer (with `mlp` two), so that what is around the loss, MoCo's
InfoNCE, queue and moving average, and SGD, is a few lines here. The gradient of the first step, and
the parameters after the last one, are of the whole loss.
"""

from __future__ import annotations

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses.prototypes import Clustering, proto_nce
from simclr_jax.losses.unit import l2_normalize

pytestmark = pytest.mark.x64


def encode(params, x):
    """Return unit embeddings by the layers `fc.weight` or `fc.0.weight`, `fc.2.weight`."""
    names = sorted(name for name in params if name.endswith("weight"))
    for i, name in enumerate(names):
        x = x @ params[name].T + params[name.replace("weight", "bias")]
        x = jax.nn.relu(x) if i + 1 < len(names) else x
    return l2_normalize(x)


def clusterings(recording, step):
    """Return the recorded clusterings of the batch of a step, at every granularity."""
    settings, arrays = recording.settings, recording.arrays
    found = []
    for g, clusters in enumerate(settings["clusters"]):
        prototypes = arrays[f"prototypes{g}"]
        assignment, negatives = arrays[f"assignment{g}"], arrays[f"step{step}_negatives{g}"]
        assert prototypes.shape == (clusters, settings["dim"]), recording.name
        assert assignment.shape == (settings["images"],), recording.name
        assert negatives.shape == (settings["queue_and_sampled"],), recording.name
        assigned = assignment[arrays[f"step{step}_index"]]
        found.append(Clustering(prototypes, arrays[f"density{g}"], assigned, negatives))
    return found


def info_nce(queries, keys, queue, temperature):
    negative = queries @ queue
    logits = jnp.concatenate([jnp.sum(queries * keys, 1, keepdims=True), negative], axis=1)
    return -jnp.mean(jax.nn.log_softmax(logits / temperature)[:, 0])


@pytest.mark.parametrize("recording", golden.cases("pcl"))
def test_steps(recording, record_parity):
    settings, arrays = recording.settings, recording.arrays
    online = {name: arrays[f"q0/{name}"] for name in recording.variables}
    layers = 4 if settings["mlp"] else 2
    assert len(online) == layers, f"{recording.name}: {sorted(online)}"
    average, queue = online, arrays["queue0"]
    velocity = jax.tree.map(np.zeros_like, online)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(online, average, queue, batch, clustered):
        queries, keys = encode(online, batch["query"]), encode(average, batch["key"])
        instances = info_nce(queries, keys, queue, settings["temperature"])
        prototypes, metrics = proto_nce(queries, clustered)
        found = {"info_nce": instances, "proto_nce": prototypes, "loss": instances + prototypes}
        return instances + prototypes, (found, keys, metrics)

    errors = []
    for step in range(settings["steps"]):
        batch = {name: arrays[f"step{step}_{name}"] for name in ("query", "key")}
        assert batch["query"].shape == (settings["n"], settings["width"]), recording.name
        m = settings["momentum"]
        average = jax.tree.map(lambda k, q: m * k + (1 - m) * q, average, online)  # noqa: B023
        (_, (found, keys, metrics)), slope = loss(
            online, average, queue, batch, clusterings(recording, step)
        )
        errors += [golden.error(v, arrays[f"step{step}_{k}"], 1.0) for k, v in found.items()]
        errors.append(abs(float(metrics["prototype_accuracy"]) - nearest(recording, step)))
        if step == 0:
            errors += [golden.error(slope[name], arrays[f"grad0/{name}"]) for name in online]
        at = step * settings["n"] % settings["queue_and_sampled"]
        queue = jnp.asarray(queue).at[:, at : at + settings["n"]].set(keys.T)
        errors.append(golden.error(queue, arrays[f"step{step}_queue"]))
        decayed = jax.tree.map(lambda g, p: g + settings["weight_decay"] * p, slope, online)
        velocity = jax.tree.map(lambda v, g: settings["sgd_momentum"] * v + g, velocity, decayed)
        online = jax.tree.map(lambda p, v: p - settings["rate"] * v, online, velocity)
    for prefix, params in (("q", online), ("k", average)):
        last = f"{prefix}{settings['steps']}"
        errors += [golden.error(params[name], arrays[f"{last}/{name}"]) for name in params]
    record_parity("pcl", recording.name, max(errors), 1e-12, "float64")


def nearest(recording, step):
    """Return how often the largest recorded logit is that of the image's own prototype."""
    shares = []
    for g, (_, _, assigned, negatives) in enumerate(clusterings(recording, step)):
        likeliest = np.argmax(recording.arrays[f"step{step}_proto_logits{g}"], axis=1)
        shares.append(np.mean(np.concatenate([assigned, negatives])[likeliest] == assigned))
    return np.mean(shares)
