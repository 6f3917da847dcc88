"""Show a finished study of real crops in figures/people and the README: numbers alone, no image of the set.

`python -m reid_utils.paper.people FOLDER ABOUT` copies the tables of a finished `people` study and writes, from them,
the README's section on real crops. ABOUT names the set, its source and its terms, in the words that the README prints.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from notebook_study.folders import StudyFolders
from reid_utils.files import read_json, write_json, write_text
from reid_utils.paper.claims import findings_text, read_findings
from reid_utils.paper.publish import LAST, check_clean, finished, in_readme, machine
from reid_utils.paper.results import REPOSITORY

MARKERS = (
    "<!-- people: begin; written by `python -m reid_utils.paper.people` from figures/people -->",
    "<!-- people: end -->",
)


def summary(runs, about):
    """The content of figures/people/study.json; `runs` as `publish.finished` gives them.

    Trainings and tables may be of two commits, each free of changes. Raises ValueError naming a run that is not.
    """
    check_clean(runs)
    trained = [result for result in runs.values() if result["notebook"] == "02_training"]
    commits = sorted({result["git"]["commit"] for result in trained})
    if len(commits) > 1:
        raise ValueError(f"trainings were made at the commits {', '.join(commits)}; run the study into a fresh folder")
    return {
        "about": about,
        "commit": commits[0],
        "commit of the tables": runs[LAST]["git"]["commit"],
        **machine(runs),
        "data": runs[LAST]["values"]["note"],
        "queries": runs[LAST]["values"]["queries"],
        "seeds": max(len(result["seeds"]) for result in trained),
    }


def section(figures):
    """The README's section (Markdown) from study.json and tables/ in figures/people.

    Of the findings those on pre-training, and those on the loss that start from pre-trained weights.
    """
    study, folder = read_json(figures / "study.json"), "figures/people/tables"
    findings = read_findings(figures)
    of_loss = (findings["claim"] == "InfoNCE beats the ID loss") & ~findings["compared"].str.contains("from scratch")
    shown = findings[(findings["claim"] == "pre-training helps") | of_loss]
    tables = study["commit of the tables"]
    made = f"`{study['commit'][:10]}`" + (f" (tables: `{tables[:10]}`)" if tables != study["commit"] else "")
    return (
        "## What real crops say\n\n"
        f"{study['about']} Study `people`: {study['queries']} queries, {study['seeds']} seeds, made at commit {made} "
        f"by `make weights` and `python run_all.py people --data FOLDER` ({study['device']}). Losses are "
        f"compared from pre-trained weights.\n\n{findings_text(shown)}\n"
        f"All comparisons: [findings]({folder}/findings.md); all rows: [losses]({folder}/T2.md), "
        f"[re-ranking]({folder}/T3.md), [pre-training]({folder}/T4.md), [fusion]({folder}/T5.md). No image of the set "
        "is shown.\n"
    )


def publish(folder, figures, readme, about):
    """Copy the tables of the study in `folder` to `figures` and write the README's section -> the summary written.

    Raises ValueError, before anything is touched, where the study is not finished or the README lacks a marker.
    """
    runs = finished(folder)
    study = summary(runs, about)
    in_readme(readme.read_text(encoding="utf-8"), "", MARKERS)
    shutil.rmtree(figures, ignore_errors=True)
    (figures / "tables").mkdir(parents=True)
    place = shlex.quote((read_json(StudyFolders(folder).study) or {}).get("options", {}).get("data", "FOLDER"))
    for name in (name for result in runs.values() for name in result["files"] if name.startswith("tables/")):
        text = (folder / name).read_text(encoding="utf-8")  # where the set lies is nobody's business
        write_text(figures / name, text.replace(f"--data {place}", "--data FOLDER"))
    write_json(figures / "study.json", study)
    write_text(readme, in_readme(readme.read_text(encoding="utf-8"), section(figures), MARKERS))
    return study


def main(arguments=None):
    """Run the command line -> exit status."""
    parser = argparse.ArgumentParser(prog="python -m reid_utils.paper.people", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a finished study `people`, such as runs/people-NAME")
    parser.add_argument("about", help="the set, its source and its terms, in a sentence or two")
    given = parser.parse_args(arguments)
    try:
        publish(given.folder.resolve(), REPOSITORY / "figures" / "people", REPOSITORY / "README.md", given.about)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
