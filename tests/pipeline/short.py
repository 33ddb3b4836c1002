"""The recipe of a pipeline of three short runs; `conftest.py` makes it."""

from __future__ import annotations

import json

from ml_collections import ConfigDict
from train import tiny

from simclr_jax import recipes

ORDER = ("first", "second", "student")
RUN = {"train__steps": 4, "log__every_steps": 1, "eval__probe": False, "eval__knn": False}
# A step or two; and statistics and weights that move so far in four steps.
RUN |= {"eval__every_epochs": 1.0, "bn__momentum": 0.3, "optim__trust_coefficient": 0.03}


def learns(stage, **fields):
    c = tiny.recipe(stage=stage, **RUN, **fields)
    recipes.crop_and_flip(c)
    return c


def runs_of(images):
    """Return a pipeline of three short runs, the later of which inherit, and a probe."""
    data = {"data__source": "memory", "data__path": str(images)}
    first = learns("finetune", labels__use="50%", **data)
    second = learns("finetune", labels__seed=1, init__run="first")
    student = learns("distill", distill__teacher="second", init__run="first")
    for c in (second, student):
        recipes.inherit_all(c)
    runs = {"first": first, "second": second, "student": student}
    c = ConfigDict({"stage": "pipeline", "seed": 0, "runs": runs, "order": ORDER})
    for run in c.runs.values():
        run.seed = c.get_oneway_ref("seed")
    c.probes = {"seen": {"run": "first", "tap": "h", "labels": "25%", "seed": 1}}
    c.table = (
        ("tuned", "50%", "first"),
        ("tuned", "50%", "second"),
        ("distilled", "50%", "student"),
        ("probe", "50%", "seen"),
    )
    c.differences = (("tuned", "distilled"), ("distilled", "probe"))
    return c.lock()


def result(workdir):
    return json.loads((workdir / "results" / "pipeline.json").read_text())
