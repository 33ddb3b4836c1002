"""Denoising autoencoder (Vincent et al. 2008): give back the clean image of a noisy one.

    python -m simclr_jax.main --config=configs/denoising_autoencoder.py            digits, minutes
    python -m simclr_jax.main --config=configs/denoising_autoencoder.py:cifar10    cifar10.py's data

A quarter of the pixels black, as the paper has it for most of its sets, and Gaussian noise of 0.1.
Nothing is published of a ResNet trained so. We have not trained it to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False)
    c = recipes.base("denoising_autoencoder")
    if a.cifar10:
        recipes.on_cifar10(c)
        c.denoising_autoencoder.code = 64  # as configs/autoencoder.py
        c.train.batch_size, c.train.epochs = 256, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.denoising_autoencoder.width = 128
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
