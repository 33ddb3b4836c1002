"""High-throughput SimCLR and SimCLRv2 pretraining in JAX.

`simclr_jax.load(RUN)` is the Python API: a frozen encoder with its preprocessing.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "config":
        raise ImportError("simclr_jax.config is now called simclr_jax.recipes: import that")
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported late: doors answer --help without waiting for JAX.
    from simclr_jax.api import load

    return load
