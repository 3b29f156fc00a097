"""`python -m unseg_jax` is `unseg-jax`."""

import sys

from unseg_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
