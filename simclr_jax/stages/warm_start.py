"""Start from the weights of another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from simclr_jax import declaration, parallel, recipes
from simclr_jax.errors import UserError, choose
from simclr_jax.recipes import head_layers
from simclr_jax.stages.encoder import classifier_tap
from simclr_jax.train import manifest, saved
from simclr_jax.train.stage import TrainState

NOTHING = "none"  # of a run whose model is wanted, not its weights
PARTS = ("encoder", "head", "probe", "classifier")
# What changes what an encoder computes, and none of its shapes.
UNSEEN = ("model.variant", "model.input", "bn.epsilon")
AVERAGE = saved.AVERAGE  # encoder and head of the moving average of that run's weights
OF_AVERAGE = f"{AVERAGE}:"  # before a part: that of the average
LINEAR = ("probe", "classifier")  # the same thing, taught on the side or with the encoder


def load_parts(
    init: ConfigDict, state: TrainState, tap: int = 0, others: Sequence[str] = ()
) -> TrainState:
    """Replace parameters and batch statistics of `init.parts` by those of `init.run`.

    Args:
      init: `run`, a workdir or `WORKDIR@STEP` (the newest whole checkpoint without a step), and
        `parts`, names with commas; "average:" before a name takes the part from the moving average
        of the run's weights, and "average" is short for its encoder and head. An empty `run` or
        "none" for `parts` changes nothing.
      state: the first state of this run; the rest of it stays (optimiser, step 0).
      tap: layer of the head that this run's probe or classifier reads; if it is taken over, that
        of the other run must be the same.
      others: parts, beside `PARTS`, that the network of this run has.

    Raises:
      UserError: if there is no such checkpoint, or a part has other leaves or shapes there, naming
        what is missing, extra or different.
    """
    parts = parts_of(init, others)
    if not parts:
        return state
    run = saved.read(init.run, "init.run")
    there = _chosen(run, init, others)
    wanted = manifest.named_leaves(state)
    for part in set(parts) & set(LINEAR):
        _check_tap(run, tap)
        if not any(name.startswith(f"params/{part}/") for name in there):
            # Probes of pretraining and classifiers of fine-tuned runs may stand for each other.
            there = {_renamed(name, part): value for name, value in there.items()}
    prefixes = tuple(f"{kind}/{part}/" for kind in ("params", "batch_stats") for part in parts)
    _compare(f"checkpoint {run}", prefixes, wanted, there)
    leaves = [
        parallel.place(there[name], leaf.sharding) if name.startswith(prefixes) else leaf
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def wanted(config: ConfigDict) -> list[str]:
    """Return the parts that a recipe takes over; raise `UserError` if one is unknown."""
    return parts_of(config.init, declaration.find(config.method).parts)


def parts_of(init: ConfigDict, others: Sequence[str] = ()) -> list[str]:
    """Return the parts that `init` names, see `load_parts`."""
    return list(_asked(init, others))


def check(config: ConfigDict) -> None:
    """Raise `UserError` if parts of an average are wanted of a run that keeps none."""
    parts = _asked(config.init, declaration.find(config.method).parts)
    if AVERAGE in parts.values():
        saved.of_weights(saved.describe(config.init.run, "init.run"), AVERAGE, "init.parts")


def _asked(init: ConfigDict, others: Sequence[str]) -> dict[str, str]:
    """Return the parts that `init` names, each with the weights it is taken from."""
    if not init.run or init.parts == NOTHING:
        return {}
    averaged = [f"{OF_AVERAGE}{part}" for part in (*PARTS[:2], *others)]
    found: dict[str, str] = {}
    for word in (word.strip() for word in init.parts.split(",")):
        choose("init.parts", word, (*PARTS, *others, AVERAGE, *averaged, NOTHING))
        words = averaged[:2] if word == AVERAGE else [word]
        for one in words:
            part = one.removeprefix(OF_AVERAGE)
            weights = saved.TRAINED if part == one else AVERAGE
            if found.setdefault(part, weights) != weights:
                raise UserError(
                    f"init.parts is {init.parts}, which takes {part} twice, trained and averaged: "
                    "leave one out"
                )
    return found


def _chosen(run: saved.Saved, init: ConfigDict, others: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of a run, with those of its average in the parts that are to be of it."""
    there, asked = dict(run.leaves), _asked(init, others)
    if averaged := [part for part, weights in asked.items() if weights == AVERAGE]:
        parts = tuple(f"{kind}/{part}/" for kind in ("params", "batch_stats") for part in averaged)
        leaves = saved.of_weights(run, AVERAGE, "init.parts").leaves
        there = {name: x for name, x in there.items() if not name.startswith(parts)}
        there |= {name: x for name, x in leaves.items() if name.startswith(parts)}
    return there


def unlike(config: ConfigDict) -> list[str]:
    """Return a line for each of `UNSEEN` that is another in the run whose encoder is taken.

    Raises:
      UserError: if there is no such run.
    """
    if "encoder" not in wanted(config):
        return []
    there = saved.describe(config.init.run, "init.run").config
    return [
        f"note      {name}={recipes.get(config, name)}, but {recipes.get(there, name)} in "
        f"{config.init.run}: these weights have learned with that"
        for name in UNSEEN
        if recipes.get(config, name) != recipes.get(there, name)
    ]


def _check_tap(run: saved.Saved, tap: int) -> None:
    layers = head_layers(run.config) + 1
    read = classifier_tap(run)
    if read is not None and read % layers != tap % layers:
        raise UserError(
            f"the classifier of {run} reads layer {read} of the head (0 is h), this one layer "
            f"{tap}: set eval.probe_tap or finetune.tap to {read}, or leave it out of init.parts"
        )


def _renamed(name: str, part: str) -> str:
    kind, _, rest = name.partition("/")
    stored, _, leaf = rest.partition("/")
    return f"{kind}/{part}/{leaf}" if stored in LINEAR else name


def _compare(where: str, prefixes: tuple[str, ...], wanted: Any, stored: Any) -> None:
    here = {name for name in wanted if name.startswith(prefixes)}
    there = {name for name in stored if name.startswith(prefixes)}
    for part in LINEAR:
        kernel = f"params/{part}/dense/kernel"
        if kernel in here & there and stored[kernel].shape[-1] != wanted[kernel].shape[-1]:
            raise UserError(
                f"{where} tells {stored[kernel].shape[-1]} classes apart, this data set has "
                f"{wanted[kernel].shape[-1]}: leave {part} out of init.parts"
            )
    found = [f"{name} is missing there" for name in sorted(here - there)]
    found += [f"{name} is extra there" for name in sorted(there - here)]
    found += [
        f"{name} is {stored[name].dtype}{stored[name].shape} there and "
        f"{wanted[name].dtype}{wanted[name].shape} here"
        for name in sorted(here & there)
        if (stored[name].shape, stored[name].dtype) != (wanted[name].shape, wanted[name].dtype)
    ]
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"{where} does not fit this recipe ({'; '.join(found[:4])}{more}): use the same model "
            "and head, or leave a part out of init.parts"
        )
