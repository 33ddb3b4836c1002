"""Distil a fine-tuned run into a student on all of ImageNet, without its labels (SimCLRv2, sec. 3).

    python -m simclr_jax.main --config=configs/distill_imagenet.py:depth=50 \\
        --config.distill.teacher=runs/finetuned_10pct

Published top-1 with labels of 1 % and 10 % (table 3, abstract): ResNet-50 73.9 and 77.5, taught by
ResNet-152 3x with selective kernels, itself self-distilled. `self` distils into the teacher's own
architecture at temperature 0.1; start it from the teacher's pretraining by `--config.init.run`, at
its layer of the head by `--config.finetune.tap=1`.
Labels take part with `--config.distill.alpha` and `--config.labels.use` (table 2). We have run none
of these on ImageNet: it was not at hand.
"""

from simclr_jax import recipes
from simclr_jax.errors import UserError


def get_config(arg=""):
    a = recipes.arguments(arg, depth=50, width=1, sk=False, self=False, epochs=400)
    c = recipes.base()
    c.stage = "distill"
    if a.self and (a.depth != 50 or a.width != 1 or a.sk):
        raise UserError(
            'argument "self" of the recipe: the model is the teacher\'s, leave out others'
        )
    if a.self:
        recipes.inherit_all(c)  # the model of the run it starts from, or of the teacher
    else:
        c.model.depth, c.model.width, c.model.stem = a.depth, float(a.width), "imagenet"
        c.model.sk_ratio = 0.0625 if a.sk else 0.0
        c.head.kind = "none"  # the classifier sits on h
        c.augment.grid = "corner"
    recipes.crop_and_flip(c)
    c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
    c.data.image_size, c.augment.placement = 224, "canvas"

    c.distill.temperature = 0.1 if a.self else 1.0
    c.distill.teacher_dtype = "bfloat16"
    c.optim.base_lr, c.optim.lr_scaling = 0.1, "sqrt"  # 6.4 at batch 4096, as pretraining
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 0.05 * a.epochs
    c.train.batch_size, c.train.epochs = 4096, float(a.epochs)
    c.train.dtype = "bfloat16"

    c.eval.probe, c.eval.knn, c.eval.every_epochs = False, False, 20.0
    c.log.every_steps, c.checkpoint.every_steps = 100, 625
    return c.lock()
