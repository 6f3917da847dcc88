"""Run a study: execute its notebooks over their parameters, skip what is done, rebuild every table and figure."""

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from reid_utils.study import execution, jobs, keys, notebooks, plan, progress, study_file
from reid_utils.study.files import read_json, write_json

ROOT = Path(__file__).resolve().parent


def parse(arguments):
    parser = argparse.ArgumentParser(prog="run_all.py", description=__doc__)
    add = parser.add_argument
    add("study", nargs="?", default="quick", help="a name in studies/, or a yaml file (default: quick)")
    add("--data", help="rendered, synergy, or a folder in the Synergy layout")
    add("--features", type=Path, help="folder of your own features or distance CSVs: no training")
    add("--only", metavar="GLOB", help="only runs whose id matches, and what they need")
    add("--set", action="append", default=[], metavar="key=value", help="override a parameter")
    add("--dry-run", action="store_true", help="print the plan and end")
    add("--force", action="store_true", help="redo runs that are done")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at once (default: number of cores)")
    add("--accept-md5", metavar="SUM", help="accept a downloaded zip with this MD5")
    add("--runs", default=ROOT / "runs", type=Path, help="where results go (default: runs/)")
    return parser.parse_args(arguments)


def read_plan(args):
    """The study with its overrides, its runs, the folder of its results."""
    study = study_file.read_study(study_file.find_study(args.study, ROOT / "studies"))
    stems = [entry["notebook"] for entry in study.entries]
    declared = {stem: notebooks.declared_parameters(ROOT / "notebooks" / f"{stem}.ipynb") for stem in stems}
    study = study_file.override(study, args.set, declared)
    root = args.runs.resolve() / study_file.results_name(study, args.data, args.features)
    return study, plan.expand(study, declared, bool(args.features)), root


def data_folder(args, study):
    """The data's folder and fingerprint (None where a dry run would have to make them)."""
    own = keys.folder_fingerprint(args.features) if args.features else ""
    if args.features and not args.data:
        return "", own
    from reid_utils.data import sources, synergy

    where = sources.planned_data_dir if args.dry_run else sources.prepare_data
    folder = Path(where(args.data or study.data, args.runs.resolve(), study.rendering, args.accept_md5)).resolve()
    return folder, synergy.data_fingerprint(folder) + own if folder.is_dir() else None


def check_images(folder, fingerprint, root):
    """Decode every image, once for each state of the data. Raises ValueError naming a damaged file."""
    if folder and read_json(root / "state" / "checked_images.json") != fingerprint:
        from reid_utils.data.synergy import load_manifest, validate_images

        validate_images(folder, load_manifest(folder))
        write_json(root / "state" / "checked_images.json", fingerprint)


def run_study(args, study, runs, root):
    """Find out what is left to do and do it, or print it -> exit status."""
    folder, fingerprint = data_folder(args, study)
    key = keys.run_keys(runs, ROOT / "notebooks", ROOT / "requirements.lock", study.threads, fingerprint)
    states = jobs.run_states(runs, root, key)
    chosen, fresh = jobs.choose(runs, states, args.only, args.force)
    print(progress.plan_text(runs, states, chosen, args.jobs, root, args.dry_run), flush=True)
    if args.dry_run or not chosen:
        return 0
    check_images(folder, fingerprint, root)
    write_json(root / "study.json", {**vars(study), "data folder": str(folder), "command": sys.argv[1:]})
    places = {"root": root, "notebooks": ROOT / "notebooks", "data": folder, "features": args.features}
    work = [jobs.make_job(run, runs, key, fresh=run.id in fresh, **places) for run in jobs.in_order(chosen, states)]
    show = progress.Progress({run.id: states[run.id].seconds for run in chosen}, args.jobs)
    outcomes = execution.execute(work, args.jobs, show)
    print(progress.summary_text(runs, states, outcomes), f"tables in {root / 'tables'}", sep="\n")
    return int(any(result.name != "done" for result in outcomes.values()))


def main(arguments=None):
    args = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.jobs < 1:
            raise study_file.StudyError(f"--jobs must be at least 1, not {args.jobs}")
        study, runs, root = read_plan(args)
        with contextlib.nullcontext() if args.dry_run else execution.hold(root):
            return run_study(args, study, runs, root)
    except (ValueError, OSError) as error:
        print(f"run_all: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_all: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
