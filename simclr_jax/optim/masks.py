"""Which parameters each optimiser decays and adapts: every parameter has one role, by its path.

The official code decides by searching names ("batch_normalization", "bias", "head_supervised").
Copied to another framework such patterns match nothing and nobody notices, so here a path that
fits no role is an error. `optimizers.py` takes from here what each of its optimisers treats how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax

ROLES = ("kernel", "bias", "norm", "classifier")  # see `role`

# What each optimiser of the official code decays (pulls towards 0) and adapts (scales the rate of
# by the ratio of norms). Under LARS the decay of a classifier's kernel stands in the official loss;
# added to the gradient instead it is the same update. The other official optimisers decay every
# trained variable without "batch_normalization" in its name, so biases too
# (`model_util.py:add_weight_decay`). AdamW is not of the official code.
LARS_DECAYED = ("kernel", "classifier")
LARS_ADAPTED = ("kernel",)  # "classifier" too in the official `distillation_self_training.ipynb`
SGD_DECAYED = ("kernel", "classifier", "bias")  # with Adam, which decays the same way
ADAMW_DECAYED = ("kernel", "classifier")

# Heads that are trained on labels. The official optimisers treat their kernels differently.
CLASSIFIERS = ("probe", "classifier")


def role(path: tuple[str, ...], declared: Mapping[str, str] | None = None) -> str:
    """Return the role of the parameter at `path`, such as `("encoder", "stem_bn", "scale")`.

    "norm" is any scale or bias of a normalisation (modules named `bn` or ending in `_bn` or `bnK`),
    "classifier" the kernel of a head trained on labels, "kernel" every other kernel and "bias"
    every other bias.

    Args:
      path: names of the modules from the top down, and of the parameter.
      declared: roles of parameters whose names do not say it, by a path or the beginning of one,
        such as `{"predictor/temperature": "bias"}`; of several that fit, the longest says.

    Raises:
      ValueError: if the path fits none, or a role that is declared is not in `ROLES`.
    """
    whole = "/".join(path)
    for prefix in sorted(declared or {}, key=len, reverse=True):
        if f"{whole}/".startswith(f"{prefix}/"):
            return _known(prefix, (declared or {})[prefix])
    *modules, name = path
    if modules and modules[-1].split("_")[-1].rstrip("0123456789") == "bn":
        if name in ("scale", "bias"):
            return "norm"
    elif name == "bias":
        return "bias"
    elif name == "kernel":
        return "classifier" if modules[0] in CLASSIFIERS else "kernel"
    raise ValueError(
        f"no role for the parameter {whole}: name it in optim/masks.py, or declare its role"
    )


def _known(prefix: str, declared: str) -> str:
    if declared not in ROLES:
        raise ValueError(f"{prefix} is declared {declared}: its role must be of {', '.join(ROLES)}")
    return declared


def mask(params: Any, roles: Collection[str], declared: Mapping[str, str] | None = None) -> Any:
    """Return a tree like `params` of booleans: does the parameter's role stand in `roles`?

    `declared` is as in `role`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: role(tuple(str(key.key) for key in path), declared) in roles, params
    )
