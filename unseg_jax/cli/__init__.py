"""The command line, `unseg-jax`."""

import os

# NumPy's products are small here. On a busy machine a second thread of OpenBLAS waits, spinning,
# for longer than it works. NumPy reads this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
