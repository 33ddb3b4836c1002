"""Which parameters an optimiser decays and adapts: every parameter has one role, by its path.

The official code decides by searching names ("batch_normalization", "bias", "head_supervised").
Copied to another framework such patterns match nothing and nobody notices, so here a path that
fits no role is an error.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax

ROLES = ("kernel", "bias", "norm", "classifier")

# Heads that are trained on labels. The official optimisers treat their kernels differently.
CLASSIFIERS = ("probe", "classifier")


def role(path: tuple[str, ...]) -> str:
    """Return the role of the parameter at `path`, such as `("encoder", "stem_bn", "scale")`.

    "norm" is any scale or bias of a normalisation (modules named `bn` or ending in `_bn` or `bnK`),
    "classifier" the kernel of a head trained on labels, "kernel" every other kernel and "bias"
    every other bias.

    Raises:
      ValueError: if the path fits none.
    """
    *modules, name = path
    if modules and modules[-1].split("_")[-1].rstrip("0123456789") == "bn":
        if name in ("scale", "bias"):
            return "norm"
    elif name == "bias":
        return "bias"
    elif name == "kernel":
        return "classifier" if modules[0] in CLASSIFIERS else "kernel"
    raise ValueError(f"no role for the parameter {'/'.join(path)}: name it in optim/masks.py")


def mask(params: Any, roles: Collection[str]) -> Any:
    """Return a tree like `params` of booleans: does the parameter's role stand in `roles`?"""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: role(tuple(str(key.key) for key in path)) in roles, params
    )
