"""Run the committed study again and compare every cell of its tables: `make verify`.

Exit status: 0 all cells agree within the tolerances, 1 some do not, 2 the study could not be run or read.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from reid_utils.files import read_json
from reid_utils.paper.publish import finished, machine
from reid_utils.paper.results import REPOSITORY

# On another machine a training ends as with other seeds. Tolerances there, by column; None: reported, not held:
LOOSE = {"seed sd": 4.0, "p (Holm)": 1.0, "dispersion": 0.3, "verdict": None}
# All other scores and differences: means over the seeds, and numbers of one seed or one entry.
POINTS, ONE_SEED_POINTS = 6.0, 12.0
ONE_SEED = ("first seed", "challenge")  # words in the names of columns that hold one seed's numbers or one entry's
EXACT = ("no.", "level", "seeds", "queries", "parameters (M)", "GFLOPs")  # the same everywhere, as are all texts


def tolerance(column, same_machine):
    """How far a number of this column may move: 0 on the same machine, else as stated above; None: not held."""
    if same_machine or column in EXACT:
        return 0.0
    points = ONE_SEED_POINTS if any(word in column for word in ONE_SEED) else POINTS
    return LOOSE.get(column, points)


def moved_cells(committed, again, same_machine):
    """The cells that differ between two folders of csv tables.

    Returns (cells compared, DataFrame with table, row, column, committed, now, allowed (None: not held), within).
    A table, row or column that only one folder has is a cell that is not within.
    """
    names = sorted({path.name for folder in (committed, again) for path in folder.glob("*.csv")})
    count, moved = 0, []
    for name in names:
        old, new = (_cells(folder / name) for folder in (committed, again))
        count += len(old.keys() | new.keys())
        for key in [*old, *(key for key in new if key not in old)]:
            before, now = old.get(key), new.get(key)
            if before != now:
                allowed = tolerance(key[1], same_machine)
                within = allowed is None or _distance(before, now) <= allowed
                moved.append((name.removesuffix(".csv"), *key, before, now, allowed, within))
    columns = ["table", "row", "column", "committed", "now", "allowed", "within"]
    return count, pd.DataFrame(moved, columns=columns)


def _cells(path):
    """{(row, column): text} of a csv table, {} without file or rows; a row is called by its first column of text."""
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    key = "row" if "row" in frame else next(name for name in frame if name != "no.")
    number = frame.groupby(key).cumcount().astype(str).radd(" #").where(frame[key].duplicated(), "")
    lines = frame.drop(columns=key).set_index(frame[key] + number).to_dict("index")
    return {(row, column): value for row, line in lines.items() for column, value in line.items()}


def _distance(before, now):
    """How far two cells are apart as numbers; infinite where one is missing, blank or text."""
    try:
        return round(abs(float(now) - float(before)), 9)
    except (TypeError, ValueError):
        return float("inf")


def run_again(study):
    """Run a study into a fresh folder below runs/ -> that runs folder. Raises ValueError where it fails."""
    (REPOSITORY / "runs").mkdir(exist_ok=True)
    runs = Path(tempfile.mkdtemp(prefix="verify-", dir=REPOSITORY / "runs"))
    command = [sys.executable, "run_all.py", study, "--runs", str(runs)]
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        raise ValueError(
            f"the study did not end well; `{' '.join(command[1:])}` goes on, then verify with --runs {runs}"
        )
    return runs


def report(count, moved, same_machine):
    """What is printed: every cell that moved, then one line."""
    where = (
        "the same machine type: exact"
        if same_machine
        else f"another machine type: means over seeds within {POINTS:g} points"
    )
    outside = int((~moved["within"].astype(bool)).sum())
    table = "" if moved.empty else moved.to_string(index=False, na_rep="not held") + "\n"
    return f"{table}{count} cells compared ({where}), {len(moved)} moved, {outside} outside the tolerance"


def main(arguments=None):
    """Run the command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="compare the finished study in this runs folder; runs none")
    options = parser.parse_args(arguments)
    try:
        study = read_json(REPOSITORY / "figures" / "study.json")
        if study is None:
            raise ValueError("figures/study.json does not exist; publish a study first with `make figures`")
        runs = options.runs or run_again(study["study"])
        folder = runs.resolve() / study["study"]
        here = machine(finished(folder))
        same = here == {name: study[name] for name in here}
        count, moved = moved_cells(REPOSITORY / "figures" / "tables", folder / "tables", same)
    except (ValueError, OSError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    print(f"committed: {study['device']}; here: {here['device']}", report(count, moved, same), sep="\n")
    if not moved["within"].all():
        return 1
    if not options.runs:
        shutil.rmtree(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
