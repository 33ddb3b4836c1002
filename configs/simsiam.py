"""SimSiam (arXiv 2011.10566): predict what the same network makes of the other view.

    python -m simclr_jax.main --config=configs/simsiam.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/simsiam.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/simsiam.py:imagenet     data: docs/imagenet.md

Published, top-1 of a linear classifier in %; we have run none of these:

| argument | what | published |
|---|---|---|
| `cifar10` | ResNet-18, 800 epochs, batch 512, two layers in the projector | 91.8 (paper, D) |
| `imagenet` | ResNet-50, 100 epochs, batch 512 | 68.1 (paper, table 1; README) |
| `imagenet,batch=256` | | 68.3 (README) |
| `imagenet,batch=256,epochs=800` | another length | 71.3 (table 4; 200: 70.0, 400: 70.8) |

`local=6`, with commas, adds 6 local crops to each image (multi-crop, docs/methods.md).

README is that of facebookresearch/simsiam. docs/fidelity.md has what differs from its program, the
views above all. Our own on digits: kNN 16.1 and 20.6 % (seeds 0 and 1), untrained 8.6 and 8.3; it
is what 450 steps give, more in docs/methods.md.
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False, batch=0, epochs=0, local=0)
    if (a.batch or a.epochs) and not a.imagenet:
        raise UserError('arguments "batch" and "epochs" of the recipe: they belong to imagenet')
    c = recipes.base("simsiam")
    if a.imagenet:
        recipes.on_imagenet(c)
        c.augment.crop_law, c.augment.grid = "area", "antialias"  # torchvision's
        c.train.batch_size, c.train.epochs = a.batch or 512, float(a.epochs or 100)
        c.checkpoint.every_steps = 2500  # an epoch of batch 512
        recipes.local_crops(c, a.local)
        return c.lock()
    if a.cifar10:
        recipes.on_cifar10(c)
        c.augment.crop_law, c.augment.grid = "area", "antialias"
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
        c.train.epochs, c.head.layers, c.head.hidden = 800.0, 2, 2048
        c.optim.base_lr, c.optim.weight_decay = 0.03, 5e-4
        recipes.local_crops(c, a.local)
        return c.lock()
    recipes.on_digits(c)
    c.head.layers, c.head.hidden, c.head.dim, c.simsiam.hidden = 2, 256, 256, 64
    c.optim.base_lr, c.optim.weight_decay, c.optim.warmup_epochs = 0.1, 5e-4, 0.0
    recipes.local_crops(c, a.local, area=(0.3, 0.5))
    return c.lock()
