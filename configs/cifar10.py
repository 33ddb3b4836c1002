"""CIFAR-10 with the official recipe of google-research/simclr (README, "CIFAR-10 pretraining").

    python -m simclr_jax.main --config=configs/cifar10.py

Published: about 91 % by linear evaluation (official README; ResNet-18, batch 512, 1000 epochs, one
GPU); the figure is older than the command (docs/fidelity.md). Data: TFDS `cifar10`, prepared as
ArrayRecord (the run says by which command), or a directory train/CLASS/*.png, test/CLASS/*.png:
`--config.data.source=folder --config.data.name= --config.data.path=DIRECTORY`. All 50 000 images
are kept in the memory of the device (150 MB).

`--config=configs/cifar10.py:strong` is the strongest public ResNet-18 recipe we know of with a
code: W-MSE's SimCLR baseline (github.com/htdt/self-supervised), 91.80 % linear, 88.42 % 5-NN. Ours
has AdamW in place of its Adam, cosine in place of its two drops, and a hidden layer of 512 in the
head where it has 1024. We have run neither for 1000 epochs. `official=tf1` or `official=tf2` sets
whatever the two official programs do otherwise (docs/fidelity.md). `local=6` adds 6 local crops of
18 pixels to each image (multi-crop, docs/methods.md), with crops as PAWS has them on CIFAR-10;
nothing is published of SimCLR with them, and we have not run it to its end.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, strong=False, official="", local=0)
    c = recipes.base()
    recipes.on_cifar10(c)
    c.head.layers, c.head.dim = 3, 128
    c.loss.temperature = 0.5
    c.optim.base_lr, c.optim.lr_scaling = 1.0, "linear"  # peak 2.0 at batch 512
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 10.0
    if a.strong:
        strong(c)
    if a.official:
        recipes.official(c, a.official)
    recipes.local_crops(c, a.local)
    return c.lock()


def strong(c):
    """Change to the baseline of W-MSE (arXiv 2007.06346, its appendix and code)."""
    for view in c.augment.views.values():
        view.area_min = 0.2
        view.strength = 1.0
        view.brightness = view.contrast = view.saturation = 0.4
        view.hue = 0.1
        view.grayscale = 0.1
    c.head.layers, c.head.dim = 2, 64
    c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "adamw", 3e-3, "none"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-6, 5.0
