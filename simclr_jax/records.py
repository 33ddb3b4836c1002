"""Recipes as runs keep them: read again, and what may differ when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from simclr_jax import declaration, segments
from simclr_jax.errors import UserError
from simclr_jax.recipes import OPEN, base, view

# What the record of a run holds beside the fields of its recipe.
NOT_RECIPE = (
    *("images", "converted", "trained_on", "notes", "chance", "several_labels", "cpu_devices"),
    segments.KEY,
)


def recipe(record: Mapping[str, Any]) -> ConfigDict:
    """Return the recipe in a run's `config.json`; fields it is too old to have are at defaults.

    What a field of another name says in an old record, today's field says.

    Raises:
      UserError: naming a field that recipes do not have, or whose type is not that of the field.
    """
    bn = record.get("bn", {})
    if isinstance(bn, Mapping) and "sync" in bn:  # over all devices, or each by its own rows
        bn = {name: value for name, value in bn.items() if name != "sync"}
        record = {**record, "bn": {**bn, "groups": 1 if record["bn"]["sync"] else 0}}
    method = record.get("method", declaration.DEFAULT)
    if not isinstance(method, str):
        raise UserError(f"method is {method}: it must be a name")
    config = base(method)
    augment = record.get("augment", {})
    with config.unlocked():
        views = augment.get("views") if isinstance(augment, Mapping) else None
        if isinstance(views, Mapping):
            if dotted := [name for name in views if "." in name]:
                raise UserError(
                    f'augment.views has "{dotted[0][:80]}": no view has a . in its name'
                )
            config.augment.views = {name: view() for name in views}
        _fill(config, {name: v for name, v in record.items() if name not in NOT_RECIPE})
    return config


def _fill(config: ConfigDict, record: Mapping[str, Any], prefix: str = "") -> None:
    """Set the fields of a group to those of a record, which must be of their types."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if key not in config:
            raise UserError(f'recipes have no field "{name}"')
        held = config[key]
        if isinstance(held, ConfigDict):
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is {str(value)[:80]}: it must be a group of fields")
            _fill(held, value, f"{name}.")
        elif value is None and (held is None or name in OPEN):
            config[key] = None
        else:
            config[key] = _typed(name, value, config.get_type(key))


def _typed(name: str, value: Any, kind: type) -> Any:
    """Return a value that JSON gave as the type of its field."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and type(value) is list:
        return tuple(value)
    if type(value) is not kind:
        raise UserError(f"{name} is {str(value)[:80]}: it must be {KINDS.get(kind, kind.__name__)}")
    return value


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


# What a resumed run may change: it touches what is written, where things are and what is kept in
# memory, never what is computed. (That the images are the same ones, wherever they lie now, is
# recorded apart.)
FREE = (
    "log",
    "checkpoint",
    "data.path",
    "data.layout",
    "data.if_changed",
    "data.threads",
    "data.resident",
    "data.eval_gigabytes",
    "data.max_bad_fraction",
    "data.max_megapixels",
    "data.index",
    "train.remat",
    "cpu_devices",
)


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the fields in which the records of two runs differ, see `differences`.

    Fields that came after a run are at the defaults which leave it as it was. A run that was
    extended since is the same run; one that has lost segments is not.
    """
    before, now = ({**record, **recipe(record).to_dict()} for record in (old, new))
    parts = [record.pop(segments.KEY, None) for record in (before, now)]
    lost = [] if segments.begins(*parts) else [f"{segments.KEY}: {parts[0]} -> {parts[1]}"]
    return differences(before, now) + lost


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Name the fields in which two resolved recipes differ, as `field: old -> new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if name in FREE:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} -> {b}")
    return found
