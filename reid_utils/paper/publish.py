"""Show a finished study in figures/ and the README (`make figures`), or make it again and compare (`make verify`).

`python -P -m reid_utils.paper.publish figures [FOLDER]` copies a study's tables and figures to figures/, writes
figures/study.json and, from these files alone, the README's results section. `… publish verify [FOLDER]` compares every
cell of the committed tables with those of another run of the study. `… publish verdicts FOLDER OTHER` sets the findings
of two studies, made with other seeds say, beside each other. Exit status: 0 done, or all agree; 1 some do not; 2 the
study could not be run or read.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from notebook_study.folders import StudyFolders
from reid_utils.files import read_json, write_json, write_text
from reid_utils.paper.claims import compare_verdicts, findings_text, read_findings, sign
from reid_utils.paper.results import REPOSITORY, load_results, markdown_table

LAST = "06_paper_tables"
BEGIN = "<!-- results: begin; written by `make figures` from the files in figures/ -->"
END = "<!-- results: end -->"

# On another machine a training ends as with other seeds. Numbers are held to half the interval of their own row there,
# times √2 because both studies drew seeds; those without one to POINTS, or more where one seed or one entry made them.
POINTS, ONE_SEED_POINTS = 6.0, 12.0
ONE_SEED = ("first seed", "challenge")  # words in the names of columns that hold one seed's numbers or one entry's
EXACT = ("no.", "level", "seeds", "queries", "parameters (M)", "GFLOPs")  # the same everywhere, as are all texts
NOT_HELD = ("seed sd", "p (Holm)", "found again (%)", "smallest", "differ", "regime")  # of the seeds at hand
FEW_SETS = 5  # T7: the ends of an interval over fewer test sets are too uncertain themselves to be held
CHANGES = ("difference", "diff low", "diff high", "queries low", "queries high")


def finished(folder):
    """{run id: its results.json} of a finished study, notebook 06 last.

    Raises ValueError where a run that the tables are made from is not done, or was done anew since.
    """
    paths = StudyFolders(folder)
    record = read_json(paths.record(LAST))
    if record is None:
        raise ValueError(f"{folder} holds no finished study; finish it with run_all.py first")
    for name, key in record["parts"]["upstream"].items():
        now = (read_json(paths.record(name)) or {}).get("key")
        if now != key:
            state = "was done anew after the tables were made" if now else "is not done"
            raise ValueError(f"{folder}: {name} {state}; start the study again")
    return {name: load_results(paths.results(name)) for name in [*record["parts"]["upstream"], LAST]}


def beside(folder, runs):
    """The study's other runs, such as its pictures of the data: {run id: its results.json}, of the tables' commit."""
    paths = StudyFolders(folder)
    done = sorted(path.parent.name for path in folder.glob("results/*/results.json"))
    others = {name: load_results(paths.results(name)) for name in done if name not in runs}
    others = {name: result for name, result in others.items() if paths.record(name).exists()}
    return {name: result for name, result in others.items() if result["git"] == runs[LAST]["git"]}


def check_clean(runs):
    """Raise ValueError naming a run that was not made at a commit, or at one with changes."""
    for name, result in runs.items():
        if result["git"]["commit"] is None or result["git"]["dirty"]:
            raise ValueError(f"{name} was not made at a clean commit; commit, then run the study into a fresh folder")


def clean_commit(runs):
    """The one commit, free of changes, that all runs were made at. Raises ValueError naming a run that differs."""
    check_clean(runs)
    commit = runs[LAST]["git"]["commit"]
    for name, own in ((name, result["git"]["commit"]) for name, result in runs.items()):
        if own != commit:
            both = f"{name} was made at commit {own[:10]}, {LAST} at {commit[:10]}"
            raise ValueError(f"{both}; run the study into a fresh folder")
    return commit


def machine(runs):
    """What decides the bits of a study's trainings: {"device": text, "versions": {library: version}}."""
    result = next((result for result in runs.values() if result["notebook"] == "02_training"), runs[LAST])
    return {"device": result["device"], "versions": result["versions"]}


def refuse_overrides(folder):
    """Raise ValueError where the study was started with other settings, data or features than its file's own."""
    words = shlex.split(read_json(StudyFolders(folder).study)["command"])
    other = [word for word in words if word.startswith(("--set", "--data", "--features"))]
    if other:
        raise ValueError(f"{folder} was run with {other[0]}; publish a study that ran as its file says")


def summary(folder, runs, others):
    """The content of figures/study.json: where the committed numbers come from, `others` being runs from `beside`."""
    values = runs[LAST]["values"]
    described = [result["values"].get("tables", {}) for result in (runs[LAST], *(runs | others).values())]
    seeds = sorted({len(result["seeds"]) for result in runs.values() if result["notebook"] == "02_training"})
    return {
        "study": folder.name,
        "commit": clean_commit(runs),
        **machine(runs),
        "data": values["note"],
        "seeds": " to ".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1]))),
        "queries": values["queries"],
        "runs": len(runs),
        "tables": {name: line for tables in described for name, line in tables.items()},
    }


def published_files(folder, runs):
    """The tables and figures that a study shows; vector figures that are too heavy to be committed stay where they are.

    Raises ValueError naming a PNG that is too heavy.
    """
    from reid_utils.views.style import PNG_LIMIT, too_heavy

    files = [folder / name for result in runs.values() for name in result["files"]]
    heavy = [path for path in files if path.parent.name == "figures" and too_heavy(path)]
    for path in heavy:
        if path.suffix == ".png":
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, above {PNG_LIMIT}; draw fewer images in one figure"
            )
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
    findings = read_findings(figures)
    tables = pd.DataFrame(
        {
            "table": f"[{table}](figures/tables/{table}.md)",
            "question": about["question"],
            "measured by": about["notebook"],
            "made by": f"`python run_all.py {study['study']} --only '{'07' if about['notebook'] == '07' else '06'}*'`",
        }
        for table, about in study["tables"].items()
    )
    others = sorted({path.stem for path in (figures / "tables").glob("[!.]*.md")} - {"findings", *study["tables"]})
    links = ", ".join(f"[{name}](figures/tables/{name}.md)" for name in others)
    return (
        f"## What the {study['study']} study says\n\n"
        f"Small encoders on {study['data']}: {study['seeds']} seeds, {study['queries']} queries, made at commit "
        f"`{study['commit'][:10]}` ({study['device']}). It is no verdict on the paper's models, but each of its claims "
        f"is put to the test ([more of each](figures/tables/findings.md)):\n\n{findings_text(findings)}\n"
        "## Which table, which notebook, which command\n\n"
        f"{markdown_table(tables, links=['table'])}\n"
        f"Each table ends with the commands of its rows.{f' Beside them: {links}.' if links else ''}\n"
    )


def in_readme(text, section, markers=(BEGIN, END)):
    """README text with what stands between two markers replaced. Raises ValueError where a marker is missing."""
    head, begin, rest = text.partition(markers[0])
    _, end, tail = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"README.md lacks the line {markers[0]!r} or {markers[1]!r}")
    return f"{head}{begin}\n{section}{end}{tail}"


def publish(folder, figures, readme):
    """Copy the finished study in `folder` to `figures` and write the README's section -> the summary written.

    Raises ValueError, before anything is touched, unless all its runs were made as its file says at one clean commit.
    """
    runs = finished(folder)
    refuse_overrides(folder)
    others = beside(folder, runs)
    study, files = summary(folder, runs, others), published_files(folder, others | runs)
    in_readme(readme.read_text(encoding="utf-8"), "")
    copy_files(files, figures)
    write_json(figures / "study.json", study)
    write_text(figures / "README.md", about(study))
    write_text(readme, in_readme(readme.read_text(encoding="utf-8"), results_section(figures)))
    return study


def tolerance(column, line, same_machine):
    """How far a number may move: 0 on the same machine, elsewhere as said above; None: not held.

    line: {column: text}, the committed row that the number stands in.
    """
    if same_machine or column in EXACT:
        return 0.0
    few_sets = column in ("diff low", "diff high") and (_number(line.get("sets")) or FEW_SETS) < FEW_SETS
    if column in NOT_HELD or few_sets:
        return None
    ends = [_number(line.get(f"{'diff' if column in CHANGES else 'mAP'} {end}")) for end in ("low", "high")]
    if None not in ends and column not in ("dispersion", "zero-shot"):
        return round((ends[1] - ends[0]) / 2**0.5, 2)
    points = ONE_SEED_POINTS if any(word in column for word in ONE_SEED) else POINTS
    return 0.3 if column == "dispersion" else points


def moved_cells(committed, again, same_machine):
    """The cells that differ between two folders of csv tables.

    Returns (cells compared, DataFrame with table, row, column, committed, now, allowed (None: not held), within). A
    table, row or column that only one folder has is a cell that is not within. A verdict is within unless it turned
    into its opposite, or was certain and can no longer be told.
    """
    names = sorted({path.name for folder in (committed, again) for path in folder.glob("[!.]*.csv")})
    count, moved = 0, []
    for name in names:
        old, new = (_lines(folder / name) for folder in (committed, again))
        for row in dict.fromkeys([*old, *new]):
            before, now = old.get(row, {}), new.get(row, {})
            for column in dict.fromkeys([*before, *now]):
                count += 1
                if before.get(column) != now.get(column):
                    allowed, within = _judged(column, before, now, same_machine)
                    cells = before.get(column), now.get(column)
                    moved.append((name.removesuffix(".csv"), row, column, *cells, allowed, within))
    columns = ["table", "row", "column", "committed", "now", "allowed", "within"]
    return count, pd.DataFrame(moved, columns=columns)


def _judged(column, before, now, same_machine):
    """(allowed, within) of a cell that moved between two rows {column: text}."""
    if column not in before or column not in now:
        return 0.0, False
    if column == "verdict" and not same_machine:
        was, became = sign(before[column]), sign(now[column])
        return None, was * became >= 0 and not (abs(was) == 1 and became == 0)
    if "sets" in before and not same_machine and "" in (before[column], now[column]):
        return None, True  # T7: which sets have a model of that mAP depends on the trainings
    allowed, ends = tolerance(column, before, same_machine), [_number(each[column]) for each in (before, now)]
    return allowed, allowed is None or (None not in ends and round(abs(ends[1] - ends[0]), 9) <= allowed)


def _number(text):
    """A cell as a number ("< 0.001" as 0.001); None where it is missing, blank or text."""
    try:
        return float(text.removeprefix("< "))
    except (AttributeError, ValueError):
        return None


def _lines(path):
    """{row: {column: text}} of a csv table, {} without file or rows; a row is called by its first column of text."""
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    key = "row" if "row" in frame else next(name for name in frame if name != "no.")
    number = frame.groupby(key).cumcount().astype(str).radd(" #").where(frame[key].duplicated(), "")
    return frame.drop(columns=key).set_index(frame[key] + number).to_dict("index")


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


def verify(folder, figures):
    """Compare a finished study's tables with the committed ones and print what moved -> whether all is within."""
    study, here = read_json(figures / "study.json"), machine(finished(folder))
    same = here == {name: study[name] for name in here} and folder.name == study["study"]
    count, moved = moved_cells(figures / "tables", folder / "tables", same)
    other = "another study" if folder.name != study["study"] else "another machine type"
    where = "the same machine type: exact" if same else f"{other}: within the intervals, verdicts held"
    print(f"committed: {study['device']}; here: {here['device']}")
    if not moved.empty:
        print(moved.to_string(index=False, na_rep="not held"))
    outside = len(moved) - int(moved["within"].sum())
    print(f"{count} cells compared ({where}), {len(moved)} moved, {outside} outside the tolerance")
    return not outside


def main(arguments=None):
    """Run the command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("figures", "verify", "verdicts"))
    parser.add_argument("folder", nargs="?", type=Path, help="a finished study; left out: runs/quick, or run it again")
    parser.add_argument("other", nargs="?", type=Path, help="with verdicts: another finished study, or figures")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # names in any script, on a terminal of any encoding
    figures = REPOSITORY / "figures"
    try:
        if options.action == "figures":
            folder = (options.folder or REPOSITORY / "runs" / "quick").resolve()
            study = publish(folder, figures, REPOSITORY / "README.md")
            print(f"figures/ and README.md now show {folder}, made at commit {study['commit']}")
            return 0
        if options.action == "verdicts":
            if options.other is None:
                raise ValueError("give two folders of finished studies, or one and figures")
            return int(not compare_verdicts(options.folder, options.other))
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
