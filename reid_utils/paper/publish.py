"""Publish a finished study: `make figures`, or `python -m reid_utils.paper.publish [FOLDER]`.

Copies its tables and figures to figures/, writes figures/study.json (commit, machine, minutes) and, from these files
alone, the results section of the README.
"""

import argparse
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from reid_utils.files import read_json, write_json, write_text
from reid_utils.paper.results import REPOSITORY, load_results, markdown_table

LAST = "06_paper_tables"
FIGURE_LIMIT = 300_000  # bytes; heavier vector figures stay in the study's folder
CORES = 2  # that the minutes are told for
BEGIN = "<!-- results: begin; written by `make figures` from the files in figures/ -->"
END = "<!-- results: end -->"
TABLES = (
    # table, question, notebooks, the runs that make it
    ("T1", "which augmentations help?", "02, 06", "02_training__test-byobnet_infonce*"),
    ("T2", "InfoNCE or ID loss?", "02, 06", "02_training__test*erasing+sharpen"),
    ("T3", "which post-processing?", "03, 06", "03*"),
    ("T4", "which backbone and pre-training, with and without re-ranking?", "02, 06", "02*infonce_erasing+sharpen"),
    ("T5", "what does fusion add?", "04, 06", "04*"),
    ("T6", "how does that stand beside what is published?", "06", "06*"),
)


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


def minutes(runs, pattern):
    """Minutes on two cores of the runs that match a pattern and of all that they read: their seconds, shared."""
    wanted = {name for name in runs if fnmatchcase(name, pattern)}
    for name in reversed(runs):
        if name in wanted:
            wanted |= set(runs[name][1]["parts"]["upstream"])
    return round(sum(runs[name][1]["seconds"] for name in wanted) / 60 / CORES, 1)


def machine(runs):
    """What decides the bits of a study's trainings: {"device": text, "versions": {library: version}}."""
    result = next((result for result, _ in runs.values() if result["notebook"] == "02_training"), runs[LAST][0])
    return {"device": result["device"], "versions": result["versions"]}


def refuse_overrides(folder):
    """Raise ValueError where the study was started with other settings, data or features than its file's own."""
    command = read_json(folder / "study.json")["command"]
    other = [word for word in command if word.startswith(("--set", "--data", "--features"))]
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
        "smallest detectable difference (mAP points)": round(100 * last["values"]["smallest_detectable"], 2),
        "runs": len(runs),
        "minutes on two cores": {table: minutes(runs, pattern) for table, _, _, pattern in TABLES},
    }


def copy_files(folder, runs, figures):
    """Replace the tables and figures in `figures` by those that the runs of the study in `folder` made."""
    shutil.rmtree(figures / "tables", ignore_errors=True)
    (figures / "tables").mkdir(parents=True)
    for path in [*figures.glob("*.png"), *figures.glob("*.svg")]:
        path.unlink()
    for path in (folder / name for _, record in runs.values() for name in record["files"]):
        drawn = path.suffix == ".png" or (path.suffix == ".svg" and path.stat().st_size <= FIGURE_LIMIT)
        if path.parent == folder / "tables" or (path.parent == folder / "figures" and drawn):
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
    name, smallest = study["study"], study["smallest detectable difference (mAP points)"]
    commands = pd.DataFrame(
        {
            "table": f"[{table}](figures/tables/{table}.md)",
            "question": question,
            "notebook": notebooks,
            "command": f"`python run_all.py {name} --only '{pattern}'`",
            "minutes on 2 cores": f"{study['minutes on two cores'][table]:.0f}",
        }
        for table, question, notebooks, pattern in TABLES
    )
    return (
        f"## What the {name} study says\n\n"
        f"Small encoders on {study['data']}: {study['seeds']} seeds, {study['queries']} queries, made at commit "
        f"`{study['commit'][:10]}` ({study['device']}). Differences are points of mAP with 95 % intervals; two rows "
        f"can be told apart from about {smallest} points on. It is no verdict on the paper's models, but each of its "
        "claims is put to the test:\n\n"
        f"{markdown_table(findings)}\n"
        "## Which table, which notebook, which command\n\n"
        f"{markdown_table(commands)}"
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
    study = summary(folder, runs)
    in_readme(readme.read_text(encoding="utf-8"), "")
    copy_files(folder, runs, figures)
    write_json(figures / "study.json", study)
    write_text(figures / "README.md", about(study))
    write_text(readme, in_readme(readme.read_text(encoding="utf-8"), results_section(figures)))
    return study


def main(arguments=None):
    """Run the command line -> exit status: 0 published, 2 a mistake told in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "runs" / "quick")
    try:
        folder = parser.parse_args(arguments).folder.resolve()
        study = publish(folder, REPOSITORY / "figures", REPOSITORY / "README.md")
    except (ValueError, OSError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    print(f"figures/ and README.md now show {folder}, made at commit {study['commit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
