"""Fine-tune a run of configs/cifar10.py, or evaluate it, on CIFAR-10's labels.

    python -m simclr_jax.main --config=configs/finetune_cifar10.py:labels=10% \\
        --config.init.run=runs/cifar10

`linear` is the official linear evaluation (README, "CIFAR-10 linear evaluation": about 91 % for the
run of the README; frozen encoder, Nesterov, 0.1 for 256 images, 100 epochs, all labels); `tap=1`
starts from the first layer of the projection head; `scratch` takes the model without its weights.
For fine-tuning on CIFAR-10 no rate is published, and ours is not tuned.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes
from simclr_jax.errors import UserError


def get_config(arg=""):
    a = recipes.arguments(arg, labels="", tap=0, linear=False, scratch=False, official="")
    c = recipes.base()
    c.stage = "finetune"
    recipes.inherit_all(c)
    recipes.crop_and_flip(c)
    if a.linear and (a.labels or a.tap or a.scratch):
        raise UserError(
            'argument "linear" of the recipe: it has all labels on h, leave out the others'
        )
    c.labels.use, c.finetune.tap = a.labels or "10%", a.tap
    c.optim.base_lr, c.optim.lr_scaling = 0.02, "sqrt"
    c.optim.warmup_epochs, c.optim.weight_decay = 0.0, 0.0
    c.train.batch_size, c.train.epochs = placeholder(int), 60.0
    if a.scratch:
        c.init.parts = "none"
    if a.linear:
        c.labels.use = "all"
        c.finetune.train_from_block, c.finetune.encoder_bn = 5, "moving"
        c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "sgd", 0.1, "linear"  # 0.2
        c.train.batch_size, c.train.epochs = 512, 100.0

    c.eval.probe, c.eval.knn, c.eval.every_epochs = False, False, 20.0
    c.log.every_steps, c.checkpoint.every_steps = 50, 500
    if a.official:
        recipes.official(c, a.official)
    return c.lock()
