"""Show a finished study in figures/, docs/results.md and README (`make figures`), or make it again (`make verify`).

`python tools/publish.py figures [FOLDER]` copies a study's tables and figures to figures/, writes figures/study.json
and, from these files alone, the results in docs/results.md and the findings in README; without FOLDER the study `full`
where it is finished, else `quick`. `… publish.py tuning FOLDER` copies those of a study that chose settings to
figures/NAME. `… publish.py people FOLDER ABOUT` shows the numbers of a study of real crops in figures/people and in the
same pages, no image of the set; ABOUT names the set, its source and its terms, in the words that the page prints.
`… publish.py verify [FOLDER]` compares the
committed tables with those of another run: they are equal on the same machine type, their verdicts hold elsewhere.
`… publish.py verdicts FOLDER OTHER` sets the findings of two studies, made with other seeds say, beside each other.
Exit status: 0 done, or all agree; 1 some do not; 2 the study could not be run or read.
"""

import argparse
import difflib
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from notebook_study.folders import StudyFolders
from reid_utils.files import read_json, write_json, write_text
from reid_utils.paper.claims import RULE
from reid_utils.paper.results import REPOSITORY, load_results, markdown_table

LAST = "06_paper_tables"
FIGURE_LIMIT = 300_000  # bytes; heavier ones are not committed
MARKERS = {  # what is shown: the lines of docs/results.md, or for the findings of README, between which it stands
    "figures": (
        "<!-- results: begin; written by `make figures` from the files in figures/ -->",
        "<!-- results: end -->",
    ),
    "people": (
        "<!-- people: begin; written by `python tools/publish.py people` from figures/people -->",
        "<!-- people: end -->",
    ),
    "beside": (
        "<!-- side by side: begin; written by `make figures` from the files in figures/ -->",
        "<!-- side by side: end -->",
    ),
    "findings": (
        "<!-- findings: begin; written by `make figures` from the files in figures/ -->",
        "<!-- findings: end -->",
    ),
}


def finished(folder):
    """{run id: its results.json} of a finished study: what its tables are made from, notebook 06, then the others.

    Others, such as pictures of the data, are those of the tables' commit. Raises ValueError where a run that the tables
    are made from is not done, or was done anew since.
    """
    paths = StudyFolders(folder)
    record = read_json(paths.record(LAST))
    if not record:
        raise ValueError(f"{folder} holds no finished study; finish it with run_all.py first")
    for name, key in record["parts"]["upstream"].items():
        if (read_json(paths.record(name)) or {}).get("key") != key:
            raise ValueError(f"{folder}: {name} is not done, or was done anew after the tables; start the study again")
    runs = {name: load_results(paths.results(name)) for name in [*record["parts"]["upstream"], LAST]}
    for name in sorted(path.parent.name for path in folder.glob("results/*/results.json")):
        result = load_results(paths.results(name))
        if paths.record(name).exists() and result["git"] == runs[LAST]["git"]:
            runs.setdefault(name, result)
    return runs


def clean_commit(runs):
    """The one commit, free of changes, that all runs were made at. Raises ValueError naming a run that differs."""
    commit = runs[LAST]["git"]["commit"]
    for name, result in runs.items():
        git = result["git"]
        if git["commit"] is None or git["dirty"] or git["commit"] != commit:
            which = f"{str(git['commit'])[:10]}{' with changes' if git['dirty'] else ''}"
            raise ValueError(
                f"{name} was made at commit {which}, {LAST} at {str(commit)[:10]}; "
                "commit all changes, then run the study into a fresh folder"
            )
    return commit


def machine(runs):
    """What decides the bits of a study's trainings: {"device": text, "versions": {library: version}}."""
    result = next(result for result in runs.values() if result["notebook"] == "02_training")
    return {"device": result["device"], "versions": result["versions"]}


def summary(folder, runs, about=""):
    """The content of figures/study.json: where the committed numbers come from."""
    values, tables = runs[LAST]["values"], {}
    for result in runs.values():
        for name, line in result["values"].get("tables", {}).items():
            tables[name] = line | {"made by": result["notebook"]}
    seeds = sorted({len(result["seeds"]) for result in runs.values() if result["notebook"] == "02_training"})
    return {
        "about": about,
        "study": folder.name,
        "commit": clean_commit(runs),
        **machine(runs),
        "data": values["note"],
        "seeds": f"{seeds[0]} to {seeds[-1]}" if seeds[1:] else seeds[0],
        "queries": values["queries"],
        "rule": RULE,
        "tables": tables,
    }


def published_files(folder, runs):
    """The tables and figures that a study shows, but for vector figures too heavy to be committed.

    Raises ValueError naming a PNG that is too heavy.
    """
    files = [folder / name for result in runs.values() for name in result["files"]]
    for path in files:
        if path.suffix == ".png" and path.stat().st_size > FIGURE_LIMIT:
            size = f"{path.stat().st_size} bytes, above {FIGURE_LIMIT}"
            raise ValueError(f"{path} has {size}; draw fewer images in one figure")
    return [path for path in files if path.suffix not in (".svg", ".pdf") or path.stat().st_size <= FIGURE_LIMIT]


def about_figures(study):
    """The text of figures/README.md."""
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    return (
        f"# Figures and tables of the {study['study']} study\n\n"
        f"Made at commit `{study['commit']}` ({study['data']}; {study['device']}; {versions}), copied from "
        f"`runs/{study['study']}` by `make figures`, which writes `study.json`, docs/results.md and README's findings "
        "too; `make verify` makes the tables anew and compares them.\n\n"
        "A figure's name begins with the run that drew it. Some vector versions are too large to be committed; a run "
        f"writes them to `runs/{study['study']}/figures`. `people` holds the same for real people.\n"
    )


def read_findings(folder):
    """The findings below a study's folder, or figures: tables/findings.csv with every cell as text."""
    return pd.read_csv(folder / "tables" / "findings.csv", dtype=str, keep_default_na=False)


def findings_text(findings, rule):
    """Findings (rows as `read_findings` gives them) as the README has them: Markdown, the difference in one column.

    rule: what a verdict needed when they were made.
    """

    def ranges(text, *columns):
        return [text.format(*map(float, line)) if all(line) else "" for line in findings[[*columns]].to_numpy()]

    mark = np.where(findings["regime"] == "", "", " †")
    shown = findings[["claim", "compared"]].assign(verdict=findings["verdict"] + mark)
    shown["difference (95 %)"] = ranges("{:.2f} ({:.2f} to {:.2f})", "difference", "diff low", "diff high")
    if "rerun low" in findings:
        shown["a rerun (95 %)"] = ranges("{:.2f} to {:.2f}", "rerun low", "rerun high")
    shown = shown.join(findings["p (Holm)"])
    outside = findings[findings["regime"] != ""]
    dagger = " †: the single models here reach {} mAP; the paper's claims are about 95 and more."
    return (
        f"{markdown_table(shown)}\nA difference is the mAP of the method that the claim favours minus that of the "
        "other, in points, with its 95 % interval over queries and seeds. p is corrected for the number of claims that "
        f"one table decides (Holm). {rule}{dagger.format(_accuracies(outside)) if len(outside) else ''}\n"
    )


def sign(verdict):
    """1 for a claim that is supported, −1 for one that is contradicted, 0 for an open one."""
    return verdict.startswith("supported") - verdict.startswith("contradicted")


_KINDS = ("contradicted", "missing", "lost", "won")


def verdicts_beside(folder, other):
    """The findings of two folders that hold tables/findings.csv, each once, with what became of the first's verdict.

    Returns a DataFrame with claim, compared, first, second and became: "" (as it was), "contradicted" (opposite
    verdicts), "missing" (one folder has no such finding), "lost" (open in the second folder) or "won" (open in the
    first).
    """
    keys = ["claim", "compared"]
    first, second = (read_findings(each).set_index(keys)["verdict"] for each in (folder, other))
    frame = pd.concat({"first": first, "second": second}, axis=1, sort=False).reset_index()
    was, now = (frame[side].map(sign, na_action="ignore").astype(float) for side in ("first", "second"))
    became = [was * now < 0, (was * now).isna(), was.abs() > now.abs(), was != now]
    return frame.assign(became=np.select(became, _KINDS, ""))


def compare_verdicts(folder, other):
    """Print two studies' findings beside each other -> whether no verdict is contradicted."""
    frame = verdicts_beside(folder, other)
    print(frame.to_string(index=False, na_rep="no such finding"))
    decided = frame["first"].dropna().map(sign).abs().sum()
    counts = {kind: (frame["became"] == kind).sum() for kind in _KINDS}
    of_all = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{len(frame)} findings, {decided} of them decided in {folder}; in {other}: {of_all}")
    return not counts["contradicted"]


def results_section(figures):
    """The section of docs/results.md (Markdown) from study.json and tables/ in the folder `figures`."""
    study = read_json(figures / "study.json")
    lines = [
        (
            f"[{table}](../figures/tables/{table}.md)",
            about["question"],
            about["notebook"],
            f"`python run_all.py {study['study']} --only '{about['made by'].partition('_')[0]}*'`",
        )
        for table, about in study["tables"].items()
    ]
    tables = pd.DataFrame(lines, columns=["table", "question", "measured by", "made by"])
    others = sorted({path.stem for path in (figures / "tables").glob("[!.]*.md")} - {"findings", *study["tables"]})
    links = ", ".join(f"[{name}](../figures/tables/{name}.md)" for name in others)
    return (
        f"## What the {study['study']} study says\n\n"
        f"Small encoders on {study['data']}: {study['seeds']} seeds, {study['queries']} queries, made at commit "
        f"`{study['commit'][:10]}` ({study['device']}). They test each claim of the paper on small encoders and "
        "cannot say what holds for the paper's own models ([more of each](../figures/tables/findings.md)):\n\n"
        f"{findings_text(read_findings(figures), study['rule'])}\n"
        "## Which table, which notebook, which command\n\n"
        f"{markdown_table(tables)}\n"
        f"Each table ends with the commands of its rows.{f' Beside them: {links}.' if links else ''}\n"
    )


def people_section(figures):
    """The section of docs/results.md on real crops (Markdown) from study.json and tables/ in figures/people."""
    study, tables = read_json(figures / "study.json"), figures / "tables"
    pages = {"T2": "losses", "T3": "re-ranking", "T4": "encoders", "T5": "fusion", "T7": "accuracy", "T8": "length"}
    texts = {name: file.read_text(encoding="utf-8") for name in pages if (file := tables / f"{name}.csv").exists()}
    filled = [name for name, text in texts.items() if len(text.splitlines()) > 1]
    links = ", ".join(f"[{pages[name]}](../figures/people/tables/{name}.md)" for name in filled)
    return (
        "## What real crops say\n\n"
        f"{study['about']} Study `people`: {study['queries']} queries, {study['seeds']} seeds, made at commit "
        f"`{study['commit'][:10]}` by `make weights` and `python run_all.py people --data FOLDER` ({study['device']}). "
        f"Losses are compared from pre-trained weights.\n\n{findings_text(read_findings(figures), study['rule'])}\n"
        f"All rows: {links}. No image of the set is shown.\n"
    )


MOST_FINDINGS = 7  # that README shows


def published_findings(figures):
    """{what the data are: findings} of figures/ and figures/people, as far as they are there."""
    sets = {"rendered players": figures, "real people": figures / "people"}
    return {name: read_findings(place) for name, place in sets.items() if (place / "study.json").exists()}


def _by_claim(found):
    """{claim: {what the data are: its findings}}, claims in the order in which they first stand."""
    claims = dict.fromkeys(claim for each in found.values() for claim in each["claim"])
    of_claim = {claim: {name: each[each["claim"] == claim] for name, each in found.items()} for claim in claims}
    return {claim: {name: each for name, each in sets.items() if len(each)} for claim, sets in of_claim.items()}


def beside_section(figures):
    """Claims by sets (Markdown): the verdicts of all comparisons, and the one in the middle with its interval."""
    lines = [
        {"claim": claim} | {name: _in_words(each) for name, each in sets.items()}
        for claim, sets in _by_claim(published_findings(figures)).items()
    ]
    return f"{markdown_table(pd.DataFrame(lines).fillna('not tested'))}\n"


def headlines(figures):
    """README's findings (Markdown) from figures/ and figures/people: a line a claim, those with a verdict first."""
    return headlines_of(published_findings(figures))


def headlines_of(found):
    """A line a claim (Markdown) from findings as `read_findings` gives them: {what the data are: DataFrame}.

    Where two sets have their intervals of one comparison on opposite sides of zero, that is said first, whatever each
    verdict is.
    """
    found = {name: each for name, each in found.items() if len(each)}
    if not found:
        return "No claim of the paper is tested here.\n"
    lines, apart = [], []
    for claim, of_claim in _by_claim(found).items():
        turned = _turned(of_claim.values())
        apart += [f"*{claim}* ({', '.join(turned)})"] if turned else []
        shown = " ".join(f"{name.capitalize()}: {_marked(each)}." for name, each in of_claim.items())
        decided = any(sign(verdict) for each in of_claim.values() for verdict in each["verdict"])
        lines.append((not decided and not turned, f"- **{claim[0].upper()}{claim[1:]}.** {shown}"))
    first = f" The intervals of {' and '.join(found)} lie on opposite sides of zero for {' and '.join(apart)}."
    shown = "\n".join(line for _, line in sorted(lines, key=lambda line: line[0])[:MOST_FINDINGS])
    reached = " and ".join(f"{_accuracies(each)} mAP on {name}" for name, each in found.items())
    return f"""The paper's claims, tested with small encoders: single models reach {reached},
the paper's 95 and more, where the results may differ.{first if apart else ""} ✓ supported, ✗ contradicted, ? open.
Numbers are differences in points of mAP with their 95 % intervals.

{shown}

A verdict needs more than an interval that leaves out zero. We must also expect a rerun with new seeds and new players
to agree, and compared trainings must keep their order at twice the length.
"""


_MARKS = {1: "✓", -1: "✗", 0: "?"}


def _middle(findings):
    """The comparison with the middle difference of a claim's."""
    return findings.iloc[findings["difference"].astype(float).argsort().iloc[len(findings) // 2]]


def _side(line):
    """1 or −1, the side of zero on which a comparison's interval lies, or 0 where it holds zero."""
    return (float(line["diff low"]) > 0) - (float(line["diff high"]) < 0)


def _turned(sets):
    """Comparisons, such as "hard against none", whose intervals lie on opposite sides of zero in two sets' findings.

    Of several encoders that one in the middle counts.
    """
    sides = {}
    for findings in sets:
        for compared, lines in findings.groupby(findings["compared"].str.rpartition(": ")[2], sort=False):
            sides.setdefault(compared, set()).add(_side(_middle(lines)))
    return [compared for compared, found in sides.items() if {1, -1} <= found]


def _interval(line):
    ends = f"{float(line['difference']):+.1f} ({float(line['diff low']):.1f} to {float(line['diff high']):.1f})"
    return ends.replace("-", "−")


def _marked(findings):
    """The comparisons of a claim with their verdicts as marks: one or two in full, of more the one in the middle."""
    marks = [_MARKS[sign(verdict)] for verdict in findings["verdict"]]
    if len(findings) > 2:
        counts = ", ".join(f"{mark} {marks.count(mark)}" for mark in dict.fromkeys(marks))
        said = marks[0] if len({*marks}) == 1 else counts
        return f"{said} {_interval(_middle(findings)).removesuffix(')')}; median of {len(findings)})"
    names = findings["compared"] + " " if len(findings) > 1 else [""]
    lines = zip(names, marks, findings.to_dict("records"), strict=True)
    return ", ".join(f"{name}{mark} {_interval(line)}" for name, mark, line in lines)


def _accuracies(findings):
    """The range of mAP of the single models that findings (at least one) speak of, from their note on the regime."""
    here = findings["regime"].str.extract(r"\((.*) mAP here\)")[0].astype(float).sort_values()  # blank: as the paper's
    ends = ["95 and more" if np.isnan(end) else f"{end:.0f}" for end in here.iloc[[0, -1]]]
    return " to ".join(dict.fromkeys(ends))


def _in_words(findings):
    """A claim's comparisons, each with its verdict and interval; of three or more the counts and the middle one."""
    if len(findings) < 3:
        lines = findings.to_dict("records")
        return "; ".join(f"{line['compared']}: {line['verdict']}, {_interval(line)}" for line in lines)
    signs, middle = findings["verdict"].map(sign), _middle(findings)
    counts = {"supported": (signs > 0).sum(), "contradicted": (signs < 0).sum(), "open": (signs == 0).sum()}
    said = ", ".join(f"{kind} in {count} of {len(findings)}" for kind, count in counts.items() if count)
    return f"{said} (median {middle['compared']}: {_interval(middle)})"


def show_findings(figures, readme, page):
    """Write README's findings and the page's claims by sets from what figures/ holds."""
    for path, section, name in ((readme, headlines, "findings"), (page, beside_section, "beside")):
        text = path.read_text(encoding="utf-8")
        write_text(path, in_page(text, section(figures), MARKERS[name]))


def in_page(text, section, markers):
    """A page's text with what stands between two markers replaced. Raises ValueError where a marker is missing."""
    head, begin, rest = text.partition(markers[0])
    _, end, tail = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"the page lacks the line {markers[0]!r} or {markers[1]!r}")
    return f"{head}{begin}\n{section}{end}{tail}"


def publish(folder, figures, page=None, about=""):
    """Copy the finished study in `folder` to `figures` and write its section of a page, if any -> the summary written.

    about: what is to be said of real crops, of which no photograph is shown and whose place is left out; "" for a study
    that ran as its file says. Raises ValueError, before anything is touched, unless all its runs were made at one clean
    commit.
    """
    runs, markers = finished(folder), MARKERS["people" if about else "figures"]
    given = read_json(StudyFolders(folder).study)
    changed = [word for word in shlex.split(given["command"]) if word.startswith(("--set", "--data", "--features"))]
    if changed and not about:
        raise ValueError(f"{folder} was run with {changed[0]}; publish a study that ran as its file says")
    study, files = summary(folder, runs, about), published_files(folder, runs)
    text = page.read_text(encoding="utf-8") if page else markers[0] + markers[1]
    in_page(text, "", markers)
    shutil.rmtree(figures / "tables", ignore_errors=True)
    (figures / "tables").mkdir(parents=True)
    for path in (path for kind in ("png", "svg", "pdf") for path in figures.glob(f"*.{kind}")):
        path.unlink()
    place = f"--data {shlex.quote(given['options']['data'] or '')}"
    for path in files:
        if path.parent.name == "tables":
            table = path.read_text(encoding="utf-8").replace(place, "--data FOLDER")
            write_text(figures / "tables" / path.name, table)
        elif not about or path.with_suffix(".svg") in files:  # figures made of photographs have no vector version
            shutil.copy(path, figures)
    write_json(figures / "study.json", study)
    if not about:
        write_text(figures / "README.md", about_figures(study))
    if page:
        section = people_section(figures) if about else results_section(figures)
        write_text(page, in_page(text, section, markers))
    return study


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


def moved_lines(committed, again):
    """The lines in which the csv tables of a folder differ from those of another, as a unified diff [text]."""
    moved = []
    for path in sorted(committed.glob("[!.]*.csv")):
        texts = [each.read_text(encoding="utf-8").splitlines() for each in (path, again / path.name)]
        moved += difflib.unified_diff(*texts, str(path), str(again / path.name), n=0, lineterm="")
    return moved


def verify(folder, figures):
    """Compare a finished study's tables with the committed ones and print what moved -> whether they agree.

    On the same machine type tables are equal; elsewhere, or with other seeds, verdicts are not contradicted.
    """
    study, here = read_json(figures / "study.json"), machine(finished(folder))
    print(f"committed: {study['device']}; here: {here['device']}")
    if here != {name: study[name] for name in here} or folder.name != study["study"]:
        print("another study or machine type: numbers move, verdicts are compared")
        return compare_verdicts(figures, folder)
    moved = moved_lines(figures / "tables", folder / "tables")
    print(*moved, f"the same machine type: tables {'differ' if moved else 'are equal'}", sep="\n")
    return not moved


def _act(action, folder, other):
    """Do what the command line asks -> whether all is well."""
    figures = REPOSITORY / "figures"
    if action in ("people", "verdicts") and not other:
        raise ValueError("give a folder and what is said of the set, or two folders to compare")
    if action == "verdicts":
        return compare_verdicts(folder, Path(other))
    if action == "tuning":
        publish(folder, figures / folder.name)
        return True
    if action != "verify":
        place, page = figures / "people" if other else figures, REPOSITORY / "docs" / "results.md"
        full, quick = (REPOSITORY / "runs" / name for name in ("full", "quick"))
        done = [each for each in (full, quick) if StudyFolders(each).record(LAST).exists()]
        publish(folder or next(iter(done), quick), place, page, other or "")
        show_findings(figures, REPOSITORY / "README.md", page)
        print(f"written: {place}, docs/results.md, README.md")
        return len(done) < 2 or compare_verdicts(full, quick)
    again = folder or run_again(read_json(figures / "study.json")["study"])
    agree = verify(again, figures)
    if agree and not folder:
        shutil.rmtree(again.parent)
    return agree


def main(arguments=None):
    """Run the command line -> exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("figures", "tuning", "people", "verify", "verdicts"))
    parser.add_argument("folder", nargs="?", type=Path, help="a finished study; left out: runs/quick, or run it again")
    parser.add_argument("other", nargs="?", help="verdicts: another study, or figures; people: what is said of the set")
    given = parser.parse_args(arguments)
    try:
        return int(not _act(given.action, given.folder and given.folder.resolve(), given.other))
    except (ValueError, OSError) as error:
        print(f"{given.action}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
