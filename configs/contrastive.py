"""SimCLR with another loss, by name: two views, one network, negatives from the batch.

    python -m simclr_jax.main --config=configs/contrastive.py:loss=decoupled             digits
    python -m simclr_jax.main --config=configs/contrastive.py:cifar10,loss=decoupled     CIFAR-10

Losses: info_nce (the default), decoupled, decoupled_weighted, debiased, hard_negative, margin and
nt_logistic; docs/methods.md has their formulas. Choose one here rather than by
`--config.contrastive.loss`: the recipe then has a temperature for it, or none.

`local=6`, with commas, adds 6 local crops to each image (multi-crop, docs/methods.md).

`cifar10` has the constants of the programs named, without a fall of the rate, or with a loss that
none of them has those of configs/cifar10.py. Published, top-1 of a linear classifier in %; we have
run none of these:

| `cifar10,loss=` | what | published |
|---|---|---|
| `decoupled` | ResNet-18, batch 256, 100 epochs | 85.36; cross entropy there 83.26 (README) |
| `decoupled_weighted` | likewise, sigma 0.5 | 82.7 (README) |
| `debiased` | ResNet-50, batch 256, 400 epochs | 84.26 on STL-10; tau_plus 0: 80.15 (README) |
| `hard_negative` | likewise, beta 1 | 87.44 on STL-10 (README) |
| `margin`, `nt_logistic` | | 50.9, 51.6 on ImageNet; semi-hard 57.5, 57.9; NT-Xent 63.9 |
| `info_nce` | both directions | none |

READMEs are those of raminnakhli/Decoupled-Contrastive-Learning, chingyaoc/DCL and joshr17/HCL, the
numbers of ImageNet of SimCLR's table 4, for ResNet-50 with negatives from one view. There each view
passes by itself, here both together; images are normalised by ImageNet's mean, there by CIFAR-10's.
"""

from simclr_jax import recipes
from simclr_jax.errors import choose
from simclr_jax.methods import contrastive

# By loss: depth, epochs, temperature, probability of blur.
PUBLISHED = {
    "decoupled": (18, 100.0, 0.1, 0.0),
    "decoupled_weighted": (18, 100.0, 0.1, 0.0),
    "debiased": (50, 400.0, 0.5, 0.5),
    "hard_negative": (50, 400.0, 0.5, 0.5),
}


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, loss="info_nce", local=0)
    choose("argument loss of the recipe", a.loss, contrastive.LOSSES)
    c = recipes.base("contrastive")
    c.contrastive.loss = a.loss
    tempered = "temperature" in contrastive.LOSSES[a.loss].reads
    if a.cifar10:
        recipes.on_cifar10(c)
        if a.loss in PUBLISHED:
            published(c, a.loss)
            recipes.local_crops(c, a.local)
            return c.lock()
        c.head.layers, c.head.dim = 3, 128
        c.optim.base_lr, c.optim.weight_decay = 1.0, 1e-4
        if tempered:
            c.loss.temperature = 0.5
        recipes.local_crops(c, a.local)
        return c.lock()
    recipes.on_digits(c)
    c.head.dim, c.optim.base_lr = 64, 3.0
    if tempered:
        c.loss.temperature = 0.5 if "tau_plus" in contrastive.LOSSES[a.loss].reads else 0.2
    recipes.local_crops(c, a.local, area=(0.3, 0.5))
    return c.lock()


def published(c, loss):
    """Change to what the program of a loss has; all of them come from leftthomas/SimCLR."""
    c.model.depth, c.train.epochs, c.loss.temperature, blur = PUBLISHED[loss]
    c.loss.scale = "sum" if loss.startswith("decoupled") else "mean"
    c.model.input = "normalised"
    c.head.kind, c.head.layers, c.head.hidden, c.head.dim = "mlp", 2, 512, 128
    c.head.bias, c.head.norm = "last", "hidden"
    c.augment.crop_law, c.augment.grid = "area", "antialias"  # torchvision's
    for view in c.augment.views.values():
        view.strength, view.blur = 1.0, blur
        view.brightness = view.contrast = view.saturation = 0.4
        view.hue = 0.1
    c.train.batch_size = 256
    c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "adam", 1e-3, "none"
    c.optim.weight_decay, c.optim.decayed, c.optim.warmup_epochs = 1e-6, "all", 0.0
    c.optim.drops, c.optim.drop_factor = "1", 1.0  # by nothing: the rate is constant
