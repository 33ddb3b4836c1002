"""What a report says of a run of any method, by what the method declares of its loss.

None is known here by name; `smallest.py` has their smallest recipes.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import smallest
from train import tiny

from simclr_jax import declaration, documents, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.reporting import findings, record

STEPS = 60
NOTHING = "hardly anything has been learned"
METHODS = pytest.mark.parametrize("method", smallest.METHODS)


def written(directory, method, **metrics):
    """Return the record of a run that has logged these numbers, `[STEPS]` or one for all steps."""
    directory.mkdir()
    config = smallest.recipe(method, train__steps=STEPS, log__every_steps=1)
    documents.write(directory / "config.json", config.to_dict())
    images = tiny.BATCH * tiny.STEPS
    lines = [
        {"step": step, "epoch": step * tiny.BATCH / images}
        | {name: float(np.broadcast_to(v, STEPS)[step - 1]) for name, v in metrics.items()}
        for step in range(1, STEPS + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return record.read(str(directory))


def texts(read):
    return [finding.text for finding in findings.findings(read)]


def says_nothing_learned(read):
    return any(NOTHING in text for text in texts(read))


@METHODS
def test_it_says_that_nothing_is_learned_where_that_is_so(method, tmp_path):
    """At the loss declared of who has learned nothing; never at that of who has learned all."""
    read = written(tmp_path / "read", method, loss=0.5)
    said = declaration.find(method)
    if read.chances is None:  # then nothing is said of any loss
        assert not any(
            says_nothing_learned(written(tmp_path / f"{loss}", method, loss=loss))
            for loss in (-1.0, 0.0, 1.0, 1e3)
        )
        return
    assert read.chances.shape == (STEPS,) and np.isfinite(read.chances).all()
    more = (tiny.BATCH * tiny.STEPS,) if said.of_images else ()
    config = smallest.recipe(method, train__steps=STEPS)
    declared = said.chance(config, *more)
    if said.chance_at is None:
        assert read.chance == pytest.approx(declared, rel=1e-6)
    else:  # which ends there once what the method keeps is full
        late = said.chance_at(config, np.array([10**9]), *more)
        assert late == pytest.approx(declared, rel=1e-3)
    at_chance = written(tmp_path / "chance", method, loss=read.chances)
    if read.floor is None:
        assert not says_nothing_learned(at_chance)
        return
    assert read.floor < read.chance and says_nothing_learned(at_chance)
    assert not says_nothing_learned(written(tmp_path / "floor", method, loss=read.floor))
    half = (read.floor + read.chance) / 2
    assert not says_nothing_learned(written(tmp_path / "half", method, loss=half))


@METHODS
def test_its_advice_is_about_fields_that_the_method_reads(method, tmp_path):
    read = written(tmp_path / "run", method, effective_rank_h=1.0, contrast_accuracy=1.0)
    advice = [text for text in texts(read) if "h has collapsed" in text]
    # Labels may ask for as few dimensions as there are classes.
    assert advice or declaration.find(method).labels
    for text in advice:
        assert ("temperature" in text) is reads(method, "loss.temperature")
    assert any("the task is solved" in text for text in texts(read))
    assert not any("larger batch" in text for text in texts(read))  # a queue does not grow with it


def reads(method, field):
    """Tell whether a recipe of the method may set a field otherwise."""
    c = smallest.recipe(method)
    recipes.put(c, field, 0.77)
    try:
        validation.validate(c, 1)
    except UserError as error:
        assert "does not read it" in str(error)
        return False
    return True
