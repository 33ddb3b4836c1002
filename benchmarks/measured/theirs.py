"""The process that runs the PyTorch step of `benchmarks/torch_step.py`; see `worker.py`."""

from __future__ import annotations

from typing import Any

from measured import worker

BUILT: dict[str, Any] = {}


def machine() -> dict[str, Any]:
    """Return what PyTorch is here and what it sees.

    Raises:
      ModuleNotFoundError: if it is not installed.
    """
    import torch

    sees = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "device": "cuda" if sees else "cpu",
        "name": torch.cuda.get_device_name() if sees else "cpu",
        "cudnn": torch.backends.cudnn.version() if sees else None,
    }


def build(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Make a step of a `torch_step.Job`, and take three steps: the first ones compile."""
    from torch_step import Job, TorchStep

    made = TorchStep(Job(**job))
    seconds, _ = made.run(1)
    made.run(2)
    BUILT[name] = made
    return {
        "views": 2 * job["batch"],
        "compile_s": seconds,
        "parameters": made.parameters,
        "memory_bytes": made.memory,
    }


def run(name: str, calls: int) -> dict[str, float]:
    """Return the seconds of a step, the mean over so many, and the last loss."""
    seconds, loss = BUILT[name].run(calls)
    return {"seconds": seconds, "loss": loss}


if __name__ == "__main__":
    worker.serve({function.__name__: function for function in (machine, build, run)})
