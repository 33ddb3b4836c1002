"""Recipes of every kind, small enough that a run takes seconds; the images come by --config."""

from ml_collections import ConfigDict

from simclr_jax import recipes

STEPS = 12


def get_config(kind="pretrain"):
    """Return a recipe: pretrain, negatives, byol, moco, finetune, folder or pipeline."""
    if kind == "pipeline":
        return _pipeline().lock()
    c = recipes.base(kind if kind in ("byol", "moco") else "simclr")
    _shrink(c)
    if kind == "negatives":
        c.memory.size = 64
    elif kind == "byol":
        c.head.hidden, c.head.dim, c.byol.hidden = 16, 8, 16
        c.model.input = "rgb"  # the images have one channel
    elif kind == "moco":
        c.moco.queue, c.model.input = 40, "rgb"
    elif kind == "finetune":
        c.stage = "finetune"
        c.eval.probe = c.eval.knn = False
        recipes.crop_and_flip(c)
    elif kind == "folder":
        c.data.source, c.augment.placement, c.augment.grid = "folder", "split", "opencv"
    return c.lock()


def _shrink(c):
    c.data.source, c.data.image_size = "memory", 8
    for view in c.augment.views.values():
        view.area_min, view.blur = 0.3, 0.0
    c.model.depth, c.model.width, c.model.stem = 10, 0.0625, "cifar"
    if c.head.kind != "none":
        c.head.layers, c.head.dim = 2, 8
    c.optim.base_lr, c.optim.warmup_epochs = 0.1, 0.5
    c.train.batch_size, c.train.steps = 16, STEPS
    c.eval.every_epochs, c.eval.knn_k, c.eval.few_labels = 1.0, 3, 2
    c.log.every_steps, c.checkpoint.every_steps, c.checkpoint.keep = 1, 4, 2


def _pipeline():
    first, second, student = (recipes.base() for _ in range(3))
    for c, stage in ((first, "finetune"), (second, "finetune"), (student, "distill")):
        c.stage = stage
        _shrink(c)
        recipes.crop_and_flip(c)
        c.eval.probe = c.eval.knn = False
        c.train.steps = 6
    first.labels.use = second.labels.use = "50%"
    second.init.run = student.init.run = "first"
    student.distill.teacher = "second"
    for c in (second, student):
        recipes.inherit_all(c)
    runs = {"first": first, "second": second, "student": student}
    c = ConfigDict({"stage": "pipeline", "seed": 0, "runs": runs, "order": tuple(runs)})
    for run in c.runs.values():
        run.seed = c.get_oneway_ref("seed")
    c.probes = {"seen": {"run": "first", "tap": "h", "labels": "25%", "seed": 1}}
    c.table = (
        ("tuned", "50%", "second"),
        ("distilled", "50%", "student"),
        ("probe", "50%", "seen"),
    )
    c.differences = (("tuned", "distilled"),)
    return c
