"""The words that help a user on; the doors are tested in tests/e2e."""

import pytest

from simclr_jax import errors


@pytest.mark.parametrize(
    "name, expected",
    [("adam", ' (did you mean "adamw"?)'), ("lras", ' (did you mean "lars"?)'), ("xyz", "")],
)
def test_nearest(name, expected):
    assert errors.nearest(name, ["lars", "sgd", "adamw"]) == expected


def test_choose_takes_choices_and_lists_them_for_anything_else():
    errors.choose("model.depth", 18, (18, 50))
    with pytest.raises(errors.UserError, match=r"^model.depth is \"19\".*choose one of 18, 50$"):
        errors.choose("model.depth", 19, (18, 50))


@pytest.mark.parametrize(
    "arguments, path",
    [
        (["--config=a/b.py"], "a/b.py"),
        (["--config", "a/b.py", "--debug"], "a/b.py"),
        (["-config=a.py"], "a.py"),
        (["--config=a.py:width=2"], "a.py"),
        (["--config=a.py", "--config.seed=3", "--config=b.py"], "b.py"),
        (["--config.seed=3"], ""),
        (["--config"], ""),
    ],
)
def test_recipe_path_is_the_one_that_absl_takes(monkeypatch, arguments, path):
    monkeypatch.setattr("sys.argv", ["main.py", *arguments])
    assert errors.recipe_path() == path
