"""Several splits of one data set as one, such as those to learn from and to choose on."""

from __future__ import annotations

import dataclasses

import numpy as np

from simclr_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Together:
    """Splits one after the other.

    Attributes:
      parts: of one data set, with the same classes.
      rows: int64 `[m]`, which of all their examples it has, in this order; None: all.
      splits: of which split of the data set each part is, by name.
    """

    parts: tuple[Source, ...]
    rows: np.ndarray | None = None
    splits: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return max(part.classes for part in self.parts)

    @property
    def class_names(self) -> tuple[str, ...]:
        return max((part.class_names for part in self.parts), key=len)

    @property
    def multi_label(self) -> bool:
        return self.parts[0].multi_label

    @property
    def channels(self) -> int:
        return self.parts[0].channels

    @property
    def labels(self) -> np.ndarray | None:
        """Return all labels, see `Source.labels`; None if a part has none."""
        found = [part.labels for part in self.parts]
        known = [labels for labels in found if labels is not None]
        if len(known) < len(found):
            return None
        whole = np.concatenate(known)
        return whole if self.rows is None else whole[self.rows]

    @property
    def taken(self) -> tuple[Source, ...]:
        """Return what it has of each part."""
        if self.rows is None:
            return self.parts
        places = [self._place(example) for example in range(len(self))]
        which = np.array([part for part, _ in places])
        order = np.array([row for _, row in places])
        return tuple(part.take(order[which == i]) for i, part in enumerate(self.parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.rows is None else len(self.rows)

    def fingerprint(self) -> str:
        """Return the fingerprints of its parts, of the examples that it has."""
        return " + ".join(part.fingerprint() for part in self.taken)

    def name(self, example: int) -> str:
        """Return by what a person finds an example, see `Source.name`."""
        part, row = self._place(example)
        return self.parts[part].name(row)

    def example(self, example: int) -> tuple[np.ndarray, int]:
        """Return pixels and label of an example, see `Source.example`."""
        part, row = self._place(example)
        return self.parts[part].example(row)

    def take(self, rows: np.ndarray) -> Source:
        """Return the split that holds only the examples `rows`, in that order."""
        taken = np.asarray(rows) if self.rows is None else self.rows[rows]
        return dataclasses.replace(self, rows=taken)

    def _place(self, example: int) -> tuple[int, int]:
        """Return the part that has an example, and its number there."""
        at = example if self.rows is None else int(self.rows[example])
        for number, part in enumerate(self.parts):
            if at < len(part):
                return number, at
            at -= len(part)
        raise IndexError(example)
