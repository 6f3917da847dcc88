"""What the machine offers: GPUs and processors."""

import re
import subprocess
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder a GPU, where nvidia-smi is not at hand
LIMIT = 10  # seconds to wait for nvidia-smi


def visible_gpus(environment):
    """The GPUs that a process with this environment may use, as CUDA_VISIBLE_DEVICES names them (list of str)."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        stop = next((n for n, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:stop]  # as CUDA does: what stands behind a device that does not exist is not seen
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LIMIT).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    found = re.findall(r"UUID: (MIG-[^)\s]+)", listed) or re.findall(r"^GPU (\d+)", listed, re.MULTILINE)
    return found or [str(number) for number in range(len(list(DRIVER.glob("*"))))]


def default_jobs(runs, gpus):
    """Runs at once where nothing says how many: GPUs (a list) if runs ask for them, else the processors in force."""
    if gpus and any(run.gpus for run in runs):
        return len(gpus)
    from joblib import cpu_count  # 0.4 s; it counts affinity and the quotas of containers

    return cpu_count()
