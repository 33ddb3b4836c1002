"""The recipes of runs: where they differ, what they set, what is at its default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simclr_jax import recipes
from simclr_jax.reporting.page import (
    Html,
    Section,
    details,
    element,
    join,
    paragraph,
    section,
    table,
)
from simclr_jax.reporting.record import Record, flatten

VIEWS = "augment.views."


def recipe(records: Sequence[Record]) -> Section:
    """Return the recipes: of several runs what differs, then what was changed from the defaults."""
    known = [record for record in records if record.recipe]
    if not known:
        return section("Recipe", paragraph("There is no config.json in the run."))
    folded = _folded([record.recipe for record in known])
    parts: list[object] = []
    fields = list(dict.fromkeys(field for fields in folded for field in fields))
    shared = [f for f in fields if all(f in r for r in folded)]
    same = [f for f in shared if all(r[f] == folded[0][f] for r in folded)]
    differing = [field for field in shared if field not in same]
    if differing:
        rows = [[_name(f), *(_value(r[f]) for r in folded)] for f in differing]
        parts += [
            element("h3", "What differs"),
            table(["", *(r.name for r in known)], rows),
        ]
    if len(shared) < len(fields):
        parts += [element("h3", "What not all of them have"), _own(known, folded, set(shared))]
    elif len(known) > 1 and not differing:
        parts.append(paragraph("The runs have the same recipe."))
    (defaults,) = _folded([flatten(recipes.base().to_dict())])
    changed = [f for f in same if folded[0][f] != _default(f, defaults)]
    usual = [f for f in same if f not in changed]
    parts.append(element("h3", "What the recipe sets" + (" in all runs" if len(known) > 1 else "")))
    parts.append(_groups(folded[0], changed))
    parts.append(
        details(f"{len(usual)} fields at their defaults", _groups(folded[0], usual)),
    )
    return section("Recipe", *parts)


def _folded(all_recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write what is the same for all views of a recipe once, as `augment.views.*`.

    Only where it is the same within each of the recipes, however many views each has: in a table of
    several a row is then of the same thing.
    """
    each = [
        [field[len(VIEWS) :].split(".", 1) for field in r if _of_view(field)] for r in all_recipes
    ]
    values: dict[str, list[set[str]]] = {}
    for recipe, fields in zip(all_recipes, each, strict=True):
        found: dict[str, set[str]] = {}
        for view, name in fields:
            found.setdefault(name, set()).add(repr(recipe[f"{VIEWS}{view}.{name}"]))
        for name, told in found.items():
            values.setdefault(name, []).append(told)
    once = {name for name, told in values.items() if all(len(one) == 1 for one in told)}
    return [{_once(field, once): value for field, value in r.items()} for r in all_recipes]


def _of_view(field: str) -> bool:
    return field.startswith(VIEWS) and "." in field[len(VIEWS) :]


def _once(field: str, once: set[str]) -> str:
    name = field[len(VIEWS) :].partition(".")[2] if _of_view(field) else ""
    return f"{VIEWS}*.{name}" if name in once else field


def _default(field: str, defaults: Mapping[str, Any]) -> Any:
    """Return the default of a field, which may be that of all views."""
    name = field[len(VIEWS) :].partition(".")[2] if _of_view(field) else ""
    return defaults.get(field, defaults.get(f"{VIEWS}*.{name}"))


def _own(records: Sequence[Record], recipes: Sequence[Mapping[str, Any]], shared: set[str]) -> Html:
    """Return the fields that recipes have and others lack, such as those of another method."""
    tables = [
        element("div", element("h4", record.name), table((), rows))
        for record, recipe in zip(records, recipes, strict=True)
        if (rows := [[_name(f), _value(v)] for f, v in recipe.items() if f not in shared])
    ]
    return element("div", *tables, class_="columns")


def _groups(recipe: Mapping[str, Any], fields: Iterable[str]) -> Html:
    groups: dict[str, list[list[object]]] = {}
    for field in fields:
        group, _, name = field.partition(".")
        group, name = (group, name) if name else ("run", field)
        groups.setdefault(group, []).append([_name(name), _value(recipe[field])])
    tables = [
        element("div", element("h4", group), table((), rows)) for group, rows in groups.items()
    ]
    return element("div", *tables, class_="columns")


def _name(field: str) -> Html:
    """Return the name of a field, which a narrow column may break after its dots."""
    return element("code", join(field.split("."), Html(".<wbr>")))


def _value(value: object) -> str:
    if value is None or value == "":
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
