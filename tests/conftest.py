"""One thread per process: two busy threads on two shared cores slow a small training step 20 to 50 times."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
