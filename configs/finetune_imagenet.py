"""Fine-tune or evaluate a pretrained run on ImageNet, as the papers do.

    python -m simclr_jax.main --config=configs/finetune_imagenet.py:labels=1% \\
        --config.init.run=runs/imagenet_v2

`labels` is 1%, 10%, 100% or one of the official lists (`imagenet_subsets/1percent.txt`). Up to 10 %
the classifier sits on the first layer of the projection head, above that on `h`, unless `tap` says
otherwise. The run may be a converted release (docs/checkpoints.md). Published top-1 (SimCLRv2,
table 1):

| encoder | 1 % | 10 % | 100 % |
|---|---|---|---|
| ResNet-50 | 57.9 | 68.4 | 76.3 |
| ResNet-50 2x, selective kernels | 70.6 | 77.0 | 81.3 |
| ResNet-152 3x, selective kernels | 74.9 | 80.1 | 83.1 |

Arguments: `large`, the rate of wide encoders and those with selective kernels; `v1`, SimCLR's way
(appendix B.5: Nesterov, batch 4096, on h; ResNet-50: 48.3 and 65.6 %); `linear`, linear evaluation
(section 2.3, crops and flips, frozen encoder; ResNet-50 after 1000 epochs: 69.3 %); `official=tf1`
or `official=tf2` sets what the two official programs do otherwise (docs/fidelity.md). Of a run that
resized by OpenCV (`augment.grid=opencv`) add `--config.augment.placement=split`. We have run none
of these on ImageNet: it was not at hand.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes
from simclr_jax.errors import UserError

UNSET = -2  # no layer of a head


def get_config(arg=""):
    a = recipes.arguments(
        arg, labels="", tap=UNSET, epochs=0, large=False, v1=False, linear=False, official=""
    )
    if a.large and (a.v1 or a.linear):
        raise UserError('argument "large" of the recipe: it is a rate of v2, leave out v1, linear')
    if a.linear and (a.labels or a.tap != UNSET):
        raise UserError(
            'argument "linear" of the recipe: it has all labels on h, leave out the others'
        )
    c = recipes.base()
    c.stage = "finetune"
    recipes.inherit_all(c)
    recipes.crop_and_flip(c)
    c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
    c.augment.placement, c.augment.grid = "canvas", placeholder(str)
    c.train.dtype = "bfloat16"

    share = percent(a.labels or "1%")
    c.labels.use = "all" if share == 100 else a.labels or "1%"
    c.train.epochs = float(a.epochs or (60 if share < 10 else 30))
    c.finetune.tap = a.tap if a.tap != UNSET else int(share <= 10 and not a.v1)
    c.optim.warmup_epochs, c.optim.weight_decay = 0.0, 0.0

    c.train.batch_size = 1024
    c.optim.base_lr, c.optim.lr_scaling = 0.002 if a.large else 0.005, "sqrt"  # 0.064, 0.16
    if a.v1 or a.linear:
        c.optim.name, c.optim.lr_scaling, c.train.batch_size = "sgd", "linear", 4096
        c.optim.base_lr = 0.05  # 0.8 at batch 4096
    if a.linear:
        c.labels.use, c.finetune.tap = "all", 0
        c.finetune.train_from_block, c.finetune.encoder_bn = 5, "moving"
        c.optim.base_lr, c.train.epochs = 0.1, float(a.epochs or 90)  # 1.6 at batch 4096

    c.eval.probe, c.eval.knn, c.eval.every_epochs = False, False, 10.0
    c.log.every_steps, c.checkpoint.every_steps = 50, 250
    if a.official:
        recipes.official(c, a.official)
    return c.lock()


def percent(labels):
    """Return the share of the labels, which decides length and tap."""
    lists = {"1percent.txt": 1.0, "10percent.txt": 10.0, "all": 100.0}
    known = lists.get(labels.rpartition("/")[2])
    try:
        return known or float(labels.removesuffix("%"))
    except ValueError:
        raise UserError(
            f'argument "labels={labels}" of the recipe: write a share such as 1%, or set '
            "--config.labels.use, --config.train.epochs and --config.finetune.tap"
        ) from None
