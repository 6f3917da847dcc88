"""Study files: what they expand to, and that every mistake is told before anything runs."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_study import GIVEN, REPOSITORY, make_clone, write_notebook

from notebook_study import keys, plan, progress, study_file
from notebook_study.folders import StudyFolders
from notebook_study.plan import Run, expand
from notebook_study.study_file import StudyError, declared_in, declared_parameters, override, read_study
from reid_utils.files import write_json

sys.path.append(str(REPOSITORY))
import run_all

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
        ("threads: 1", "thread: 1", "unknown field `thread`"),
        ("threads: 1", "threads: one", r"Expected `int`, got `str` - at `\$\.threads`"),
        ("threads: 1", "threads: 0", ">= 1"),
        ("study: full", "study: a/b", "plain word"),
        ("data: rendered", "", "missing required field `data`"),
        ("after: all", "afer: all", r"unknown field `afer` - at `\$\.notebooks\[3\]`"),
        ("after: all", "after: 03_post_procesing", "did you mean '03_post_processing'"),
        ("after: all", "after: all\n    grid: [{k1: 1}]", "both 'grid' and 'after'"),
        ("minutes: 1.5", "minutes: long", r"Expected `float`, got `str` - at `\$\.notebooks\[0\]\.minutes`"),
        ("minutes: 1.5", "minutes: 1.5\n    gpus: -1", r">= 0 - at `\$\.notebooks\[0\]\.gpus`"),
        ("minutes: 1.5", "minutes: true", "Expected `float`, got `bool`"),
        ("epochs: 6}", "epoch: 6}", "did you mean 'epochs'"),
        ("epochs: 6}", "run_id: x}", "passed by run_all"),
        ("epochs: 6}", "learning_rate: 2020-01-01}", "not plain JSON"),
        ("named_by: [backbone, loss, augmentation]", "named_by: [backbone, loss]", "add 'augmentation' to named_by"),
        ("named_by: [backbone, loss, augmentation]", "named_by: [backbon]", "did you mean 'backbone'"),
        ("each: {notebook: 02_training,", "each: {notebook: 02_trainin,", "did you mean '02_training'"),
        ("loss: infonce}}\n  - notebook: 04", "los: infonce}}\n  - notebook: 04", "did you mean 'loss'"),
        ("main: {notebook: 02_training, where", "main: {notebook: 02_training, were", "unknown field `were`"),
        ("- {backbone: test_byobnet,", "- {back: test_byobnet,", "did you mean 'backbone'"),
        ("augmentation: [none, flip,", "augmentation: [], seeds: [", "augmentation has no value"),
        ("notebooks:", "notebooks: [", "not readable YAML"),
        ("threads: 1", "threads: 1\nthreads: 2", "the key 'threads' stands twice"),
        ("epochs: 6}", "epochs: 6, epochs: 7}", "the key 'epochs' stands twice"),
        ("epochs: 6}", "augmentation: &a [*a]}", "refers to itself"),
        ("epochs: 6}", "epochs: " + "[" * 5000, "nested too deep"),
        ("epochs: 6}", "epochs: !!python/name:os.system x}", "could not determine a constructor"),
        ("minutes: 1.5", "minutes: .nan", ">= 0.0"),
        ("after: all", "sets: {}", "length >= 1"),
        ("after: all", "grid: []", "length >= 1"),
        ("after: all", "grid: [{}]", "length >= 1"),
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


def test_an_unknown_study_names_the_closest(tmp_path):
    (tmp_path / "quick.yaml").write_text(STUDY)
    assert study_file.find_study("quick", tmp_path) == tmp_path / "quick.yaml"
    with pytest.raises(StudyError, match="did you mean 'quick'"):
        study_file.find_study("quik", tmp_path)
    with pytest.raises(StudyError, match=r"none\.yaml does not exist"):
        read_study(study_file.find_study("none.yaml", tmp_path))


def root_of(runs, **given):
    """The results folder of a study called full (data: rendered), made with a study.json as run_all writes it."""
    options = SimpleNamespace(**{"data": None, "features": None, **given})
    study = SimpleNamespace(data="rendered")
    source = run_all.source_of(study, options)
    root = run_all.study_root(runs, "full", source, bool(options.features))
    write_json(root / "study.json", {"source": run_all.own_source(root, source)})
    return root.name


def test_other_data_get_a_results_folder_of_their_own(tmp_path):
    places = [tmp_path / place / name for place in "ab" for name in ("data_reid", "crops", "команда")]
    for place in places:
        place.mkdir(parents=True)
    runs = tmp_path / "runs"
    assert root_of(runs) == root_of(runs, data="rendered") == "full"
    assert root_of(runs, data="synergy") == root_of(runs, data="synergy") == "full-synergy"
    names = [root_of(runs, data=str(place)) for place in places]
    assert names == ["full-a", "full-crops", "full-команда", "full-b", "full-crops-2", "full-команда-2"]
    assert names == [root_of(runs, data=f"{place}/") for place in places]
    assert root_of(runs, data=str(tmp_path / "a")) == "full-a"  # the folder above data_reid is the same set
    assert root_of(runs, features=places[1]) == "full-features-crops" and root_of(runs, data="/") == "full-root"
    shutil.rmtree(places[1])
    assert root_of(runs, data=str(places[4])) == "full-crops-2"  # what is known stays where it is


def test_a_folder_whose_name_cannot_be_written_down_is_told():
    for name in ("/data/caf\udce9", "~nobody-of-this-name/data"):
        with pytest.raises(ValueError, match="rename the folder"):
            run_all.source_of(SimpleNamespace(data="rendered"), SimpleNamespace(features=None, data=name))


def test_a_moved_data_set_keeps_its_results_folder(tmp_path):
    (tmp_path / "old" / "crops").mkdir(parents=True)
    assert root_of(tmp_path / "old" / "runs", data=str(tmp_path / "old" / "crops")) == "full-crops"
    shutil.copytree(tmp_path / "old", tmp_path / "new")  # with its runs, the former left where it is
    assert root_of(tmp_path / "new" / "runs", data=str(tmp_path / "new" / "crops")) == "full-crops"
    shutil.move(tmp_path / "old" / "crops", tmp_path / "elsewhere" / "crops")
    assert root_of(tmp_path / "old" / "runs", data=str(tmp_path / "elsewhere" / "crops")) == "full-crops"


def test_runs_named_in_any_script_keep_their_names_apart(tmp_path):
    text = "study: s\ndata: d\nnotebooks:\n  - {notebook: 06_paper_tables}\n  - notebook: 04_fusion\n    sets:\n"
    text += "".join(f"      {name}: {{notebook: 06_paper_tables}}\n" for name in ("ёж", "鳥", "a b/c"))
    assert [run.label for run in runs_of(tmp_path, text)][1:] == ["ёж", "鳥", "a-b-c"]


def test_a_set_without_a_name_gives_a_run_called_as_its_notebook(tmp_path):
    text = "study: s\ndata: d\nnotebooks:\n  - {notebook: 06_paper_tables}\n  - notebook: 04_fusion\n    sets:\n"
    text += '      "": {notebook: 06_paper_tables}\n      more: {notebook: 06_paper_tables}\n'
    runs = runs_of(tmp_path, text)[1:]
    assert [(run.id, run.label) for run in runs] == [("04_fusion", ""), ("04_fusion__more", "more")]
    for name in ("smoke", "lab", "quick"):
        study = read_study(plan.ROOT / "studies" / f"{name}.yaml")
        ids = [run.id for run in expand(study, declared_in(study, plan.ROOT / "notebooks"))]
        assert [run for run in ids if run.startswith("07")] == ["07_regime_map"]


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


def test_missing_and_broken_notebooks_are_refused_and_the_name_of_a_kernel_is_no_matter(tmp_path):
    with pytest.raises(StudyError, match=r"none\.ipynb does not exist"):
        declared_parameters(tmp_path / "none.ipynb")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(StudyError, match="not readable"):
        declared_parameters(tmp_path / "broken.ipynb")
    write_notebook(tmp_path / "saved in an editor.ipynb", GIVEN, kernel=".venv")
    assert "out" in declared_parameters(tmp_path / "saved in an editor.ipynb")


def run_of(name, inputs=(), minutes=1.0, **parameters):
    return Run(name, name.split("__")[0], "", parameters, tuple(inputs), minutes)


def chain(done=()):
    runs = [run_of("02__a"), run_of("02__b"), run_of("03__a", ["02__a"]), run_of("06", ["02__a", "02__b", "03__a"])]
    return runs, {run.id: keys.State("done" if run.id in done else "to do", "", 60 * run.minutes) for run in runs}


def test_only_brings_what_is_needed_and_not_done():
    runs, states = chain()
    assert [run.id for run in plan.choose(runs, states, plan.pick(runs, "03*"))[0]] == ["02__a", "03__a"]
    runs, states = chain(done={"02__a"})
    assert [run.id for run in plan.choose(runs, states, plan.pick(runs, "03*"))[0]] == ["03__a"]
    assert [run.id for run in plan.choose(runs, states, plan.pick(runs))[0]] == ["02__b", "03__a", "06"]
    with pytest.raises(StudyError, match="--only 3 matches no run; runs: 02__a, 02__b, 03__a, 06"):
        plan.pick(runs, "3")


def test_force_redoes_the_picked_runs_afresh_and_no_others():
    runs, states = chain(done={"02__a", "02__b", "03__a", "06"})
    assert plan.choose(runs, states, plan.pick(runs)) == ([], set())
    chosen, fresh = plan.choose(runs, states, {"03__a"}, force=True)
    assert [run.id for run in chosen] == ["03__a"] and fresh == {"03__a"}


def test_the_longest_chain_starts_first():
    runs = [run_of("short"), run_of("long", minutes=5), run_of("first"), run_of("second", ["first"], minutes=9)]
    states = {run.id: keys.State("to do", "", 60 * run.minutes) for run in runs}
    assert [run.id for run in plan.in_order(runs, states)] == ["first", "second", "long", "short"]
    assert progress.total_seconds(runs, states, 2) == 600  # the chain; the work halved would be 480
    assert progress.total_seconds(runs, states, 1) == 960


def test_gpus_and_minutes_do_not_reach_the_key(tmp_path):
    clone = make_clone(tmp_path)
    path, lock = clone / "studies" / "tiny.yaml", clone / "requirements.lock"
    declared = declared_in(read_study(path), clone / "notebooks")
    before = expand(read_study(path), declared)
    path.write_text(path.read_text().replace("minutes: 0.1", "gpus: 2"))
    after = expand(read_study(path), declared)
    assert [run.gpus for run in (*before, *after)] == [0, 0, 0, 2, 2, 0]
    assert len({str(keys.run_keys(runs, clone / "notebooks", lock, 1, "f")) for runs in (before, after)}) == 1


def test_statements_of_tables_reach_the_notebooks_that_declare_them_as_they_are(tmp_path):
    stated = "threads: 1\ntables: {T8: {row: '{image_height}', where: {entry: [image size], pretrained: false}}}"
    declared = {**DECLARED, "06_paper_tables": {**DECLARED["06_paper_tables"], "tables": {}}}
    study = study_of(tmp_path, STUDY.replace("threads: 1", stated, 1))
    runs = expand(study, declared)
    given = {"T8": {"row": "{image_height}", "where": {"entry": ["image size"], "pretrained": False}}}
    assert [run.parameters.get("tables") for run in runs] == [None] * (len(runs) - 1) + [given]
    with pytest.raises(StudyError, match=r"full\.yaml: tables is .*datetime.date.*not plain JSON"):
        study_of(tmp_path, STUDY.replace("threads: 1", "threads: 1\ntables: {T8: {row: 2020-01-01}}", 1))


def test_processes_that_share_a_training_get_a_gpu_each(tmp_path):
    declared = {**DECLARED, "02_training": {**DECLARED["02_training"], "processes": 1}}
    for gpus, asked in ((0, 0), (1, 4), (8, 8)):
        study = study_of(tmp_path, STUDY.replace("minutes: 1.5", f"gpus: {gpus}"))
        assert expand(override(study, ["processes=4"], declared), declared)[0].gpus == asked


def test_the_paper_study_trains_what_was_published():
    study = read_study(plan.ROOT / "studies" / "paper.yaml")
    runs = expand(study, declared_in(study, plan.ROOT / "notebooks"))
    trained = [run for run in runs if run.notebook == "02_training"]
    rows = {
        (r.group, r.parameters["backbone"].split("_")[0], r.parameters["loss"], r.parameters["augmentation"]): r
        for r in trained
    }
    parts = ["none", "flip", "flip+jitter", "flip+cutout", "flip+erasing", "flip+sharpen", "flip+erasing+sharpen"]
    for backbone in ("ViT-L-14-quickgelu/openai", "beitv2"):
        assert all(("", backbone, "infonce", part) in rows for part in parts)
        assert all(("", backbone, loss, parts[-1]) in rows for loss in ("id", "triplet", "id+triplet"))
    large = [run for run in trained if run.parameters["backbone"] != "resnet50"]
    assert {run.parameters["batch_pairs"] for run in large} == {32}
    assert all(run.parameters["extra"]["normalisation"] == "imagenet" for run in trained)
    starts = {run.parameters["pretrained"] for run in trained if run.parameters["backbone"].startswith("ViT-L-14")}
    assert starts == {True, False}
    assert {run.parameters["train_on"] for run in trained if run.group == "challenge"} == {"train+test"}
    fused = {len(run.inputs) for run in runs if run.notebook == "04_fusion"}
    plain = [run for run in runs if run.notebook == "04_fusion" and run.parameters["post_processing"] == "none"]
    assert fused == {3, 4} and plain


STUDY_OF_INPUTS = """\
study: {name}
data: rendered
notebooks:
  - notebook: 02_training
    grid:
      - {{steps: [1, 2]}}
  - {{notebook: 03_post_processing, after: 02_training}}
"""


def test_a_notebook_reads_any_finished_study_quick_first_and_lab_last(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    (tmp_path / "studies").mkdir()
    for name in ("02_training", "03_post_processing"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", GIVEN + "steps = 1\n")

    def finish(folder, name, age, runs=("02_training__steps-1", "02_training__steps-2")):
        (tmp_path / "studies" / f"{name}.yaml").write_text(STUDY_OF_INPUTS.format(name=name))
        folders = StudyFolders(tmp_path / "runs" / folder)
        write_json(folders.study, {"name": name})
        os.utime(folders.study, (10**9 - age, 10**9 - age))
        for run_id in runs:
            write_json(folders.record(run_id), {})

    def read():
        folders = {Path(found).parents[1].name for found in plan.find_inputs("03_post_processing", "02_*")}
        return folders.pop()

    finish("lab", "lab", 0)
    assert read() == "lab"
    finish("smoke", "smoke", 3)
    assert read() == "smoke"
    finish("smoke-mine", "smoke", 2)
    assert read() == "smoke-mine"
    finish("half", "smoke", 1, ["02_training__steps-1"])
    write_json(tmp_path / "runs" / "own" / "study.json", {"name": "of no file in studies"})
    assert read() == "smoke-mine"
    finish("quick", "quick", 9)
    assert read() == "quick"
    assert [line[-20:] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        "02_training__steps-1", "02_training__steps-2",
    ]  # fmt: skip


def test_inputs_that_are_made_show_what_they_do_and_a_failure_says_where_to_look(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    (tmp_path / "run_all.py").write_text("print('start   02_training'); raise SystemExit('no luck')")
    with pytest.raises(RuntimeError, match=r"the lines above and .*runs/lab/logs say why"):
        plan.find_inputs("03_post_processing", "02_*")
    told = capfd.readouterr()
    assert "making the small runs" in told.out and "start   02_training" in told.out and "no luck" in told.err
