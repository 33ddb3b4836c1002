"""What a check has found: sound or not, in a line, and what to change."""

from __future__ import annotations

import dataclasses

SOUND, NOTE, WRONG = "ok", "note", "wrong"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of what was found, and one of advice.

    Attributes:
      state: `SOUND`; `NOTE`, which can be lived with; or `WRONG`.
      about: what was looked at, a word or two.
      said: what was found.
      advice: what to change; "" of what is sound.
    """

    state: str
    about: str
    said: str
    advice: str = ""

    @property
    def lines(self) -> list[str]:
        """Return the line, and that of the advice."""
        told = [f"{self.state:<10}{self.about}: {self.said}"]
        return [*told, f"{'do':<10}{self.advice}"] if self.advice else told
