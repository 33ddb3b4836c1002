"""Counting (Noroozi et al. 2017, arXiv 1708.06734): tiles hold together what the image holds.

    python -m simclr_jax.main --config=configs/counting.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/counting.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/counting.py:imagenet     data: docs/imagenet.md

Published for ImageNet: 34.3 % by a linear classifier on conv3 of an AlexNet (paper, table 2; from
memory). Margin 10, crops of 224 pixels and so tiles of 112, gray in two of three images and the
kernel of the halving drawn are the paper's; the encoder is a ResNet-50, and rate and length are
ours. We have run neither `cifar10` nor `imagenet`.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False)
    c = recipes.base("counting")
    if a.imagenet:
        recipes.on_imagenet(c)
        c.augment.views.first.blur = 0.0
        c.train.batch_size, c.train.epochs = 256, 50.0
        return c.lock()
    if a.cifar10:
        recipes.on_cifar10(c)
        c.head.hidden = 1024
        c.train.batch_size, c.train.epochs = 128, 100.0  # five small images of each
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.head.hidden = 256
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
