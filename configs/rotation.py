"""Rotation (Gidaris et al. 2018, arXiv 1803.07728): by how many quarter turns was an image turned?

    python -m simclr_jax.main --config=configs/rotation.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/rotation.py:cifar10      data as configs/cifar10.py

Published for CIFAR-10: 91.16 % by convolutions that labels teach on the features of a Network in
Network (paper), 200 epochs of SGD with three drops of the rate; ours is a ResNet-18 and a cosine.
We have not trained `cifar10` to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False)
    c = recipes.base("rotation")
    if a.cifar10:
        recipes.on_cifar10(c)
        c.train.batch_size, c.train.epochs = 128, 200.0  # four turns of each: 512 rows
        c.optim.warmup_epochs = 0.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
