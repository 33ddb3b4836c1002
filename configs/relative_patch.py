"""Relative patch location (Doersch et al. 2015, arXiv 1505.05192): where does this patch lie?

    python -m simclr_jax.main --config=configs/relative_patch.py            digits, CPU, minutes
    python -m simclr_jax.main --config=configs/relative_patch.py:cifar10    as configs/cifar10.py
    python -m simclr_jax.main --config=configs/relative_patch.py:imagenet   data: docs/imagenet.md
    python -m simclr_jax.main --config=configs/relative_patch.py:imagenet,doersch

`imagenet` has the settings of google/revisiting-self-supervised (`config/relative_patch_location/
imagenet.sh`: a ResNet-50 of twice the width, batch 128, 35 epochs, eight pairs of nine patches).
Published for such networks: 51.4 % by a linear classifier on ImageNet, the best of several widths
(arXiv 1901.09005, table 2; from memory). With `doersch` the patches, gaps, pairs and colours are
those of the first program (cdoersch/deepcontext), the rest is as without; published for
a ResNet-101 with it: 66.8 mAP of detection on VOC 2007 (BYOL, arXiv 2006.07733, table 11). We have
trained neither of the two, nor `cifar10`, for which nothing is published.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False, doersch=False)
    c = recipes.base("relative_patch")
    own, view = c.relative_patch, c.augment.views.first
    if a.imagenet:
        recipes.on_imagenet(c)
        c.model.width = 2.0
        own.pairs = "centre"
        own.patch, own.jitter = 64, 21
        view.size = 292  # squeezed to a square, of which the cells take 255 pixels
        if a.doersch:
            own.pairs, own.grid, own.colours = "all", 2, "one"
            own.patch, own.gap, own.jitter = 96, 34, 14  # 48 pixels apart, 7 either way
            view.size, view.grayscale = 400, 0.0  # 160 000 pixels
        c.train.batch_size, c.train.epochs = 128, 35.0
        c.optim.drops = "15,25"
        c.checkpoint.every_steps = 5000
        return c.lock()
    view.crop, view.area_min = True, 0.5
    if a.cifar10:
        recipes.on_cifar10(c)
        own.pairs = "centre"
        own.patch, own.jitter = 8, 2
        c.train.batch_size, c.train.epochs = 128, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.model.input = "standardised"
    own.pairs, own.grid = "all", 2
    own.patch, own.gap, own.jitter = 12, 1, 3
    own.embed, own.hidden = 64, 256
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
