"""Tests of AAM."""

import os

# Arrays this small gain nothing from threads either, nor do the processes that tests start; and each of the processes
# in which PyTorch compiles would have to load it first. Both are read on import, so they are set ahead of everything.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
