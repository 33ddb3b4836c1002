"""The recipes that come with the package: where they lie, and which one a name means.

They are `configs/` of the repository and nothing else: beside the package in a clone, inside it in
an environment that was installed from a wheel (`setup.py`). Whatever takes a recipe takes a file,
or one of these by its name: `digits`, `digits.py` and `configs/digits.py` are the same.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "configs"
PACKAGE = Path(__file__).parent


def home() -> Path:
    """Return the directory of the recipes."""
    inside = PACKAGE / FOLDER
    return inside if inside.is_dir() else PACKAGE.parent / FOLDER


def names() -> list[str]:
    """Return what the recipes are called."""
    return sorted(path.stem for path in home().glob("*.py"))


def name_of(path: str) -> str:
    """Return the name that a recipe would have by its path, whether there is one or not."""
    return path.removeprefix(f"{FOLDER}/").removesuffix(".py")


def find(recipe: str) -> str:
    """Return a recipe with its file in the place of its name: `imagenet:width=2`.

    A file is what it is. What is neither stays as it is, for whoever opens it.
    """
    path, colon, argument = recipe.partition(":")
    if not Path(path).is_file() and (name := name_of(path)) in names():
        path = str(home() / f"{name}.py")
    return f"{path}{colon}{argument}"
