"""`python -m simclr_jax COMMAND`: the command `simclr`, where no script of it is on the path."""

import sys

from simclr_jax import command

if __name__ == "__main__":
    sys.exit(command.main())
