"""Handwritten digits, pretrained without their labels in a few minutes on a laptop's CPU.

python -m simclr_jax.main --config=configs/digits.py
"""

from simclr_jax import recipes


def get_config():
    c = recipes.base()
    c.data.source, c.data.name = "digits", "placed"
    c.data.image_size = 32

    for view in c.augment.views.values():
        view.area_min = 0.5  # a smaller crop would often miss the digit
        view.flip = 0.0  # a mirrored digit is another digit, or none
        view.strength = 0.5
        view.blur = 0.0  # as the official recipe for 32-pixel images
        view.grayscale = 0.0  # there is one channel

    c.model.depth, c.model.width = 10, 0.25
    c.model.stem = "imagenet"  # for speed on a CPU: it works on 8x8 pixels, the other on 32x32
    c.head.dim = 64
    c.loss.temperature = 0.2

    c.optim.base_lr, c.optim.warmup_epochs = 3.0, 5.0
    c.train.batch_size, c.train.epochs = 256, 80.0

    c.eval.every_epochs, c.eval.knn_k = 20.0, 20
    c.log.every_steps, c.checkpoint.every_steps = 20, 100
    return c.lock()
