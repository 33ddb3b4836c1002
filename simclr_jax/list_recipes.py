"""List the recipes that come along, and where they are.

    simclr recipes

Each can be given by its name, `--config=digits`. To change more than some fields, copy a file and
give its path.
"""

from __future__ import annotations

from absl import flags

from simclr_jax import entry, shipped, usage

flags.DEFINE_boolean("debug", False, "Show the traceback of an error.")


def main() -> None:
    """List all of them."""
    names = shipped.names()
    column = max(map(len, names)) + 2
    for name in names:
        about = usage.first_line(shipped.home() / f"{name}.py")
        print("\n".join(usage.entry(name, about, column)))
    print(f"\nin {shipped.home()}")


if __name__ == "__main__":
    entry.run(main)
