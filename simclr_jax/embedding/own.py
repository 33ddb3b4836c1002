"""By what a user's own files of embeddings are known again, wherever they lie.

A file of embeddings names a directory of images, a data set and a run. Whoever wrote it chose the
names, so `search` follows them only in files that this user's `embed` has written. Such a file has
a mark: a keyed digest of all that it says, by a key that lies in the user's cache directory and is
read by nobody else. A file without it, of another user, another machine or an older version, is
read like any; where its images are, the user says.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simclr_jax import documents, files

MARK = "mark"
LENGTH = 32  # bytes of the key


def marked(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return `about` with this user's mark; without one where no key can be kept."""
    plain = {name: value for name, value in about.items() if name != MARK}
    if (key := _key(make=True)) is not None:
        plain[MARK] = _digest(key, plain)
    return plain


def is_marked(about: Mapping[str, Any]) -> bool:
    """Tell whether `about`, with its digest of all rows, bears this user's mark."""
    plain = {name: value for name, value in about.items() if name != MARK}
    if "content" not in plain or (key := _key(make=False)) is None:
        return False
    return hmac.compare_digest(str(about.get(MARK, "")), _digest(key, plain))


def _digest(key: bytes, about: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in about.items() if name != documents.SEAL}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    """Return this user's key, None where there is none and none can be made."""
    with contextlib.suppress(OSError, RuntimeError):  # the latter without a home
        path = files.cache_directory() / "embeddings.key"
        if make and not path.exists():
            _make(path)
        key = path.read_bytes()
        return key if len(key) == LENGTH else None
    return None


def _make(path: Path) -> None:
    """Make a key; of several processes that do so at the same time, all find the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".key") as apart:
        aside = Path(apart) / path.name
        aside.touch(0o600)
        aside.write_bytes(secrets.token_bytes(LENGTH))
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
