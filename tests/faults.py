"""Faults injected at random moments: `python tests/faults.py [--seed S] [--times T] [--only NAME]` prints a table.

Every function takes an empty folder and a random generator, injects its faults and returns how many there were; it
raises AssertionError where a result was lost, half a file lies under a final name, or nothing was said. The same seed
chooses the same faults; the moments at which they meet a process depend on the machine.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import damaged
from dask_cluster import cluster, start_scheduler, start_worker, stop
from tiny_study import GIVEN, call, make_clone, processes_of, start, wait_until, write_images, write_notebook

from reid_utils.files import read_json

RESULT = "02_training__none,4\n02_training__flip,4\n"
SLOW = ("--set", "steps=10", "--set", "pause=0.1")
LONGEST = 8.0  # seconds that the slow tiny study takes on a quiet machine
ENDED = "all 3 runs are done"


def check_whole(root, table=RESULT):
    """Assert that every file under a final name is whole."""
    for path in root.rglob("*"):
        final = not path.name.startswith(".") and ".running." not in path.name
        if path.suffix in (".json", ".ipynb") and final:
            with contextlib.suppress(FileNotFoundError):  # a run that begins anew takes its files away
                assert path.read_text(), f"{path} is empty"
                read_json(path)
    written = root / "tables" / "T1.csv"
    assert not written.exists() or written.read_text() == table, f"{written} is not what it should be"


def check_ends_well(clone, *arguments, table=RESULT):
    """Assert that the command, started once more, ends with the right tables, and that nothing is left to do then."""
    status, out, err = call(clone, *arguments)
    assert status == 0, out + err
    root = next(path.parent for path in clone.glob("runs/*/study.json"))
    check_whole(root, table)
    assert (root / "tables" / "T1.csv").read_text() == table
    assert ENDED in call(clone, "--dry-run", *arguments)[1]


def _kill_commands(clone, options, moments, seconds):
    """SIGKILL run_all.py at each of the moments after its start: its runs end within so many seconds."""
    for moment in moments:
        study = start(clone, *options)
        time.sleep(moment)
        study.kill()
        study.communicate()
        wait_until(lambda: not processes_of(clone), seconds=seconds)
        check_whole(clone / "runs")
    check_ends_well(clone, *options)
    return len(moments)


def killed_command(folder, rng, times=4):
    """SIGKILL of run_all.py: its children die too."""
    moments = [rng.uniform(0, LONGEST) for _ in range(times)]
    return _kill_commands(make_clone(folder / "clone"), SLOW, moments, seconds=15)


def command_of(pid):
    """The command line of a process; "" where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _killed_below(folder, rng, times, word, messages):
    """SIGKILL of a process below run_all.py whose command line holds `word`."""
    clone, killed = make_clone(folder / "clone"), 0
    while killed < times:
        study = start(clone, *SLOW, "--force")
        moment = time.monotonic() + rng.uniform(1, LONGEST - 2)
        found = []
        while study.poll() is None and not (found and time.monotonic() > moment):
            found = [pid for pid in processes_of(clone) if word in command_of(pid)]
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, IndexError):  # it ended by itself: no fault
            os.kill(rng.choice(found), signal.SIGKILL)
            killed += 1
        out, err = study.communicate(timeout=120)
        told = any(message in out for message in messages)
        assert (study.returncode, told) in ((1, True), (0, False)), out + err  # 0: it had done its work when it died
        wait_until(lambda: not processes_of(clone), seconds=15)
        check_whole(clone / "runs")
    check_ends_well(clone, *SLOW)
    return times


def killed_kernel(folder, rng, times=3):
    """SIGKILL of a notebook's kernel."""
    return _killed_below(folder, rng, times, "ipykernel", ("the kernel died in cell", "Kernel died before replying"))


def killed_worker(folder, rng, times=3):
    """SIGKILL of a run's process: its kernel dies too."""
    return _killed_below(folder, rng, times, ".job.json", ("was killed by signal 9",))


def killed_dask_worker(folder, rng, times=4):
    """SIGKILL or SIGTERM of Dask workers: their runs go on elsewhere, within the same command."""
    clone = make_clone(folder / "clone")
    with cluster(folder) as (address, workers):
        for _ in range(times // 2):
            study = start(clone, "--scheduler", address, "--force", *SLOW)
            for _ in range(2):
                time.sleep(rng.uniform(1, LONGEST / 2))
                victim = workers.pop(rng.randrange(len(workers)))
                workers.append(start_worker(address))
                victim.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
                victim.wait(timeout=60)
                check_whole(clone / "runs")
            out, err = study.communicate(timeout=120)
            assert (study.returncode, err) == (0, ""), out + err
            assert (clone / "runs" / "tiny" / "tables" / "T1.csv").read_text() == RESULT
    assert ENDED in call(clone, "--dry-run", *SLOW)[1]
    return times


def killed_command_on_a_cluster(folder, rng, times=3):
    """SIGKILL of run_all.py while its runs are on a cluster: they end, and the cluster takes the next command."""
    moments = [rng.uniform(1, LONGEST) for _ in range(times)]
    with cluster(folder) as (address, _):
        return _kill_commands(make_clone(folder / "clone"), ("--scheduler", address, *SLOW), moments, seconds=30)


def killed_scheduler(folder, rng, times=2):
    """SIGKILL of the Dask scheduler: one line, and the command goes on with another one."""
    clone, killed = make_clone(folder / "clone"), 0
    while killed < times:
        scheduler, address = start_scheduler(tempfile.mkdtemp(dir=folder))
        worker = start_worker(address)
        try:
            study = start(clone, "--scheduler", address, "--force", *SLOW)
            time.sleep(rng.uniform(0, LONGEST))
            killed += study.poll() is None
            scheduler.kill()
            out, err = study.communicate(timeout=120)
            assert study.returncode == 0 or (err.count("\n") == 1 and "Dask scheduler" in err), out + err
            wait_until(lambda: not processes_of(clone), seconds=30)
        finally:
            stop(scheduler, worker)
        check_whole(clone / "runs")
    check_ends_well(clone, *SLOW)
    return times


def mounted(folder, options="size=4m"):
    """Mount a tmpfs on a folder. Raises PermissionError where this user cannot."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        raise PermissionError("only root can mount a small tmpfs")


def remounted(folder, how):
    """Make a mounted folder read-only ("ro") or writable ("rw") -> mount's exit status."""
    return subprocess.run(["mount", "-o", f"remount,{how}", folder], capture_output=True).returncode


def unmount(folder):
    """Take a mounted tmpfs away."""
    subprocess.run(["umount", "-l", folder], check=True)


def full_disk(folder, rng, times=3, options=SLOW):
    """A disk that is full, at the start or after some more bytes."""
    clone, runs = make_clone(folder / "clone"), folder / "clone" / "runs"
    mounted(runs)
    try:
        for _ in range(times):
            with (runs / "ballast").open("wb") as ballast:
                free = shutil.disk_usage(runs).free
                ballast.write(bytes(max(0, free - rng.choice((0, 4096, 16384, 32768, 65536)))))
            status, out, err = call(clone, *options, "--force")
            assert status in (1, 2) and re.search("No space left on device|the disk of .* is full", out + err), (
                out + err
            )
            (runs / "ballast").unlink()
            check_whole(runs)
        check_ends_well(clone, *options)
    finally:
        unmount(runs)
    return times


def read_only_folder(folder, rng, times=2):
    """A results folder that became read-only after a killed run."""
    clone, runs = make_clone(folder / "clone"), folder / "clone" / "runs"
    mounted(runs)
    try:
        for _ in range(times):
            study = start(clone, *SLOW)
            time.sleep(rng.uniform(0, LONGEST))
            study.kill()
            study.communicate()
            wait_until(lambda: not processes_of(clone), seconds=15)
            # A process that was just killed may hold a file for a moment yet.
            wait_until(lambda: not remounted(runs, "ro"), seconds=15)
            status, out, err = call(clone, *SLOW, "--force")
            assert status == 2 and err.count("\n") == 1 and "Read-only file system" in err, out + err
            assert not remounted(runs, "rw")
            check_whole(runs)
        check_ends_well(clone, *SLOW)
    finally:
        unmount(runs)
    return times


def two_commands(folder, rng, times=4):
    """Further commands on a folder in use: refused with the holder's name, and the first goes on."""
    clone = make_clone(folder / "clone")
    first = start(clone, *SLOW)
    wait_until((clone / "runs" / "tiny" / "locks" / "study.json").exists)
    refused = 0
    while refused < times and first.poll() is None:
        status, _, err = call(clone, *SLOW, *rng.choice(((), ("--force",), ("--jobs", "1"))))
        assert status == 2 and f"in use by process {first.pid} on {os.uname().nodename} since" in err, err
        refused += 1
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out + err
    check_ends_well(clone, *SLOW)
    return refused


SUM = """\
from pathlib import Path
from reid_utils.files import write_text
total = sum(sum(path.read_bytes()) * int(path.stem.split("_")[0]) for path in Path(data).rglob("*.jpeg"))
write_text(Path(out) / "results" / run_id / "results.json", f'{{"score": {total}}}')
"""


def changed_data(folder, rng, times=3):
    """A data file replaced, added, renamed or removed between two commands, or while the first is running."""
    clone = make_clone(folder / "clone")
    write_notebook(clone / "notebooks" / "02_training.ipynb", GIVEN + 'augmentation = "none"\nsteps = 1\n', SUM)
    crops = write_images(clone / "crops")
    option = ("--data", str(crops))
    for _ in range(times):
        study = start(clone, *option)
        time.sleep(rng.uniform(0, LONGEST))
        victim = rng.choice(sorted((crops / "reid_training").glob("2_*.jpeg")))
        spare = victim.with_name(f"2_2_{rng.randrange(10, 10**6)}.jpeg")
        change = rng.choice(("rename", "add", "rewrite"))
        if change == "rename":
            victim.rename(spare)
        else:
            write_images(folder / "other", colour=rng.randrange(256))
            source = folder / "other" / "reid_training" / "2_2_00.jpeg"
            source.replace(spare if change == "add" else victim)
        study.communicate(timeout=120)  # what it made of data that changed under it does not count
        total = sum(sum(path.read_bytes()) * int(path.stem.split("_")[0]) for path in crops.rglob("*.jpeg"))
        table = f"02_training__none,{total}\n02_training__flip,{total}\n"
        status, out, err = call(clone, *option)
        assert status == 0, out + err
        assert (clone / "runs" / "tiny-crops" / "tables" / "T1.csv").read_text() == table
    assert ENDED in call(clone, "--dry-run", *option)[1]
    return times


FAULTS = {  # name: (function, how often it is called)
    "run_all killed": (killed_command, 12),
    "kernel killed": (killed_kernel, 7),
    "run's process killed": (killed_worker, 7),
    "Dask worker killed": (killed_dask_worker, 6),
    "run_all killed, on a cluster": (killed_command_on_a_cluster, 3),
    "Dask scheduler killed": (killed_scheduler, 3),
    "disk full": (full_disk, 5),
    "folder read-only": (read_only_folder, 3),
    "two commands at once": (two_commands, 3),
    "data changed": (changed_data, 4),
    "download cut, stalled or wrong": (damaged.download, 8),
    "download killed": (damaged.killed_download, 3),
    "zip damaged": (damaged.zip_file, 2),
    "checkpoint damaged": (damaged.checkpoint, 2),
}


def main():
    """Run the campaign -> exit status: 0 where nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=float, default=1.0, help="factor on the number of faults")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    options = parser.parse_args()
    print(f"seed {options.seed}\n{'fault':<32} {'tries':>6} {'ended well':>11} {'lost':>5}", flush=True)
    all_tries = all_lost = 0
    for name, (inject, calls) in FAULTS.items():
        if options.only not in name:
            continue
        tries = lost = 0
        for number in range(max(1, round(calls * options.times))):
            folder = Path(tempfile.mkdtemp(prefix="faults-"))
            try:
                tries += inject(folder, random.Random(f"{options.seed} {name} {number}"))
                shutil.rmtree(folder)
            except PermissionError as error:
                print(f"{name:<32} skipped: {error}")
                break
            except Exception as error:  # told as lost, whatever it is
                lost, tries = lost + 1, tries + 1
                print(f"{name}, number {number}, in {folder}: {type(error).__name__}: {error}", flush=True)
        print(f"{name:<32} {tries:>6} {tries - lost:>11} {lost:>5}", flush=True)
        all_tries, all_lost = all_tries + tries, all_lost + lost
    print(f"{'in all':<32} {all_tries:>6} {all_tries - all_lost:>11} {all_lost:>5}")
    return int(all_lost > 0)


if __name__ == "__main__":
    sys.exit(main())
