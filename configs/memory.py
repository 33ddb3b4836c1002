"""Your own images from a NumPy archive: `images` uint8 [m, h, w, 1 or 3] and, if any, `labels`.

    python -m simclr_jax.main --config=configs/memory.py --config.data.path=images.npz

Sensible for some thousands of images of 32 to 64 pixels on one accelerator. Without labels add
--config.eval.probe=False --config.eval.knn=False. A tenth of the images is held out for evaluation,
or give `test_images` and `test_labels`. No published number belongs to this recipe.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes


def get_config():
    c = recipes.base()
    c.data.source = "memory"
    c.data.image_size = 32

    for view in c.augment.views.values():
        view.strength = 0.5  # as the official recipe for CIFAR-10
        view.blur = 0.0

    c.model.depth, c.model.stem = 18, "cifar"
    c.loss.temperature = 0.5

    c.optim.base_lr, c.optim.warmup_epochs = 1.0, 10.0
    c.train.batch_size, c.train.epochs = 512, 200.0

    c.eval.every_epochs = 20.0
    c.eval.knn_k = placeholder(int)  # None: chosen for the images
    c.log.every_steps, c.checkpoint.every_steps = 50, 500
    return c.lock()
