"""The study of real people: what its plan asks for."""

from pathlib import Path

from notebook_study.plan import expand
from notebook_study.study_file import declared_parameters, read_study

ROOT = Path(__file__).resolve().parents[1]


def test_every_fold_of_real_people_is_trained_with_the_rate_of_its_own_loss():
    study = read_study(ROOT / "studies" / "people.yaml")
    declared = {path.stem: declared_parameters(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
    runs = {run.id: run for run in expand(study, declared)}
    folds = [run for run in runs.values() if run.group == "folds"]
    assert len(folds) == 2 * 2 * 3 * 4
    for run in folds:
        read = [runs[name].parameters for name in run.inputs]
        assert sorted(parameters["learning_rate"] for parameters in read) == [1e-3, 3e-3, 1e-2]
        kind = [run.parameters[name] for name in ("backbone", "pretrained", "loss")]
        assert all([parameters[name] for name in ("backbone", "pretrained", "loss")] == kind for parameters in read)
    assert {tuple(run.parameters["seeds"]) for run in folds} == {(0, 1, 2)}
