"""The layouts that re-identification sets come in, each built small."""

import re

import cv2
import numpy as np
import pytest

from reid_utils.data import integrity
from reid_utils.data import manifest as manifests
from reid_utils.data.difficulty import colour_distances
from reid_utils.data.layouts import find_layout, layout_rows
from reid_utils.ranking.feature_files import features_of, load_features, save
from reid_utils.ranking.methods import distances_of, score
from reid_utils.ranking.metrics import average_precisions, labels_of

RNG = np.random.default_rng(0)


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = RNG.integers(0, 255, (24, 12, 3), np.uint8)
        (root / name).write_bytes(cv2.imencode(".png" if name.lower().endswith("png") else ".jpg", image)[1].tobytes())


def market(root):
    put(
        root,
        *(f"bounding_box_train/{p:04d}_c{c}s1_{k:06d}_00.jpg" for p in range(2, 14) for c in (1, 2) for k in (5, 9)),
    )
    put(root, "query/0100_c1s1_000001_00.jpg", "query/0200_c2s1_000001_00.JPG")
    put(root, "bounding_box_test/0100_c1s1_000002_01.jpg", "bounding_box_test/0100_c2s1_000003_01.jpg")
    put(root, "bounding_box_test/0200_c1s3_000004_01.jpg", "bounding_box_test/0200_c3s3_000004_01.png")
    put(root, "bounding_box_test/-1_c1s1_000401_03.jpg", "bounding_box_test/0000_c3s3_000005_02.jpg")
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"x")
    return root


def msmt(root):
    lists = {
        "list_train": [
            f"{p:04d}/{p:04d}_{k:03d}_{k + 1:02d}_0303morning_0015_{k}.jpg {p}" for p in range(10) for k in (0, 1)
        ],
        "list_val": [f"{p:04d}/{p:04d}_002_03_0303noon_0015_2.jpg {p}" for p in range(10)],
        "list_query": ["0000/0000_000_01_0303morning_0001_0.jpg 0", "0001/0001_000_02_0303morning_0001_0.jpg 1"],
        "list_gallery": ["0000/0000_001_05_0303morning_0001_0.jpg 0", "0001/0001_001_06_0303morning_0001_0.jpg 1"],
    }
    for name, lines in lists.items():
        folder = "mask_train_v2" if name in ("list_train", "list_val") else "mask_test_v2"
        put(root, *(f"{folder}/{line.split()[0]}" for line in lines))
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def soccernet(root):
    game = "england_epl/2014-2015/game 1"
    box = iter(range(1000))

    def name(part, action, person, frame):
        return f"{part}/{game}/{action}/{next(box)}-{action}-{person}-{frame}-Player_team_left-7-a{action}f-48x24.png"

    put(
        root,
        *(name("train", a, f"{a}{p}", f) for a in range(10) for p in (1, 2) for f in (0, 1)),
        name("train", 3, 77, 0),
    )
    put(
        root,
        *(name("valid/query", a, a, 0) for a in (0, 1)),
        *(name("valid/gallery", a, p, 1) for a in (0, 1) for p in (0, 1)),
    )
    put(root, "challenge/query/0-4-48x24.png", "challenge/gallery/10-4-48x24.png", "challenge/gallery/2-4-48x24.png")
    return root


def people(root):
    put(root, *(f"player {p}/{k}.{'PNG' if k else 'jpeg'}" for p in (1, 2, 10, 20) for k in (0, 2, 10)))
    (root / "player 1" / ".DS_Store").write_bytes(b"x")
    return root


def prcc(root):
    put(root, *(f"train/{p:03d}/{c}_{k}.jpg" for p in range(12) for c in "ABC" for k in (9, 10)))
    put(root, *(f"val/{p:03d}/A_{k}.jpg" for p in range(12) for k in (7, 10)))
    put(root, *(f"test/{c}/{p:03d}/{k}.jpg" for p in (30, 31) for c in "ABC" for k in (1, 2)))
    return root


LAYOUTS = {
    "Market-1501": market,
    "MSMT17": msmt,
    "SoccerNet ReID, valid": soccernet,
    "PRCC": prcc,
    "a folder a player": people,
}


@pytest.fixture
def build(tmp_path):
    return lambda make: make(tmp_path / "set")


def rows(manifest, split, role):
    return manifest[(manifest["split"] == split) & (manifest["role"] == role)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*sequences", "ignore:.*single image")
def test_each_layout_gives_the_same_manifest(build, tmp_path, name):
    root = build(LAYOUTS[name])
    assert find_layout(root) == (name, root)
    manifest = manifests.load_manifest(root)
    assert list(manifest.columns) == manifests.COLUMNS
    assert manifest[["player", "sequence", "frame", "fold", "camera"]].dtypes.unique().tolist() == [np.int64]
    integrity.validate_images(root, manifest)
    train, test = manifest[manifest["split"] == "train"], manifest[manifest["split"] == "test"]
    assert set(test.loc[test["role"] == "query", "player"]) <= set(test.loc[test["role"] == "gallery", "player"])
    assert not set(train["player"]) & set(test["player"])
    held = [manifests.fold_split(manifest, k) for k in sorted(set(train["fold"]))]
    assert sum(len(query) + len(gallery) for _, query, gallery in held) == len(train)
    for _, query, gallery in held:
        assert set(query["player"]) == set(gallery["player"]) and len(gallery) >= len(query)
    sizes = test["role"].value_counts()
    found = colour_distances(root, manifest)["RGB, 6 bands"]
    assert found.shape == (sizes["query"], sizes["gallery"]) and -1.001 < found.min() < 0


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*single image")
def test_the_fingerprint_covers_every_image_of_a_layout(build, tmp_path, name):
    root = build(LAYOUTS[name])
    before = integrity.data_fingerprint(root)
    for path in layout_rows(root)["path"].iloc[[0, -1]]:
        (root / path).write_bytes((root / path).read_bytes() + b" ")
        after = integrity.data_fingerprint(root)
        assert after != before
        before = after


def test_market_1501_scores_as_the_benchmark_does(build):
    """Junk and the query's own camera are left out of the ranking, distractors are wrong answers."""
    manifest = manifests.load_manifest(build(market))
    query, gallery = rows(manifest, "test", "query"), rows(manifest, "test", "gallery")
    assert query["image_id"].tolist() == ["0100_c1s1_000001_00", "0200_c2s1_000001_00"]
    assert gallery["player"].tolist() == [0, -1, 100, 100, 200, 200]
    assert gallery["camera"].tolist() == [3, 1, 1, 2, 1, 3]
    labels = query["player"], gallery["player"], query["camera"], gallery["camera"]
    # Ranked: junk, own camera, distractor, match; then distractor, match, player 100, match, junk.
    distances = np.array([[3, 1, 2, 4, 5, 6], [1, 6, 3, 7, 2, 4]], float)
    found = average_precisions(distances, *(np.asarray(column) for column in labels))
    assert found == pytest.approx([1 / 2, (1 / 2 + 2 / 4) / 2])


def test_market_counts_leave_junk_and_distractors_out_of_the_identities(build):
    table = manifests.counts(manifests.load_manifest(build(market))).set_index("set")
    assert table.loc["test gallery"].tolist() == [2, 6] and table.loc["training"].tolist() == [12, 48]


def test_nobody_is_trained_on_junk_and_distractors(build):
    manifest = manifests.load_manifest(build(market))
    labels, _ = manifests.training_and_validation(manifest, "train+test")
    assert manifest.loc[labels == -1, "player"].tolist() == [0, -1] and labels.max() == 13


def test_market_folds_ask_once_a_player_and_keep_the_cameras(build):
    _, query, gallery = manifests.fold_split(manifests.load_manifest(build(market)), 0)
    assert not query["player"].duplicated().any() and set(query["camera"]) == {1}
    assert gallery["camera"].value_counts().to_dict() == {2: 2 * len(query), 1: len(query)}


def test_msmt17_takes_both_training_lists_and_numbers_test_players_after_them(build):
    manifest = manifests.load_manifest(build(msmt))
    train = manifest[manifest["split"] == "train"]
    assert len(train) == 30 and sorted(train["player"].unique()) == list(range(1, 11))
    assert rows(manifest, "test", "query")[["player", "camera"]].to_numpy().tolist() == [[11, 1], [12, 2]]
    assert rows(manifest, "test", "gallery")["camera"].tolist() == [5, 6]


def test_soccernet_keeps_the_action_and_drops_persons_seen_once(build):
    with pytest.warns(UserWarning, match="1 training persons of a single image make no pair"):
        manifest = manifests.load_manifest(build(soccernet))
    assert len(manifest[manifest["split"] == "train"]) == 40
    gallery = rows(manifest, "test", "gallery")
    assert gallery["sequence"].tolist() == [0, 0, 1, 1] and gallery["player"].tolist() == [22, 23, 22, 23]
    hidden = rows(manifest, "challenge", "gallery")
    assert hidden["image_id"].tolist() == ["2", "10"] and hidden["sequence"].tolist() == [4, 4]
    assert (hidden["player"] == -1).all()


def test_soccernet_passes_over_clutter(build):
    root = build(soccernet)
    (root / "train" / "@eaDir").mkdir()
    (root / "train" / "@eaDir" / "thumbnail.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="single image"):
        manifests.load_manifest(root)


@pytest.mark.filterwarnings("ignore:.*single image")
def test_soccernet_ranks_a_query_within_its_action(build, tmp_path):
    manifest = manifests.load_manifest(build(soccernet))
    test = manifest[manifest["split"] == "test"]
    assert test.groupby("role")["group"].unique().map(list).to_dict() == {"gallery": [1, 2], "query": [1, 2]}
    # Queries at 0 and 9, the gallery of two actions: nearer images of the other action are not in it.
    save(tmp_path / "a.npz", features_of(test, np.array([[0], [9], [3], [1], [5], [4]], np.float32)))
    features = load_features(tmp_path / "a.npz")
    assert distances_of(features).tolist() == [[9, 1, np.inf, np.inf], [np.inf, np.inf, 16, 25]]
    assert score(distances_of(features), *labels_of(features))["aps"].tolist() == [1 / 2, 1 / 2]


@pytest.mark.filterwarnings("ignore:.*sequences")
def test_a_folder_a_player_is_halved_in_the_order_of_its_numbers(build):
    manifest = manifests.load_manifest(build(people))
    train = manifest[manifest["split"] == "train"]
    assert train["path"].str.split("/").str[0].unique().tolist() == ["player 1", "player 2"]
    assert rows(manifest, "test", "query")["image_id"].tolist() == ["player 10_0", "player 20_0"]
    assert rows(manifest, "test", "gallery")["path"].tolist() == [
        f"player {p}/{k}.PNG" for p in (10, 20) for k in (2, 10)
    ]


@pytest.mark.filterwarnings("ignore:.*sequences")
def test_folders_train_and_test_of_players_are_taken_as_they_are(tmp_path):
    for p in range(1, 5):
        put(tmp_path, *(f"{'train' if p < 4 else 'test'}/anna {p}/{k}.png" for k in range(2)))
    assert manifests.load_manifest(tmp_path).groupby("split")["player"].nunique().to_dict() == {"test": 1, "train": 3}
    put(tmp_path, "test/anna 1/7.png", "test/anna 1/8.png")
    with pytest.raises(ValueError, match=r"is in both train/anna 1/0.png and test/anna 1/7.png"):
        manifests.load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (market, "query/100.jpg", r"query/100\.jpg is not named {player}_c{camera}"),
        (
            market,
            "bounding_box_train/-1_c1s1_000001_00.jpg",
            "shows junk or no known player .-1., which",
        ),
        (market, "query/0100_c1s1_000001_00.png", "the same image id"),
        (
            market,
            "bounding_box_train/0100_c1s1_000001_00.jpg",
            r"is in both bounding_box_train/\S+ and query/",
        ),
        (soccernet, "train/a/b/c/0/7-1-1.png", "is not named {box}-{action}-{person}"),
        (people, "player 2/notes.txt", r"notes\.txt is not named as a JPEG, PNG, BMP or WebP image"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_file_is_named_with_the_rule(build, make, name, message):
    root = build(make)
    put(root, name)
    with pytest.raises(ValueError, match=message):
        manifests.load_manifest(root)


def test_a_wrong_line_and_a_missing_folder_are_named(build):
    root = build(msmt)
    with (root / "list_query.txt").open("a") as file:
        file.write("0001/nobody.jpg 1\n")
    with pytest.raises(ValueError, match=re.escape("list_query.txt line 3 ('0001/nobody.jpg 1')")):
        manifests.load_manifest(root)
    (root / "list_query.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"list_query\.txt is missing"):
        manifests.load_manifest(root)


def test_a_folder_in_no_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(FileNotFoundError, match=r"no reid_training \(Synergy\), bounding_box_train"):
        manifests.load_manifest(tmp_path)


def test_prcc_looks_for_changed_clothes_and_trains_on_val_too(build):
    manifest = manifests.load_manifest(build(prcc))
    assert manifest.groupby("split")["player"].unique().map(len).to_dict() == {"test": 2, "train": 12}
    assert manifest["split"].value_counts()["train"] == 12 * 8
    assert rows(manifest, "test", "query")["path"].str[:7].unique().tolist() == ["test/C/"]
    assert rows(manifest, "test", "gallery")["path"].str[:7].unique().tolist() == ["test/A/"]


def test_players_who_are_called_a_to_c_are_no_prcc(tmp_path):
    put(tmp_path, *(f"{part}/{k}.jpg" for part in ("train/X", "test/A", "test/B", "test/C") for k in range(2)))
    assert find_layout(tmp_path)[0] == "a folder a player" and len(manifests.load_manifest(tmp_path)) == 8


@pytest.mark.parametrize("sets", [("train", "val", "query", "gallery"), ("Train", "test/query", "test/gallery")])
def test_folders_of_players_below_the_sets_are_told_from_soccernet(tmp_path, sets):
    for part in sets:
        people = (1, 2, 10) if part.casefold() in ("train", "val") else (3, 20)
        put(tmp_path, *(f"{part}/p{p}/{k}.jpg" for p in people for k in (2, 10)))
    manifest = manifests.load_manifest(tmp_path)
    assert find_layout(tmp_path)[0] == "a folder a player"
    assert manifest.groupby("split")["player"].unique().map(sorted).to_dict() == {"test": [4, 5], "train": [1, 2, 3]}
    assert rows(manifest, "test", "gallery")["image_id"].tolist() == ["p3_2", "p3_10", "p20_2", "p20_10"]
    put(tmp_path, "elsewhere/1.jpg")
    with pytest.raises(ValueError, match=r"elsewhere/1.jpg lies in none of the folders train, val, test, query"):
        manifests.load_manifest(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_called_minus_one_holds_junk_as_such_names_do(tmp_path):
    for p in ("1", "-1"):
        put(tmp_path / "sets", *(f"gallery/{p}/{k}.jpg" for k in range(2)))
    put(tmp_path / "sets", "train/9/0.jpg", "train/9/1.jpg", "query/1/2.jpg")
    assert rows(manifests.load_manifest(tmp_path / "sets"), "test", "gallery")["player"].tolist() == [-1, -1, 2, 2]
    put(tmp_path / "halved", *(f"{p}/{k}.jpg" for p in ("-1", "1", "2", "3", "4") for k in range(2)))
    halved = manifests.load_manifest(tmp_path / "halved")
    assert halved.query("player == -1")["role"].tolist() == ["gallery"] * 2
    assert halved.query("split == 'train'")["player"].unique().tolist() == [1, 2]
    put(tmp_path / "sets", "query/-1/5.jpg")
    with pytest.raises(ValueError, match=r"query/-1/5\.jpg shows junk or no known player"):
        manifests.load_manifest(tmp_path / "sets")


@pytest.mark.parametrize("names", [("image_train", "image_query", "image_test"), ("bbox_train", "bbox_test")])
def test_folders_of_an_unknown_layout_are_not_taken_as_players(tmp_path, names):
    put(tmp_path, *(f"{name}/000{p}_c1_{k}.jpg" for name in names for p in (1, 2) for k in range(2)))
    with pytest.raises(ValueError, match=rf"{sorted(names)[0]}/0001_c1_0.jpg lies in a folder named as a set is"):
        manifests.load_manifest(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_players_whose_names_hold_a_sets_letters_are_players(tmp_path):
    put(tmp_path, *(f"{name}/{k}.jpg" for name in ("trainer", "contest 1", "Valentin", "vale_b") for k in range(2)))
    assert manifests.load_manifest(tmp_path)["player"].nunique() == 4


@pytest.mark.filterwarnings("ignore:.*test queries")
def test_folders_that_recur_within_folders_are_told(tmp_path, recwarn):
    put(tmp_path, *(f"{part}/000{p}/c1/{k}.jpg" for part in ("query", "gallery") for p in (3, 4) for k in range(2)))
    with pytest.warns(UserWarning, match="0003/c1 is taken as a player: move crops up"):
        manifests.load_manifest(tmp_path)
    put(tmp_path / "once", *(f"{part}/a/{p}/1.jpg" for part in ("query", "gallery") for p in (3, 4)))
    recwarn.clear()
    manifests.load_manifest(tmp_path / "once")
    assert not any("is taken as" in str(warning.message) for warning in recwarn)
