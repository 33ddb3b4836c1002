"""Distil a fine-tuned run into a student on all images, labelled or not, as SimCLRv2 (section 3).

    python -m simclr_jax.main --config=configs/distill.py --config.distill.teacher=runs/finetuned

The student starts from scratch, or from `--config.init.run`; it has the teacher's model unless told
otherwise (`--config.model.depth=18`), and its images. Into the same model the paper has temperature
0.1, `--config=configs/distill.py:self` (and the teacher's `--config.finetune.tap`); into a smaller
one 1. Labels take part with `--config.distill.alpha=0.5 --config.labels.use=10%`, on labelled
images alone with `--config.distill.images=labelled`.

The rates are those of pretraining, as the paper's: 0.1 sqrt(batch), 400 epochs of ImageNet at batch
4096. No published number belongs to this recipe.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, self=False, epochs=400)
    c = recipes.base()
    c.stage = "distill"
    recipes.inherit_all(c)
    recipes.crop_and_flip(c)
    c.distill.temperature = 0.1 if a.self else 1.0

    c.optim.base_lr, c.optim.lr_scaling = 0.1, "sqrt"
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 0.05 * a.epochs
    c.train.batch_size, c.train.epochs = placeholder(int), float(a.epochs)

    c.eval.probe, c.eval.knn, c.eval.every_epochs = False, False, 10.0
    c.log.every_steps, c.checkpoint.every_steps = 50, 500
    return c.lock()
