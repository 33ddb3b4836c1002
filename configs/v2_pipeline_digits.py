"""SimCLRv2 whole on handwritten digits: pretrain, fine-tune, distil and probe, and one table.

    python -m simclr_jax.main --config=configs/v2_pipeline_digits.py
    python -m simclr_jax.main --config=configs/v2_pipeline_digits.py:draws=1

50 runs, 18 with one draw of labels, each in WORKDIR/NAME; the same command continues. Any field of
any run may be set: `--config.runs.pretrain.train.epochs=20`. No published number belongs to this
recipe.
"""

from simclr_jax import recipes
from simclr_jax.pipeline import recipe


def get_config(arg=""):
    a = recipes.arguments(arg, draws=3, seed=0)
    finetune = {
        "optim.name": "sgd",
        "optim.base_lr": {"1%": 0.05, "10%": 0.2},
        "optim.weight_decay": 5e-4,
        "optim.warmup_epochs": 0.0,
        "train.batch_size": {"1%": 8, "10%": 64},  # of 10 and 143 labelled images
        "train.epochs": 100.0,
    }
    distill = {
        "optim.base_lr": 3.0,  # LARS, as in pretraining
        "optim.warmup_epochs": 3.0,
        "train.batch_size": 256,
        "train.epochs": 30.0,
    }
    fields: dict[str, dict] = {"finetune": finetune, "distill": distill}
    fields |= {"scratch": finetune, "distill_labelled": finetune}
    return recipe.simclr_v2(
        teacher_pretrain=pretrain(width=0.5),
        student_pretrain=pretrain(width=0.25),
        fields=fields,
        draws=a.draws,
        seed=a.seed,
    )


def pretrain(width):
    """Return a SimCLR recipe with v2's nonlinear head, of another width; not configs/digits.py."""
    c = recipes.base()
    c.data.source, c.data.name = "digits", "placed"
    c.data.image_size = 32
    for view in c.augment.views.values():
        view.area_min, view.strength = 0.5, 0.5
        view.flip = view.blur = view.grayscale = 0.0
    c.model.depth, c.model.width, c.model.stem = 10, width, "imagenet"
    c.head.dim = 64
    c.loss.temperature = 0.2
    c.optim.base_lr, c.optim.warmup_epochs = 3.0, 5.0
    c.train.batch_size, c.train.epochs = 256, 80.0
    c.eval.every_epochs, c.eval.knn_k = 20.0, 20
    c.log.every_steps, c.checkpoint.every_steps = 20, 100
    return c
