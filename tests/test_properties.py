"""Properties that parsers, metrics and fusions have for any input."""

import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from notebook_study.plan import expand
from notebook_study.study_file import StudyError, parse_yaml, read_study
from reid_utils.data import manifest as manifests
from reid_utils.ranking import (
    average_precisions,
    cmc,
    mean_inverse_negative_penalty,
    read_distance_csv,
    write_distance_csv,
)
from reid_utils.ranking.methods import FUSIONS, fuse
from reid_utils.ranking.metrics import rank_matches

modest = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.floats(-1e6, 1e6, width=32)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*have no match", "ignore:.*sequences, so", "ignore:.*more than one fold"
)


@st.composite
def rankings(draw, values=None):
    """Distances (Q, G), query ids and gallery ids, of which the first query has a match."""
    queries, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    distances = draw(hnp.arrays(np.float64, (queries, gallery), elements=numbers if values is None else values))
    query_ids, gallery_ids = (draw(hnp.arrays(np.int64, n, elements=st.integers(0, 3))) for n in (queries, gallery))
    gallery_ids[draw(st.integers(0, gallery - 1))] = query_ids[0]
    return distances, query_ids, gallery_ids


@modest
@given(rankings())
def test_average_precision_is_that_of_scikit_learn_and_lies_between_none_and_all(case):
    distances, query_ids, gallery_ids = case
    for row, query_id, found in zip(distances, query_ids, average_precisions(*case), strict=True):
        matches = gallery_ids == query_id
        assert np.isnan(found) if not matches.any() else 0 < found <= 1
        if matches.any():
            assert found == pytest.approx(average_precision_score(matches, -row), abs=1e-12)


@modest
@given(rankings())
def test_scores_fit_each_other(case):
    firsts, curve = rank_matches(*case).firsts, cmc(*case, protocol="market1501", topk=len(case[2]))
    ranked = ~np.isnan(firsts)
    np.testing.assert_allclose(curve, [(firsts[ranked] <= k).mean() for k in range(1, len(curve) + 1)])
    assert curve[-1] == 1 and (np.diff(curve) >= 0).all()
    assert 0 < mean_inverse_negative_penalty(*case) <= 1
    assert (average_precisions(*case)[ranked] <= 1).all()


@modest
@given(rankings(st.integers(-20, 20).map(float)), st.randoms(use_true_random=False))
def test_scores_know_order_alone_and_no_place_in_the_gallery(case, random):
    distances, query_ids, gallery_ids = case
    expected = average_precisions(*case)
    np.testing.assert_allclose(average_precisions(np.exp(distances / 10), query_ids, gallery_ids), expected)
    order = random.sample(range(len(gallery_ids)), len(gallery_ids))
    np.testing.assert_allclose(average_precisions(distances[:, order], query_ids, gallery_ids[order]), expected)


@st.composite
def models(draw):
    """Two to four distance matrices of one shape, no two distances of a row equal."""
    queries, gallery = draw(st.integers(1, 4)), draw(st.integers(2, 20))
    rows = st.permutations(range(gallery)).map(lambda row: [place / gallery for place in row])
    matrix = st.lists(rows, min_size=queries, max_size=queries).map(lambda rows: np.array(rows, np.float32))
    return draw(st.lists(matrix, min_size=2, max_size=4))


@pytest.mark.parametrize("name", FUSIONS)
@modest
@given(models(), st.randoms(use_true_random=False))
def test_fusions_do_not_depend_on_the_order_of_models_queries_or_gallery(name, matrices, random):
    fused = fuse(matrices, name)
    assert np.isfinite(fused).all() and fused.shape == matrices[0].shape
    np.testing.assert_allclose(fuse(matrices[::-1], name), fused, rtol=1e-5, atol=1e-6)
    rows, columns = (random.sample(range(n), n) for n in fused.shape)
    moved = fuse([matrix[rows][:, columns] for matrix in matrices], name)
    np.testing.assert_allclose(moved, fused[rows][:, columns], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["similarity", "dissimilarity", "two-stage"])
@modest
@given(models())
def test_weighted_fusions_stay_between_the_models(name, matrices):
    fused = fuse(matrices, name)
    assert (fused >= np.min(matrices, axis=0) - 1e-6).all() and (fused <= np.max(matrices, axis=0) + 1e-6).all()


@modest
@given(st.data())
def test_distance_csvs_come_back_as_written(tmp_path, data):
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    distances = data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-1e5, 1e5)))
    ids = [data.draw(hnp.arrays(np.int64, n, elements=st.integers(-(2**53) + 1, 2**53 - 1))) for n in shape]
    write_distance_csv(tmp_path / "d.csv", distances, *ids)
    read = read_distance_csv(tmp_path / "d.csv")
    np.testing.assert_allclose(read[0], distances, atol=5.1e-6)
    for wanted, found in zip(ids, read[1:], strict=True):
        np.testing.assert_array_equal(found, wanted)


@modest
@given(st.binary(max_size=60) | st.text(alphabet="0123456789,.-e\n naif", max_size=60).map(str.encode))
@pytest.mark.filterwarnings("ignore:.*contained no data")
def test_any_bytes_are_a_distance_csv_or_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    try:
        distances, query_ids, gallery_ids = read_distance_csv(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(distances).all() and distances.shape == (len(query_ids), len(gallery_ids))


STUDY = """\
study: s
data: rendered
notebooks:
  - notebook: 02_training
    minutes: 1
    parameters: {epochs: 2}
    grid:
      - {loss: [infonce, id], epochs: 3}
    named_by: [loss]
  - notebook: 06_paper_tables
    after: all
"""
DECLARED = {"02_training": {"epochs": 1, "loss": "id"}, "06_paper_tables": {}}


@modest
@given(st.text(max_size=80) | st.text(alphabet="ab:[]{}&*!-'\"#|>%@? \n", max_size=40))
def test_any_text_is_yaml_or_an_error_in_one_line(text):
    try:
        parse_yaml(text, "--set")
    except StudyError as error:
        assert "\n" not in str(error) and str(error).startswith("--set ")


@settings(modest, max_examples=150)
@given(st.data())
def test_a_study_with_a_damaged_place_expands_or_is_told_in_one_line(tmp_path, data):
    start = data.draw(st.integers(0, len(STUDY)))
    stop = data.draw(st.integers(start, min(len(STUDY), start + 30)))
    put = data.draw(st.text(alphabet=string.ascii_letters + ":[]{}-, \n0123456789.", max_size=6))
    (tmp_path / "s.yaml").write_text(STUDY[:start] + put + STUDY[stop:])
    try:
        study = read_study(tmp_path / "s.yaml")
        missing = {entry.notebook for entry in study.entries} - DECLARED.keys()
        runs = [] if missing else expand(study, DECLARED)
    except StudyError as error:
        assert "\n" not in str(error)
    else:
        assert len({run.id for run in runs}) == len(runs) and all("/" not in run.id for run in runs)


JPEG = b"\xff\xd8\xff"


@modest
@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20))
def test_any_file_name_is_read_exactly_or_refused_by_name(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("set")
    for known in ("reid_training/1_0_0.jpeg", "reid_training/1_0_1.jpeg", "reid_test/query/2_0_0.jpeg",
                  "reid_test/gallery/2_0_1.jpeg"):  # fmt: skip
        (root / known).parent.mkdir(parents=True, exist_ok=True)
        (root / known).write_bytes(JPEG)
    if name in (".", "..") or len(name.encode()) > 200:
        return
    (root / "reid_training" / name).write_bytes(JPEG)
    if name.startswith("."):
        assert len(manifests.load_manifest(root)) == 4
        return
    with pytest.raises(ValueError, match=r"reid_training|player") as caught:
        manifests.load_manifest(root)
    assert "is not named" in str(caught.value) or "1" in name


@modest
@given(st.tuples(*[st.integers(0, 10**9 - 1)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
def test_labels_come_back_from_file_names_whatever_their_zeros(tmp_path_factory, numbers, zeros):
    root = tmp_path_factory.mktemp("set")
    player, sequence, frame = numbers
    texts = [str(n).zfill(min(9, len(str(n)) + pad)) for n, pad in zip(numbers, zeros, strict=True)]
    other = (player + 1) % 10**9
    for name in ("reid_training/{}_{}_{}.jpeg".format(*texts), f"reid_training/{player}_0_{(frame + 1) % 10**9}.jpeg",
                 f"reid_test/query/{other}_0_0.jpeg", f"reid_test/gallery/{other}_0_1.jpeg"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    manifest = manifests.load_manifest(root)
    labels = set(manifest.loc[manifest["split"] == "train", ["player", "sequence", "frame"]].itertuples(index=False))
    assert (player, sequence, frame) in {tuple(label) for label in labels}
