"""Short cases of the fault campaign; `make test-faults` runs all of them many times and prints the table."""

import random
import subprocess

import damaged
import faults
import pytest
from tiny_study import call, make_clone, write_images


@pytest.mark.parametrize(
    ("inject", "times"),
    [(damaged.download, 8), (damaged.killed_download, 1), (damaged.zip_file, 20), (damaged.checkpoint, 4)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_files_are_noticed_and_nothing_is_lost(tmp_path, inject, times):
    assert inject(tmp_path, random.Random(1), times) == times


def test_a_full_disk_is_told_and_the_next_command_goes_on(tmp_path):
    try:
        assert faults.full_disk(tmp_path, random.Random(1), times=1, options=()) == 1
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_read_only_folder_costs_one_line(tmp_path):
    clone, runs = make_clone(tmp_path / "clone"), tmp_path / "clone" / "runs"
    try:
        faults.mounted(runs, "ro")
    except PermissionError as error:
        pytest.skip(str(error))
    try:
        status, _, err = call(clone)
    finally:
        faults.unmount(runs)
    assert (status, err.count("\n")) == (2, 1) and "Read-only file system" in err and str(runs) in err


def test_a_finished_study_can_be_looked_at_on_a_read_only_disk(tmp_path):
    clone, runs = make_clone(tmp_path / "clone"), tmp_path / "clone" / "runs"
    data = ["--data", str(write_images(tmp_path / "crops"))]
    try:
        faults.mounted(runs)
    except PermissionError as error:
        pytest.skip(str(error))
    try:
        assert call(clone, *data)[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", runs], check=True)
        done, redone = call(clone, *data), call(clone, *data, "--force")
    finally:
        faults.unmount(runs)
    assert done[0] == 0 and "all 3 runs are done" in done[1]
    assert redone[0] == 2 and "Read-only file system" in redone[2]
