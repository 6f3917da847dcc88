"""Each figure has the axes, labels and marks that a reader needs, and saves reproducibly and small."""

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from reid_utils.ranking.statistics import compare_rows
from reid_utils.views import galleries, plots, style
from reid_utils.views.forest import forest_plot
from reid_utils.views.saliency import saliency_pairs


@pytest.fixture(autouse=True)
def study_style():
    with plt.rc_context():
        style.use_style()
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def crop(height=64, width=24, shade=90):
    return np.full((height, width, 3), shade, np.uint8)


def texts(figure):
    """Every string shown in the figure, of axes, legends and corner note alike."""
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text) if text.get_visible())


def table(rng, names=("none", "flip", "erasing")):
    aps = rng.uniform(0.3, 0.7, (3, 40))
    return compare_rows({name: np.clip(aps + 0.1 * k, 0, 1) for k, name in enumerate(names)}, names[0])


def draw_one_of_each(rng):
    """Name → (figure with a note, number of axes with data, strings that it must show)."""
    ranked = [(crop(), True, 0.25), (crop(80, 30), False, 1.5)]
    history = pd.DataFrame({"seed": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "loss": [2.0, 1, 2, 1]})
    history = history.assign(mAP=[np.nan, 0.5, np.nan, 0.6], rank1=[np.nan, 0.5, np.nan, 0.6], label="InfoNCE")
    manifest = pd.DataFrame({"split": ["training"] * 6 + ["test"] * 4, "player": [1, 1, 1, 2, 2, 2, 7, 7, 8, 8]})
    damage = pd.DataFrame({"damage": ["blur (σ, pixels)"] * 2 + ["JPEG quality"] * 2, "level": [0, 1] * 2})
    damage = damage.assign(label="InfoNCE", mAP=[0.9, 0.7] * 2, low=[0.85, 0.6] * 2, high=[0.95, 0.8] * 2)
    pairs = {"genuine": rng.uniform(0, 0.5, 50), "impostor": rng.uniform(0.4, 1, 500)}
    note = {"note": "rendered data"}
    return {
        "samples": (galleries.sequence_samples([("player 1", [crop(), crop(90, 40)])] * 3, **note), 3, ["player 1"]),
        "augmentations": (
            galleries.augmentation_grid({"flip": [crop()] * 2, "cut-out": [crop()] * 2}, **note),
            4,
            ["flip", "cut-out"],
        ),
        "lists": (
            galleries.ranked_list_page([(crop(), {"plain": ranked, "re-ranked": ranked}, "AP 0.5")], **note),
            6,
            ["plain", "AP 0.5", "✓ d = 0.25", "✗ d = 1.50"],
        ),
        "page": (galleries.ranked_list_page([(crop(), {"plain": ranked}, "worst")] * 2, **note), 6, ["worst"]),
        "set": (
            plots.set_statistics(manifest, np.arange(20).reshape(10, 2) + 50, **note),
            4,
            ["images per player", "height (pixels)", "width (pixels)", "height / width", "training", "test"],
        ),
        "training": (plots.training_curves(history, **note), 3, ["epoch", "mAP (%)", "rank-1 (%)", "InfoNCE"]),
        "sensitivity": (
            plots.sensitivity_map([[0.7, 0.8], [0.75, np.nan]], [10, 20], [1, 6], "k1", "k2", (20, 1), **note),
            2,
            ["k1", "k2", "80.0", "mAP (%)"],
        ),
        "overlap": (plots.error_overlap(np.eye(2), ["ViT", "ResNet"], **note), 2, ["also failed by", "ViT", "100"]),
        "distances": (plots.distance_histograms(pairs, **note), 1, ["genuine (50 pairs)", "impostor (500 pairs)"]),
        "jaccard": (plots.jaccard_histogram(pairs, **note), 1, ["Jaccard distance", "number of pairs"]),
        "cmc": (plots.cmc_curves({"ViT": [0.7, 0.9, 1.0]}, **note), 1, ["rank", "queries matched (%)", "ViT"]),
        "embedding": (
            plots.embedding_map(
                {"InfoNCE": (np.eye(2), [1, 2]), "ID": (np.eye(2), [1, 2])}, {"InfoNCE": 1.31, "ID": 1}
            ),
            2,
            ["InfoNCE", "1.31", "t-SNE 1", "colour and marker = player"],
        ),
        "weights": (
            plots.fusion_weights({"two-stage": rng.dirichlet([1, 1], 9)}, ["ViT", "ResNet"], **note),
            1,
            ["two-stage", "ViT", "ResNet"],
        ),
        "forest": (
            forest_plot(table(rng), ["T1", "T1", "T1"], **note),
            2,
            ["T1", "flip", "mAP (%)", "difference to the baseline (mAP points)", "< 0.0002"],
        ),
        "bars": (plots.bar_with_intervals(table(rng), **note), 1, ["erasing", "mAP (%)"]),
        "robustness": (
            plots.robustness_curves(damage, **note),
            2,
            ["blur (σ, pixels)", "JPEG quality", "InfoNCE"],
        ),
        "repaired": (
            plots.repaired_queries([0.2, 0.5, 1, np.nan], [0.6, 0.4, 1, np.nan], ("AP alone", "AP fused"), **note),
            1,
            ["AP alone (%)", "AP fused (%)", "better (1)", "worse (1)", "same (1)"],
        ),
    }


def test_every_figure_shows_its_parts_and_note(rng):
    for name, (figure, n_axes, expected) in draw_one_of_each(rng).items():
        assert isinstance(figure, Figure), name
        assert sum(ax.has_data() for ax in figure.axes) == n_axes, name
        shown = texts(figure)
        wanted = [*expected, "rendered data"] if name != "embedding" else expected
        assert [text for text in wanted if text not in shown] == [], name
        assert figure.get_figwidth() <= style.TEXT_WIDTH, name
        assert min(t.get_fontsize() for t in figure.findobj(plt.Text) if t.get_text()) >= 7, name


def test_nothing_leaves_the_page(rng):
    for name, (figure, _, _) in draw_one_of_each(rng).items():
        figure.draw_without_rendering()
        bounds = figure.get_tightbbox()
        assert bounds.x0 >= -0.01 and bounds.y0 >= -0.01, name
        assert bounds.x1 <= figure.get_figwidth() + 0.01 and bounds.y1 <= figure.get_figheight() + 0.01, name


def test_figures_do_not_pile_up_in_pyplot(rng):
    draw_one_of_each(rng)
    assert plt.get_fignums() == []


def test_hits_and_misses_differ_in_sign_and_colour():
    figure = galleries.ranked_list_page([(crop(), {"plain": [(crop(), True, 0.1), (crop(), False, 0.2)]}, "q")])
    _, hit, miss = [ax for ax in figure.findobj(plt.Axes) if ax.has_data()]
    assert (hit.get_title()[0], miss.get_title()[0]) == ("✓", "✗")
    frames = [to_hex(ax.spines["left"].get_edgecolor()).upper() for ax in (hit, miss)]
    assert frames == [style.MATCH, style.MISMATCH]


def test_hidden_players_are_not_counted():
    manifest = pd.DataFrame({"split": ["training"] * 2 + ["challenge"] * 9, "player": [1.0, 1.0] + [np.nan] * 9})
    figure = plots.set_statistics(manifest, np.full((11, 2), 40))
    assert len(figure.axes[0].patches) == 1
    assert len(figure.axes[2].patches) == 2  # one height throughout: a bar a split
    assert "challenge: players hidden" in texts(figure)
    hidden = plots.set_statistics(manifest[2:], np.full((9, 2), 40))
    assert "players are hidden" in texts(hidden)


def test_forest_plot_fills_only_what_differs(rng):
    aps = rng.uniform(0.3, 0.7, (1, 40))
    noisy = np.clip(aps + rng.normal(0, 0.1, aps.shape), 0, 1)
    frame = compare_rows({"base": aps, "same": noisy, "better": np.clip(aps + 0.1, 0, 1)}, "base")
    frame["p_holm"] = [np.nan, 0.6, 0.001]
    points = [line for line in forest_plot(frame).axes[0].lines if line.get_marker() in "oD"]
    filled = [line.get_markerfacecolor() != "white" for line in points]
    assert list(zip((line.get_marker() for line in points), filled, strict=True)) == [
        ("D", True),
        ("o", False),
        ("o", True),
    ]


def test_forest_plot_draws_full_intervals_thin_and_those_of_queries_thick(rng):
    frame = table(rng).assign(queries_low=[np.nan, 0.09, 0.19], queries_high=[np.nan, 0.11, 0.21])
    frame = frame.assign(diff_low=[np.nan, 0.05, 0.1], diff_high=[np.nan, 0.15, 0.3])
    figure = forest_plot(frame)
    segments = {(line.get_linewidth(), *np.round(line.get_xdata(), 1)) for line in figure.axes[1].lines}
    assert segments >= {(1, 5, 15), (1, 10, 30), (4, 9, 11), (4, 19, 21)}
    thick, thin = (
        next(line for line in figure.axes[1].lines if line.get_linewidth() == width and line.get_xdata()[0] > 0)
        for width in (4, 1)
    )
    assert figure.axes[1].lines.index(thick) < figure.axes[1].lines.index(thin)  # the thin one lies on top
    assert thick.get_color() != thin.get_color() and {each.get_solid_capstyle() for each in (thick, thin)} == {"butt"}
    assert "over queries only" in texts(figure)
    assert "over queries only" not in texts(forest_plot(frame.drop(columns=["queries_low", "queries_high"])))


def test_epochs_without_a_measurement_are_no_solid_line():
    history = pd.DataFrame({"seed": 0, "epoch": [0, 1, 2, 3] * 2, "label": ["each"] * 4 + ["last"] * 4, "loss": 1.0})
    history = history.assign(mAP=[0.1, 0.2, 0.3, 0.4, 0.1, np.nan, np.nan, 0.4], rank1=0.5)
    figure = plots.training_curves(history)
    drawn = {
        line.get_linestyle(): np.isfinite(line.get_ydata()).sum() for line in figure.axes[1].lines if line.get_alpha()
    }
    assert drawn == {"-": 2, ":": 2}  # of the last series: two lone points, joined by dots
    assert "epochs between not validated" in texts(figure)
    assert "not validated" not in texts(plots.training_curves(history[:4]))


def test_each_of_many_series_has_a_look_of_its_own():
    looks = style.looks(range(49))
    assert len({(looks["palette"][name], looks["markers"][name]) for name in range(49)}) == 49


def test_numbers_beside_bars_stay_inside_the_axis(rng):
    ax = plots.bar_with_intervals(table(rng)).axes[0]
    ax.figure.draw_without_rendering()
    assert max(text.get_window_extent().x1 for text in ax.texts) <= ax.get_window_extent().x1


def test_sensitivity_map_outlines_the_marked_setting():
    figure = plots.sensitivity_map(np.full((2, 3), 0.5), [5, 10, 20], [1, 6], "k1", "k2", mark=(20, 6))
    assert figure.axes[0].patches[0].get_xy() == (2, 1)


def test_a_set_of_one_player_is_drawn():
    nobody_else = {"genuine": np.array([0.5, 0.6]), "impostor": np.array([])}
    assert "impostor (0 pairs)" in texts(plots.distance_histograms(nobody_else))
    assert "genuine (2 pairs)" in texts(plots.jaccard_histogram(nobody_else))
    assert texts(plots.embedding_map({"id": (np.zeros((1, 2)), [1])}, {"id": 0.0}))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: galleries.sequence_samples([("a", [])]), "row 'a' has no image"),
        (lambda: galleries.sequence_samples([("a", [np.zeros((4, 4))])]), "RGB uint8"),
        (lambda: galleries.augmentation_grid({"flip": [crop()], "none": []}), "examples per augmentation"),
        (lambda: galleries.ranked_list_page([]), "no ranked lists"),
        (lambda: plots.sensitivity_map(np.eye(2), [1], [1, 2], "k1", "k2"), r"give \(2, 1\)"),
        (lambda: plots.sensitivity_map(np.eye(2), [1, 2], [1, 2], "k1", "k2", mark=(3, 1)), "off the map"),
        (lambda: plots.fusion_weights({"a": np.ones((5, 2))}, ["x", "y", "z"]), "weights of 'a'"),
        (lambda: plots.repaired_queries([1, 1], [1]), "same queries"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


_DRAW = """
import sys, numpy as np
from reid_utils.views import galleries, plots, style
style.use_style()
rng = np.random.default_rng(0)
style.save_figure(plots.cmc_curves({"a": [0.5, 0.9]}, note="n"), sys.argv[1], "cmc")
style.save_figure(plots.distance_histograms({"a": rng.normal(size=99), "b": rng.normal(size=99)}), sys.argv[1], "d")
images = [rng.integers(0, 255, (40, 20, 3), np.uint8)] * 2
style.save_figure(galleries.ranked_list_page([(images[0], {"m": [(images[1], True, 0.1)]}, "q")]), sys.argv[1], "lists")
"""


def test_same_data_same_bytes_in_another_process(tmp_path):
    for run in "ab":
        subprocess.run([sys.executable, "-c", _DRAW, str(tmp_path / run)], check=True)
    first, second = (sorted((tmp_path / run).iterdir()) for run in "ab")
    assert [path.name for path in first] == ["cmc.png", "cmc.svg", "d.png", "d.svg", "lists.png", "lists.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def noise(rng, height, width):
    return rng.integers(0, 255, (height, width, 3), np.uint8)


def test_png_of_noisy_crops_keeps_the_limit(tmp_path, rng, capsys):
    figure = galleries.sequence_samples([("noise", [noise(rng, 200, 90) for _ in range(12)])] * 3)
    png, svg = style.save_figure(figure, tmp_path / "new folder", "noise")
    assert (png.name, svg.name) == ("noise.png", "noise.svg")
    assert png.stat().st_size <= style.PNG_LIMIT and not style.too_heavy(png)
    assert Image.open(png).width >= 75 * style.TEXT_WIDTH
    assert len(list(png.parent.iterdir())) == 2 and capsys.readouterr().out == ""


def test_a_picture_that_cannot_be_made_small_is_written_legibly_and_said(tmp_path, rng, capsys):
    lists = {name: [(noise(rng, 156, 52), True, 0.1) for _ in range(8)] for name in ("plain", "hard")}
    figure = galleries.ranked_list_page([(noise(rng, 156, 52), lists, "query")] * 3)
    png, svg = style.save_figure(figure, tmp_path, "lists")
    assert style.too_heavy(png) and Image.open(png).width >= 150 * style.TEXT_WIDTH - 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "lists.png" in said[0] and "fewer images" in said[0]
    assert "data:image/jpeg" in svg.read_text() and "data:image/png" not in svg.read_text()


def test_a_vector_picture_keeps_flat_and_transparent_images_as_they_are(tmp_path, rng):
    flat = style.save_figure(galleries.sequence_samples([("flat", [crop(), crop()])]), tmp_path, "flat")[1].read_text()
    assert "data:image/png" in flat and "data:image/jpeg" not in flat
    heat = np.zeros((64, 32), np.float32)
    pair = ("pair", noise(rng, 64, 32), noise(rng, 64, 32), (heat, heat, 0.5))
    both = style.save_figure(saliency_pairs([pair]), tmp_path, "both")[1].read_text()
    assert "data:image/png" in both  # the map lies over the crop, half transparent


HARD_TO_DRAW = [
    "$x_1$ and $",
    "a_b^c 100 %",
    "\\frac{",
    "選手の特徴",
    "لاعبون",
    "🏀",
    "bad \udcff byte",
    "null \0, \x1b[31m",
]


@pytest.mark.parametrize("name", HARD_TO_DRAW)
def test_names_in_any_script_are_drawn_or_replaced(tmp_path, rng, name):
    frame = table(rng, (name, "other"))
    manifest = pd.DataFrame({"split": [name, "b"] * 3, "player": range(6)})
    drawn = [
        forest_plot(frame, [name, name], note=name),
        plots.bar_with_intervals(frame, note=name),
        plots.error_overlap(np.eye(2), [name, "b"]),
        plots.cmc_curves({name: [0.5, 1]}),
        plots.fusion_weights({name: rng.dirichlet([1, 1], 9)}, [name, "b"]),
        plots.distance_histograms({name: rng.uniform(size=9), "b": rng.uniform(size=9)}),
        plots.set_statistics(manifest, rng.integers(50, 99, (6, 2))),
        galleries.sequence_samples([(name, [crop()])], note=name),
    ]
    for number, figure in enumerate(drawn):
        svg = style.save_figure(figure, tmp_path, str(number))[1]
        ElementTree.parse(svg)
    if name.isprintable():
        assert name in texts(drawn[0])


def test_a_column_with_one_value_a_split_is_told_by_bars():
    manifest = pd.DataFrame({"split": ["training"] * 6 + ["test"] * 4, "player": [1, 1, 1, 2, 2, 2, 7, 7, 8, 8]})
    figure = plots.set_statistics(manifest, np.arange(20).reshape(10, 2) + 50)
    shown = texts(figure)
    assert "each of 2 players: 3" in shown and "each of 2 players: 2" in shown and "each of 6 images" not in shown
    varied = plots.set_statistics(manifest.iloc[:-1], np.arange(18).reshape(9, 2) + 50)
    assert "players: " not in texts(varied) and len(varied.axes[0].lines) == 2


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    figure = plots.cmc_curves({"a": [0.5, 0.9]})
    png, _ = style.save_figure(figure, tmp_path, "cmc")
    before = png.read_bytes()
    monkeypatch.setattr(style.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        style.save_figure(plots.cmc_curves({"b": [0.1, 0.2]}), tmp_path, "cmc")
    assert png.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
