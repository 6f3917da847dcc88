"""Run a study: execute its notebooks over their parameters, skip what is done, rebuild every table and figure."""

import os
import site
import sys

if __name__ == "__main__" and site.ENABLE_USER_SITE:  # no venv: libraries in ~/.local would come first
    os.execv(sys.executable, [sys.executable, "-s", *sys.orig_argv[1:]])

# This folder is looked at last: a file of the user's in it (queue.py) must not stand in for a library's module.
sys.path.sort(key=lambda place: os.path.realpath(place) == os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import shlex
import shutil
import signal
import time
import warnings
from pathlib import Path

try:
    from notebook_study import engine, keys, machine, plan, progress, study_file, worker
    from notebook_study.folders import StudyFolders
    from reid_utils.files import file_hash, folder_fingerprint, read_json, write_json, write_text
except ModuleNotFoundError as error:
    sys.exit(f"run_all: {error} in {sys.prefix} (~/.local does not count); give `make`, or .venv/bin/python run_all.py")

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
KEYWORDS = ("rendered", "synergy")  # data that are made or downloaded
if keys.PACKAGE.parent != ROOT:
    sys.exit(f"run_all: {sys.executable} has {keys.PACKAGE}; run `pip install --no-deps -e {ROOT}`")


def options(arguments):
    """The options of a command line (list of str, None for the process's own) -> argparse.Namespace.

    Raises StudyError for a number of jobs below 1.
    """
    parser = argparse.ArgumentParser(prog="run_all.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("study", nargs="?", default="quick", help="a name in studies/, or a yaml file (default: quick)")
    add("--data", help="rendered, synergy, or a folder in one of the layouts of docs/data.md")
    add("--features", type=Path, help="folder of your own features or distance CSVs: no training")
    add("--images", type=Path, help="with --features: the folder of their images, for the ranked lists of notebook 05b")
    add("--only", metavar="GLOB", help="only runs whose id matches, and what they need")
    add("--set", action="append", default=[], metavar="key=value", help="override a parameter, threads or rendering.…")
    add("--dry-run", action="store_true", help="print the plan and end")
    add("--check", action="store_true", help="say what is missing (GPU, weights, data, disk) and end: 1 if anything is")
    add("--force", action="store_true", help="redo runs that are done, from nothing")
    add("--jobs", type=int, help="runs at once here (default: GPUs where runs ask for them, else processors in force)")
    add("--scheduler", metavar="ADDRESS", help="run on this Dask cluster (tcp://host:port), over a shared folder")
    add("--accept-md5", metavar="SUM", help="accept a downloaded zip with this MD5")
    add("--runs", default=ROOT / "runs", type=Path, help="where results go (default: runs/)")
    args = parser.parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        raise study_file.StudyError(f"--jobs must be at least 1, not {args.jobs}")
    if args.images and not (args.features and args.images.is_dir()):
        raise study_file.StudyError("--images must be a folder, and goes with --features")
    if str(args.runs.resolve()) != os.fsencode(args.runs.resolve()).decode(errors="replace"):
        raise study_file.StudyError(f"--runs {args.runs} is no name in UTF-8: give another folder")
    return args


def command_of(args):
    """The command line that makes this study again, for a shell: without what only picks runs or places."""
    words = ["python", "run_all.py", args.study]
    for name in ("data", "features", "images"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) else []
    return shlex.join([*words, *(word for setting in args.set for word in ("--set", setting))])


def source_of(study, args):
    """The data set or features that the options `args` name instead of the study's own: a folder (Path), or None.

    A keyword counts as a relative path. Raises ValueError for a path that is not valid UTF-8.
    """
    other = args.features or (args.data if args.data != study.data else None)
    if not other or other in KEYWORDS:
        return other and Path(other)
    try:
        path = Path(other).expanduser().resolve()
        str(path).encode()
    except (RuntimeError, UnicodeEncodeError):
        raise ValueError(f"{other} is not valid UTF-8, or ~user with an unknown user: rename the folder") from None
    return path.parent if path.name == "data_reid" else path  # every set in the layout may be called so


def study_root(runs, name, source=None, features=False):
    """The folder of a study's results below `runs` (absolute): each other data set, or own features, has its own.

    It carries the source's name, and a number where the folder of that name belongs to another source.
    """
    if source is None:
        return runs / name
    stem, roots = f"{name}-{'features-' if features else ''}{source.name or 'root'}", []
    while not roots or roots[-1].exists():
        roots.append(runs / (f"{stem}-{len(roots) + 1}" if roots else stem))
    owners = {root: (read_json(root / "study.json") or {}).get("source") for root in roots}
    own = [root for root, owner in owners.items() if owner and owner.items() & own_source(root, source).items()]
    free = [root for root, owner in owners.items() if not owner or not Path(owner["absolute"]).exists()]
    return [*own, *free][0]


def own_source(root, source):
    """What study.json keeps of the folder that a study reads, to know it again after both have moved."""
    return source and {"absolute": str(source), "relative": os.path.relpath(source, root)}


def read_plan(args):
    """The study with its overrides, its runs, the ids asked for, the folders of its results."""
    study = study_file.read_study(study_file.find_study(args.study, ROOT / "studies"))
    declared = study_file.declared_in(study, NOTEBOOKS)
    images = [f"images={json.dumps(str(args.images.resolve()))}"] if args.images else []
    study = study_file.override(study, [*args.set, *images], declared)
    folders = StudyFolders(study_root(args.runs.resolve(), study.name, source_of(study, args), bool(args.features)))
    runs = plan.expand(study, declared, bool(args.features))
    if args.features and not args.images:
        runs = [run for run in runs if "images" not in declared[run.notebook]]
    return study, runs, plan.pick(runs, args.only), folders


def data_folder(args, study):
    """The data's folder and fingerprint (None where a dry run would have to make them)."""
    own = folder_fingerprint(args.features) if args.features else ""
    if args.features and not args.data:
        return "", own
    from reid_utils.data import integrity, sources

    rendering = {"workers": args.jobs or machine.default_jobs((), ()), **study.rendering}
    source = args.data or study.data, args.runs.resolve() / "data", rendering, args.accept_md5
    folder = sources.planned_data_dir(*source[:3])
    if not args.dry_run:
        print(progress.shown(f"data: {folder}{'' if folder.is_dir() else ' (being made)'}"), flush=True)
        folder = sources.prepare_data(*source)
    return folder, integrity.data_fingerprint(folder) + own if folder.is_dir() else None


def check_features(args, notebooks):
    """Read the features of one's own as the notebooks (a set of their names) will. Raises ValueError or OSError."""
    from reid_utils.ranking import feature_files

    models = feature_files.scorable(feature_files.load_folder(args.features))
    if notebooks <= {"03_post_processing"}:
        return
    try:
        models = feature_files.same_images(models)
    except ValueError as error:
        raise ValueError(f"{error}; models of other images need a folder of their own, or --only '03*'") from None
    if args.images:
        from reid_utils.views import explorer

        model, read = next(iter(models.values())), explorer.named_reader(args.images)
        for role in feature_files.SIDES:
            names = getattr(model, f"{role}_images")
            if names is None:
                raise ValueError(f"no file in {args.features} names its images: add {role}_images to one")
            read(role, names[0])


def show_scores(runs, folders, write=True):
    """Print what finished runs say of one's own features, in per cent, and write it as tables/scores.csv."""
    import pandas as pd

    lines = [
        {"notebook": run.notebook, **line}
        for run in runs
        for line in (read_json(folders.results(run.id) / "results.json") or {}).get("values", {}).get("scores", [])
    ]
    if lines:
        columns = ["notebook", "row", "mAP", "low", "high", "rank1", "rank5", "mINP"]
        scores = pd.DataFrame(lines, columns=columns)
        scores = scores.assign(**scores.select_dtypes("number").mul(100))
        print(progress.shown(scores.to_string(index=False, float_format="%.2f")))
        if write:
            write_text(folders.tables / "scores.csv", scores.to_csv(index=False, lineterminator="\n"))


def estimated(runs, study, folder, has_gpu):
    """The runs with the minutes that they would take here: on so many images, and on processors if there is no GPU."""
    share = 1.0
    if study.images and folder and Path(folder).is_dir():
        from reid_utils.data import manifest as manifests

        share = max(share, int((manifests.load_manifest(folder)["split"] == "train").sum()) / study.images)
    slower = {run.id: study.without_gpu if run.gpus and not has_gpu else 1.0 for run in runs}
    return [dataclasses.replace(run, minutes=run.minutes * share * slower[run.id]) for run in runs]


def settings_of(run):
    """The parameters in force of a run: the notebook's, and the study's over them."""
    return study_file.declared_parameters(NOTEBOOKS / f"{run.notebook}.ipynb") | run.parameters


def weights_file(settings):
    """The local file of the pretrained weights that these settings start from: a path, or None where it is missing."""
    from reid_utils.learning.models import find_weights  # seconds, for torch

    folder = settings.get("weights_dir")
    return find_weights(settings["backbone"], folder and NOTEBOOKS / folder)


def is_pretrained(settings):
    """Whether a run starts from pretrained weights that are looked for by the backbone's name."""
    return bool(settings.get("pretrained") and not settings.get("start_weights"))


def pretrained_weights(run):
    """{what: SHA-256} of the local file that a run's pretrained encoder starts from; empty for any other run."""
    settings = settings_of(run)
    path = weights_file(settings) if is_pretrained(settings) else None
    return {"pretrained weights": _hash_once(path)} if path else {}


def lacking(runs, has_gpu):
    """Lines on what these runs ask for and this machine does not have: GPUs, files of pretrained weights."""
    asking = sum(bool(run.gpus) for run in runs)
    if asking and not has_gpu:
        yield f"GPU: {asking} runs ask for one and none is visible (nvidia-smi -L, CUDA_VISIBLE_DEVICES)"
    wanted = [settings for settings in map(settings_of, runs) if is_pretrained(settings)]
    missing = sorted({settings["backbone"] for settings in wanted if weights_file(settings) is None})
    if missing:
        files = ", ".join(f"{name.replace('/', '_')}.safetensors" for name in missing)
        yield f"weights: not in weights/ or weights_dir, so asked of the model hub by name: {files}"


def disk_needed(runs, jobs):
    """Bytes (int) that runs will write, roughly: weights, checkpoints of `jobs` trainings at once, and 100 MB each."""
    import torch

    from reid_utils.learning.models import build_encoder

    trainings = [settings for settings in map(settings_of, runs) if "backbone" in settings]
    logging.disable(logging.WARNING)  # open_clip's, of weights that are not needed to count them
    with torch.device("meta"):
        encoders = {name: build_encoder(name) for name in {settings["backbone"] for settings in trainings}}
    logging.disable(logging.NOTSET)
    sizes = {name: 4 * sum(of.numel() for of in encoder.parameters()) for name, encoder in encoders.items()}
    kept = sum(2 * len(settings["seeds"]) * sizes[settings["backbone"]] for settings in trainings)
    return kept + jobs * 6 * max(sizes.values(), default=0) + len(runs) * 10**8


def check(args, study, runs, gpus):
    """Print what runs need and is not there, without starting or fetching anything -> exit status, 1 if anything is."""
    found = []
    for line in _missing(args, study, runs, gpus):
        found.append(line)
        print(progress.shown(line), flush=True)
    lacks = sum(line.startswith("missing") for line in found)
    print(f"{lacks} missing" if lacks else "nothing is missing")
    return int(bool(lacks))


def _missing(args, study, runs, gpus):
    """The lines of `check`."""
    yield from (f"missing: {line}" for line in lacking(runs, bool(gpus or args.scheduler)))
    try:
        folder, _ = data_folder(argparse.Namespace(**vars(args) | {"dry_run": True}), study)
        if folder and not folder.is_dir() and (args.data or study.data) == "synergy":
            yield f"missing: data: {folder}; a start downloads it, or takes the challenge's zip from {folder.parent}"
    except OSError as error:
        yield f"missing: data: {error}"
    place = next(place for place in (args.runs.resolve(), *args.runs.resolve().parents) if place.exists())
    needed, free = disk_needed(runs, args.jobs or machine.default_jobs(runs, gpus)), shutil.disk_usage(place).free
    disk = f"disk: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free in {place}"
    yield f"missing: {disk}" if free < needed else disk


def left_of(runs, picked, folders):
    """The runs asked for (ids) and those that they read, without what has ever been done."""
    wanted = set(picked)
    for run in reversed(runs):
        wanted |= {*run.inputs} if run.id in wanted else set()
    return [run for run in runs if run.id in wanted and not folders.record(run.id).exists()]


_hash_once = functools.cache(file_hash)


def mixed(runs, folders):
    """A line for each notebook with results from both processors and GPUs, as results.json says."""
    found = {}
    for run in runs:
        device = (read_json(folders.results(run.id) / "results.json") or {}).get("device")
        if device:
            found.setdefault(run.notebook, set()).add(device.partition(":")[0])
    for name, kinds in found.items():
        if len(kinds) > 1:
            yield f"{name} ran on {' and '.join(sorted(kinds))}, which round differently: --force makes it anew on one"


def check_images(folder, fingerprint, root, workers):
    """Decode every image, once for each state of the data. Raises ValueError naming a damaged file."""
    if folder and read_json(root / "state" / "checked_images.json") != fingerprint:
        from reid_utils.data import integrity
        from reid_utils.data import manifest as manifests

        integrity.validate_images(folder, manifests.load_manifest(folder), workers)
        write_json(root / "state" / "checked_images.json", fingerprint)


def run_study(args, study, runs, picked, folders, cluster, gpus, folder, fingerprint):
    """Find out what is left to do and do it, on a cluster as `connect` yields it or here (None) -> exit status."""
    deciding = ROOT / "requirements.lock", study.threads, fingerprint, study.portable, pretrained_weights
    key = keys.run_keys(runs, NOTEBOOKS, *deciding)

    def left():
        states = keys.run_states(runs, folders, key)
        return states, *plan.choose(runs, states, picked, args.force)

    states, chosen, fresh = left()
    jobs = cluster[1] if cluster else args.jobs or machine.default_jobs(chosen, gpus)
    shown = [run for run in runs if run.id in picked or run in chosen]
    if args.dry_run or not chosen:  # a finished study can be looked at by who may not write there
        print(
            progress.plan_text(runs, states, chosen, jobs, folders.root, shown if args.dry_run else ()),
            *mixed(runs, folders),
            sep="\n",
        )
        if args.features and not args.dry_run:
            show_scores(runs, folders, write=False)
        return 0
    with engine.hold(folders) as command, contextlib.ExitStack() as stack:
        states, chosen, fresh = left()
        print(progress.plan_text(runs, states, chosen, jobs, folders.root), flush=True)
        stale = sum(states[run.id].name == "stale" and run.id not in fresh for run in chosen)
        if stale:
            print(
                f"what {stale} stale runs had made moves to {folders.superseded} (weights that still fit stay in use)"
            )
        check_images(folder, fingerprint, folders.root, args.jobs or jobs)
        write_json(folders.study, described(args, study, folders, folder))
        submit = cluster[0] if cluster else stack.enter_context(engine.here(jobs, gpus))
        fixed = {"command": command, "gpus": None if cluster else len(gpus)}
        fixed["environment"] = {"REID_DATA_FINGERPRINT": fingerprint}
        given = {"data": str(folder)} | ({"features": str(args.features.resolve())} if args.features else {})
        work = [
            worker.make_job(run, key[run.id], folders, NOTEBOOKS, given, fresh=run.id in fresh, **fixed)
            for run in plan.in_order(chosen, states)
        ]
        began = time.monotonic()
        outcomes = engine.execute(work, submit, progress.Progress(chosen, states, jobs))
    tables = progress.shown(f"tables in {folders.tables}")
    print(
        progress.summary_text(shown, states, outcomes, time.monotonic() - began),
        tables,
        *mixed(runs, folders),
        sep="\n",
    )
    if args.features:
        show_scores(runs, folders)
    return int(any(result.name != "done" for result in outcomes.values()))


def described(args, study, folders, folder):
    """The content of study.json: the study in force, its data, and the command that was given."""
    return {
        **{name: getattr(study, name) for name in ("name", "question", "data", "rendering", "threads", "portable")},
        "tables": study.tables,
        "data folder": str(folder),
        "source": own_source(folders.root, source_of(study, args)),
        "command": command_of(args),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
    }


def main(arguments=None):
    """Run the command line -> exit status: 0 done, 1 a run failed, 2 a mistake told in one line, 130 interrupted."""
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    warnings.formatwarning = lambda message, *_: f"run_all: warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names in any script, on a terminal of any encoding
    try:
        os.environ.update(PYTHONSAFEPATH="1", PYTHONNOUSERSITE="1")  # for processes that render, too
        args = options(arguments)
        study, runs, picked, folders = read_plan(args)
        if args.features:
            check_features(args, {run.notebook for run in runs if run.id in picked})
        left = left_of(runs, picked, folders)
        gpus = machine.visible_gpus(os.environ) if any(run.gpus for run in runs) and not args.scheduler else []
        if args.check:
            return check(args, study, left, gpus)
        has_gpu = bool(gpus or args.scheduler)
        for line in () if args.dry_run else lacking(left, has_gpu):
            print(f"run_all: warning: {line}", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            cluster = None
            if args.scheduler and not args.dry_run:
                cluster = stack.enter_context(engine.connect(args.scheduler))
            folder, fingerprint = data_folder(args, study)
            runs = estimated(runs, study, folder, has_gpu)
            return run_study(args, study, runs, picked, folders, cluster, gpus, folder, fingerprint)
    except (ValueError, OSError) as error:
        place = error.filename if isinstance(error, PermissionError) else None
        shared = f"{place} may not be read or written by you; whoever made it may share it with the group "
        shared += "(chmod -R g+rwX, and umask 002 from then on), or give another folder with --runs"
        print(f"run_all: {progress.shown(' '.join(str(shared if place else error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_all: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
