"""A tiny pipeline for `damages.py` to damage, and who reads it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from reporting.damage_readers import Read, curves, notes, tiny, weights

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.pipeline import run as pipeline
from simclr_jax.reporting import record, report

ORDER = ("first", "tuned", "student")
STEPS = 4
MADE = "pipeline  "  # what a line begins with that says what is made
COSTS = ("minutes", "images_per_second")  # what a run takes, which is more if it is made again


def recipe(images: str) -> ConfigDict:
    """Return a pretraining, a run that starts from it, one that learns from that, and a probe."""
    first = tiny()
    first.data.source, first.data.path = "folder", images
    first.eval.probe = False
    runs = {"first": first}
    for name, stage in (("tuned", "finetune"), ("student", "distill")):
        c = runs[name] = tiny()
        with c.unlocked():
            c.stage, c.loss.temperature = stage, 0.1
            c.eval.probe = c.eval.knn = False
            recipes.crop_and_flip(c)
            recipes.inherit_all(c)
        c.augment.views[min(c.augment.views)].area_min = 0.3
    runs["tuned"].init.run, runs["tuned"].labels.use = "first", "75%"
    runs["student"].distill.teacher = "tuned"
    for c in runs.values():
        c.train.steps, c.checkpoint.every_steps, c.checkpoint.keep = STEPS, STEPS // 2, 2
        c.bn.momentum, c.optim.trust_coefficient, c.optim.base_lr = 0.3, 0.03, 0.5
    c = ConfigDict({"stage": "pipeline", "seed": 0, "runs": runs, "order": ORDER})
    c.probes = {"seen": {"run": "first", "tap": "h", "labels": "75%", "seed": 0}}
    c.table = (("tuned", "75%", "tuned"), ("distilled", "75%", "student"), ("probe", "75%", "seen"))
    c.differences = (("tuned", "probe"), ("tuned", "distilled"))
    return c.lock()


def make(root: Path) -> list[str]:
    """Make the pipeline, or what is missing of it; return what was said."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        images = os.path.realpath(root / "other")  # of copies, too, those of the first
        assert pipeline.run(recipe(images), str(root / "pipeline")) == 0
    return out.getvalue().splitlines()


def continued(root: Path) -> Read:
    """Give the command of the pipeline again, after its end."""
    return _table(root, make(root))


def completed(root: Path) -> Read:
    """Give the command of the pipeline again, before its last run has begun."""
    shutil.move(root / "pipeline", root / "kept")
    shutil.copytree(root / "kept", root / "pipeline", symlinks=True)
    try:
        shutil.rmtree(root / "pipeline" / "student")
        shutil.rmtree(root / "pipeline" / "results")
        return _table(root, make(root))
    finally:
        shutil.rmtree(root / "pipeline")
        shutil.move(root / "kept", root / "pipeline")


def _table(root: Path, said: list[str]) -> Read:
    """Return the numbers of the table, and the weights that its runs have now."""
    found = json.loads((root / "pipeline" / "results" / "pipeline.json").read_text())
    made = tuple(line for line in said if line.startswith(MADE))
    numbers: dict[str, Any] = {name: found[name] for name in ("columns", "level", "differences")}
    numbers["runs"] = found["runs"]
    for row in found["rows"] + [{"row": n, **x} for n, x in found["other runs"].items()]:
        costs = () if not made else COSTS
        numbers |= {f"{row['row']} {name}": x for name, x in row.items() if name not in costs}
    beside = {}
    logger = logging.getLogger("absl")
    logger.disabled = True  # or what is said here would count
    for name in ORDER:
        with contextlib.suppress(UserError):  # a damaged one is not looked at by the pipeline
            step, digest = weights(root / "pipeline" / name)
            beside |= {f"weights of {name}": digest} if step == STEPS else {}
    logger.disabled = False
    return Read(numbers, 0, (*made, *notes(said)), beside)


def recorded(root: Path) -> Read:
    """Read all that reports of the pipeline's runs take from files."""
    found = [(name, curves(root, f"pipeline/{name}")) for name in ORDER]
    numbers = {f"{name} {key}": x for name, one in found for key, x in one.numbers.items()}
    unreadable = sum(numbers.pop(f"{name} unreadable") for name in ORDER)
    said = tuple(line for _, one in found for line in one.said)
    return Read(numbers | {"unreadable": unreadable}, 0, said)


def compared(root: Path) -> Read:
    """Write the report of all runs of the pipeline, without what is computed for it."""
    those = record.named([record.read(str(root / "pipeline" / name)) for name in ORDER])
    text = report._page(those, {one.name: "" for one in those})
    assert "Traceback" not in text
    said = tuple(sentence for one in those for sentence in one.damaged)
    return Read({"runs": len(those)}, 0, said)
