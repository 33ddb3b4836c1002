"""The command `simclr`: one table of doors, help that fits a terminal, completion that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from simclr_jax import command, completion, entry, shipped

NO_JAX = "sys.modules['jax'] = None"  # to import it is an error then


def call(capsys, monkeypatch, *arguments):
    """Return exit code, output and errors of `simclr ARGUMENTS`, as far as no door is started."""
    monkeypatch.setattr("sys.argv", ["simclr", *arguments])
    code = command.main()
    said = capsys.readouterr()
    return code, said.out, said.err


def fresh(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_door(capsys, monkeypatch, arguments):
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 0 and not err and max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert {words[0] for words in lines} >= {*command.DOORS, "completion"}
    assert "python -m" not in out


# Doors have flags of the same names, so no process may import all; this one forgets them.
ALL_HELP = """
import contextlib, io, json, sys
from simclr_jax import command, usage
sys.modules["jax"] = None
found = {}
for name in command.DOORS:
    said = []
    for arguments in ([name, "--help"], [name, "-h", "--x"], ["help", name]):
        sys.argv[:] = ["simclr", *arguments]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert command.main() == 0
        said.append(out.getvalue())
    flags = usage.of(command.load(name))
    found[name] = [said, {flag.name: flag.help for flag in flags}]
    usage.forget(flags)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps():
    done = fresh("-c", ALL_HELP)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", command.DOORS)
def test_help_of_a_door_has_its_flags_and_commands(helps, name):
    (out, *same), flags = helps[name]
    assert same == [out, out] and max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for flag, meaning in flags.items():
        assert f"--{flag}=" in out or f"--[no]{flag} " in out
        assert " ".join(meaning.partition(";")[0].split()) in words
    assert f"usage: simclr {name} " in out and f"    simclr {name}" in out
    assert ("It may be repeated." in words) == (name == "search")  # in our words, not absl's
    assert "repeat this option" not in words
    assert "python -m simclr_jax" not in out and "helpfull" not in out


@pytest.mark.parametrize("name", ["main", "list_fields"])
def test_modules_give_the_same_help_by_their_own_names(name):
    """Before JAX is imported, and with exit code 0 as every program."""
    run = f"runpy.run_module('simclr_jax.{name}', run_name='__main__', alter_sys=True)"
    done = fresh("-c", f"import runpy, sys; {NO_JAX}; sys.argv[:] = ['x', '--help']; {run}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "--debug" in done.stdout.replace("[no]", "") and "usage: " in done.stdout


def test_the_module_is_named_as_it_was_called():
    done = fresh("-m", "simclr_jax.report", "--help")
    assert done.stdout.startswith("usage: python -m simclr_jax.report ")
    assert "    python -m simclr_jax.report --checkpoint=runs/digits\n" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], ['"trian" is no command', '(did you mean "train"?)', "probe"]),
        (["linear_probe"], ['"linear_probe"', "probe"]),
        (["completion", "fish"], ['"fish" is no shell', "bash, zsh"]),
    ],
)
def test_what_is_no_command_ends_in_one_line(capsys, monkeypatch, arguments, words):
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 1 and not out and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_door_is_started_with_what_follows_its_name():
    done = fresh("-m", "simclr_jax", "report", "--checkpont=x")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "checkpont" in done.stderr and "checkpoint" in done.stderr
    done = fresh("-m", "simclr_jax", "train")
    assert done.returncode == 1 and "no recipe" in done.stderr


def test_flags_are_parsed_before_jax_is_imported():
    given = "['simclr', 'train', '--config=digits', '--config.seed=x']"
    run = f"sys.argv[:] = {given}; from simclr_jax import command; command.main()"
    done = fresh("-c", f"import sys; {NO_JAX}; {run}")
    assert done.returncode == 1 and "whole number" in done.stderr, done.stderr


def test_versions_are_those_installed(capsys, monkeypatch):
    _, out, _ = call(capsys, monkeypatch, "--version")
    assert f"JAX {metadata.version('jax')}, Python {sys.version.split()[0]}" in out


# Completion ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for bash; written in a process of its own, whose flags are forgotten there."""
    done = fresh("-m", "simclr_jax", "completion", "bash")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("completion") / "simclr"
    path.write_text(done.stdout)
    return path


def completed(script, *words, cwd):
    """Return what bash offers for the last of some words."""
    program = f'source "{script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _simclr'
    program += '; printf "%s\\n" "${COMPREPLY[@]}"'
    found = subprocess.run(
        ["bash", "-c", program, "bash", *words], cwd=cwd, capture_output=True, text=True, check=True
    )
    assert not found.stderr, found.stderr
    return [line for line in found.stdout.split("\n") if line]


# Bash breaks words at "=", zsh does not.
CASES = {
    "commands": (["simclr", "tra"], ["train", "transfer"]),
    "one command": (["simclr", "probe"], ["probe "]),
    "flags": (["simclr", "report", "--o"], ["--out="]),
    "a switch": (["simclr", "report", "--noh"], []),
    "recipes": (["simclr", "train", "--config", "=", "imagenet_"], ["imagenet_v2"]),
    "recipes of zsh": (["simclr", "train", "--config=imagenet_"], ["--config=imagenet_v2"]),
    "files": (["simclr", "train", "--config", "=", "mine"], ["mine.py"]),
    "files of another flag": (["simclr", "embed", "--out", "="], ["mine.py"]),
    "files of zsh": (["simclr", "embed", "--out=m"], ["--out=mine.py"]),
    "shells": (["simclr", "completion", "z"], ["zsh "]),
}


@pytest.mark.parametrize("words, offered", CASES.values(), ids=CASES)
def test_bash_completes(script, tmp_path, words, offered):
    (tmp_path / "mine.py").write_text("")
    assert completed(script, *words, cwd=tmp_path) == offered


def test_every_door_completes_its_own_flags(script, tmp_path):
    for name, module in command.DOORS.items():
        offered = completed(script, "simclr", name, "--", cwd=tmp_path)
        assert "--help" in offered and ("--checkpoint=" in offered) == (
            module in ("linear_probe", "transfer", "embed", "search", "report", "export")
        )


def test_zsh_gets_the_same_function():
    flags = {"train": ["--config=RECIPE"]}
    bash, zsh = (completion.script(shell, flags, ["a"]) for shell in completion.SHELLS)
    assert zsh.endswith(bash) and "bashcompinit" in zsh.splitlines()[0]


# Recipes ------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ["digits", "digits.py", "configs/digits.py"])
@pytest.mark.parametrize("argument", ["", ":a=1,b"])
def test_a_name_is_a_recipe_that_comes_along(elsewhere, given, argument):
    found = shipped.find(given + argument)
    assert found == f"{shipped.home() / 'digits.py'}{argument}"


def test_a_file_comes_before_a_name(elsewhere):
    (elsewhere / "digits.py").write_text("")
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "byol.py").write_text("")
    (elsewhere / "moco").mkdir()
    assert shipped.find("digits.py:x") == "digits.py:x"
    assert shipped.find("configs/byol.py") == "configs/byol.py"
    assert shipped.find("moco") == str(shipped.home() / "moco.py"), "a directory is no recipe"
    for nothing in ("", "nothing", "./digits", "other/digits.py", "gs://bucket/digits.py", ":x"):
        assert shipped.find(nothing) == nothing


@pytest.mark.parametrize("given", [["--config=digits"], ["--config", "digits"], ["-config=digits"]])
def test_the_shell_of_doors_puts_the_file_in_place(elsewhere, given):
    assert entry._with_recipe(["x", *given, "--seed=1"])[1:-1] == [
        part.replace("digits", str(shipped.home() / "digits.py")) for part in given
    ]


def test_recipes_are_listed_with_what_they_are():
    out = fresh("-m", "simclr_jax", "recipes").stdout
    assert {line.split()[0] for line in out.splitlines() if line[:1].strip()} >= {*shipped.names()}
    assert f"in {shipped.home()}" in out and "Handwritten digits" in out


def test_output_into_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "simclr_jax"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert not done.stderr
