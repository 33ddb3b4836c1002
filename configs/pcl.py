"""PCL (arXiv 2005.04966): MoCo, and from some epoch on the prototype of an image's cluster.

    python -m simclr_jax.main --config=configs/pcl.py               digits, on a CPU
    python -m simclr_jax.main --config=configs/pcl.py:imagenet      data: docs/imagenet.md

| argument | what | published, ResNet-50, 200 epochs |
|---|---|---|
| `imagenet` | PCL v2: two layers, MoCo v2's views, cosine | linear 67.6 (official README) |
| `imagenet,v1` | PCL v1: one layer, MoCo v1's views, rate / 10 at 120 and 160 | linear 61.5 |

These are published; we have run neither, and the digits for 140 of 450 steps only: what they reach
has not been measured. On ImageNet, before each epoch from the 21st on, all training images are
embedded and grouped into 25 000, 50 000 and 100 000 clusters, 20 iterations and 5 starts each.
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.methods import moco


def get_config(arg=""):
    a = recipes.arguments(arg, imagenet=False, v1=False)
    if a.v1 and not a.imagenet:
        raise UserError(f'argument "{arg}" of the recipe: v1 goes with imagenet, as imagenet,v1')
    c = recipes.base("pcl")
    if a.imagenet:
        if a.v1:
            moco.first_version(c)
            c.loss.temperature = 0.2  # of both versions, other than MoCo's
        c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
        c.data.image_size = 224
        c.augment.placement, c.augment.grid = "canvas", "antialias"
        c.train.batch_size, c.train.epochs = 256, 200.0
        c.train.dtype = "bfloat16"  # of convolutions and hidden layers; loss, statistics: float32
        c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 20.0  # see imagenet.py
        c.log.every_steps, c.checkpoint.every_steps = 100, 5000
        return c.lock()
    recipes.on_digits(c)
    c.head.hidden, c.head.dim = 256, 64
    c.pcl.queue, c.pcl.momentum = 512, 0.95  # of few images and few steps
    # A batch meets many clusters, and those drawn must be none of them.
    c.pcl.clusters, c.pcl.negatives, c.pcl.warmup_epochs = "320,400,480", 64, 20
    # In so few steps the optimiser of the other quick looks comes farther than SGD.
    c.optim.name, c.optim.base_lr, c.optim.warmup_epochs = "lars", 3.0, 5.0
    c.optim.nesterov, c.optim.decayed, c.optim.rate_per = True, "usual", "step"
    return c.lock()
