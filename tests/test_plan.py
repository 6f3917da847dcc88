"""Study files: what they expand to, and that every mistake is told before anything runs."""

import contextlib
from types import SimpleNamespace

import pytest
from tiny_study import GIVEN, write_notebook

from reid_utils.study import command, study_file
from reid_utils.study.notebooks import declared_parameters
from reid_utils.study.plan import expand
from reid_utils.study.study_file import StudyError, override, read_study

DECLARED = {
    "02_training": {
        "data": "", "out": "", "run_id": "", "inputs": [],
        "backbone": "test_resnet", "loss": "infonce", "augmentation": "none",
        "epochs": 2, "seeds": [0], "learning_rate": 0.001, "pretrained": False,
    },
    "03_post_processing": {"data": "", "out": "", "run_id": "", "inputs": [], "features": "", "k1": 20},
    "04_fusion": {"data": "", "out": "", "run_id": "", "inputs": [], "features": ""},
    "06_paper_tables": {"data": "", "out": "", "run_id": "", "inputs": []},
}  # fmt: skip
STUDY = """
study: full
data: rendered
rendering: {seed: 0}
threads: 1
notebooks:
  - notebook: 02_training
    minutes: 1.5
    parameters: {seeds: [0, 1, 2], epochs: 6}
    grid:
      - {backbone: test_byobnet, loss: infonce, augmentation: [none, flip, "erasing+sharpen"]}
      - {backbone: [test_resnet, test_byobnet], loss: [infonce, id], augmentation: "erasing+sharpen"}
    named_by: [backbone, loss, augmentation]
  - notebook: 03_post_processing
    each: {notebook: 02_training, where: {augmentation: "erasing+sharpen", loss: infonce}}
  - notebook: 04_fusion
    sets:
      main: {notebook: 02_training, where: {augmentation: "erasing+sharpen", loss: infonce}}
      both: {notebook: 02_training, where: {loss: [infonce, id], backbone: test_resnet}}
  - notebook: 06_paper_tables
    after: all
"""


def study_of(tmp_path, text=STUDY):
    path = tmp_path / "full.yaml"
    path.write_text(text)
    return read_study(path)


def runs_of(tmp_path, text=STUDY, settings=(), **options):
    return expand(override(study_of(tmp_path, text), settings, DECLARED), DECLARED, **options)


def test_blocks_expand_to_products_and_equal_runs_merge(tmp_path):
    ids = [run.id for run in runs_of(tmp_path)]
    assert ids == [
        "02_training__test-byobnet_infonce_none",
        "02_training__test-byobnet_infonce_flip",
        "02_training__test-byobnet_infonce_erasing+sharpen",  # in both blocks, once
        "02_training__test-resnet_infonce_erasing+sharpen",
        "02_training__test-resnet_id_erasing+sharpen",
        "02_training__test-byobnet_id_erasing+sharpen",
        "03_post_processing__test-byobnet_infonce_erasing+sharpen",
        "03_post_processing__test-resnet_infonce_erasing+sharpen",
        "04_fusion__main",
        "04_fusion__both",
        "06_paper_tables",
    ]


def test_runs_read_what_they_select(tmp_path):
    runs = {run.id: run for run in runs_of(tmp_path)}
    resnet, byobnet = (f"02_training__test-{name}_infonce_erasing+sharpen" for name in ("resnet", "byobnet"))
    assert runs["03_post_processing__test-resnet_infonce_erasing+sharpen"].inputs == (resnet,)
    assert runs["04_fusion__main"].inputs == (byobnet, resnet)
    assert runs["04_fusion__both"].inputs == (resnet, "02_training__test-resnet_id_erasing+sharpen")
    assert runs["06_paper_tables"].inputs == tuple(runs)[:-1]
    assert runs[resnet].parameters["seeds"] == [0, 1, 2] and runs[resnet].minutes == 1.5


def test_a_named_entry_is_read_only_by_its_name(tmp_path):
    named = """
  - notebook: 02_training
    name: pool
    grid: [{backbone: test_resnet, loss: infonce, augmentation: "erasing+sharpen"}]
    named_by: [backbone, loss, augmentation]
  - notebook: 02_training
    name: pretrained
    parameters: {backbone: test_resnet, augmentation: "erasing+sharpen"}
    each: {notebook: 02_training, name: pool}
  - notebook: 03_post_processing
"""
    plain = {run.id: run for run in runs_of(tmp_path)}
    runs = {run.id: run for run in runs_of(tmp_path, STUDY.replace("  - notebook: 03_post_processing\n", named[1:], 1))}
    pool, pretrained = (f"02_training__{name}_test-resnet_infonce_erasing+sharpen" for name in ("pool", "pretrained"))
    assert runs.keys() - plain.keys() == {pool, pretrained}
    assert runs[pretrained].inputs == (pool,) and runs[pool].inputs == ()
    same = [name for name in plain if name != "06_paper_tables"]
    assert [runs[name].inputs for name in same] == [plain[name].inputs for name in same]
    with pytest.raises(StudyError, match="of the entry 'pol' is unknown; did you mean 'pool'"):
        runs_of(
            tmp_path,
            STUDY.replace("  - notebook: 03_post_processing\n", named[1:].replace("name: pool}", "name: pol}"), 1),
        )


def test_where_sees_defaults_and_a_default_written_out_is_the_same_run(tmp_path):
    text = """
study: s
data: rendered
notebooks:
  - notebook: 02_training
    grid: [{augmentation: [none, flip]}, {augmentation: none, loss: infonce}]
    named_by: [augmentation]
  - {notebook: 03_post_processing, each: {notebook: 02_training, where: {loss: infonce, augmentation: flip}}}
"""
    ids = [run.id for run in runs_of(tmp_path, text)]
    assert ids == ["02_training__none", "02_training__flip", "03_post_processing__flip"]


def test_a_list_in_a_list_is_one_value_and_ids_stay_readable(tmp_path):
    text = """
study: s
data: rendered
notebooks:
  - {notebook: 02_training, grid: [{seeds: [[0, 1]], pretrained: [true, false], backbone: "ViT-L/open ai"}]}
"""
    runs = runs_of(tmp_path, text)
    assert [run.label for run in runs] == [
        "seeds-0-1_pretrained-true_ViT-L-open-ai",
        "seeds-0-1_pretrained-false_ViT-L-open-ai",
    ]
    assert runs[0].parameters["seeds"] == [0, 1]


def test_own_features_need_no_training(tmp_path):
    runs = runs_of(tmp_path, own_features=True)
    assert [(run.id, run.inputs) for run in runs] == [("03_post_processing", ()), ("04_fusion", ())]


def test_set_reaches_common_parameters_grid_blocks_and_study_fields(tmp_path):
    runs = runs_of(tmp_path, settings=["epochs=1", "backbone=test_resnet", "seeds=[7]"])
    training = [run.parameters for run in runs if run.notebook == "02_training"]
    assert all((p["epochs"], p["backbone"], p["seeds"]) == (1, "test_resnet", [7]) for p in training)
    assert len(training) == 4  # the two backbones of the second block are now one
    study = override(study_of(tmp_path), ["rendering.seed=5", "threads=2"], DECLARED)
    assert (study.rendering, study.threads) == ({"seed": 5}, 2)
    assert study_of(tmp_path).rendering == {"seed": 0}


def test_set_with_a_list_spans_a_grid(tmp_path):
    runs = runs_of(tmp_path, settings=["augmentation=[erasing+sharpen, jitter]"])
    assert sum("jitter" in run.id for run in runs) == 4


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    runs = runs_of(tmp_path, settings=["learning_rate=4e-5"])
    assert runs[0].parameters["learning_rate"] == 4e-5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", "did you mean 'epochs'"),
        ("epochs=three", "epochs must be int like 2, not 'three'"),
        ("epochs=true", "epochs must be int"),
        ("epochs=1.5", "epochs must be int"),
        ("seeds=0", "seeds must be list"),
        ("learning_rate=.nan", "not plain JSON"),
        ("epochs", "key=value"),
        ("data=here", "--data"),
        ("threads=0", "at least 1"),
        ("rendring.seed=1", "did you mean 'rendering.seed'"),
        ("epochs=[1", "not readable YAML"),
        ("augmentation=flip", "no run of 02_training matches"),
    ],
)
def test_mistaken_settings_are_told_in_one_line(tmp_path, setting, message):
    with pytest.raises(StudyError, match=message.replace("[", r"\[")) as caught:
        runs_of(tmp_path, settings=[setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threads: 1", "thread: 1", "did you mean 'threads'"),
        ("threads: 1", "threads: one", "threads must be int"),
        ("threads: 1", "threads: 0", "at least 1"),
        ("study: full", "study: a/b", "plain word"),
        ("data: rendered", "", "lacks the key 'data'"),
        ("after: all", "afer: all", "did you mean 'after'"),
        ("after: all", "after: 03_post_procesing", "did you mean '03_post_processing'"),
        ("after: all", "after: all\n    grid: [{k1: 1}]", "both 'grid' and 'after'"),
        ("minutes: 1.5", "minutes: long", "minutes must be int or float"),
        ("epochs: 6}", "epoch: 6}", "did you mean 'epochs'"),
        ("epochs: 6}", "run_id: x}", "passed by run_all"),
        ("epochs: 6}", "learning_rate: 2020-01-01}", "not plain JSON"),
        ("named_by: [backbone, loss, augmentation]", "named_by: [backbone, loss]", "add 'augmentation' to named_by"),
        ("named_by: [backbone, loss, augmentation]", "named_by: [backbon]", "did you mean 'backbone'"),
        ("each: {notebook: 02_training,", "each: {notebook: 02_trainin,", "did you mean '02_training'"),
        ("loss: infonce}}\n  - notebook: 04", "los: infonce}}\n  - notebook: 04", "did you mean 'loss'"),
        ("main: {notebook: 02_training, where", "main: {notebook: 02_training, were", "did you mean 'where'"),
        ("- {backbone: test_byobnet,", "- {back: test_byobnet,", "did you mean 'backbone'"),
        ("augmentation: [none, flip,", "augmentation: [], seeds: [", "augmentation has no value"),
        ("notebooks:", "notebooks: [", "not readable YAML"),
        ("threads: 1", "threads: 1\nthreads: 2", "the key 'threads' stands twice"),
        ("epochs: 6}", "epochs: 6, epochs: 7}", "the key 'epochs' stands twice"),
        ("epochs: 6}", "augmentation: &a [*a]}", "refers to itself"),
        ("epochs: 6}", "epochs: " + "[" * 5000, "nested too deep"),
        ("epochs: 6}", "epochs: !!python/name:os.system x}", "could not determine a constructor"),
        ("minutes: 1.5", "minutes: .nan", "minutes must be at least 0, not nan"),
        ("notebook: 06_paper_tables", "notebook: ../06_paper_tables", "without folder and .ipynb, not '../06"),
    ],
)
def test_mistakes_in_a_study_file_are_told_in_one_line(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(StudyError, match=message) as caught:
        runs_of(tmp_path, STUDY.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_a_study_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "s.yaml").write_bytes("question: Größe".encode("latin1"))
    with pytest.raises(StudyError, match=r"s\.yaml is not UTF-8 text"):
        read_study(tmp_path / "s.yaml")


@pytest.mark.parametrize(("answer", "goes_on"), [("y\n", True), ("YES \n", True), ("", False), ("n\n", False)])
def test_large_grids_ask_on_a_terminal_and_name_the_option_elsewhere(tmp_path, monkeypatch, capsys, answer, goes_on):
    few, many = (
        study_of(tmp_path, f"study: s\ndata: d\nnotebooks: [{{notebook: n, grid: [{{a: {values}, b: {values}}}]}}]")
        for values in (list(range(3)), list(range(100)))
    )
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    command.confirm_size(few, False)
    command.confirm_size(many, True)
    with pytest.raises(StudyError, match=r"the grids of study s span 10,000 runs; make them smaller, or add --yes"):
        command.confirm_size(many, False)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: answer))
    with contextlib.nullcontext() if goes_on else pytest.raises(StudyError, match="nothing was done"):
        command.confirm_size(many, False)
    assert capsys.readouterr().out == "the grids of study s span 10,000 runs; go on? [y/N] "


def test_an_unknown_study_names_the_closest(tmp_path):
    (tmp_path / "quick.yaml").write_text(STUDY)
    assert study_file.find_study("quick", tmp_path) == tmp_path / "quick.yaml"
    with pytest.raises(StudyError, match="did you mean 'quick'"):
        study_file.find_study("quik", tmp_path)
    with pytest.raises(StudyError, match=r"none\.yaml does not exist"):
        study_file.find_study("none.yaml", tmp_path)


def test_other_data_get_a_results_folder_of_their_own(tmp_path):
    study = study_of(tmp_path)
    assert study_file.results_name(study) == study_file.results_name(study, "rendered") == "full"
    names = [study_file.results_name(study, f"{place}/data_reid/") for place in ("here", "there")]
    names += [study_file.results_name(study, "crops"), study_file.results_name(study, None, "mine")]
    assert names == ["full-here", "full-there", "full-crops", "full-features-mine"]


def test_declared_parameters_are_the_literals_of_the_tagged_cell(tmp_path):
    path = tmp_path / "01.ipynb"
    write_notebook(path, GIVEN + 'a = [1, -2.5]  # why\nb: str = "x"\n"""text"""\n', "c = 1")
    assert declared_parameters(path) == {"data": "", "out": "", "run_id": "", "inputs": [], "a": [1, -2.5], "b": "x"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "0 cells tagged 'parameters'"),
        (GIVEN + "a = 1 + n", "line 5 .* not 'name = literal'"),
        (GIVEN + "import os", "line 5 .* not 'name = literal'"),
        (GIVEN + "a, b = 1, 2", "line 5 .* not 'name = literal'"),
        (GIVEN + "a = (", "syntax error"),
        ('data = ""', "does not declare out, run_id, inputs"),
    ],
)
def test_faulty_parameters_cells_are_refused(tmp_path, parameters, message):
    write_notebook(tmp_path / "n.ipynb", parameters, "pass")
    with pytest.raises(StudyError, match=message):
        declared_parameters(tmp_path / "n.ipynb")


def test_missing_broken_and_foreign_notebooks_are_refused(tmp_path):
    with pytest.raises(StudyError, match=r"none\.ipynb does not exist"):
        declared_parameters(tmp_path / "none.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(StudyError, match="not readable"):
        declared_parameters(tmp_path / "broken.ipynb")
    write_notebook(tmp_path / "r.ipynb", GIVEN, kernel="ir")
    with pytest.raises(StudyError, match="kernel 'ir'"):
        declared_parameters(tmp_path / "r.ipynb")
