"""Run a study: execute its notebooks over their parameters, skip what is done, rebuild every table and figure."""

import contextlib
import signal
import sys
import warnings
from pathlib import Path

from reid_utils.files import read_json, write_json
from reid_utils.study import command, estimates, execution, jobs, keys, notebooks, plan, progress, study_file
from reid_utils.study import study_file as overrides

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"


def read_plan(args):
    """The study with its overrides, its runs, the ids asked for, the folder of its results."""
    study = study_file.read_study(study_file.find_study(args.study, ROOT / "studies"))
    declared = notebooks.declared_in(study, NOTEBOOKS)
    study = overrides.override(study, args.set, declared)
    command.confirm_size(study, args.yes)
    root = args.runs.resolve() / study_file.results_name(study, args.data, args.features)
    runs = plan.expand(study, declared, bool(args.features))
    return study, runs, jobs.pick(runs, args.only), root


def data_folder(args, study):
    """The data's folder and fingerprint (None where a dry run would have to make them)."""
    own = keys.folder_fingerprint(args.features) if args.features else ""
    if args.features and not args.data:
        return "", own
    from reid_utils.data import integrity, sources

    rendering = {"workers": args.jobs, **study.rendering}
    source = args.data or study.data, args.runs.resolve() / "data", rendering, args.accept_md5
    folder = sources.planned_data_dir(*source[:3])
    if not args.dry_run:
        print(f"data: {folder}{'' if folder.is_dir() else ' (being made)'}", flush=True)
        folder = sources.prepare_data(*source)
    return folder, integrity.data_fingerprint(folder) + own if folder.is_dir() else None


def check_images(folder, fingerprint, root, workers):
    """Decode every image, once for each state of the data. Raises ValueError naming a damaged file."""
    if folder and read_json(root / "state" / "checked_images.json") != fingerprint:
        from reid_utils.data import integrity, synergy

        integrity.validate_images(folder, synergy.load_manifest(folder), workers)
        write_json(root / "state" / "checked_images.json", fingerprint)


@contextlib.contextmanager
def place_of(args):
    """Yield the place where runs are executed: this machine, or a cluster."""
    if args.scheduler is None or args.dry_run:
        yield execution.Local(args.jobs)
        return
    from reid_utils.study import cluster  # Dask is for those who ask for it: 1 s

    with cluster.connect(args.scheduler) as place:
        print(f"cluster: {len(place.workers)} workers at {place.address}; dashboard: {place.dashboard}", flush=True)
        yield place


def run_study(args, study, runs, picked, place, root, folder, fingerprint):
    """Find out what is left to do and do it in a place, or print it -> exit status."""
    runs, needs = estimates.with_estimates(runs, notebooks.declared_in(study, NOTEBOOKS), study.estimate)
    key = keys.run_keys(runs, NOTEBOOKS, ROOT / "requirements.lock", study.threads, fingerprint)
    states = jobs.run_states(runs, root, key)
    chosen, fresh = jobs.choose(runs, states, picked, args.force)
    print(progress.plan_text(runs, states, chosen, place.slots, root, args.dry_run, needs), flush=True)
    if args.dry_run and needs:
        print(estimates.assumptions(study.estimate))
    if args.dry_run or not chosen:
        return 0
    check_images(folder, fingerprint, root, args.jobs)
    write_json(root / "study.json", {**vars(study), "data folder": str(folder), "command": sys.argv[1:]})
    places = {"root": root, "notebooks": NOTEBOOKS, "data": folder, "features": args.features}
    work = [jobs.make_job(run, runs, key, fresh=run.id in fresh, **places) for run in jobs.in_order(chosen, states)]
    outcomes = execution.execute(work, place, progress.Progress(chosen, states, place.slots))
    print(progress.summary_text(runs, states, outcomes), f"tables in {root / 'tables'}", sep="\n")
    return int(any(result.name != "done" for result in outcomes.values()))


def main(arguments=None):
    """Run the command line -> exit status: 0 done, 1 a run failed, 2 a mistake told in one line, 130 interrupted."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    warnings.formatwarning = lambda message, *_: f"run_all: warning: {message}\n"
    try:
        args = command.parse(arguments, __doc__, ROOT / "runs")
        study, runs, picked, root = read_plan(args)
        with place_of(args) as place:
            data = data_folder(args, study)
            with contextlib.nullcontext() if args.dry_run else execution.hold(root):
                return run_study(args, study, runs, picked, place, root, *data)
    except (ValueError, OSError) as error:
        print(f"run_all: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_all: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
