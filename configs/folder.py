"""Your own folder of images, any sizes, any depth of directories, no labels needed.

    simclr train --data=photographs
    python -m simclr_jax.main --config=configs/folder.py --config.data.path=~/photographs

Resolution, encoder, batch and length are chosen for the images it finds, and printed with the
reason; set any of them to decide yourself. Index and choices stay with the run: files added
later wait for the next one. If subdirectories are classes, `--config.data.labels=True` measures kNN
and a linear probe; if they may be classes or splits, `--config.data.layout` says which. It needs
OpenCV and simplejpeg (the extra `images`). No published number belongs to this recipe.
"""

from ml_collections.config_dict import placeholder

from simclr_jax import recipes


def get_config():
    c = recipes.base()
    c.data.source, c.data.labels = "folder", False
    c.augment.placement, c.augment.grid = "split", "opencv"

    # None: chosen for the data by simclr_jax/stages/adapt.py.
    c.data.image_size = placeholder(int)
    c.model.depth, c.model.stem = placeholder(int), placeholder(str)
    c.train.batch_size, c.train.epochs = placeholder(int), placeholder(float)
    c.eval.probe, c.eval.knn = placeholder(bool), placeholder(bool)
    c.eval.knn_k, c.eval.every_epochs = placeholder(int), placeholder(float)

    c.loss.temperature = 0.2
    c.optim.base_lr, c.optim.lr_scaling = 0.075, "sqrt"  # the paper's rate for smaller batches
    c.optim.warmup_epochs = placeholder(float)
    c.log.every_steps, c.checkpoint.every_steps = 50, 500
    return c.lock()
