"""Instance discrimination (Wu et al. 2018, arXiv 1805.01978): every image is a class of its own.

    python -m simclr_jax.main --config=configs/instdisc.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/instdisc.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/instdisc.py:imagenet     data: docs/imagenet.md

| argument | loss | published |
|---|---|---|
| `cifar10` | the whole bank, temperature 0.1 | kNN 80.8 (paper, table 1; from memory) |
| `imagenet` | NCE, 4096 draws, temperature 0.07 | kNN 46.8; ResNet-18: 41.0 (official README) |

These are published, for batches of 128 and 256 and 200 epochs; we have run neither.

Digits, seeds 0 and 1 (`--config.seed=1`), 2 CPU cores under other load, 2026-11-30, 3 to 7 minutes:
kNN 56.1 and 61.1 %, raw pixels 50.8, untrained 8.6 and 8.3; docs/methods.md has the probes.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False)
    c = recipes.base("instdisc")
    if a.imagenet or a.cifar10:
        c.optim.drops = "120,160"
    if a.imagenet:
        c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
        c.augment.placement, c.augment.grid = "canvas", "antialias"
        c.train.dtype = "bfloat16"  # of convolutions; loss, bank and statistics: float32
        # The probe watches on the side. Features of 1.3 million images do not fit a host's memory.
        c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 10.0
        c.log.every_steps, c.checkpoint.every_steps = 100, 5000
        return c.lock()
    c.instdisc.loss, c.loss.temperature = "softmax", 0.1
    if a.cifar10:
        recipes.on_cifar10(c)
        view = c.augment.views.first
        view.strength = 1.0  # the method has strengths of its own
        view.flip, view.grayscale_first = 0.0, False  # as `cifar.py` has them
        c.augment.grid = "antialias"
        c.optim.weight_decay = 5e-4
        c.train.batch_size, c.train.epochs = 128, 200.0
        c.checkpoint.every_steps = 1950
        return c.lock()
    recipes.on_digits(c)
    c.head.dim = 64
    # As the other quick looks have it.
    c.optim.nesterov, c.optim.decayed = True, "usual"
    c.augment.crop_law = "height"
    return c.lock()
