"""ImageNet with the official recipe of google-research/simclr (README, "ImageNet pretraining").

    python -m simclr_jax.main --config=configs/imagenet.py

Published: ResNet-50, batch 4096, 100 epochs: 64.5 % by linear evaluation (official README; 32 TPU
v3 cores, about 6 hours). That figure is older than the command beside it, and was reached with
`paper,epochs=100` (SimCLR, table B.1; docs/fidelity.md); what the command itself reaches is not
published. Data: docs/imagenet.md. Arguments, with commas, as in
`--config=configs/imagenet.py:paper,width=2`:

| argument | what | published linear top-1 |
|---|---|---|
| `paper` | 1000 epochs, decay 1e-6, 2-layer head, additive brightness | 69.3 (table 6) |
| `width=2`, `width=4` | a wider encoder | with `paper`: 74.2, 76.5 |
| `epochs=200` | another length | with `paper`: 66.8 (100: 64.5, 400: 68.0, 800: 69.1) |
| `small_batch=512` | rate 0.075 * sqrt(batch) | with `paper,epochs=100`: 63.8 (256: 62.8) |
| `one_gpu` | batch 4096 in 8 parts, normalised by groups of 512 | none: its groups are its own |
| `official=tf1`, `=tf2` | what that program does otherwise | docs/fidelity.md |
| `local=6` | multi-crop: 6 local crops of 96 pixels too (docs/methods.md) | none |

The host decodes and the device makes the views (`augment.placement=canvas`, docs/imagenet.md); with
`--config.augment.placement=host` TensorFlow makes them. We have run none of these: no ImageNet was
at hand. `one_gpu` asks for a card of 80 GB: its batch of 4096 passes in parts of 512 images, which
make groups of batch normalisation, and is planned to need 47 GiB (`python -m simclr_jax.plan
--config=configs/imagenet.py:one_gpu --device=h100`; no GPU has run it). Hours are 35 600 divided by
the images/s that `benchmarks/step_time.py` shows.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(
        arg, width=1, epochs=0, small_batch=0, paper=False, one_gpu=False, official="", local=0
    )
    c = recipes.base()
    c.data.source, c.data.name, c.data.eval_split = "tfds", "imagenet2012", "validation"
    c.data.image_size = 224
    c.augment.placement, c.augment.grid = "canvas", "corner"

    c.model.depth, c.model.width, c.model.stem = 50, float(a.width), "imagenet"
    c.loss.temperature = 0.1

    c.optim.base_lr, c.optim.lr_scaling = 0.075, "sqrt"  # 4.8 at batch 4096, as 0.3 linear
    c.optim.weight_decay, c.optim.warmup_epochs = 1e-4, 10.0
    c.train.batch_size, c.train.epochs = 4096, 100.0
    c.train.dtype = "bfloat16"  # of convolutions and hidden layers; loss, statistics: float32

    # The probe watches on the side. Features of 1.3 million images do not fit a host's memory.
    c.eval.knn, c.eval.compare, c.eval.every_epochs = False, False, 10.0
    c.log.every_steps, c.checkpoint.every_steps = 100, 625

    if a.paper:
        c.train.epochs, c.optim.weight_decay = 1000.0, 1e-6
        c.head.layers = 2
        c.augment.brightness_mode = "add"
    if a.one_gpu:
        c.train.accumulate = c.bn.groups = 8  # of 512 images
    if a.small_batch:
        c.train.batch_size = a.small_batch
    if a.epochs:
        c.train.epochs = float(a.epochs)
    if a.official:
        recipes.official(c, a.official)
    recipes.local_crops(c, a.local)
    return c.lock()
