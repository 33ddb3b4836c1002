"""High-throughput SimCLR and SimCLRv2 pretraining in JAX.

The Python API, `simclr_jax/api.py`:

    run = simclr_jax.train("photographs")       # by configs/folder.py
    h = simclr_jax.embed(run, ["a.jpg", "b.jpg"])  # [2, d]
    encoder = simclr_jax.load("runs/folder")    # a frozen encoder with its preprocessing
"""

import sys
from types import ModuleType
from typing import Any

API = ("load", "train", "embed")


def __getattr__(name: str) -> Any:
    if name == "config":
        raise ImportError("simclr_jax.config is now called simclr_jax.recipes: import that")
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported late: doors answer --help without waiting for JAX.
    from simclr_jax import api

    return getattr(api, name)


class _Called(ModuleType):
    """A part of the package whose name a function of the API has too: it can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from simclr_jax import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """The package. Python sets each part that is imported as its attribute, here `train` too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in API and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
