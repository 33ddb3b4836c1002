"""What recipes say of their fields: the comments of `recipes.py`, and the rules of `fields.py`.

A field's comment stands behind it on its line, or in the lines above it.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from simclr_jax import declaration, fields, recipes

VIEWS = "augment.views."


def text(name: str, method: str = declaration.DEFAULT) -> str:
    """Return what a field means and what it may be, in a line; "" if nothing is said of it.

    Args:
      name: dotted, such as `train.batch_size`.
      method: whose own fields are known besides.
    """
    group, _, field = name.rpartition(".")
    if group == declaration.group(method) and method != declaration.DEFAULT:
        own = declaration.find(method).fields[field]
        return "; ".join(filter(None, (own.about, own.rule)))
    key = f"{VIEWS}{field}" if name.startswith(VIEWS) else name
    said = _comments().get(key, "")
    choices = [str(choice) for choice in fields.CHOICES.get(name, ())]
    if choices and not all(choice in said for choice in choices):
        said = ": ".join(filter(None, (said, " | ".join(choices))))
    rule = next((words for names, words, _ in fields.RULES if name in names), "")
    return "; ".join(filter(None, (said, rule)))


@functools.cache
def _comments() -> dict[str, str]:
    """Return the comment of each field in the source of `recipes.py`."""
    source = Path(recipes.__file__).read_text(encoding="utf-8")
    behind, above = _remarks(source)
    found = {}
    for name, first, last in _places(ast.parse(source)):
        lines: list[str] = []
        while (line := above.get(first - 1 - len(lines))) is not None:
            lines.insert(0, line)
        said = " ".join([*lines, behind.get(last, "")]).strip()
        if said:
            found[name] = said
    return found


def _remarks(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return comments by their line: those behind code, and those alone on a line."""
    behind: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kept = behind if token.line[: token.start[1]].strip() else alone
            kept[token.start[0]] = token.string.lstrip("# ")
    return behind, alone


def _places(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Yield each field of `recipes.base` and `recipes.view`, and its first and last line."""
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name not in ("base", "view"):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and function.name == "view":
                yield from _entries(node.value, VIEWS)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                name = node.targets[0].attr
                if isinstance(node.value, ast.Call):
                    yield from _entries(node.value, f"{name}.")
                else:
                    yield name, node.lineno, node.end_lineno or node.lineno


def _entries(call: ast.expr | None, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yield the fields of a group: of the dictionary that is the argument of a call."""
    for keys in (arg for arg in getattr(call, "args", ()) if isinstance(arg, ast.Dict)):
        for key, value in zip(keys.keys, keys.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if isinstance(name, str) and not isinstance(value, ast.Dict):
                yield f"{prefix}{name}", value.lineno, value.end_lineno or value.lineno
