"""Find images that look alike among those embedded by `python -m simclr_jax.embed`.

    python -m simclr_jax.search --embeddings=photos.npz
    python -m simclr_jax.search --embeddings=photos.npz --query=dog.jpg,cats/7.jpg --k=20
    python -m simclr_jax.search --embeddings=photos.npz --duplicates=0.99

Without --query it takes some images spread over the set. Similarity is the cosine.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, errors, flag_kinds

FLAGS = flags.FLAGS
flags.DEFINE(
    flag_kinds.Path(), "embeddings", None, "What embed has written: NAME.npz or NAME.parquet."
)
flags.DEFINE_multi(
    flag_kinds.Path(),
    flags.ArgumentSerializer(),
    "query",
    [],
    "Images, with commas: files, or names in the embeddings.",
)
flags.DEFINE(flag_kinds.Whole(1), "k", None, "Nearest images of each query, 12 by default.")
flags.DEFINE(
    flag_kinds.Number(above=0, most=1),
    "duplicates",
    None,
    "List all pairs of at least this similarity instead.",
)
flags.DEFINE(
    flag_kinds.Path(),
    "out",
    None,
    "The sheet to write, NAME.html; by default beside the embeddings.",
)
flags.DEFINE(
    flag_kinds.Path(),
    "images",
    "",
    "Where the images are: a directory, or what embed --data takes. Needed if they were moved, or "
    "the embeddings are another user's.",
)
flags.DEFINE(
    flag_kinds.Path(),
    "checkpoint",
    "",
    "The run that encodes other queries; likewise only where it is not known.",
)
flags.DEFINE(flag_kinds.Whole(), "seed", 0, "Of the choice of images without --query.")
flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """Search one file of embeddings."""
    if not FLAGS.embeddings:
        raise errors.UserError("--embeddings is missing (see --help)")
    # Imported late: --help and mistakes in flags answer without waiting for JAX.
    from simclr_jax import parallel
    from simclr_jax.embedding import search

    parallel.use_compilation_cache()
    search.run(
        search.Options(
            embeddings=FLAGS.embeddings,
            query=FLAGS.query,
            k=FLAGS.k,
            duplicates=FLAGS.duplicates,
            out=FLAGS.out,
            images=FLAGS.images,
            checkpoint=FLAGS.checkpoint,
            seed=FLAGS.seed,
        )
    )


if __name__ == "__main__":
    entry.run(main)
