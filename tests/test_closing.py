"""What closes never replaces the error under way: the mechanism, and that the package uses it."""

import ast
import errno
import os
from pathlib import Path

import pytest
from etils import epath

import simclr_jax
from simclr_jax import buckets, errors, files
from simclr_jax.closing import Closing, close
from simclr_jax.errors import UserError

PACKAGE = Path(simclr_jax.__file__).parent

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS)
FAILURES = [OSError(n, os.strerror(n)) for n in NUMBERS] + [KeyboardInterrupt(), RuntimeError("x")]


def failing(failure, done, name):
    def step():
        done.append(name)
        if failure is not None:
            raise failure

    return step


@pytest.mark.parametrize("under_way", [UserError("first"), KeyboardInterrupt("first")], ids=repr)
@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_the_error_under_way_stays_and_all_steps_are_done(failure, under_way):
    done = []
    with pytest.raises(type(under_way), match="first") as caught, Closing() as closing:
        for name in "abc":
            closing.step(failing(failure if name != "b" else None, done, name))
        raise under_way
    assert caught.value is under_way and done == ["c", "b", "a"]
    assert sum(type(failure).__name__ in note for note in under_way.__notes__) == 2
    under_way.__notes__.clear()


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_without_one_the_first_to_fail_is_raised_once_all_are_done(failure):
    done = []
    with pytest.raises(type(failure)) as caught:
        steps = [failing(None, done, "a"), failing(failure, done, "b")]
        close(None, *steps, failing(OSError(errno.EIO, "later"), done, "c"))
    assert caught.value is failure and done == ["a", "b", "c"]
    assert "later" in failure.__notes__[0]
    failure.__notes__.clear()


def test_a_generator_that_is_closed_hides_nothing():
    def numbers():
        with Closing(failing(OSError(errno.EIO, "of the disk"), [], "a")):
            yield 1

    stream = numbers()
    next(stream)
    with pytest.raises(OSError, match="of the disk"):
        stream.close()


def test_managers_are_left_as_with_leaves_them():
    seen = []

    class Manager:
        def __enter__(self):
            return "given"

        def __exit__(self, kind, error, trace):
            seen.append((kind, error, trace is not None))
            raise OSError(errno.EIO, "in __exit__")

    wrong = UserError("first")
    with pytest.raises(UserError, match="first"), Closing() as closing:
        assert closing.enter(Manager()) == "given"
        raise wrong
    assert seen == [(UserError, wrong, True)] and "in __exit__" in wrong.__notes__[0]
    with pytest.raises(OSError, match="in __exit__"), Closing() as closing:
        closing.enter(Manager())
    assert seen[1] == (None, None, False)


@pytest.mark.parametrize(
    "writing", [files.write_atomically, files.create], ids=lambda f: f.__name__
)
def test_a_file_that_can_neither_be_written_nor_removed(writing, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_only(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    monkeypatch.setattr(os, "unlink", read_only)
    monkeypatch.setattr(os, "remove", read_only)
    monkeypatch.setattr(os, "fsync", full)
    content = "x" if writing is files.write_atomically else "\ud800"  # which cannot be encoded
    kind, words = (UserError, "No space left") if content == "x" else (UnicodeError, "surrogates")
    with pytest.raises(kind, match=words) as caught:
        writing(epath.Path(tmp_path / "a"), content)
    said = caught.value.__cause__ if content == "x" else caught.value
    assert "Read-only file system" in said.__notes__[0]


# The package


def _bodies(source):
    """Yield what is done at an end: the code of each `finally` and of each `__exit__`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try) and node.finalbody:
            yield "finally", node.finalbody
        if isinstance(node, ast.FunctionDef) and node.name in ("__exit__", "__del__"):
            yield node.name, node.body


def loose(source):
    """Return what in a module closes by other means than `simclr_jax.closing`."""
    for way in ("ExitStack", "contextlib.closing", "atexit"):
        if way in source:
            yield way
    for kind, body in _bodies(source):
        text = "\n".join(ast.unparse(line) for line in body)
        if kind == "finally" or "closing.close(error" not in text:
            yield f"{kind}: {text}"


def test_all_that_closes_in_the_package_goes_through_it():
    found = {
        os.fspath(path.relative_to(PACKAGE)): [*loose(path.read_text())]
        for path in PACKAGE.rglob("*.py")
        if path.name != "closing.py"
    }
    assert {name: ways for name, ways in found.items() if ways} == {}
    assert [*loose("try:\n  a()\nfinally:\n  b()")] == ["finally: b()"]


# What the system refuses is a line, wherever it does


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "", "/a/b"), "/a/b: No space left on device: free space there"),
        (OSError(errno.EMFILE, "", "/a/b"), "/a/b: Too many open files: .*ulimit -n"),
        (OSError(errno.EROFS, "", b"/a/b"), "/a/b: Read-only file system: "),
        (OSError(errno.EIO, "", "/a\nb"), "/a b: Input/output error: check that disk"),
        (FileNotFoundError(errno.ENOENT, "", "/a/b"), "/a/b: No such file .* is there"),
        (OSError(errno.ENOSPC, ""), "a file: No space left"),
        (BrokenPipeError(errno.EPIPE, ""), "Broken pipe"),
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory .*3 TiB"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
    ids=repr,
)
def test_what_the_system_refuses_is_one_line(error, words):
    said = str(errors.of_the_system(error))
    assert "\n" not in said and "--debug" in said
    with pytest.raises(UserError, match=words):
        raise errors.of_the_system(error)


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("no number"), RuntimeError("x")], ids=repr
)
def test_what_a_program_does_wrong_keeps_its_traceback(error):
    assert errors.of_the_system(error) is None


@pytest.mark.parametrize("number", sorted(errors.OF_THE_PROGRAM))
def test_what_is_wrong_with_the_program_is_not_laid_to_a_file(number):
    error = OSError(number, os.strerror(number))
    said = errors.unreadable("a.json", error)
    with pytest.raises(UserError) as reached, buckets.reaching("a.json"):
        raise error
    for line in (str(said), str(reached.value)):
        assert errors.REMEDIES[number] in line and "remove" not in line and "mount" not in line
    assert said.code == reached.value.code == 1
