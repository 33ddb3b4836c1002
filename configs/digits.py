"""Handwritten digits, pretrained without their labels in a few minutes on a laptop's CPU.

python -m simclr_jax.main --config=configs/digits.py
"""

from simclr_jax import recipes


def get_config():
    c = recipes.base()
    recipes.on_digits(c)
    c.head.dim = 64
    c.loss.temperature = 0.2
    c.optim.base_lr = 3.0
    return c.lock()
