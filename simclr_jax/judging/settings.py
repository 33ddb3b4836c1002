"""What a user may choose of the ways to judge features."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from simclr_jax.errors import UserError
from simclr_jax.evaluate import mlp_probe


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user may choose.

    Attributes:
      knn: pairs of k and temperature; None: a neighbour has one vote.
      rates: base rates of sgd, for 256 images.
      epochs, batch_size: of sgd; None: 90 and 4096 from `LARGE` images on, else 100 and 512.
      augment: sgd sees a new crop and flip of each image in each epoch, not kept features.
      mlp_rates, mlp_decays: of mlp, of which one pair is chosen.
      mlp_epochs: of each of its trainings.
      mlp_units: of its hidden layers; None: 20 a class, at most 2048.
      seed: of splits, of the order of sgd and mlp, of mlp's first values, of k-means, of intervals.
    """

    knn: tuple[tuple[int, float | None], ...] = ((200, 0.1), (20, None))
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    epochs: float | None = None
    batch_size: int | None = None
    augment: bool = False
    mlp_rates: tuple[float, ...] = mlp_probe.RATES
    mlp_decays: tuple[float, ...] = mlp_probe.DECAYS
    mlp_epochs: float = mlp_probe.EPOCHS
    mlp_units: int | None = None
    seed: int = 0

    def __post_init__(self):
        for k, temperature in self.knn:
            if k < 1:
                raise UserError(f"--knn has k = {k}: it must be 1 or more")
            if temperature is not None and not 0 < temperature < math.inf:
                raise UserError(f"--knn has the temperature {temperature:g}: give one above 0")
        for flag, rates in (("sgd_rates", self.rates), ("mlp_rates", self.mlp_rates)):
            for rate in rates:
                if not 0 < rate < math.inf:
                    raise UserError(f"--{flag} has {rate:g}: rates must be more than 0, and finite")
        for decay in self.mlp_decays:
            if not 0 <= decay < math.inf:
                raise UserError(f"--mlp_decays has {decay:g}: give 0 or more, and finite ones")
        for flag, epochs in (("sgd_epochs", self.epochs), ("mlp_epochs", self.mlp_epochs)):
            if epochs is not None and not 0 < epochs < math.inf:
                raise UserError(f"--{flag} is {epochs:g}: it must be more than 0, and finite")
        for flag, count in (("sgd_batch_size", self.batch_size), ("mlp_units", self.mlp_units)):
            if count is not None and count < 1:
                raise UserError(f"--{flag} is {count}: it must be 1 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}: it must be in [0, 2^32)")

    def unsaid(self, solver: str) -> dict[str, Any]:
        """Return the settings of a solver that are not the defaults, and that its name leaves out.

        The seed is a word of its own.
        """
        plain = Settings()
        names = {
            "sgd": ("rates", "epochs", "batch_size"),
            "mlp": ("mlp_rates", "mlp_decays", "mlp_epochs", "mlp_units"),
        }.get(solver, ())
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(plain, n)}
