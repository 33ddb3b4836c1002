"""BYOL (arXiv 2006.07733): predict what a moving average of the network sees in the other view.

    python -m simclr_jax.main --config=configs/byol.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/byol.py:cifar10      data as configs/cifar10.py

Published: 74.3 % linear top-1 on ImageNet (ResNet-50, 1000 epochs, batch 4096); nothing for these
two data sets. We have not trained `cifar10` to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False)
    c = recipes.base("byol")
    if a.cifar10:
        recipes.on_cifar10(c)
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
        c.head.hidden, c.byol.hidden = 2048, 2048
        c.byol.momentum = 0.99
        c.optim.base_lr, c.optim.weight_decay = 1.0, 1.5e-6
        return c.lock()
    recipes.on_digits(c)
    c.head.hidden, c.head.dim, c.byol.hidden = 256, 64, 256
    c.augment.views.second.solarize = 0.0  # a digit is bright: this would invert it
    c.byol.momentum = 0.95  # of few steps
    c.optim.base_lr, c.optim.weight_decay = 2.0, 1.5e-6
    return c.lock()
