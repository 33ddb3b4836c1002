"""MoCo (arXiv 1911.05722; v2: 2003.04297): find the key of an image among those of earlier batches.

    python -m simclr_jax.main --config=configs/moco.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/moco.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/moco.py:v2           data: docs/imagenet.md

| argument | what | published |
|---|---|---|
| `cifar10` | v2's views, one layer, ResNet-18, 200 epochs | kNN 82.6 (authors' notebook) |
| `v1` | ResNet-50, 200 epochs | linear 60.6 (paper, table 1; official README: 60.8) |
| `v2` | two layers, stronger views, cosine | linear 67.5 (v2 paper, table 1; README: 67.5) |
| `v2,epochs=800` | | linear 71.1 (v2 paper, table 2) |
| `local=6`, with others | 6 local crops an image more as queries (docs/methods.md) | none |

These are published; we have run none of them. With `cifar10` 400 and 800 epochs gave 86.3 and 88.7.
The digits, seed 0: kNN 33.6 %, probe of all labels 51.9 % (untrained: kNN 8.6), 450 steps, 2 CPU
cores that had other work, 2026-11-30.
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.methods import moco


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, v1=False, v2=False, epochs=0, local=0)
    if a.cifar10 + a.v1 + a.v2 > 1:
        raise UserError(f'argument "{arg}" of the recipe: give one of cifar10, v1 and v2')
    c = recipes.base("moco")
    if a.v1:
        moco.first_version(c)
    if a.v1 or a.v2:
        c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
        c.data.image_size = 224
        c.augment.placement, c.augment.grid = "canvas", "antialias"
        c.train.batch_size, c.train.epochs = 256, 200.0
        c.train.dtype = "bfloat16"  # of convolutions and hidden layers; loss, statistics: float32
        c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 20.0  # see imagenet.py
        c.log.every_steps, c.checkpoint.every_steps = 100, 5000
    elif a.cifar10:
        recipes.on_cifar10(c)
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
            view.area_min = 0.08
        c.augment.grid = "antialias"
        c.head.layers, c.loss.temperature = 1, 0.1
        c.moco.queue, c.moco.momentum = 4096, 0.99
        c.optim.weight_decay, c.train.epochs = 5e-4, 200.0
    else:
        recipes.on_digits(c)
        c.head.hidden, c.head.dim = 256, 64
        c.moco.queue, c.moco.momentum = 512, 0.95  # of few images and few steps
        # In so few steps the optimiser of the other quick looks comes farther than SGD.
        c.optim.name, c.optim.base_lr, c.optim.warmup_epochs = "lars", 3.0, 5.0
        c.optim.nesterov, c.optim.decayed, c.optim.rate_per = True, "usual", "step"
    if a.epochs:
        c.train.epochs = float(a.epochs)
    digits = not (a.cifar10 or a.v1 or a.v2)
    recipes.local_crops(c, a.local, area=(0.3, 0.5) if digits else None)
    return c.lock()
