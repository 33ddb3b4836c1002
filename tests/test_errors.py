"""The words that help a user on; the doors are tested in tests/e2e."""

import subprocess
import sys

import pytest

from simclr_jax import entry, errors


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
    assert entry.recipe_path() == path


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["--duplicates"],
            "--duplicates needs a value: --duplicates=NUMBER, a finite number, ",
        ),
        (["--out", "--k=3"], "--out needs a value: --out=PATH, a path; what follows it is --k"),
        (
            ["--query", "--debug"],
            "--query needs a value: --query=PATH, a path; what follows ",
        ),
        (["-out", "-k=3"], "--out needs a value: --out=PATH, a path; what follows it is --k"),
        (["--out", "--k", "3"], "--out needs a value: --out=PATH, a path; what follows it is --k"),
        (["--out", "--nodebug"], "--out needs a value: --out=PATH, a path; what follows it is --"),
        (["--flagfile=FILE"], "--out needs a value: --out=PATH, a path; what follows it is --k"),
        (["--query", "--x.jpg"], "--embeddings=x.npz is no file here"),  # and --x.jpg no flag
        (["--verbosity"], "--verbosity needs a value: --verbosity=NUMBER"),
        (["--seed", "--k", "3"], "--seed needs a value: --seed=NUMBER, a whole number"),
    ],
)
def test_a_flag_without_a_value_is_said_with_what_it_takes(arguments, said, tmp_path):
    (tmp_path / "FILE").write_text("--out\n--k=3\n")
    arguments = [argument.replace("FILE", str(tmp_path / "FILE")) for argument in arguments]
    command = [sys.executable, "-m", "simclr_jax.search", "--embeddings=x.npz", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and not ended.stdout
    lines = ended.stderr.splitlines()
    assert lines[0].startswith(f"error: {said}") and len(lines) == 1


def test_a_field_without_a_value_is_said_with_where_its_values_are():
    command = [sys.executable, "-m", "simclr_jax.main", "--config=digits", "--config.seed"]
    for rest in ([], ["--workdir=x"], ["--config.train.steps=2"]):
        ended = subprocess.run([*command, *rest], capture_output=True, text=True)
        said = "error: --config.seed needs a value: --config.seed=VALUE, and `simclr fields` lists"
        assert ended.returncode == 1 and ended.stderr.startswith(said), ended
        assert ended.stderr.count("\n") == 1
