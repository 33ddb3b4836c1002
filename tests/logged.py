"""What a run has logged, without what differs from run to run."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

CLOCK = ("images_per_second", "input_wait")
CHECKSUM = "crc32"


def lines(workdir: epath.PathLike, without: tuple[str, ...] = CLOCK) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`, without the checksum and what depends on the clock."""
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in x.items() if k not in (*without, CHECKSUM)} for x in found]
