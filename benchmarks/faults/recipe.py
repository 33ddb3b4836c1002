"""The run that `table.py` strikes: small, but with all that there can be in a state.

54 images to learn from, so an epoch is 3.4 steps. The memory of negatives makes the files of a
checkpoint larger than 1 MiB, above which their bytes are covered by the checksums of the arrays.
"""

from simclr_jax import recipes

STEPS, SAVE_EVERY, KEEP = 20, 4, 2


def get_config():
    """Return the recipe; the images come by --config.data.path."""
    c = recipes.base()
    c.data.source, c.data.image_size = "memory", 8
    for view in c.augment.views.values():
        view.area_min, view.blur = 0.3, 0.0

    c.model.depth, c.model.width, c.model.stem = 10, 0.0625, "cifar"
    c.head.layers, c.head.dim = 2, 8
    c.memory.size = 65536

    c.optim.base_lr, c.optim.warmup_epochs = 0.1, 0.5
    c.train.batch_size, c.train.steps = 16, STEPS

    c.eval.every_epochs, c.eval.knn_k, c.eval.few_labels = 1.0, 3, 2
    c.eval.probe, c.eval.compare = False, False
    c.log.every_steps = 1
    c.checkpoint.every_steps, c.checkpoint.keep = SAVE_EVERY, KEEP
    return c.lock()
