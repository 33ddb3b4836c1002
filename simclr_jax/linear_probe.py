r"""Judge a pretrained encoder on labelled images, its weights frozen.

    python -m simclr_jax.linear_probe --checkpoint=runs/digits
    python -m simclr_jax.linear_probe --checkpoint=runs/a,runs/b --solver=lbfgs,sgd,knn --tap=h,z
    python -m simclr_jax.linear_probe --checkpoint=runs/a --data=photos --labels=10% --untrained

    python -m simclr_jax.linear_probe --checkpoint=runs/a,runs/b --solver=lbfgs,mlp --grid \
        --tap=map1,map2,map3,map4,h

Solvers: lbfgs (logistic regression, its penalty chosen on validation images), sgd (the papers'
protocol), mlp (two hidden layers, as RotNet's), knn; classifier (the one in the checkpoint); kmeans
(NMI, ARI) and retrieval (recall@k). --grid prints a table of runs by taps for each of them.
Features are computed once and kept in RUN/features; results go to RUN/results.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(flag_kinds.Paths(), "checkpoint", [], "Workdirs of runs, or WORKDIR@STEP.")
flags.DEFINE(
    flag_kinds.Path(), "data", "", "DIRECTORY, FILE.npz, tfds:NAME or digits; the run's by default."
)
flags.DEFINE(flag_kinds.Path(), "data_dir", "", "Where TFDS keeps its data sets.")
flags.DEFINE_string("split", "", "To learn from; the run's by default, or train.")
flags.DEFINE_string("eval_split", "", "To be scored on; the run's by default, or test.")
flags.DEFINE_string("validation_split", "", "To choose settings on; validation, if there is one.")
flags.DEFINE_list(
    "solver", ["lbfgs", "knn"], "lbfgs, sgd, mlp, knn, classifier, kmeans, retrieval."
)
flags.DEFINE_list(
    "tap",
    ["h"],
    "h, head1..headL, z; of the block groups means, group1..group4, or maps, map1..map4, pooled to "
    "about 9000 numbers (map3_2000: 2000); pixels.",
)
flags.DEFINE(
    flag_kinds.Path(), "labels", "all", "all, 10%, 25 (for each class), or a file of image names."
)
flags.DEFINE_list("knn", ["200:0.1", "20"], "k:temperature, or k for a vote each.")
flags.DEFINE_list("sgd_rates", ["0.01", "0.03", "0.1", "0.3", "1", "3"], "For 256 images.")
flags.DEFINE(flag_kinds.Number(above=0), "sgd_epochs", None, "100; 90 from 100 000 images on.")
flags.DEFINE(flag_kinds.Whole(1), "sgd_batch_size", None, "512; 4096 from 100 000 images on.")
flags.DEFINE_boolean("sgd_augment", False, "New crops and flips in each epoch, as the papers.")
flags.DEFINE_list("mlp_rates", ["0.01", "0.1"], "Of the mlp's batches of 128.")
flags.DEFINE_list("mlp_decays", ["0.0005", "0.005"], "Of all its parameters.")
flags.DEFINE(flag_kinds.Number(above=0), "mlp_epochs", 50.0, "Of each of its trainings.")
flags.DEFINE(flag_kinds.Whole(1), "mlp_units", None, "Of its hidden layers; 20 for each class.")
flags.DEFINE_boolean("grid", False, "Print runs by taps, a table for each way to judge.")
flags.DEFINE_string(
    "weights", "trained", "trained, or average: their moving average, where the run keeps one."
)
flags.DEFINE_boolean("untrained", False, "Judge the same network before training as well.")
flags.DEFINE(
    flag_kinds.Whole(0, 2**32 - 1), "seed", 0, "Of drawn labels, splits, orders and intervals."
)
flags.DEFINE(
    flag_kinds.Path(),
    "cache",
    "",
    "Where features are kept; RUN/features by default, none: nowhere.",
)
flags.DEFINE_string("name", "", "What results begin with; a word for --data by default.")
flags.DEFINE(
    flag_kinds.Number(least=0, most=1),
    "max_bad_fraction",
    None,
    "Of unreadable images; the recipe's by default.",
)
flags.DEFINE_boolean("seen", False, "Score also images that may have been trained on.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Judge one checkpoint or several."""
    if not FLAGS.checkpoint:
        raise errors.UserError("--checkpoint is missing: give the workdir of a run")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.judging import linear_probe
    from simclr_jax.judging.datasets import Wanted
    from simclr_jax.judging.settings import Settings

    parallel.use_compilation_cache()
    settings = Settings(
        knn=tuple(map(linear_probe.neighbours, FLAGS.knn)),
        rates=tuple(errors.number("--sgd_rates", rate) for rate in FLAGS.sgd_rates),
        epochs=FLAGS.sgd_epochs,
        batch_size=FLAGS.sgd_batch_size,
        augment=FLAGS.sgd_augment,
        mlp_rates=tuple(errors.number("--mlp_rates", rate) for rate in FLAGS.mlp_rates),
        mlp_decays=tuple(errors.number("--mlp_decays", decay) for decay in FLAGS.mlp_decays),
        mlp_epochs=FLAGS.mlp_epochs,
        mlp_units=FLAGS.mlp_units,
        seed=FLAGS.seed,
    )
    options = linear_probe.Options(
        solvers=tuple(FLAGS.solver),
        taps=tuple(FLAGS.tap),
        labels=FLAGS.labels,
        settings=settings,
        untrained=FLAGS.untrained,
        weights=FLAGS.weights,
        cache=FLAGS.cache,
        name=FLAGS.name,
        max_bad_fraction=FLAGS.max_bad_fraction,
        grid=FLAGS.grid,
    )
    wanted = Wanted(
        FLAGS.data,
        FLAGS.data_dir,
        FLAGS.split,
        FLAGS.eval_split,
        FLAGS.validation_split,
        FLAGS.seen,
    )
    linear_probe.run(FLAGS.checkpoint, wanted, options)


if __name__ == "__main__":
    entry.run(main)
