"""Fine-tune a run on labels, as SimCLRv2 (arXiv 2006.10029, section 3, and the official README).

    python -m simclr_jax.main --config=configs/finetune.py --config.init.run=runs/digits \\
        --config.labels.use=10%

Model, head and images are those of the run; for other images set `--config.data.source` and what
belongs to it. `labels.use` is a share of each class, a number of each (25), or a file of names.
`--config=configs/finetune.py:tap=1` starts from the first layer of the projection head, v2's way at
1 % and 10 % of ImageNet's labels; `frozen` trains the classifier alone, the encoder in inference
mode; `scratch` takes the model of the run without its weights, the supervised baseline; `sgd` is
the optimiser of SimCLR (v1, appendix B.5): Nesterov, rate 0.05 for 256 images.

The rates are those for 1024 images of ImageNet. No published number belongs to this recipe.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(
        arg, tap=0, frozen=False, scratch=False, sgd=False, epochs=60, official=""
    )
    c = recipes.base()
    c.stage = "finetune"
    recipes.inherit_all(c)
    recipes.crop_and_flip(c)
    c.finetune.tap = a.tap

    if a.scratch:
        c.init.parts = "none"

    c.optim.base_lr, c.optim.lr_scaling = 0.005, "sqrt"  # 0.16 at batch 1024
    if a.sgd:
        c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "sgd", 0.05, "linear"
    if a.frozen:
        c.finetune.train_from_block, c.finetune.encoder_bn = 5, "moving"
        c.finetune.train_head = False
        c.optim.name, c.optim.base_lr, c.optim.lr_scaling = "sgd", 0.1, "linear"
    c.optim.weight_decay, c.optim.warmup_epochs = 0.0, 0.0
    c.train.batch_size, c.train.epochs = placeholder(int), float(a.epochs)

    c.eval.probe, c.eval.knn, c.eval.every_epochs = False, False, 10.0
    c.log.every_steps, c.checkpoint.every_steps = 20, 500
    if a.official:
        recipes.official(c, a.official)
    return c.lock()
