"""Exemplar (Dosovitskiy et al. 2014, arXiv 1406.6909): each image is a class of its own.

    python -m simclr_jax.main --config=configs/exemplar.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/exemplar.py:triplet      likewise, by triplets
    python -m simclr_jax.main --config=configs/exemplar.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/exemplar.py:imagenet     data: docs/imagenet.md

`imagenet` is by triplets, with the settings of google/revisiting-self-supervised: 64 images of 8
crops, three times the width, standardised images, gray with probability 0.66 (there drawn for an
image, here for a crop), margin 0.5, 35 epochs. Published for it: 46.0 % by a linear classifier
(Kolesnikov et al. 2019, table 2, the best of its networks; from memory). That code gives each
number of the embedding length 1 over the batch, which looks like a slip;
`--config.exemplar.normalize=batch` does so too. The paper of 2014 trains on seed patches of
STL-10's unlabelled images, so that none of its numbers is of `cifar10` here. We have run neither
`cifar10` nor `imagenet`.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False, triplet=False)
    c = recipes.base("exemplar")
    if a.triplet or a.imagenet:
        c.exemplar.form = "triplet"
    if a.imagenet:
        recipes.on_imagenet(c)
        view = c.augment.views.first
        view.copies, view.grayscale = 8, 0.66
        view.jitter, view.blur = 0.0, 0.0
        c.optim.base_lr, c.optim.lr_scaling, c.optim.drops = 0.1, "linear", "15,25"
        c.optim.warmup_epochs, c.optim.nesterov = 5.0, False
        c.model.width, c.model.input = 3.0, "standardised"
        c.train.batch_size, c.train.epochs = 64, 35.0
        return c.lock()
    if a.cifar10:
        recipes.on_cifar10(c)
        c.train.batch_size, c.train.epochs = 128, 100.0  # four versions of each: 512 rows
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.train.batch_size, c.train.epochs = 64, 20.0
    return c.lock()
