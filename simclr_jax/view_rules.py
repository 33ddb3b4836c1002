"""What the fields of views and of their placement may be together; a part of `validation.py`."""

from __future__ import annotations

from ml_collections import ConfigDict

from simclr_jax import declaration, recipes
from simclr_jax.errors import UserError

RECORDS = ("tfds", "tfrecord", "webdataset", "parquet", "packed")  # sources of data.order=stream


def check_placement(c: ConfigDict) -> None:
    """Check who makes the views, of what, and by which law.

    Raises:
      UserError: for fields that contradict one another.
    """
    placement, grid = c.augment.placement, c.augment.grid
    for name, policy in c.augment.views.items():
        if (
            policy.crop
            and c.augment.crop_law == "height"
            and policy.area_max < policy.min_object_covered
        ):
            raise UserError(
                f"augment.views.{name}.area_max is {policy.area_max}, below its "
                f"min_object_covered={policy.min_object_covered}, which no crop would reach, so "
                "that all were the whole image: set "
                f"--config.augment.views.{name}.min_object_covered={policy.area_min}"
            )
    if placement == "split" and grid != "opencv":
        raise UserError(
            f"augment.placement=split resizes by OpenCV, not by the grid {grid}: "
            "set --config.augment.grid=opencv, or --config.augment.placement=host"
        )
    if placement != "split" and grid == "opencv":
        raise UserError(
            f"augment.grid=opencv belongs to augment.placement=split, not {placement}: "
            "set --config.augment.grid=corner"
        )
    if c.data.resident and placement != "device":
        raise UserError(
            f"data.resident keeps images for augment.placement=device, not {placement}: "
            "set --config.data.resident=False"
        )
    store = ""
    if c.data.source == "folder" and placement != "device":
        store = ", or --config.data.source=packed if that directory is a packed store"
    if c.data.order == "stream" and (c.data.source not in RECORDS or placement == "device"):
        raise UserError(
            f"data.order=stream reads records of the sources {', '.join(RECORDS)} part by part, "
            f"for placement canvas, split and host, not data.source={c.data.source} for "
            f"{placement}: set --config.data.order=random{store}"
        )
    _check_canvas(c)


def _check_canvas(c: ConfigDict) -> None:
    """Check that a canvas holds whole views, and that no view is made narrower than it is used."""
    a, usual = c.augment, recipes.base().augment
    largest = max((view.size or c.data.image_size or 0 for view in a.views.values()), default=0)
    if a.placement == "canvas" and a.canvas < largest:
        raise UserError(
            f"augment.canvas is {a.canvas}, smaller than views of {largest} pixels, which would be "
            "made of images scaled down to less: set "
            f"--config.augment.canvas={-(-largest // 8) * 8} or more"
        )
    for name in ("precision", "dtype"):
        if c.train.dtype == "float64" and a[name] != usual[name]:
            raise UserError(
                f"augment.{name} is {a[name]}, but train.dtype is float64, which it would be lost "
                f"on: leave it at {usual[name]}"
            )


def check_local(c: ConfigDict) -> None:
    """Check that local crops are smaller than the views that they look for.

    Raises:
      UserError: naming the first that is not.
    """
    views = c.augment.views.items()
    sides = {name: c.data.image_size if view.size is None else view.size for name, view in views}
    local = [name for name, view in views if view.group == declaration.LOCAL]
    others = [side for name, side in sides.items() if name not in local and side is not None]
    for name in local:
        side = sides[name]
        if side is not None and others and side >= min(others):
            raise UserError(
                f"augment.views.{name}.size is {side}, but local crops are smaller than the other "
                f"views, which have {min(others)} pixels: set "
                f"--config.augment.views.{name}.size={max(1, round(3 / 7 * min(others)))}, say"
            )
