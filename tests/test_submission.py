"""The challenge CSV: the toolkit's bytes, read back exactly, refused when broken, scored."""

import io
from pathlib import Path

import numpy as np
import pytest

from reid_utils.ranking import read_distance_csv, write_distance_csv
from reid_utils.ranking.methods import score

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
SYNERGY = Path(__file__).resolve().parents[2] / "shared" / "golden" / "synergy2023_test_dmat.csv"


def savetxt_bytes(distances, query_ids, gallery_ids):
    table = np.concatenate([np.r_[0, gallery_ids][None], np.column_stack([query_ids, distances])])
    file = io.StringIO()
    np.savetxt(file, table[:1], fmt="%i", delimiter=",")
    np.savetxt(file, table[1:], fmt=["%i"] + ["%10.5f"] * len(gallery_ids), delimiter=",")
    return file.getvalue().encode()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem[:2])
def test_bytes_of_the_toolkit(path, tmp_path):
    case = np.load(path, allow_pickle=False)
    write_distance_csv(tmp_path / "d.csv", case["fuse_in"][0], case["query_ids"], case["gallery_ids"])
    assert (tmp_path / "d.csv").read_bytes() == case["csv0_bytes"].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e4, 1e9, 1e14])
def test_rounding_is_that_of_printf(tmp_path, dtype, scale):
    rng = np.random.default_rng(0)
    ties = (rng.integers(-(10**6), 10**6, (4, 50)) + 0.5) / 2.0**5  # many lie exactly or nearly between two decimals
    five = (rng.integers(-(10**6), 10**6, (4, 50)) + 0.5) / 1e5
    distances = (np.concatenate([rng.normal(size=(4, 50)), ties, five, -np.zeros((1, 50))]) * scale).astype(dtype)
    ids = np.arange(13), np.arange(50)
    write_distance_csv(tmp_path / "d.csv", distances, *ids)
    assert (tmp_path / "d.csv").read_bytes() == savetxt_bytes(distances.astype(np.float64), *ids)


def test_reading_back(tmp_path):
    distances = np.random.default_rng(1).random((3, 4)).round(5)
    write_distance_csv(tmp_path / "d.csv", distances, [5, 5, 9], [12345678901, 0, 7, 7])
    found = read_distance_csv(tmp_path / "d.csv")
    np.testing.assert_array_equal(found[0], distances)
    np.testing.assert_array_equal(found[1], [5, 5, 9])
    np.testing.assert_array_equal(found[2], [12345678901, 0, 7, 7])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,2\n5,0.1\n", r"d\.csv is not a distance CSV: .*columns changed"),
        ("0,1,2\n5,0.1,x\n", r"d\.csv is not a distance CSV: .*'x'"),
        ("0,1,2\n5,0.1,nan\n", r"d\.csv: distances row 0 holds NaN"),
        ("3,1,2\n5,0.1,0.2\n", r"d\.csv needs a first row of 0 and the gallery ids"),
        (
            "0,1,2.5\n5,0.1,0.2\n",
            r"d\.csv: gallery ids must be whole numbers .* exact in their type float64",
        ),
        ("0,1,2\n5,0.1,inf\n", r"d\.csv: distances row 0 holds NaN or infinity"),
        ("0,1,2\n5,,0.1\n", r"d\.csv is not a distance CSV"),
        ("0,1,inf\n5,0.1,0.2\n", "gallery ids must be whole numbers"),
        ("0,1,9007199254740993\n5,0.1,0.2\n", "gallery ids must be .* exact in their type float64"),
        ("0,1,2\n1e300,0.1,0.2\n", "query ids must be .* exact in their type float64"),
        ("0;1;2\n5;0.1;x\n", r"d\.csv is not a distance CSV"),
        ('"0","1","2"\n"1","0,5"\n', r"d\.csv is not a distance CSV"),
        ("0,1,2\n", "and then a row for each query"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, message):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_distance_csv(tmp_path / "d.csv")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_distance_csv(tmp_path / "none.csv")


def test_nothing_is_left_behind_by_a_refused_write(tmp_path):
    good = np.ones((2, 3))
    for distances, queries, message in [
        (good, [1, 2, 3], r"distances of shape \(2, 3\) do not fit 3 query"),
        (good, [1.5, 2], "query_ids must be whole numbers"),
        (good * np.nan, [1, 2], "distances row 0 holds NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_distance_csv(tmp_path / "d.csv", distances, queries, [1, 2, 3])
    assert list(tmp_path.iterdir()) == []


def test_a_real_submission():
    if not SYNERGY.exists():
        pytest.skip("the real Synergy submission is kept outside the project and is not here")
    found = score(*read_distance_csv(SYNERGY))
    assert found["mAP"] == pytest.approx(0.96148, abs=1e-5)
    assert found["rank1"] == 1 and len(found["aps"]) == 50 and np.isfinite(found["aps"]).all()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff0,1,2\r\n5,0.5,0.25\r\n",
        "0;1;2\n5;0.5;0.25\n",
        "0;1;2\n5;0,5;0,25\n",
        "0;1;2\n5;0,500;0,250\n",
        "\ufeff0;1;2\n5;0.5;0.25\n",
        '"0","1","2"\n"5","0.5","0.25"\n',
        ",1,2\n5,0.5,0.25\n",
        '"","1","2"\n"5",0.5,0.25\n',
        '"";"1";"2"\n"5";0,5;0,25\n',
    ],
)
def test_spreadsheet_habits_are_understood(tmp_path, text):
    (tmp_path / "d.csv").write_bytes(text.encode())
    distances, query_ids, gallery_ids = read_distance_csv(tmp_path / "d.csv")
    np.testing.assert_array_equal(distances, [[0.5, 0.25]])
    np.testing.assert_array_equal(query_ids, [5])
    np.testing.assert_array_equal(gallery_ids, [1, 2])


def test_images_of_other_groups_are_written_behind_all_others(tmp_path):
    write_distance_csv(tmp_path / "d.csv", [[0.5, 2.0, np.inf], [np.inf, np.inf, 0.25]], [1, 2], [1, 3, 2])
    assert read_distance_csv(tmp_path / "d.csv")[0].tolist() == [[0.5, 2, 3], [3, 3, 0.25]]
    with pytest.raises(ValueError, match="distances row 0 holds infinity that marks no group"):
        write_distance_csv(tmp_path / "e.csv", [[0.5, np.inf], [1, 0.25]], [1, 2], [1, 2])


def test_ids_of_any_integer_type_are_written_exactly(tmp_path):
    large = 2**53 + 1
    write_distance_csv(tmp_path / "d.csv", np.ones((1, 2)), np.array([large], np.uint64), [large, 3])
    assert (tmp_path / "d.csv").read_text().splitlines()[0] == f"0,{large},3"
    with pytest.raises(ValueError, match="query_ids must be whole numbers for the challenge CSV, not text"):
        write_distance_csv(tmp_path / "d.csv", np.ones((1, 2)), ["a"], [1, 2])
