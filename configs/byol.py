"""BYOL (arXiv 2006.07733): predict what a moving average of the network sees in the other view.

    python -m simclr_jax.main --config=configs/byol.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/byol.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/byol.py:imagenet     data: docs/imagenet.md

`local=6`, with commas, adds 6 local crops to each image (multi-crop, docs/methods.md).

`imagenet` (or `imagenet,epochs=300`, and so on) has the presets of deepmind-research
`byol/configs/byol.py`, of 40, 100, 300 and 1000 epochs: ResNet-50, batch 4096. Published, top-1 of
a linear classifier on ImageNet: 72.5 % after 300 epochs, 74.3 after 1000 (paper); 74.0 to 74.5
after 1000 by the program (its README); nothing after 40 and 100, nor for the two other data sets.
We have run no ImageNet, and not trained `cifar10` to its end. docs/fidelity.md has what differs
from the program.
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError

# By epochs: base rate, weight decay and momentum of the target at the start.
PRESETS = {
    40: (0.45, 1e-6, 0.97),
    100: (0.45, 1e-6, 0.99),
    300: (0.3, 1e-6, 0.99),
    1000: (0.2, 1.5e-6, 0.996),
}


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False, epochs=0, local=0)
    if a.epochs and not a.imagenet:
        raise UserError('argument "epochs" of the recipe: it belongs to imagenet')
    c = recipes.base("byol")
    if a.imagenet:
        imagenet(c, a.epochs or 1000)
        recipes.local_crops(c, a.local)
        return c.lock()
    if a.cifar10:
        recipes.on_cifar10(c)
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
        c.head.hidden, c.byol.hidden = 2048, 2048
        c.byol.momentum = 0.99
        c.optim.base_lr, c.optim.weight_decay = 1.0, 1.5e-6
        recipes.local_crops(c, a.local)
        return c.lock()
    recipes.on_digits(c)
    c.head.hidden, c.head.dim, c.byol.hidden = 256, 64, 256
    c.augment.views.second.solarize = 0.0  # a digit is bright: this would invert it
    c.byol.momentum = 0.95  # of few steps
    c.optim.base_lr, c.optim.weight_decay = 2.0, 1.5e-6
    recipes.local_crops(c, a.local, area=(0.3, 0.5))
    return c.lock()


def imagenet(c, epochs):
    """Change to a preset of the official program."""
    if epochs not in PRESETS:
        raise UserError(
            f"argument epochs={epochs} of the recipe: BYOL has presets of 40, 100, 300 and 1000"
        )
    recipes.on_imagenet(c)
    c.augment.grid, c.augment.crop_law, c.augment.clip_resized = "half_pixel", "area_cut", True
    c.train.batch_size, c.train.epochs = 4096, float(epochs)
    c.optim.warmup_epochs = 10.0
    c.optim.base_lr, c.optim.weight_decay, c.byol.momentum = PRESETS[epochs]
