"""The recipe of `toy_method.py`, small enough for a test."""

from simclr_jax import recipes


def get_config():
    c = recipes.base("tests.e2e.toy_method")
    c.data.source, c.data.image_size = "memory", 8
    c.augment.views.first.copies = 2
    for view in c.augment.views.values():
        view.area_min = 0.3
        view.blur = 0.0
    c.model.depth, c.model.width, c.model.stem = 10, 0.0625, "cifar"
    c.optim.base_lr, c.optim.warmup_epochs = 0.1, 0.5
    c.train.batch_size, c.train.steps = 16, 6
    c.eval.few_labels, c.eval.knn_k = 2, 3
    c.log.every_steps, c.checkpoint.every_steps = 2, 3
    return c.lock()
