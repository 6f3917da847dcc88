"""Settings of the test process, made before anything imports a numeric library."""

import os

# One quiet thread, as studies run: spinning pools of several processes slow each other down many times over.
os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "agg"})
