"""What the machine offers: GPUs, processors, places for caches."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder a GPU, where nvidia-smi is not at hand
CACHES = {"XDG_CACHE_HOME": "~/.cache", "XDG_CONFIG_HOME": "~/.config", "XDG_DATA_HOME": "~/.local/share"}
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
    slices = re.findall(r"UUID: (MIG-[^)\s]+)", listed)
    count = len(re.findall(r"^GPU \d", listed, re.MULTILINE)) or len(list(DRIVER.glob("*")))
    return slices or [str(number) for number in range(count)]


def processors(groups=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """Processors that this process may use, at least 1: its affinity and the quotas of its control groups counted.

    groups, own: where the system shows control groups and those of this process.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu") or "cpu" in controllers.split(","):
            root = groups / controllers  # version 1 has a folder a controller, version 2 one for all
            group = root / path.lstrip("/")  # in a container the path may be the host's, and only the root is there
            limits += [_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return max(1, int(min(limits)))


def _quota(group):
    """Processors that a control group may use (float); infinite without a quota."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        words = " ".join((group / name).read_text() for name in names if (group / name).is_file()).split()
        if len(words) == 2 and words[0] not in ("max", "-1"):
            return int(words[0]) / int(words[1])
    return float("inf")


def default_jobs(runs, gpus):
    """Runs at once where nobody says how many: GPUs (a list) if runs ask for them, else the processors in force."""
    return len(gpus) if gpus and any(run.gpus for run in runs) else processors()


def cache_folders():
    """{variable: a temporary folder} for each kind of cache whose usual place cannot be written."""
    places = {name: os.environ.get(name) or os.path.expanduser(usual) for name, usual in CACHES.items()}  # noqa: PTH111
    lost = [name for name, place in places.items() if not _writable(place)]
    if not lost:
        return {}
    spare = Path(tempfile.gettempdir()) / f"reid-study-{os.getuid()}"
    spare.mkdir(mode=0o700, exist_ok=True)
    if spare.stat().st_uid != os.getuid():
        spare = Path(tempfile.mkdtemp(prefix="reid-study-"))
    return {name: str(spare / name) for name in lost}


def _writable(place):
    """Whether a folder can be written, or made."""
    while not os.path.exists(place) and os.path.dirname(place) != place:  # noqa: PTH110, PTH120
        place = os.path.dirname(place)  # noqa: PTH120
    return os.path.isdir(place) and os.access(place, os.W_OK)  # noqa: PTH112
