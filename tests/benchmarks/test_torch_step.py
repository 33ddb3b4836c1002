"""The PyTorch step does the job of ours: the same parameters, the same loss. Needs PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from measured import bench, ours  # noqa: E402
from torch_step import Job, Network, TorchStep, nt_xent  # noqa: E402

from simclr_jax.losses import nt_xent as own  # noqa: E402


@pytest.mark.parametrize(
    ("recipe", "depth"),
    [
        ("configs/cifar10.py", 18),
        pytest.param("configs/imagenet.py", 50, marks=pytest.mark.slow),
    ],
)
def test_both_networks_have_the_same_parameters(recipe, depth):
    fields = {"model.width": 0.25, **bench.GIVEN}
    job = ours.job(recipe, fields, 32)
    assert job["depth"] == depth
    state = ours.case(recipe, fields, 2, 32).state()
    sizes = {}
    for part in ("encoder", "head"):
        tree = state.params[part]
        sizes[part] = sum(x.size for x in ours.jax.tree.leaves(tree))
    network = Network(job["depth"], job["width"], job["stem"], job["layers"], job["dim"])
    for part, size in sizes.items():
        assert sum(x.numel() for x in getattr(network, part).parameters()) == size


def test_both_losses_are_the_same():
    z = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    theirs = nt_xent(torch.tensor(z), 0.2)
    found = own.nt_xent(jnp.asarray(z[:6]), jnp.asarray(z[6:]), temperature=0.2, scale="mean")[0]
    assert float(theirs) == pytest.approx(float(found), rel=1e-6)


def test_a_step_learns():
    step = TorchStep(Job(depth=10, size=8, batch=4, width=1 / 16, stem="cifar", dim=4, threads=1))
    _, first = step.run(1)
    seconds, last = step.run(8)
    assert last < first and seconds > 0
