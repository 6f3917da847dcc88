"""Rows, baselines and claims of the paper's tables, on made-up scores whose truth is known."""

import numpy as np
import pytest

from reid_utils.paper.claims import paper_claims
from reid_utils.paper.results import start_run
from reid_utils.paper.tables import (
    SCORES,
    Table,
    augmentation_table,
    fusion_table,
    show,
)
from reid_utils.ranking.methods import FUSIONS

SETTINGS = {
    "backbone": "a",
    "loss": "infonce",
    "augmentation": "none",
    "seeds": [0, 1, 2],
    "learning_rate": 0.01,
    "pretrained": False,
    "start_weights": "",
    "pool": {},
    "train_on": "train",
}


def scores_of(levels, seeds=3, queries=40):
    """scores.npz of rows whose average precisions lie around a level each."""
    rng = np.random.default_rng(0)
    found = {}
    for name, level in levels.items():
        aps = np.clip(level + rng.normal(0, 0.02, (seeds, queries)), 0, 1)
        found |= {f"{name}|aps": aps, f"{name}|firsts": np.ones_like(aps)}
        found |= {f"{name}|{key}": aps.mean(axis=1) for key in SCORES if key not in ("aps", "firsts")}
    return found


def trained(level=0.5, **settings):
    """A run of notebook 02 as `gather` gives it."""
    settings = {**SETTINGS, **settings}
    name = "_".join(str(settings[key]) for key in ("backbone", "loss", "augmentation"))
    levels = {"untrained": 0.2, "none": level, "gaussian": level + 0.1, "hard": level + 0.09, "best": level + 0.01}
    levels |= {"hard in place": level + 0.08, "kreciprocal": level + 0.1}
    values = {"cost": {"parameters": 1e6, "gflops": 0.5}, "note": "rendered data"}
    scores = scores_of(levels, len(settings["seeds"]))
    return {"run": f"02_training__{name}", "settings": settings, "values": values, "scores": scores}


def fused(levels, models, **settings):
    """A run of notebook 04 as `gather` gives it."""
    settings = {"models": models, "post_processing": "hard", "challenge_fusion": "two-stage", **settings}
    return {"run": "04_fusion__all", "settings": settings, "values": {"challenge": {}}, "scores": scores_of(levels)}


def test_a_table_says_which_rows_to_compare_and_how_to_make_them_again(tmp_path):
    rows = {"none": "none", "flip": "flip", "jitter": "jitter"}
    runs = {"02_training": [trained(0.5 + 0.1 * k, augmentation=name) for k, name in enumerate(rows)]}
    run = start_run(tmp_path, "06", "06")
    shown = show(run, augmentation_table(runs), "python run_all.py quick")
    text = (tmp_path / "tables" / "T1.md").read_text()
    assert "Compare rows 1 and 2, 1 and 3 to answer: does that augmentation, alone, help?" in text
    assert "Row 2: `python run_all.py quick --only '02_training__a_infonce_flip'`" in text
    assert shown["difference"][2] == pytest.approx(20, abs=1) and np.isnan(shown["difference"][0])
    empty = show(run, Table("T5", "does that fusion help?"), "python run_all.py quick")
    assert empty.empty and "No two rows here answer: does that fusion help?" in (run.tables / "T5.md").read_text()


def test_claims_are_decided_by_the_rows_they_compare():
    levels = {"a": 0.5, "b": 0.4, "c": 0.3}
    levels |= {f"a + b + c: {name}": level for name, level in zip(FUSIONS, np.linspace(0.9, 0.6, 7), strict=True)}
    tables = {name: Table(name, "") for name in ("T1", "T2", "T3", "T4")}
    tables["T5"] = fusion_table({"04_fusion": [fused(levels, list("abc"))]})
    verdicts = paper_claims(tables).set_index("compared")["verdict"]
    assert verdicts["two-stage against the best single"] == "supported"
    for pair in ("dissimilarity against similarity", "two-stage against similarity", "two-stage against dissimilarity"):
        assert verdicts[pair] == "not supported, the opposite holds"
