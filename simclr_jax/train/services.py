"""Weights & Biases, MLflow and Trackio, each behind `loggers.Logger`.

Each is an extra, imported here when a run names it. Where a service is, who one is there, and
whether it is reached at all is said by its own environment variables (`WANDB_MODE=offline`,
`MLFLOW_TRACKING_URI`, ...): a recipe holds no secret. docs/loggers.md has them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from simclr_jax import files, tables

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
STATUS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}  # as MLflow calls them
MOST = 100  # parameters in a call of MLflow


class Beginning(NamedTuple):
    """What a logger is told of a run.

    Attributes:
      project: in which runs stand side by side.
      name: of the run.
      settings: the fields of its recipe, by dotted names.
      workdir: of the run.
      known_as: what the service calls the run, which goes on; None: it begins.
    """

    project: str
    name: str
    settings: Mapping[str, Any]
    workdir: epath.Path
    known_as: str | None


class Logger(Protocol):
    """Where else a run is shown. `known_as` is what the service calls the run."""

    known_as: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Show the finite numbers of a line of `metrics.jsonl`."""

    def picture(self, name: str, png: bytes) -> None:
        """Show a picture, as of step 0."""

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Show a table."""

    def close(self, status: str) -> None:
        """End, and say how the run did: FINISHED, STOPPED or FAILED."""


class Service(NamedTuple):
    """A kind of logger.

    Attributes:
      package: what it needs, as Python imports it.
      extra: the name under which our package asks for that.
      begin: starts or continues a run there.
      errors: dotted names of what its package raises where a service cannot be reached or refuses.
    """

    package: str
    extra: str
    begin: Callable[[Beginning], Logger]
    errors: tuple[str, ...]

    def raises(self) -> tuple[type[BaseException], ...]:
        """Return what may be raised that is the service's fault, and not this program's."""
        found: list[type[BaseException]] = [OSError, ImportError]
        for name in self.errors:
            module, _, kind = name.rpartition(".")
            if module in sys.modules:  # or nobody can have raised it
                found.append(getattr(sys.modules[module], kind))
        return tuple(found)


class WandB:
    """Weights & Biases.

    Steps are an axis of their own. Its own count of steps only rises, so that a server which has
    some line of the step at which a run goes on would drop the others of that step.
    """

    def __init__(self, run: Beginning):
        import wandb

        self._wandb = wandb
        self.known_as = run.known_as or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=self.known_as,
            resume="allow",
            dir=os.fspath(run.workdir) if files.is_local(run.workdir) else None,
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, name: str, png: bytes) -> None:
        from PIL import Image

        self._run.log({name: self._wandb.Image(Image.open(io.BytesIO(png))), "step": 0})

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        shown = self._wandb.Table(columns=list(header), data=[list(row) for row in rows])
        self._run.log({name: shown, "step": step})

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == FINISHED else 1)


class MLflow:
    """MLflow, by its client alone: nothing global is set."""

    def __init__(self, run: Beginning):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if run.known_as:
            self.known_as = run.known_as
            self._client.update_run(self.known_as, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        at = found.experiment_id if found else self._client.create_experiment(run.project)
        self.known_as = self._client.create_run(at, run_name=run.name).info.run_id
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        for first in range(0, len(params), MOST):
            self._client.log_batch(self.known_as, params=params[first : first + MOST])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.known_as, metrics=metrics)

    def picture(self, name: str, png: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"{name}.png"
            path.write_bytes(png)
            self._client.log_artifact(self.known_as, os.fspath(path))

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        self._client.log_text(self.known_as, tables.markdown(header, rows), f"{name}.md")

    def close(self, status: str) -> None:
        self._client.set_terminated(self.known_as, STATUS[status])


class Trackio:
    """Trackio, which knows a run by its name."""

    def __init__(self, run: Beginning):
        import trackio

        self._trackio = trackio
        self.known_as = run.known_as or f"{run.name}-{uuid.uuid4().hex[:6]}"
        with _aside():
            self._run = trackio.init(
                project=run.project,
                name=self.known_as,
                config={name: str(value) for name, value in run.settings.items()},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, png: bytes) -> None:
        from PIL import Image

        self._run.log({name: self._trackio.Image(Image.open(io.BytesIO(png)))}, step=0)

    def table(
        self, name: str, step: int, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        self._run.log({name: self._trackio.Markdown(tables.markdown(header, rows))}, step=step)

    def close(self, status: str) -> None:
        with _aside():
            self._run.finish()


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Let a package print where it is in nobody's way."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


SERVICES = {
    "wandb": Service("wandb", "wandb", WandB, ("wandb.errors.Error",)),
    "mlflow": Service("mlflow", "mlflow", MLflow, ("mlflow.exceptions.MlflowException",)),
    "trackio": Service("trackio", "trackio", Trackio, ()),
}
