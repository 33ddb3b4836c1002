"""Supervised contrastive learning (arXiv 2004.11362): images of one class find each other.

    python -m simclr_jax.main --config=configs/supcon.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/supcon.py:cifar10      data as configs/cifar10.py

`local=6`, with commas, adds 6 local crops to each image (multi-crop, docs/methods.md).

The labels of all training images are in the loss, so its scores are not those of a method that
goes without. Published for CIFAR-10: 96.0 % by linear evaluation (README of HobbitLong/SupContrast:
ResNet-50, batch 1024, 1000 epochs; cross entropy 95.0, SimCLR 93.6). We have not run `cifar10`.
What its program has otherwise: the warm-up begins at 0.01, the rate ends at a thousandth of its
peak, and images are normalised by CIFAR-10's mean.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, local=0)
    c = recipes.base("supcon")
    if a.cifar10:
        recipes.on_cifar10(c)
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
        c.augment.grid = "antialias"  # torchvision's
        c.model.depth = 50
        c.train.batch_size = 1024
        c.checkpoint.every_steps = 490
        recipes.local_crops(c, a.local)
        return c.lock()
    recipes.on_digits(c)
    c.head.hidden, c.head.dim = 256, 64
    # As the other quick looks have it.
    c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "lars", 3.0, "linear"
    c.optim.nesterov, c.optim.decayed, c.optim.rate_per = True, "usual", "step"
    recipes.local_crops(c, a.local, area=(0.3, 0.5))
    return c.lock()
