"""Colourisation (Zhang et al. 2016, arXiv 1603.08511): from its lightness to the colours.

    python -m simclr_jax.main --config=configs/colourisation.py                data as cifar10.py
    python -m simclr_jax.main --config=configs/colourisation.py:imagenet       docs/imagenet.md
    python -m simclr_jax.main --config=configs/colourisation.py --data=FOLDER  images of your own

The digits have no colours, so this looks at CIFAR-10 first. `regression`, with a comma, asks for a
and b themselves, the simple form.

Published, top-1 of a linear classifier on ImageNet in %: AlexNet 31.8 on conv5, 32.6 on conv4
(Split-Brain, arXiv 1611.09842, table 1; from memory), ResNet-50 40.1 (VISSL). `imagenet` asks for
colours at a quarter of 224 pixels, in 313 bins weighed by lambda 0.5 as published; encoder, Adam at
0.001 and the length are ours. We have run neither of these to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, imagenet=False, regression=False)
    c = recipes.base("colourisation")
    if a.regression:
        c.colourisation.form = "regression"
    if a.imagenet:
        recipes.on_imagenet(c)
        c.colourisation.width = 512
        c.train.batch_size, c.train.epochs = 256, 100.0
        c.optim.warmup_epochs = 2.0
        c.checkpoint.every_steps = 5000
        return c.lock()
    recipes.on_cifar10(c)
    c.colourisation.shrink = 2
    c.train.batch_size, c.train.epochs = 256, 200.0
    c.optim.warmup_epochs = 5.0
    c.checkpoint.every_steps = 1950
    return c.lock()
