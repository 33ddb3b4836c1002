"""A field that does nothing is refused, whatever the method and whatever its other fields say.

What methods declare as unread, and what validation knows of all of them, is refused with a remedy
that works. And whether that is all: each field of a method's own group, and of `loss`, `memory` and
`optim` if the method reads them, is set to another value in recipes that differ in all that names a
choice. What is let through must change what is run: the first state, the step, or what is made
before an epoch.
"""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
import smallest
from frame import toys
from jax.extend.core import ClosedJaxpr, Jaxpr
from train import tiny

from simclr_jax import declaration, recipes, validation
from simclr_jax.errors import UserError
from simclr_jax.fields import CHOICES
from simclr_jax.frame import modules
from simclr_jax.losses.counting import FORMS
from simclr_jax.methods import contrastive, exemplar, fnc, instdisc
from simclr_jax.stages import pretrain
from simclr_jax.train.step import make_step

# Where fields of a method may be unread; of the others the smallest recipe is asked.
VARIANTS: dict[str, list[dict[str, object]]] = {
    "contrastive": [
        *({"contrastive__loss": loss} for loss in contrastive.LOSSES),
        {"contrastive__loss": "nt_logistic", "contrastive__negatives": "semi_hard"},
    ],
    "counting": [{"counting__form": form} for form in FORMS],
    "exemplar": [{"exemplar__form": form} for form in exemplar.FORMS],
    "fnc": [{"fnc__cancel": name} for name in fnc.CANCEL]
    + [{"fnc__memory": 0, "fnc__momentum": 0.999}],
    "instdisc": [
        {"instdisc__loss": loss, **({"instdisc__negatives": 4096} if loss == "softmax" else {})}
        for loss in instdisc.LOSSES
    ],
    "jigsaw": [{}, {"jigsaw__shared": False}],
    "relative_patch": [{}, {"relative_patch__pairs": "all"}, {"relative_patch__pairs": "centre"}],
    "simclr": [{}, {"memory__size": 0}],
}
OPTIMISERS = [{"optim__name": name, "memory__size": 0} for name in CHOICES["optim.name"]]
OPTIMISERS += [{"optim__drops": "0.5", "memory__size": 0}]
CASES = [(m, v) for m in smallest.METHODS for v in VARIANTS.get(m, [{}])]

# Let through though nothing reads it, see `validation._unread_by_others`.
FOR_WHATEVER_IS_CHOSEN = {"optim.rate_in_momentum"}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Replace the encoder by one that is traced at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "encoder", lambda config: toys.Small(modules.norm(config)))
        yield


def run_by(c) -> list[str]:
    """Return all that a recipe lets run, as text."""
    stage, mesh = tiny.make_stage(c, 1)
    pretrain.check(c, tiny.timetable(c), tiny.sorted_images())
    state = jax.eval_shape(stage.init)
    _, batch = next(stage.batches(0, 1))
    programs = [jax.make_jaxpr(stage.init)(), jax.make_jaxpr(make_step(stage, mesh))(state, batch)]
    found = [re.sub(r"0x[0-9a-f]+", "", str(program)) for program in programs]
    # A program's text leaves arrays out: those that it holds are told by their bytes, schedules,
    # which are called by it, by what they return.
    found += [str([np.asarray(x).tobytes() for x in held(program)]) for program in programs]
    found.append(str([float(stage.learning_rate(step)) for step in range(tiny.STEPS)]))
    if stage.before_epoch:
        first = stage.init()
        found += [str(jax.tree.map(np.array, stage.before_epoch(first, e).extra)) for e in (0, 1)]
    return found


def held(program):
    """Yield the arrays that a program, and those inside it, were made with."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in program.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, (ClosedJaxpr, Jaxpr)):
                    yield from held(inner)


def others(c, name: str):
    """Yield values that a field may have beside that of a recipe, likely ones."""
    value = recipes.get(c, name)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        found = declaration.find(c.method).fields.get(name.partition(".")[2])
        named = re.findall(r"\w+", found.rule.removeprefix("one of ")) if found else ()
        yield from (other for other in CHOICES.get(name, named) if other != value)
        yield "22,27"  # numbers of clusters
        yield "0.2"  # an epoch
    else:
        yield from (type(value)(other) for other in (value / 2, value + 1, value * 2 + 0.4, 0))


def fields_of(c) -> list[str]:
    said, group = declaration.find(c.method), declaration.group(c.method)
    read = [name for name in ("loss", "memory") if name in said.reads]
    names = [f"{name}.{field}" for name in read for field in c[name]]
    names += [name for name in said.reads if "." in name]
    return names + [f"{group}.{field}" for field in said.fields]


def ignored(c, names) -> list[str]:
    """Return the fields that may be set to another value by which nothing changes."""
    want, found = run_by(c), []
    for name in names:
        for value in others(c, name):
            if value == recipes.get(c, name):
                continue
            changed = recipes.copied(c)
            recipes.put(changed, name, value)
            try:
                validation.validate(changed, 1)
                pretrain.check(changed, tiny.timetable(changed), tiny.sorted_images())
            except UserError as error:
                assert name in str(error), f"{name}={value}: {error}"
                continue
            if run_by(changed) == want:
                found.append(f"{name}={value}")
            break
    return found


def unread(c):
    """Return the fields that a recipe does not read, each with who does not and what would."""
    found = validation._unread_by_others(c)
    return found | dict(declaration.find(c.method).unread(c))


def refusal(c) -> str:
    """Return why a recipe is refused, "" if it is not."""
    try:
        validation.validate(c, 1)
    except UserError as error:
        return str(error)
    return ""


UNREAD = [*CASES, *(("simclr", fields) for fields in OPTIMISERS)]
UNREAD += [("simclr", {"augment__crop_law": "area"}), ("moco", {}), ("byol", {})]


@pytest.mark.parametrize("method, fields", UNREAD)
def test_what_is_not_read_is_refused_and_its_remedy_works(method, fields):
    c = smallest.recipe(method, **fields)
    for name, (who, instead) in unread(c).items():
        changed = recipes.copied(c)
        field = declaration.find(c.method).fields.get(name.partition(".")[2])
        likely = (v for v in others(c, name) if v not in (recipes.get(c, name), 0.5))
        value = next(v for v in likely if field is None or field.holds(v))
        recipes.put(changed, name, value)
        said = refusal(changed)
        assert said.startswith(f"{name} is {value}, but {who} does not read it: leave it at ")
        assert said.endswith(f", or set {instead}")
        flag, _, wanted = instead.removeprefix("--config.").partition("=")
        recipes.put(changed, flag, type(recipes.get(c, flag))(wanted))
        assert name not in unread(changed)
        other = refusal(changed)  # of the stage or the method, which may read nothing of the group
        assert not other.startswith(name) or f"{method} does not read it" in other


def test_a_run_begun_with_what_is_refused_since_goes_on_with_it_and_with_nothing_else():
    c = smallest.recipe("simclr")
    assert c.optim.name == "lars" and not c.optim.drops and refusal(c) == ""
    begun = recipes.copied(c)
    begun.optim.drop_factor = 0.3
    record = {**begun.to_dict(), "images": []}
    validation.validate(begun, 1, record)
    with pytest.raises(UserError, match=r"optim.drop_factor is 0.3, but .* does not read it"):
        validation.validate(begun, 1)
    begun.optim.drop_factor = 0.4
    with pytest.raises(UserError, match=r"optim.drop_factor is 0.4"):
        validation.validate(begun, 1, record)


@pytest.mark.slow
@pytest.mark.parametrize("method, fields", CASES)
def test_what_a_method_lets_through_changes_what_is_run(method, fields):
    c = smallest.recipe(method, **fields)
    assert ignored(c, fields_of(c)) == []


@pytest.mark.slow
@pytest.mark.parametrize("fields", OPTIMISERS)
def test_what_an_optimiser_lets_through_changes_what_is_run(fields):
    c = smallest.recipe("simclr", **fields)
    names = [f"optim.{name}" for name in c.optim if name != "name"]
    found = ignored(c, [name for name in names if name not in FOR_WHATEVER_IS_CHOSEN])
    assert found == []
