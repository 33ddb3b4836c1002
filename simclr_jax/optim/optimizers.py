"""The optimisers of SimCLR as optax transformations.

Which parameters each of them decays and adapts is in `masks.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from simclr_jax.optim import masks
from simclr_jax.optim.masks import ADAMW_DECAYED, LARS_ADAPTED, LARS_DECAYED, SGD_DECAYED

Mask = Callable[[optax.Params], jax.typing.ArrayLike]


def _roles(*roles: str) -> Mask:
    return functools.partial(masks.mask, roles=roles)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    nesterov: bool = False,
    classic_momentum: bool = True,
    rate_in_momentum: bool = True,
    decayed: Mask = _roles(*LARS_DECAYED),
    adapted: Mask = _roles(*LARS_ADAPTED),
) -> optax.GradientTransformation:
    """Build LARS as the official code runs it (`lars_optimizer.py:LARSOptimizer`).

    Args:
      learning_rate: scaled rate, or a schedule of it.
      momentum: of the heavy ball.
      weight_decay: added to the gradient of `decayed` parameters before the trust ratio.
      trust_coefficient: "eeta"; the ratio is trust_coefficient * |w| / |g|, and 1 where either norm
        is 0 and for parameters that are not `adapted`.
      nesterov: look ahead.
      classic_momentum: keep the rate inside the momentum buffer (the default of the official code);
        False adapts and scales after the momentum, as You et al. 2017.
      rate_in_momentum: False adapts before the momentum and applies the rate to it, as BYOL
        (deepmind-research `byol/utils/optimizers.py: lars`). They differ while the rate changes.
      decayed: tree of booleans, or function from parameters to one.
      adapted: likewise.
    """
    if classic_momentum and rate_in_momentum:
        return optax.lars(
            learning_rate,
            weight_decay=weight_decay,
            weight_decay_mask=decayed,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=adapted,
            momentum=momentum,
            nesterov=nesterov,
        )
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    adapt, trace = optax.masked(trust, adapted), optax.trace(momentum, nesterov)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        *((adapt, trace) if classic_momentum else (trace, adapt)),
        optax.scale_by_learning_rate(learning_rate),
    )


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = True,
    rate_in_momentum: bool = False,
    decayed: Mask = _roles(*SGD_DECAYED),
) -> optax.GradientTransformation:
    """Build SGD with (Nesterov) momentum and L2 decay, the official optimizer "momentum".

    Args:
      learning_rate: scaled rate, or a schedule of it.
      momentum: of the heavy ball.
      weight_decay: added to the gradient of `decayed` parameters.
      nesterov: look ahead.
      rate_in_momentum: keep the rate inside the momentum buffer, as Keras does (`tf2/`); False
        applies it to the buffer, as TensorFlow 1 did. They differ while the rate changes.
      decayed: tree of booleans, or function from parameters to one.
    """
    trace = optax.trace(momentum, nesterov)
    rate = optax.scale_by_learning_rate(learning_rate)
    decay = optax.add_decayed_weights(weight_decay, decayed)
    return optax.chain(decay, *((rate, trace) if rate_in_momentum else (trace, rate)))


def adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    decayed: Mask = _roles(*SGD_DECAYED),
) -> optax.GradientTransformation:
    """Build Adam with L2 decay as the official code runs it (TensorFlow's `AdamOptimizer`).

    TensorFlow adds `epsilon` before it corrects the bias of the second moment: what is added after
    the correction, as here, is larger in the first steps.
    """

    def corrected(count):  # of updates before this one
        return epsilon / jnp.sqrt(1 - b2 ** (count + 1.0))

    scale = optax.inject_hyperparams(optax.scale_by_adam, static_args=("b1", "b2"))
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        scale(b1=b1, b2=b2, eps=corrected),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
    decayed: Mask = _roles(*ADAMW_DECAYED),
) -> optax.GradientTransformation:
    """Build AdamW (Loshchilov and Hutter 2019), decaying kernels only."""
    return optax.adamw(learning_rate, eps=epsilon, weight_decay=weight_decay, mask=decayed)
