"""A run belongs to its recipe, also when recipes have gained fields since."""

import json
import resource

import pytest

from simclr_jax import recipes, records
from simclr_jax.errors import UserError
from simclr_jax.train.workdir import check_recipe, open_workdir


@pytest.fixture
def older(tmp_path):
    """Return a run's directory written before the group `memory` and a field of `optim` were."""
    record = recipes.base().to_dict() | {"images": ["some", "others"]}
    del record["memory"], record["optim"]["adapt_classifier"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    return tmp_path


def now(**changed):
    c = recipes.base()
    c.update_from_flattened_dict({name.replace("__", "."): v for name, v in changed.items()})
    return c.to_dict() | {"images": ["some", "others"]}


def test_an_older_run_continues_with_the_defaults_of_new_fields(older):
    check_recipe(older, now(), "auto", fresh=False)


@pytest.mark.parametrize(
    "field, words",
    [
        ("memory__size", r"memory.size: 0 -> 8"),
        ("seed", r"seed: 0 -> 8"),
    ],
)
def test_but_not_with_other_values(older, field, words):
    with pytest.raises(UserError, match=words):
        check_recipe(older, now(**{field: 8}), "auto", fresh=False)


@pytest.mark.parametrize("sync, groups", [(True, 1), (False, 0)])
def test_a_run_from_before_groups_of_normalisation_continues(tmp_path, sync, groups):
    """`bn` as such runs wrote it: over all devices, or each by its own rows."""
    record = now()
    record["bn"] = {"momentum": 0.9, "epsilon": 1e-5, "sync": sync, "unbiased_moving": False}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert records.recipe(record).bn.to_dict() == now(bn__groups=groups)["bn"]
    check_recipe(tmp_path, now(bn__groups=groups), "auto", fresh=False)
    with pytest.raises(UserError, match=f"bn.groups: {groups} -> 8"):
        check_recipe(tmp_path, now(bn__groups=8), "auto", fresh=False)


def test_nor_with_other_images(older):
    with pytest.raises(UserError, match="images: "):
        check_recipe(older, now() | {"images": ["others"]}, "auto", fresh=False)


def test_a_start_on_a_full_disk_is_one_line_and_leaves_no_lock(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with (
            pytest.raises(UserError, match=f"{tmp_path} cannot be written"),
            open_workdir(str(tmp_path), now(), "auto", keep=1, keep_period=None),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
