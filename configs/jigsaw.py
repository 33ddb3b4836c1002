"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv 1603.09246): how were these tiles shuffled?

    python -m simclr_jax.main --config=configs/jigsaw.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/jigsaw.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/jigsaw.py:imagenet     data: docs/imagenet.md

`imagenet` has the settings of google/revisiting-self-supervised (`config/jigsaw/imagenet.sh`: a
ResNet-50 of twice the width, batch 128, 35 epochs, the authors' hundred permutations, eight of them
in a step). Published for such networks: 44.6 % by a linear classifier on ImageNet, the best of
several widths (arXiv 1901.09005, table 2; from memory); by others for a ResNet-50 of the usual
width 48.57, 46.73 and 48.11 % with 100, 2000 and 10 000 permutations (VISSL's model zoo). We have
not trained it, nor `cifar10`, for which nothing is published.

Digits have 2x2 tiles and all their 24 permutations.
"""

from simclr_jax import recipes
from simclr_jax.augment.permutations import NOROOZI


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False)
    c = recipes.base("jigsaw")
    own, view = c.jigsaw, c.augment.views.first
    if a.cifar10 or a.imagenet:
        own.order, own.first = "matlab", NOROOZI  # with 100 in all: those of the authors
    if a.imagenet:
        recipes.on_imagenet(c)
        c.model.width = 2.0
        own.patch, own.jitter = 64, 21
        view.size = 292  # squeezed to a square, of which the cells take 255 pixels
        c.train.batch_size, c.train.epochs = 128, 35.0
        c.optim.drops = "15,25"
        c.checkpoint.every_steps = 5000
        return c.lock()
    view.crop, view.area_min = True, 0.5
    if a.cifar10:
        recipes.on_cifar10(c)
        own.patch, own.jitter = 8, 2
        c.train.batch_size, c.train.epochs = 128, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.model.input = "standardised"
    own.grid, own.permutations = 2, 24
    own.patch, own.jitter = 13, 2
    own.embed, own.hidden = 64, 256
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
