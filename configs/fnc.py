"""FNC (arXiv 2011.11765): NT-Xent that finds false negatives, and takes them for positives.

    python -m simclr_jax.main --config=configs/fnc.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/fnc.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/fnc.py:imagenet     data: docs/imagenet.md

`imagenet` has the flags of google-research/fnc `run.py`: ResNet-50, batch 4096, 8 support views, a
memory of 16 batches, 10 false negatives of a similarity above 0.7; 1000 epochs, as the paper
trained. Published: 74.4 % by linear evaluation (paper; official README). The program's views are
made by RandAugment, which is not here: these are SimCLR's. We have not run it, nor trained
`cifar10` to its end; neither is anything published of that and of digits. Further arguments:

| argument | what |
|---|---|
| `support=S` | another number of support views; 0: none |
| `elimination` | leave false negatives out, rather than attract them (paper, section 3.2) |
| `no_memory` | look for them in the batch, without a second network |
| `epochs=N` | another length, of `imagenet` |
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError
from simclr_jax.methods import fnc


def get_config(arg=""):
    a = recipes.arguments(
        arg,
        cifar10=False,
        imagenet=False,
        support=-1,
        elimination=False,
        no_memory=False,
        epochs=0,
    )
    if a.cifar10 and a.imagenet:
        raise UserError(f'argument "{arg}" of the recipe: give one of cifar10 and imagenet')
    if a.epochs and not a.imagenet:
        raise UserError('argument "epochs" of the recipe: it belongs to imagenet')
    c = recipes.base("fnc")
    if a.imagenet:
        recipes.on_imagenet(c)
        c.train.batch_size, c.train.epochs = 4096, float(a.epochs or 1000)
    elif a.cifar10:
        recipes.on_cifar10(c)
        c.loss.temperature = 0.5  # as configs/cifar10.py
    else:
        recipes.on_digits(c)
        c.model.sk_ratio = 0.0625  # network and rate of configs/digits.py
        c.head.kind, c.head.dim = "linear", 64
        c.optim.base_lr, c.optim.lr_scaling = 12.0, "linear"
    if a.support >= 0 or not a.imagenet:
        fnc.support(c, a.support if a.support >= 0 else 2)
    if not a.imagenet:  # few images and few steps: keys of this batch and of the one before
        c.fnc.memory = 2 * fnc.view_count(c) * c.train.batch_size
        c.fnc.momentum = 0.99 if a.cifar10 else 0.95
    if a.elimination:
        c.fnc.cancel = "elimination"
    if a.no_memory:
        c.fnc.memory, c.fnc.momentum = 0, fnc.MOMENTUM
    return c.lock()
