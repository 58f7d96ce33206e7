"""deconfound: image embeddings that follow the perturbation and ignore the plate."""

import os

# Threads of libgomp that spin while they wait slow training 17-95 times when another process
# wants the core; waiting passively costs nothing measurable. Read when libgomp is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

__version__ = "0.1.0"
