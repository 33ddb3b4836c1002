"""Which candidate is what to an anchor: told from numbers of images and labels, inside a tile.

The candidates of losses over several views are every view of every image, all first views first,
then all second ones. A mask of all pairs is as large as all similarities, so it is made for the
rows of a tile, where it is used (`tiles.by_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simclr_jax.unlabelled import NO_LABEL


def side_by_side(similarities: Sequence[jax.Array]) -> jax.Array:
    """Return the similarities of one anchor's view with all views, `[r, N]` each, `[r, v N]`."""
    return jnp.concatenate(similarities, axis=1)


def of_image(row: jax.Array, images: int, views: int) -> jax.Array:
    """Say which of the candidates are views of the anchor's image, itself among them.

    Args:
      row: int `[r]`, the places of the anchors' images among all of them.
      images: N, of which there are candidates.
      views: v, of each image.

    Returns:
      bool `[r, v N]`.
    """
    return jnp.tile(row[:, None] == jnp.arange(images), (1, views))


def itself(row: jax.Array, view: int, images: int, views: int) -> jax.Array:
    """Say likewise which candidate is the anchor itself, a `view` (from 0) of its image."""
    return row[:, None] + view * images == jnp.arange(views * images)


def labelled(labels: jax.Array, views: int) -> jax.Array:
    """Say of labels `[N]` of all images which candidates have one, bool `[v N]`."""
    return jnp.tile(labels != NO_LABEL, views)


def same_label(label: jax.Array, labels: jax.Array, views: int) -> jax.Array:
    """Say which candidates have the anchor's label; those without one have nobody's.

    Args:
      label: int `[r]`, of the anchors' images, `NO_LABEL` for none.
      labels: int `[N]`, of all images.
      views: v, of each image.

    Returns:
      bool `[r, v N]`.
    """
    same = (label[:, None] == labels) & (label[:, None] != NO_LABEL)
    return jnp.tile(same, (1, views))
