"""The quick study ended elsewhere on a second machine: did the statistics foresee by how much, and do verdicts hold?"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from notebook_study.study_file import read_study
from reid_utils.files import load_arrays
from reid_utils.paper import statements
from reid_utils.paper.claims import paper_claims, verdict
from reid_utils.paper.rows import fusion_table
from reid_utils.paper.statements import make_table
from tools.publish import sign

HERE = Path(__file__).resolve().parent
SECOND = HERE.parents[1] / "shared" / "second_machine"
RECIPE = "erasing+sharpen"
BACKBONES = ["test_efficientnet", "test_resnet", "test_byobnet"]
POOL = f"02_training__pool_test-byobnet_infonce_{RECIPE}"
ENTRY = {"models": BACKBONES, "post_processing": "hard", "challenge_fusion": "two-stage"}

pytestmark = pytest.mark.skipif(not SECOND.is_dir(), reason="the second machine's scores in ../shared are not here")


def gathered(run_id, **settings):
    """A run of the second machine as `gather` gives it; its settings are those of quick."""
    stem, _, label = run_id.partition("__")
    if stem != "04_fusion":
        backbone, loss, augmentation = label.split("_")[-3:]
        settings |= {"backbone": backbone.replace("-", "_"), "loss": loss, "augmentation": augmentation}
    common = {"pretrained": False, "seeds": [0, 1, 2], "start_weights": "", "pool": {}, "train_on": "train"}
    values = {"cost": {"parameters": 1e6, "gflops": 0.1}, "note": "rendered data"}
    scores = load_arrays(SECOND / "scores" / run_id / "scores.npz")
    entry = label.split("_")[0] if label.startswith("p") else ""
    return {"run": run_id, "entry": entry, "settings": common | settings, "values": values, "scores": scores}


@pytest.fixture(scope="module")
def tables():
    """T1 to T5 of the second machine under the statistics of today."""
    labels = [f"{name}_{loss}_{RECIPE}" for name in BACKBONES for loss in ("infonce", "id")]
    kinds = ("none", "flip", "jitter", "cutout", "erasing", "sharpen")
    labels += [f"test-byobnet_infonce_{kind}" for kind in kinds]
    labels.insert(0, labels.pop(labels.index("test-byobnet_infonce_none")))  # in plan order
    trainings = [gathered(f"02_training__{label.replace('test_', 'test-')}") for label in labels]
    trainings.append(gathered(POOL, pool={"train_players": 720}, epochs=3))
    trainings.append(gathered(POOL.replace("pool", "pretrained"), start_weights=POOL))
    reranked = [gathered(f"03_post_processing__{name.replace('_', '-')}_infonce_{RECIPE}") for name in BACKBONES]
    runs = {"02_training": trainings, "03_post_processing": reranked}
    runs["04_fusion"] = [gathered("04_fusion__all", **ENTRY)]
    stated = read_study(HERE.parent / "studies" / "quick.yaml").tables
    stated["T4"]["where"]["entry"].append("pretrained")
    stated["T4"]["words"]["entry"] = {"pretrained": " pre-trained"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(statements.COLUMNS, "between/within", (lambda run, score: {}, ""))
        patch.setitem(statements.COLUMNS, "images", (lambda run, score: {}, ""))
        found = {name: make_table(name, stated[name], runs) for name in ("T1", "T2", "T3", "T4")}
    return found | {"T5": fusion_table(runs, found["T3"])}


@pytest.fixture(scope="module")
def both(tables):
    """Every comparison of T1 to T5: the second machine's line, with the first machine's difference as `amd`."""
    first = pd.read_csv(HERE / "golden" / "quick_on_amd.csv").set_index(["table", "row"])
    lines = pd.concat(table.comparison.assign(table=name) for name, table in tables.items())
    lines["amd"] = first["difference"].reindex(pd.MultiIndex.from_frame(lines[["table", "row"]])).to_numpy() / 100
    return lines.dropna(subset=["difference"])


def test_scores_and_tables_of_the_second_machine_agree(tables):
    for name, table in tables.items():
        stored = pd.read_csv(SECOND / "tables" / f"{name}.csv").set_index("row")
        made = table.printable.set_index("row")
        assert list(made.index) == list(stored.index)
        assert np.allclose(made[["mAP", "rank-1", "mINP"]], stored[["mAP", "rank-1", "mINP"]], atol=0.011)
        assert np.allclose(made["difference"], stored["difference"], atol=0.011, equal_nan=True)


def test_intervals_over_seeds_and_queries_hold_what_the_other_machine_found(both):
    half, moved = (both["diff_high"] - both["diff_low"]) / 2, (both["amd"] - both["difference"]).abs()
    assert len(both) == 52 and (moved <= 2**0.5 * half).all()  # both machines drew seeds
    assert (moved <= half).sum() >= 51
    narrow = (both["queries_high"] - both["queries_low"]) / 2
    assert (moved > narrow).sum() >= 2  # those over queries alone did not


def test_no_verdict_on_one_machine_is_contradicted_on_the_other(both):
    half = (both["diff_high"] - both["diff_low"]) / 2
    for line, width in zip(both.to_dict("records"), half, strict=True):
        first = {**line, "low": line["amd"] - width, "high": line["amd"] + width}
        second = {**line, "low": line["diff_low"], "high": line["diff_high"]}
        signs = {np.sign(ends["low"] + ends["high"]) for ends in (first, second) if ends["low"] * ends["high"] > 0}
        assert len(signs) <= 1, line["row"]
        told = verdict(second, line["p_holm"])
        if sign(told):
            assert np.sign(line["amd"]) == np.sign(sign(told)), line["row"]


def test_claims_of_trainings_that_the_first_machine_made_too_boldly_are_open_here(tables):
    told = paper_claims(tables).set_index("compared")["verdict"]
    bold = ["erasing against none", "sharpen against none", "erasing+sharpen against none"]
    bold.append("test_efficientnet: infonce against id")
    assert all(told[[name]].iloc[0].startswith("open") for name in bold)
    assert (told[told.index.str.contains("hard against none")] == "supported").all()
