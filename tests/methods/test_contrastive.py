"""Losses by name: by hand, on eight devices as on one, unread settings, chance, recipes."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smallest
from frame import toys
from jax.sharding import PartitionSpec as P
from losses import by_hand
from recipes.freeze import resolved
from train import tiny

from simclr_jax import declaration, documents, parallel, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.frame import modules
from simclr_jax.frame.keys import Keys
from simclr_jax.methods import contrastive
from simclr_jax.reporting import findings, record
from simclr_jax.train import timetable as timetables

x64, slow = pytest.mark.x64, pytest.mark.slow
T = 0.3


def symmetric(z1, z2, temperature, scale):
    both = [by_hand.info_nce(*z, temperature) for z in ((z1, z2), (z2, z1))]
    return sum(both) / (1 if scale == "sum" else 2)


# The loss, its definition by hand, what that takes beside the scale.
CASES = {
    "info_nce": ("info_nce", symmetric, {"temperature": T}),
    "decoupled": ("decoupled", by_hand.decoupled, {"temperature": T}),
    "weighted": ("decoupled_weighted", by_hand.decoupled, {"temperature": T, "sigma": 0.7}),
    "debiased": ("debiased", by_hand.debiased, {"temperature": T, "tau_plus": 0.2}),
    "hard": (
        "hard_negative",
        by_hand.debiased,
        {"temperature": T, "tau_plus": 0.05, "beta": 1.5},
    ),
    "margin": ("margin", by_hand.margin_loss, {"margin": 0.6, "negatives": "mean"}),
    "margin, semi-hard": (
        "margin",
        by_hand.margin_loss,
        {"margin": 0.9, "negatives": "semi_hard"},
    ),
    "nt_logistic": ("nt_logistic", by_hand.nt_logistic, {"temperature": T, "negatives": "sum"}),
    "nt_logistic, semi-hard": (
        "nt_logistic",
        by_hand.nt_logistic,
        {"temperature": T, "negatives": "semi_hard", "margin": 0.7},
    ),
}


def fields(name, scale="mean"):
    """Return the fields of the recipe that make a case."""
    loss, _, settings = CASES[name]
    group = {f"contrastive__{n}": v for n, v in settings.items() if n != "temperature"}
    tempered = {"loss__temperature": T} if "temperature" in settings else {}
    return {"contrastive__loss": loss, "loss__scale": scale} | group | tempered


def recipe(**changed):
    return toys.recipe("contrastive", **{"train__dtype": "float64"} | changed)


# Values -------------------------------------------------------------------------------------------

D = 64


def embeddings():
    """Return two views of the images of a batch, `[n, 2, d]`: of three encoders."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(tiny.BATCH, 1, 4)) + 0.8 * rng.normal(size=(tiny.BATCH, 2, 4))
    same = np.broadcast_to(np.arange(1.0, D + 1), (tiny.BATCH, 2, D))
    apart = np.repeat(np.eye(tiny.BATCH, D)[:, None], 2, axis=1)
    return {"any": common, "equal": same, "apart": apart}


@functools.cache
def measured():
    """Return loss and metrics by case, scale and encoder, on eight devices, from one program."""
    setting = smallest.setting(10**6, 0, tiny.BATCH)
    made = {
        (name, scale): declaration.module("contrastive").make(
            recipe(**fields(name, scale)), setting
        )
        for name in CASES
        for scale in ("sum", "mean")
    }

    def local(of_encoders):
        found = {
            (*case, encoder): method.loss({"z": z}, {}, Keys(0, 0), parallel.AXIS)
            for case, method in made.items()
            for encoder, z in of_encoders.items()
        }
        return jax.tree.map(lambda x: jax.lax.psum(x, parallel.AXIS), found)

    sharded = jax.shard_map(
        local, mesh=parallel.make_mesh(8), in_specs=P(parallel.AXIS), out_specs=P()
    )
    return jax.tree.map(float, jax.jit(sharded)(jax.tree.map(jnp.asarray, embeddings())))


@x64
@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_its_definition(name, scale):
    """With the settings of its group: sigma, tau_plus, beta, margin and negatives."""
    _, definition, settings = CASES[name]
    loss, told = measured()[name, scale, "any"]
    z = np.moveaxis(embeddings()["any"], 1, 0)
    assert loss == pytest.approx(definition(*z, scale=scale, **settings), rel=1e-12)
    assert told["loss_mean"] == pytest.approx(loss / (2 if scale == "sum" else 1), rel=1e-12)
    unit = by_hand.unit(z)
    found = np.mean(np.argmax(unit[0] @ unit[1].T, axis=1) == np.arange(tiny.BATCH))
    assert told["contrast_accuracy"] == pytest.approx(found, rel=1e-12)


@x64
@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_chance_and_floor_are_losses_of_who_knows_nothing_and_all(name, scale):
    config, said = recipe(**fields(name, scale)), declaration.find("contrastive")
    if name.startswith("nt_logistic") or name.endswith("semi-hard"):
        assert said.chance(config) is None
    else:
        assert measured()[name, scale, "equal"][0] == pytest.approx(said.chance(config), rel=1e-12)
        assert said.floor(config) < said.chance(config)
    assert measured()[name, scale, "apart"][0] == pytest.approx(
        said.floor(config), rel=1e-9, abs=1e-9
    )


# Training -----------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Replace the encoder by one that compiles at once."""
    monkeypatch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))


@x64
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "name",
    [
        "weighted",
        *(pytest.param(n, marks=slow) for n in ("info_nce", "hard", "margin")),
        pytest.param("nt_logistic, semi-hard", marks=slow),
    ],
)
def test_eight_devices_do_what_one_does(name):
    """Of each loss that has a file; those left out are these with one number less."""
    states, metrics = toys.both(recipe(**fields(name), eval__probe=False), steps=2, tolerance=1e-12)
    assert states[0].extra == {}
    first, last = (jax.tree.leaves(state.params["encoder"]) for state in (states[0], states[-1]))
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(first, last, strict=True))
    assert metrics[0]["loss"] == pytest.approx(metrics[0]["loss_mean"], rel=1e-12)


# Mistakes -----------------------------------------------------------------------------------------

LEAVE = "does not read it: leave it at"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"loss": "nce"}, "contrastive.loss is nce: it must be one of info_nce, decoupled, "),
        ({"sigma": 0.7}, f"sigma is 0.7, but contrastive.loss=info_nce {LEAVE} 0.5, or set "
         "--config.contrastive.loss=decoupled_weighted"),
        ({"loss": "decoupled", "sigma": 0.7}, f"loss=decoupled {LEAVE} 0.5"),
        ({"tau_plus": 0.2}, f"info_nce {LEAVE} 0.1, or set --config.contrastive.loss=debiased"),
        ({"loss": "debiased", "beta": 2.0}, f"beta is 2.0, but .* {LEAVE} 1.0, .*=hard_negative"),
        ({"loss": "debiased", "margin": 0.3}, f"{LEAVE} 0.4, or set .*loss=margin"),
        ({"loss": "decoupled", "negatives": "sum"}, f"negatives is sum, but .* {LEAVE} mean"),
        ({"loss": "nt_logistic", "margin": 0.3}, f"margin is 0.3, but nt_logistic without semi-hard"
         f" negatives {LEAVE} 0.4, or set --config.contrastive.negatives=semi_hard"),
        ({"loss": "margin", "loss__temperature": 0.2}, "loss.temperature is 0.2, but "
         f"contrastive.loss=margin {LEAVE} 0.1, or set --config.contrastive.loss=info_nce"),
        ({"loss": "margin", "margin": 0.0}, "margin is 0.0: it must be a number greater than 0"),
        ({"loss": "margin", "negatives": "hard"}, "negatives is hard: it must be one of sum, mean"),
        ({"loss": "debiased", "tau_plus": 1.0}, r"tau_plus is 1.0: it must be in \[0, 1\)"),
        ({"loss": "hard_negative", "beta": -1.0}, "beta is -1.0: it must be a number, 0 or more"),
        ({"loss": "decoupled_weighted", "sigma": 0.0}, "sigma is 0.0: it must be a number, 1e-6"),
        ({"loss__normalize": False}, "loss.normalize is False, but method contrastive does not"),
        ({"memory__size": 64}, "memory.size is 64, but method contrastive does not read it"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_said_in_one_line(changed, message):
    named = {n if "__" in n else f"contrastive__{n}": value for n, value in changed.items()}
    with pytest.raises(UserError, match=message):
        validation.validate(toys.recipe("contrastive", **named), 1)


@pytest.mark.parametrize("name", CASES)
def test_what_a_loss_reads_may_be_set(name):
    changed = {n: v for n, v in fields(name).items() if n != "loss__scale"}
    validation.validate(toys.recipe("contrastive", **changed), 1)


# What a report says -------------------------------------------------------------------------------


def said(folder, loss, **changed):
    """Return what is said of a finished run whose loss was the same from the first step on."""
    config = toys.recipe("contrastive", train__steps=100, log__every_steps=10, **changed).to_dict()
    config = json.loads(json.dumps(config))
    folder.mkdir()
    documents.write(folder / "config.json", config)
    lines = [{"step": s, "epoch": s / 10, "loss": loss} for s in range(10, 101, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = findings.findings(record.read(str(folder)))
    return [finding.text for finding in found if "stopped" not in finding.text]


def test_a_report_knows_nothing_learned_from_all_that_is_to_be_had(tmp_path):
    semi_hard = {"contrastive__loss": "margin", "contrastive__negatives": "semi_hard"}
    logistic = {"contrastive__loss": "nt_logistic"}
    debiased = {"contrastive__loss": "debiased", "loss__temperature": 0.5}
    (text,) = said(tmp_path / "a", math.log(2 * tiny.BATCH - 1), **debiased)
    assert "hardly anything has been learned" in text
    floor = declaration.find("contrastive").floor(toys.recipe("contrastive", **debiased))
    assert said(tmp_path / "b", 1.02 * floor, **debiased) == []
    (text,) = said(tmp_path / "c", 0.399, contrastive__loss="margin")
    assert "hardly anything" in text
    # The partner may be the second nearest of all here.
    assert said(tmp_path / "d", 0.399, **semi_hard) == said(tmp_path / "e", 1.5, **logistic) == []


# Recipes ------------------------------------------------------------------------------------------

# From the READMEs and programs of the three repositories.
ALL = {
    "head.kind": "mlp",
    "head.layers": 2,
    "head.hidden": 512,
    "head.dim": 128,
    "optim.name": "adam",
    "optim.weight_decay": 1e-6,
    "train.batch_size": 256,
    "contrastive.sigma": 0.5,
    "contrastive.tau_plus": 0.1,
    "contrastive.beta": 1.0,
}
DECOUPLED = {"loss.temperature": 0.1, "loss.scale": "sum", "train.epochs": 100.0, "model.depth": 18}
DEBIASED = {"loss.temperature": 0.5, "loss.scale": "mean", "train.epochs": 400.0, "model.depth": 50}
PUBLISHED = {
    "decoupled": DECOUPLED,
    "decoupled_weighted": DECOUPLED,
    "debiased": DEBIASED,
    "hard_negative": DEBIASED,
}


@pytest.mark.parametrize("loss", PUBLISHED)
def test_presets_are_those_published(loss):
    c = resolved("contrastive", f"cifar10,loss={loss}")
    for name, value in (ALL | PUBLISHED[loss]).items():
        assert recipes.get(c, name) == value, name
    for view in c.augment.views.values():
        strengths = [view[n] for n in ("brightness", "contrast", "saturation", "hue")]
        assert (view.strength, strengths, view.jitter) == (1.0, [0.4, 0.4, 0.4, 0.1], 0.8)
    table = timetables.make(c, 50_000)
    # It drops by nothing: the rate is constant.
    assert (table.peak_rate, table.warmup_steps, table.drop_factor) == (1e-3, 0, 1.0)
    assert table.drops


@pytest.mark.parametrize("loss", contrastive.LOSSES)
@pytest.mark.parametrize("data", ["", "cifar10,"])
def test_every_loss_has_a_recipe(loss, data):
    c = resolved("contrastive", f"{data}loss={loss}")
    validation.validate(c, 8)
    assert c.contrastive.loss == loss


def test_a_loss_that_is_not_there_is_refused_by_the_recipe():
    with pytest.raises(UserError, match=r'argument loss of the recipe is "nce".*info_nce'):
        resolved("contrastive", "loss=nce")
