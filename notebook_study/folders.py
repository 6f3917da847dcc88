"""Where a study's files lie: the paths below its folder, by name."""

from pathlib import Path


class StudyFolders:
    """The paths below a study's folder `root` (absolute); `run_id` names a run. None of them is made here."""

    def __init__(self, root):
        self.root = root = Path(root)
        self.study = root / "study.json"  # the study file's content, the data's folder and the command that was given
        self.holder = root / "locks" / "study.json"  # which command holds the study now
        self.tables = root / "tables"  # of all runs
        self.figures = root / "figures"
        self.superseded = root / "results" / "superseded"  # what stale runs left, weights that no longer fit among it

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
