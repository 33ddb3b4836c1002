"""Context encoder (Pathak et al. 2016, arXiv 1604.07379): paint what was cut out of an image.

    python -m simclr_jax.main --config=configs/context_encoder.py             digits, minutes
    python -m simclr_jax.main --config=configs/context_encoder.py:cifar10     cifar10.py's data
    python -m simclr_jax.main --config=configs/context_encoder.py:imagenet    data: docs/imagenet.md

Published, AlexNet with the adversary, which is not here: PASCAL VOC 2007 classification 56.5 %,
detection 44.5 % (paper, table 2; from memory). `imagenet` has the images of 128 pixels, the hole of
64 with 4 of overlap, and the generator's rate 0.002 of `train.lua`; encoder, decoder and length are
ours. We have trained none of them to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False)
    c = recipes.base("context_encoder")
    if a.imagenet:
        recipes.on_imagenet(c)
        c.data.image_size = 128
        c.context_encoder.width = 512
        c.optim.base_lr = 2e-3  # ten times that of the adversary; its Adam has beta1 0.5, ours 0.9
        c.train.batch_size, c.train.epochs = 256, 100.0
        c.checkpoint.every_steps = 5000
        return c.lock()
    c.context_encoder.overlap = 1  # of a hole of 16 pixels, as 4 of 64
    if a.cifar10:
        recipes.on_cifar10(c)
        c.train.batch_size, c.train.epochs = 256, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.context_encoder.width = 128
    c.train.batch_size, c.train.epochs = 128, 40.0
    return c.lock()
