"""SimCLRv2 pretraining on ImageNet (arXiv 2006.10029, section 3): three-layer head, 800 epochs.

    python -m simclr_jax.main --config=configs/imagenet_v2.py:depth=152,width=3,sk

Published, linear evaluation (table 1; in brackets with `sk`, selective kernels): ResNet-50 71.7
(74.6), 50 2x 75.6 (77.7), 101 73.6 (76.3), 101 2x 77.0 (79.0), 152 74.5 (77.2), 152 2x 77.4 (79.4),
152 3x (79.8). Those used a memory of 64K negatives, worth about one point, that is not in the
official code; the argument `memory` adds ours (`methods/simclr.py`). Without, ResNet-50 got
71.1. Hardware there: 128 TPUs. Data: docs/imagenet.md. We have run none of these: no ImageNet was
at hand.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, depth=50, width=1, sk=False, memory=False, epochs=800, official="")
    c = recipes.base()
    c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
    c.data.image_size = 224
    c.augment.placement, c.augment.grid = "canvas", "corner"

    c.model.depth, c.model.width, c.model.stem = a.depth, float(a.width), "imagenet"
    c.model.sk_ratio = 0.0625 if a.sk else 0.0
    c.head.layers, c.head.dim = 3, 128
    c.loss.temperature = 0.1
    c.memory.size = 65536 if a.memory else 0  # 64K, and the default momentum: the paper, 3.1

    c.optim.base_lr, c.optim.lr_scaling = 0.1, "sqrt"  # 6.4 at batch 4096
    c.optim.weight_decay = 1e-4
    c.optim.warmup_epochs = 0.05 * a.epochs  # 5 % of the run
    c.train.batch_size, c.train.epochs = 4096, float(a.epochs)
    c.train.dtype = "bfloat16"  # of convolutions and hidden layers; loss, statistics: float32

    c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 20.0  # see imagenet.py
    c.log.every_steps, c.checkpoint.every_steps = 100, 625
    if a.official:
        recipes.official(c, a.official)
    return c.lock()
