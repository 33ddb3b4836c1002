"""Where a run is shown beside `metrics.jsonl`: TensorBoard and services, by the field `log.to`.

`metrics.jsonl` is what a run has written; these are copies of it for people to look at. Only the
first process has any. What a service was told stands in `loggers.json`, by the step and how many
lines of it, and is written before it is told: a run that was killed and goes on from an earlier
checkpoint passes lines again, and none is told twice. A line that was under way when the run was
killed may be missing there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from simclr_jax import buckets, closing, documents, extras, fields, records
from simclr_jax.errors import BadFile, Unreachable, UserError
from simclr_jax.train import services
from simclr_jax.train.board import Board
from simclr_jax.train.services import FAILED, FINISHED, STOPPED, Beginning, Logger

NAME = "loggers.json"
TENSORBOARD = "tensorboard"


class Told(TypedDict):
    """What a service knows: its name for the run, the last step, and how many lines of that."""

    known_as: str
    step: int
    lines: int


def check(to: str) -> None:
    """Raise `UserError` if a logger of `log.to` is not installed."""
    for name in fields.loggers(to):
        if name == TENSORBOARD:
            continue
        package, extra = services.SERVICES[name][:2]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.to names {name}, but the package {package} is not installed: "
                f"{extras.install(extra)}, or leave it out of log.to"
            )


class Loggers:
    """All loggers of a run; none until `begin`, as in processes that write nothing.

    Args:
      workdir: of the run.
      say: receives a line for the user.
    """

    def __init__(self, workdir: epath.Path, say: Callable[[str], None] = print):
        self._workdir, self._say = workdir, say
        self._open: dict[str, Logger] = {}
        self._told: dict[str, Told] = {}
        self._for_board: list[Callable[[Board], None]] = []
        self._status = STOPPED
        self.tensorboard = True

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        status = FAILED if error else self._status
        opened, self._open = self._open, {}
        closing.close(
            error,
            *(
                functools.partial(self._close, name, logger, status)
                for name, logger in opened.items()
            ),
        )

    def begin(self, record: Mapping[str, Any], fresh: bool) -> None:
        """Open those that a recipe names.

        Args:
          record: the recipe, and what else is kept of a run.
          fresh: whether the run begins; else services go on with what they have of it.

        Raises:
          UserError: if one cannot be reached or refuses.
        """
        log = record.get("log", {})
        names = fields.loggers(log.get("to", TENSORBOARD))
        self.tensorboard = TENSORBOARD in names
        self._told = {} if fresh else self._known()
        settings = dict(_flat(records.recipe(record).to_dict())) if names else {}
        if fresh and self.tensorboard:
            self._for_board.append(lambda board: board.settings(settings))
        for name in names:
            if name == TENSORBOARD:
                continue
            known_as = self._told[name]["known_as"] if name in self._told else None
            called = self._workdir.name
            with _reaching(name, UserError):
                run = Beginning(log["project"], called, settings, self._workdir, known_as)
                self._open[name] = services.SERVICES[name].begin(run)
            if known_as is None:
                self._told[name] = {"known_as": self._open[name].known_as, "step": -1, "lines": 0}
        if self._told:
            self._keep()

    def attach(self, board: Board) -> None:
        """Tell TensorBoard what was to be told before it was there."""
        for tell in self._for_board:
            tell(board)
        self._for_board = []

    def write(self, step: int, values: Mapping[str, Any], nth: int) -> None:
        """Show a line of `metrics.jsonl`, the `nth` of its step, from 1."""
        news = [
            name
            for name in self._open
            if (step, nth) > (self._told[name]["step"], self._told[name]["lines"])
        ]
        for name in news:
            self._told[name] |= {"step": step, "lines": nth}
        if news:
            self._keep()
        for name in news:
            with _reaching(name):
                self._open[name].write(step, finite(values))

    def picture(self, name: str, png: bytes) -> None:
        """Show a picture of the beginning of a run."""
        if self.tensorboard:
            self._for_board.append(lambda board: board.picture(name, png))
        for service, logger in self._open.items():
            with _reaching(service):
                logger.picture(name, png)

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Show a table of the end of a run, when its metrics are written."""
        for service, logger in self._open.items():
            with _reaching(service):
                logger.table(name, step, header, rows)
        if self.tensorboard:
            events = buckets.Mirror(self._workdir / TENSORBOARD)
            board = Board(events.local, step)
            board.table(name, step, header, rows)
            closing.close(None, board.close, events.close)

    def finish(self) -> None:
        """Know that the run is complete."""
        self._status = FINISHED

    def _close(self, name: str, logger: Logger, status: str) -> None:
        with _reaching(name):
            logger.close(status)

    def _known(self) -> dict[str, Told]:
        """Return what services were told when the run was last here."""
        try:
            return documents.read(
                self._workdir / NAME, dict[str, Told], "services get a new run each"
            )
        except FileNotFoundError:
            return {}
        except BadFile as error:
            self._say(str(error))
            return {}

    def _keep(self) -> None:
        documents.write(self._workdir / NAME, self._told)


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line that can be drawn."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _flat(groups: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a recipe by their dotted names."""
    for name, value in groups.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float) else str(value)


@contextlib.contextmanager
def _reaching(name: str, kind: type[UserError] = Unreachable) -> Iterator[None]:
    """Raise an error of a kind for what a service, or the way to it, is at fault for."""
    try:
        yield
    except UserError:
        raise
    except services.SERVICES[name].raises() as error:
        said = " ".join(str(error).split())[:600] or type(error).__name__
        raise kind(
            f"log.to names {name}, which fails: {said}; metrics.jsonl has all numbers; give the "
            "same command again, or leave it out of --config.log.to"
        ) from error
