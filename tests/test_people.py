"""The studies of real people: what their plans ask for."""

from pathlib import Path

import pytest

from notebook_study.plan import expand
from notebook_study.study_file import declared_parameters, read_study

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["people", "people_folds"])
def test_every_loss_of_real_people_has_one_rate_and_two_lengths(name):
    study = read_study(ROOT / "studies" / f"{name}.yaml")
    declared = {path.stem: declared_parameters(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
    trainings = [run.parameters for run in expand(study, declared) if run.notebook == "02_training"]
    rates, lengths = {}, {}
    for each in trainings:
        key = each["backbone"], each["pretrained"], each["loss"]
        rates.setdefault(each["loss"], set()).add((each["learning_rate"], each.get("head_rate")))
        lengths.setdefault(key, set()).add(each["epochs"])
    assert all(len(of) == 1 for of in rates.values())
    chief = [(backbone, True, loss) for backbone in ("mobilenetv2_100",) for loss in ("infonce", "id")]
    assert {max(lengths[key]) / min(lengths[key]) for key in chief} == {2}
    assert {tuple(each["seeds"]) for each in trainings} == {(0, 1, 2)}
