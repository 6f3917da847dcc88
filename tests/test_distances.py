"""Squared Euclidean distances and the checks of features."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from reid_utils.ranking import rerank, squared_euclidean


def test_squared_euclidean_against_the_definition():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    expected = ((query[:, None] - gallery[None]) ** 2).sum(axis=2)
    found = squared_euclidean(query, gallery)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_distances_are_never_negative():
    images = np.random.default_rng(1).normal(size=(50, 300)).astype(np.float32) * 100
    assert (squared_euclidean(images, images) >= 0).all()


def test_tensors_and_arrays_agree():
    images = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    found = squared_euclidean(torch.from_numpy(images[:2]), torch.from_numpy(images[2:]).requires_grad_())
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, squared_euclidean(images[:2], images[2:]))


@pytest.mark.parametrize("function", [squared_euclidean, rerank])
def test_bad_features_are_named(function):
    images = np.ones((4, 3), np.float32)
    spoilt = images.copy()
    spoilt[2, 1] = np.nan
    with pytest.raises(ValueError, match="gallery features row 2 holds NaN"):
        function(images, spoilt)
    with pytest.raises(ValueError, match="query features have 3 dimensions, gallery features 2"):
        function(images, images[:, :2])
    with pytest.raises(ValueError, match="query features must be a matrix"):
        function(images[0], images)
    with pytest.raises(ValueError, match="at least one row"):
        function(images[:0], images)


def test_inputs_are_left_alone():
    images = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    before = images.copy()
    squared_euclidean(images[:3], images)
    rerank(images[:3], images, k1=3, k2=2)
    np.testing.assert_array_equal(images, before)


def test_import_stays_light():
    code = "import sys, reid_utils.ranking; print({'torch', 'numba', 'scipy', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_re_ranking_works_where_no_cache_can_be_written(tmp_path):
    package = tmp_path / "reid_utils"
    shutil.copytree(ROOT / "reid_utils", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ranking" / "__pycache__").write_text("a file where numba wants a folder")
    code = "import numpy as np; from reid_utils.ranking import rerank as r; print(r(np.eye(3), np.eye(3), k1=2).shape)"
    environment = os.environ | {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONPATH": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "(3, 3)\n", done.stderr[-2000:]
