"""SimCLRv2 whole on CIFAR-10: pretrain, fine-tune, distil and probe, and one table.

    python -m simclr_jax.main --config=configs/v2_pipeline_cifar10.py
    python -m simclr_jax.main --config=configs/v2_pipeline_cifar10.py:small,draws=3,path=DIRECTORY

A ResNet-18 and a twice as wide teacher, pretrained as configs/cifar10.py for 400 epochs; for
`small`, which two CPU cores can do, both far smaller and pretrained for 20. `no_teacher` leaves out
the wide one and distillation. The rates on labels were not tuned for these images. Data: TFDS
`cifar10`, or with `path` a directory train/CLASS/*.png, test/CLASS/*.png. 50 runs, 18 with
`draws=1`, each in WORKDIR/NAME; the same command continues. No published number belongs to this
recipe.
"""

from simclr_jax import recipes
from simclr_jax.pipeline import recipe


def get_config(arg=""):
    a = recipes.arguments(arg, draws=3, seed=0, path="", small=False, no_teacher=False)
    finetune = {
        "optim.name": "sgd",  # Nesterov, as SimCLR (appendix B.5)
        "optim.base_lr": {"1%": 0.05, "10%": 0.2},
        "optim.weight_decay": 5e-4,
        "optim.warmup_epochs": 0.0,
        "train.batch_size": {"1%": 32, "10%": 128} if a.small else {"1%": 64, "10%": 256},
        "train.epochs": {"1%": 60.0, "10%": 40.0},
    }
    distill = {
        "optim.base_lr": 1.0,  # LARS, as in pretraining
        "optim.warmup_epochs": 2.0 if a.small else 10.0,
        "train.batch_size": 256 if a.small else 512,
        "train.epochs": 20.0 if a.small else 200.0,
    }
    fields: dict[str, dict] = {"finetune": finetune, "distill": distill}
    fields |= {"scratch": finetune, "distill_labelled": finetune}
    return recipe.simclr_v2(
        teacher_pretrain=None if a.no_teacher else pretrain(a, wider=2),
        student_pretrain=pretrain(a, wider=1),
        fields=fields,
        draws=a.draws,
        seed=a.seed,
    )


def pretrain(a, wider):
    """Return the recipe of configs/cifar10.py, or for `small` one for two CPU cores."""
    c = recipes.base()
    c.data.source, c.data.name = "tfds", "cifar10"
    if a.path:
        c.data.source, c.data.name, c.data.path = "folder", "", a.path
    c.data.image_size, c.data.resident = 32, True
    for view in c.augment.views.values():
        view.strength, view.blur = 0.5, 0.0
    c.model.depth, c.model.width, c.model.stem = 18, float(wider), "cifar"
    c.head.layers, c.head.dim = 3, 128
    c.loss.temperature = 0.5
    c.optim.base_lr, c.optim.lr_scaling, c.optim.warmup_epochs = 1.0, "linear", 10.0
    c.train.batch_size, c.train.epochs = 512, 400.0
    c.eval.every_epochs = 20.0
    c.log.every_steps, c.checkpoint.every_steps = 50, 970
    if a.small:
        c.model.depth, c.model.width, c.model.stem = 10, 0.25 * wider, "imagenet"
        c.optim.warmup_epochs = 2.0
        c.train.batch_size, c.train.epochs = 256, 20.0
        c.log.every_steps, c.checkpoint.every_steps = 20, 200
    return c
