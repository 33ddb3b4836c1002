"""Autoencoder (Hinton and Salakhutdinov 2006): give the image back from the encoder's map.

    python -m simclr_jax.main --config=configs/autoencoder.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/autoencoder.py:cifar10      cifar10.py's data

Nothing is published of a ResNet trained so. `cifar10` decodes 4x4x64 numbers, a third of those of
the image: of the whole map, 4x4x512, it would be asked for no choice. We have not trained it to its
end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False)
    c = recipes.base("autoencoder")
    if a.cifar10:
        recipes.on_cifar10(c)
        c.autoencoder.code = 64
        c.train.batch_size, c.train.epochs = 256, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.autoencoder.width = 128
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
