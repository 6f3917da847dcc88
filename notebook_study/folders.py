"""Where a study's files lie: the paths below its folder, by name."""

import os
from dataclasses import dataclass
from pathlib import Path

from reid_utils.files import read_json


@dataclass(frozen=True)
class StudyFolders:
    """The paths below a study's folder `root`; `run_id` names a run, None of them is made here."""

    root: Path

    @property
    def study(self):
        """The study file's content, the data's folder and the command that was given."""
        return self.root / "study.json"

    @property
    def holder(self):
        """Which command holds the study now."""
        return self.root / "locks" / "study.json"

    @property
    def tables(self):
        """The tables of all runs."""
        return self.root / "tables"

    @property
    def figures(self):
        """The figures of all runs."""
        return self.root / "figures"

    @property
    def superseded(self):
        """What stale runs left, weights that no longer fit among it."""
        return self.root / "results" / "superseded"

    def lock(self, name="study"):
        """The lock file of a run, or of the study."""
        return self.root / "locks" / f"{name}.lock"

    def job(self, run_id):
        """What a run's process was asked to do."""
        return self.root / "state" / f"{run_id}.job.json"

    def record(self, run_id):
        """Key, files and seconds of a run that is done; written last."""
        return self.root / "state" / f"{run_id}.json"

    def failure(self, run_id):
        """Why a run failed."""
        return self.root / "state" / f"{run_id}.failed.json"

    def log(self, run_id):
        """What a run's process and its kernel printed."""
        return self.root / "logs" / f"{run_id}.log"

    def results(self, run_id):
        """The folder of a run's results."""
        return self.root / "results" / run_id

    def notebook(self, run_id):
        """The executed notebook."""
        return self.root / "notebooks" / f"{run_id}.ipynb"


def source_of(study, args):
    """The data set or features that the options `args` name instead of the study's own: a folder (Path), or None.

    A keyword (rendered, synergy) counts as a relative path. Raises ValueError for a name that cannot be written down.
    """
    other = args.features or (args.data if args.data != study.data else None)
    if not other or other in ("rendered", "synergy"):
        return other and Path(other)
    try:
        path = Path(other).expanduser().resolve()
        str(path).encode()
    except (RuntimeError, UnicodeEncodeError):
        raise ValueError(
            f"{other} is no name in UTF-8, or of nobody's home: give the folder under another name"
        ) from None
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
    own = [root for root, owner in owners.items() if owner and _is(owner, root, source)]
    free = [root for root, owner in owners.items() if not owner or not Path(owner["absolute"]).exists()]
    return [*own, *free][0]


def own_source(root, source):
    """What study.json keeps of the folder that a study reads, to know it again after both have moved."""
    return source and {"absolute": str(source), "relative": os.path.relpath(source, root)}


def _is(owner, root, source):
    return str(source) == owner["absolute"] or os.path.relpath(source, root) == owner["relative"]
