"""Show a finished study in figures/ and the README (`make figures`), or make it again and compare (`make verify`).

`python -m reid_utils.paper.publish figures [FOLDER]` copies a study's tables and figures to figures/, writes
figures/study.json and, from these files alone, the README's results section. `… publish verify [FOLDER]` compares every
cell of the committed tables with those of another run of the study. Exit status: 0 done, or all cells agree; 1 some do
not; 2 the study could not be run or read.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from reid_utils.files import read_json, write_json, write_text
from reid_utils.paper.results import REPOSITORY, load_results, markdown_table

LAST = "06_paper_tables"
FIGURE_LIMIT = 300_000  # bytes; heavier vector figures stay in the study's folder
BEGIN = "<!-- results: begin; written by `make figures` from the files in figures/ -->"
END = "<!-- results: end -->"

# On another machine a training ends as with other seeds. Tolerances there, by column; None: reported, not held:
LOOSE = {"seed sd": 4.0, "p (Holm)": 1.0, "dispersion": 0.3, "verdict": None}
# All other scores and differences: means over the seeds, and numbers of one seed or one entry.
POINTS, ONE_SEED_POINTS = 6.0, 12.0
ONE_SEED = ("first seed", "challenge")  # words in the names of columns that hold one seed's numbers or one entry's
EXACT = ("no.", "level", "seeds", "queries", "parameters (M)", "GFLOPs")  # the same everywhere, as are all texts


def finished(folder):
    """{run id: (its results.json, its record)} of a finished study, notebook 06 last.

    Raises ValueError where a run that the tables are made from is not done, or was done anew since.
    """
    record = read_json(folder / "state" / f"{LAST}.json")
    if record is None:
        raise ValueError(f"{folder} holds no finished study; finish it with run_all.py first")
    ids = [*record["parts"]["upstream"], LAST]
    records = {name: read_json(folder / "state" / f"{name}.json") for name in ids}
    undone = [name for name in ids if records[name] is None]
    if undone:
        raise ValueError(f"{folder}: {undone[0]} is not done; start the study again")
    anew = [name for name, key in record["parts"]["upstream"].items() if records[name]["key"] != key]
    if anew:
        raise ValueError(f"{folder}: {anew[0]} was done anew after the tables were made; start the study again")
    return {name: (load_results(folder / "results" / name), records[name]) for name in ids}


def clean_commit(runs):
    """The one commit, free of changes, that all runs were made at. Raises ValueError naming a run that differs."""
    commit = runs[LAST][0]["git"]["commit"]
    for name, (result, _) in runs.items():
        if result["git"]["commit"] is None or result["git"]["dirty"]:
            raise ValueError(f"{name} was not made at a clean commit; commit, then run the study into a fresh folder")
        if result["git"]["commit"] != commit:
            raise ValueError(
                f"{name} was made at commit {result['git']['commit'][:10]}, {LAST} at {commit[:10]}; "
                "run the study into a fresh folder"
            )
    return commit


def machine(runs):
    """What decides the bits of a study's trainings: {"device": text, "versions": {library: version}}."""
    result = next((result for result, _ in runs.values() if result["notebook"] == "02_training"), runs[LAST][0])
    return {"device": result["device"], "versions": result["versions"]}


def refuse_overrides(folder):
    """Raise ValueError where the study was started with other settings, data or features than its file's own."""
    command = read_json(folder / "study.json")["command"]
    words = shlex.split(command) if isinstance(command, str) else command
    other = [word for word in words if word.startswith(("--set", "--data", "--features"))]
    if other:
        raise ValueError(f"{folder} was run with {other[0]}; publish a study that ran as its file says")


def summary(folder, runs):
    """The content of figures/study.json: where the committed numbers come from."""
    last = runs[LAST][0]
    seeds = max((len(result["seeds"] or []) for result, _ in runs.values()), default=0)
    return {
        "study": folder.name,
        "commit": clean_commit(runs),
        **machine(runs),
        "data": last["values"]["note"],
        "seeds": seeds,
        "queries": last["values"]["queries"],
        "runs": len(runs),
        "tables": last["values"]["tables"],
    }


def published_files(folder, runs):
    """The tables and figures that a study shows. Raises ValueError naming a PNG that is too heavy to be committed."""
    files = [folder / name for result, _ in runs.values() for name in result["files"]]
    heavy = [path for path in files if path.parent.name == "figures" and path.stat().st_size > FIGURE_LIMIT]
    for path in heavy:
        if path.suffix == ".png":
            raise ValueError(f"{path} has {path.stat().st_size} bytes, above {FIGURE_LIMIT}; draw it with less in it")
    return [path for path in files if path not in heavy]


def copy_files(files, figures):
    """Replace the tables and figures in the folder `figures` by these files."""
    shutil.rmtree(figures / "tables", ignore_errors=True)
    (figures / "tables").mkdir(parents=True)
    for path in [*figures.glob("*.png"), *figures.glob("*.svg")]:
        path.unlink()
    for path in files:
        shutil.copy(path, figures / "tables" if path.parent.name == "tables" else figures)


def about(study):
    """The text of figures/README.md."""
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    return (
        f"# Figures and tables of the {study['study']} study\n\n"
        f"Made at commit `{study['commit']}` ({study['data']}; {study['device']}; {versions}), copied from "
        f"`runs/{study['study']}` by `make figures`, which writes `study.json` and the README's results section too; "
        "`make verify` makes the tables anew and compares every cell.\n\n"
        "A figure's name begins with the run that drew it. Vector versions of those without one here lie in "
        f"`runs/{study['study']}/figures` after a run.\n"
    )


def results_section(figures):
    """The README's results section (Markdown) from study.json and tables/ in the folder `figures`."""
    study = read_json(figures / "study.json")
    findings = pd.read_csv(figures / "tables" / "findings.csv")
    tables = pd.DataFrame(
        {
            "table": f"[{table}](figures/tables/{table}.md)",
            "question": about["question"],
            "notebook": about["notebook"],
            "command": f"`python run_all.py {study['study']} --only '{about['notebook']}*'`",
        }
        for table, about in study["tables"].items()
    )
    return (
        f"## What the {study['study']} study says\n\n"
        f"Small encoders on {study['data']}: {study['seeds']} seeds, {study['queries']} queries, made at commit "
        f"`{study['commit'][:10]}` ({study['device']}). Differences are points of mAP with 95 % intervals. It is no "
        "verdict on the paper's models, but each of its claims is put to the test:\n\n"
        f"{markdown_table(findings)}\n"
        "## Which table, which notebook, which command\n\n"
        f"{markdown_table(tables)}\n"
        "[T6](figures/tables/T6.md) sets what is published beside it. Each table ends with the commands of its rows.\n"
    )


def in_readme(text, section):
    """README text with what stands between the two markers replaced. Raises ValueError where a marker is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the line {BEGIN!r} or {END!r}")
    return f"{head}{BEGIN}\n{section}{END}{tail}"


def publish(folder, figures, readme):
    """Copy the finished study in `folder` to `figures` and write the README's section -> the summary written.

    Raises ValueError, before anything is touched, unless all its runs were made as its file says at one clean commit.
    """
    runs = finished(folder)
    refuse_overrides(folder)
    study, files = summary(folder, runs), published_files(folder, runs)
    in_readme(readme.read_text(encoding="utf-8"), "")
    copy_files(files, figures)
    write_json(figures / "study.json", study)
    write_text(figures / "README.md", about(study))
    write_text(readme, in_readme(readme.read_text(encoding="utf-8"), results_section(figures)))
    return study


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
    """Run a study into a fresh folder below runs/ -> its folder there. Raises ValueError where it fails."""
    (REPOSITORY / "runs").mkdir(exist_ok=True)
    runs = Path(tempfile.mkdtemp(prefix="verify-", dir=REPOSITORY / "runs"))
    command = [sys.executable, "run_all.py", study, "--runs", str(runs)]
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        raise ValueError(
            f"the study did not end well; `{' '.join(command[1:])}` goes on, then verify with {runs / study}"
        )
    return runs / study


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


def verify(folder, figures):
    """Compare a finished study's tables with the committed ones and print what moved -> whether all is within."""
    study, here = read_json(figures / "study.json"), machine(finished(folder))
    same = here == {name: study[name] for name in here}
    count, moved = moved_cells(figures / "tables", folder / "tables", same)
    print(f"committed: {study['device']}; here: {here['device']}", report(count, moved, same), sep="\n")
    return bool(moved["within"].all())


def main(arguments=None):
    """Run the command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("figures", "verify"))
    parser.add_argument("folder", nargs="?", type=Path, help="a finished study; left out: runs/quick, or run it again")
    options = parser.parse_args(arguments)
    figures = REPOSITORY / "figures"
    try:
        if options.action == "figures":
            folder = (options.folder or REPOSITORY / "runs" / "quick").resolve()
            study = publish(folder, figures, REPOSITORY / "README.md")
            print(f"figures/ and README.md now show {folder}, made at commit {study['commit']}")
            return 0
        if not (figures / "study.json").exists():
            raise ValueError("figures/study.json does not exist; publish a study first with `make figures`")
        folder = options.folder or run_again(read_json(figures / "study.json")["study"])
        if not verify(folder.resolve(), figures):
            return 1
    except (ValueError, OSError) as error:
        print(f"{options.action}: {error}", file=sys.stderr)
        return 2
    if options.folder is None:
        shutil.rmtree(folder.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
