"""The one way to tell a user what to change, and the shell that prints it.

`UserError` is for what a user can get wrong: it ends the program in one line on stderr with exit
code 1. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

from absl import app, flags, logging


class UserError(Exception):
    """Something the user can put right: the message names the thing, the value and the remedy."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `' (did you mean "x"?)'` for the choice most like `name`, or `''`."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f' (did you mean "{match[0]}"?)' if match else ""


def choose(what: str, value: object, choices: Iterable) -> None:
    """Raise `UserError` listing `choices` unless `value` is one of them."""
    names = [str(choice) for choice in choices]
    if str(value) not in names:
        hint = nearest(str(value), names)
        raise UserError(f'{what} is "{value}"{hint}: choose one of {", ".join(names)}')


def run(main: Callable[[], int | None]) -> None:
    """Run a door: parse flags, call `main`, exit with its code; a user's mistake is one line.

    Flags and recipes are read while flags are parsed, so their mistakes (a misspelt field, a wrong
    type, a missing file) surface there, as whatever absl and ml_collections raise.
    """
    debug = "--debug" in sys.argv or "--debug=true" in sys.argv

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            _load_recipe()
        except Exception as error:
            if debug:
                raise
            _exit(_explain(error))
        if len(rest) > 1:
            _exit(f'"{rest[1]}" is no flag: every argument has the form --name=value')
        return rest

    def guarded(_: list[str]) -> int | None:
        if not any(argument.startswith(("--verbosity", "-v")) for argument in sys.argv):
            logging.set_verbosity(logging.WARNING)  # libraries have much to say about their inside
        try:
            return main()
        except UserError as error:
            if debug:
                raise
            _exit(str(error))

    app.run(guarded, flags_parser=parse)


def _load_recipe() -> None:
    """Open the recipe now: ml_collections defers a missing file until the first use of a field."""
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        _ = flags.FLAGS.config.seed


def _explain(error: Exception) -> str:
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split()).strip("\"'")
    recipe = next((arg.partition("=")[2] for arg in sys.argv if arg.startswith("--config=")), "")
    path = recipe.partition(":")[0]
    if isinstance(error, flags.Error):
        return f"{text} (see --help)" if isinstance(error, flags.UnrecognizedFlagError) else text
    if isinstance(error, FileNotFoundError):
        return f'recipe "{path}" does not exist: --config takes a Python file such as {EXAMPLE}'
    if "get_config" in text:
        return f'recipe "{path}" has no get_config(): see {EXAMPLE} for the shape of a recipe'
    if "Did you mean" in text or isinstance(error, KeyError | AttributeError):
        return f"no such field in recipe {path}: {text}"
    return f'recipe "{path}" raised {type(error).__name__}: {text} (--debug shows where)'


EXAMPLE = "configs/digits.py"


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
