"""List the fields of recipes: value, meaning, and what each may be.

    simclr fields
    simclr fields --prefix=optim
    simclr fields imagenet:one_gpu --changed

Without a recipe: all fields with their defaults, and those that methods add. Any field can be set
on the command line of `simclr train`, as --config.optim.base_lr=0.2.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from simclr_jax import declaration, entry, errors, usage

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Recipe, which may be given without --config=.")
flags.DEFINE_string("prefix", "", "Only fields whose names begin so, such as augment.views.first.")
flags.DEFINE_boolean("changed", False, "Only fields in which the recipe is not as the defaults.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")

Rows = list[tuple[str, Any, str]]  # name, value and meaning of each field
COLUMN = 38  # where meanings begin
WIDTHS = (80, 120)  # of the terminal, at least and at most


def arguments(argv: list[str]) -> list[str]:
    """Return what is parsed: an argument that is no flag is the recipe."""
    return [argv[0], *(a if a.startswith("-") else f"--config={a}" for a in argv[1:])]


def main() -> None:
    """List the fields of the defaults, or of a recipe."""
    if FLAGS.changed and FLAGS.config is None:
        raise errors.UserError(
            "--changed needs a recipe to compare: simclr fields RECIPE --changed"
        )
    rows = of_defaults() if FLAGS.config is None else of_recipe(FLAGS.config)
    found = [row for row in rows if row[0].startswith(FLAGS.prefix)]
    if not found and not FLAGS.changed:
        hint = errors.nearest(FLAGS.prefix, {part for row in rows for part in _groups(row[0])})
        raise errors.UserError(f'no field begins with --prefix="{FLAGS.prefix}"{hint}')
    width = min(max(shutil.get_terminal_size().columns, WIDTHS[0]), WIDTHS[1])
    for name, value, meaning in found:
        print("\n".join(usage.entry(f"{name}={value}", meaning, COLUMN, width)))


def of_defaults() -> Rows:
    """Return the fields of the default method, and those that each method adds to them."""
    from simclr_jax import field_texts, recipes

    rows = [
        (name, value, field_texts.text(name)) for name, value in leaves(recipes.base().to_dict())
    ]
    for method in declaration.known():
        for field, about in declaration.find(method).fields.items():
            name = f"{declaration.group(method)}.{field}"
            rows.append((name, about.default, field_texts.text(name, method)))
    return rows


def of_recipe(config: ConfigDict) -> Rows:
    """Return the fields of a recipe; of a pipeline those of all its runs."""
    from simclr_jax import fields
    from simclr_jax.pipeline import recipe

    if config.get("stage") != recipe.STAGE:
        return _compared(config, fields.known(config), "")
    rows: Rows = []
    for name, run in config.runs.items():
        rows += _compared(run, fields.known(run), f"runs.{name}.")
    return rows


def _compared(config: ConfigDict, known: Mapping[str, Any], prefix: str) -> Rows:
    """Return the fields of a recipe; where they are not the defaults of its method, those too."""
    from simclr_jax import field_texts

    defaults, rows = dict(leaves(known)), []
    for name, value in leaves(config.to_dict()):
        meaning = field_texts.text(name, config.method)
        if value != defaults[name]:
            meaning = f"[default {defaults[name]}] {meaning}"
        elif FLAGS.changed:
            continue
        rows.append((f"{prefix}{name}", value, meaning))
    return rows


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each field that is no group."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _groups(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


if __name__ == "__main__":
    entry.run(main)
