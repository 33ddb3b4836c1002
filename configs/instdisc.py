"""Instance discrimination (Wu et al. 2018, arXiv 1805.01978): every image is a class of its own.

python -m simclr_jax.main --config=configs/instdisc.py
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False)
    c = recipes.base("instdisc")
    if a.imagenet:
        c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
        c.augment.placement, c.augment.grid = "host", "antialias"
        c.train.dtype = "bfloat16"
        c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 10.0
        c.checkpoint.every_steps = 5000
        return c.lock()
    view = c.augment.views.first
    c.instdisc.loss = "softmax"
    c.loss.temperature = 0.1
    if a.cifar10:
        strength = view.strength
        recipes.on_cifar10(c)
        view.strength = strength
        view.flip, view.grayscale_first = 0.0, False
        c.augment.grid = "antialias"
        c.optim.weight_decay = 5e-4
        c.train.batch_size, c.train.epochs = 128, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.head.dim = 64
    return c.lock()
