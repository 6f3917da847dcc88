"""Runs of a grid that read the earlier runs with their own settings."""

import pytest

from notebook_study.plan import expand
from notebook_study.study_file import StudyError, read_study

DECLARED = {"02_training": {"inputs": [], "loss": "infonce", "learning_rate": 0.1, "epochs": 1}}
STUDY = """
study: s
data: rendered
notebooks:
  - notebook: 02_training
    name: tuning
    grid: [{loss: [infonce, id], learning_rate: [0.1, 0.2]}]
  - notebook: 02_training
    reads: READS
    grid: [{loss: [id, infonce], learning_rate: 0.0}]
    named_by: [loss]
"""


def _runs(tmp_path, reads):
    path = tmp_path / "s.yaml"
    path.write_text(STUDY.replace("READS", reads))
    return {run.id: run for run in expand(read_study(path), DECLARED)}


def test_a_run_reads_those_of_its_own_settings_alone(tmp_path):
    runs = _runs(tmp_path, "{notebook: 02_training, name: tuning, same: [loss]}")
    tuned = [f"02_training__tuning_id_learning-rate-{rate}" for rate in (0.1, 0.2)]
    assert list(runs["02_training__id"].inputs) == tuned
    assert not set(tuned) & set(runs["02_training__infonce"].inputs)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ("{notebook: 02_training, name: tuning, same: [los]}", "'los' is unknown; did you mean 'loss'"),
        ("{notebook: 02_training, name: tuning, same: [learning_rate]}", "no run of 02_training matches"),
        ("{notebook: 02_training, name: tunin}", "did you mean 'tuning'"),
        ("{name: tuning}", "notebook"),
    ],
)
def test_mistakes_are_told_before_anything_runs(reads, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        _runs(tmp_path, reads)
