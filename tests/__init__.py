"""Tests of AAM."""

import os

# Arrays this small gain nothing from threads either, nor do the processes that tests start. NumPy reads it as it is
# imported, so it is set ahead of everything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
