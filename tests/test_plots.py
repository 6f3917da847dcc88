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

from reid_utils.ranking.feature_files import Features
from reid_utils.ranking.statistics import compare_rows, p_text
from reid_utils.views import galleries, plots, style
from reid_utils.views.forest import forest_plot, table_plot


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
    pairs = {"genuine": rng.uniform(0, 0.5, 50), "impostor": rng.uniform(0.4, 1, 500)}
    note = {"note": "rendered data"}
    return {
        "lists": (
            galleries.ranked_list_page([(crop(), {"plain": ranked, "re-ranked": ranked}, "AP 0.5")], **note),
            6,
            ["plain", "AP 0.5", "✓ d = 0.25", "✗ d = 1.50"],
        ),
        "page": (galleries.ranked_list_page([(crop(), {"plain": ranked}, "worst")] * 2, **note), 6, ["worst"]),
        "training": (plots.training_curves(history, **note), 3, ["epoch", "mAP (%)", "rank-1 (%)", "InfoNCE"]),
        "distances": (
            plots.pair_histogram(pairs, "distance", stat="density", **note),
            1,
            ["genuine (50 pairs)", "impostor (500 pairs)"],
        ),
        "jaccard": (
            plots.pair_histogram(pairs, "Jaccard distance", log=True, **note),
            1,
            ["Jaccard distance", "Count"],
        ),
        "cmc": (plots.cmc_curves({"ViT": [0.7, 0.9, 1.0]}, **note), 1, ["rank", "queries matched (%)", "ViT"]),
        "forest": (
            forest_plot(table(rng), ["T1", "T1", "T1"], **note),
            2,
            ["T1", "flip", "mAP (%)", "difference (mAP points)", "< 0.0002"],
        ),
        "table": (
            table_plot(
                table(rng, ("ViT + ResNet: rank average", "ViT + ResNet: similarity again (other seeds)")), **note
            ),
            1,
            ["ViT + ResNet", "rank average", "similarity again (other\nseeds)", "difference (mAP points)", "mAP (%)"],
        ),
    }


def test_every_figure_shows_its_parts_and_note(rng):
    for name, (figure, n_axes, expected) in draw_one_of_each(rng).items():
        assert isinstance(figure, Figure), name
        assert sum(ax.has_data() for ax in figure.axes) == n_axes, name
        shown = texts(figure)
        wanted = [*expected, "rendered data"]
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


def test_players_that_are_unknown_are_neither_right_nor_wrong():
    figure = galleries.ranked_list_page([(crop(), {"plain": [(crop(), None, 0.1)]}, "q")])
    _, shown = [ax for ax in figure.axes if ax.has_data()]
    assert shown.get_title() == "d = 0.10" and to_hex(shown.spines["left"].get_edgecolor()).upper() == style.GREY


def test_ranked_lists_hold_what_the_metrics_rank():
    features = Features(
        query_players=np.array([7, -1]), gallery_players=np.array([7, 8, 7, -1, 9]),
        query_cameras=np.array([0, 0]), gallery_cameras=np.array([1, 1, 0, 1, 1]),
        query_groups=np.array([1, 2]), gallery_groups=np.array([1, 1, 1, 1, 2]),
    )  # fmt: skip
    distances, asked = np.array([[0.4, 0.2, 0.1, 0.05, 0.0], [0.1, 0.1, 0.1, 0.1, 0.3]]), []
    found = [galleries.ranked_crops(features, distances, q, lambda *of: asked.append(of) or crop()) for q in (0, 1)]
    assert [(hit, d) for _, hit, d in found[0]] == [(False, 0.2), (True, 0.4)]  # no junk, no unknown, no other group
    assert [(hit, d) for _, hit, d in found[1]] == [(None, 0.3)]  # an unknown query: neither right nor wrong
    assert asked == [("gallery", 1), ("gallery", 0), ("gallery", 4)]
    assert len(galleries.ranked_crops(features, distances, 0, lambda *_: crop(), top=1)) == 1


def test_forest_plot_fills_only_what_differs(rng):
    aps = rng.uniform(0.3, 0.7, (1, 40))
    noisy = np.clip(aps + rng.normal(0, 0.1, aps.shape), 0, 1)
    frame = compare_rows({"base": aps, "same": noisy, "better": np.clip(aps + 0.1, 0, 1)}, "base")
    frame["p_holm"] = [np.nan, 0.6, 0.001]
    points = [line for line in forest_plot(frame).axes[0].lines if line.get_marker() in "oD"]
    filled = {(line.get_marker(), line.get_markerfacecolor() != "white", *line.get_ydata()) for line in points}
    assert filled == {("D", True, 0), ("o", False, 1), ("o", True, 2)}


def test_forest_plot_draws_full_intervals_thin_and_those_of_queries_thick(rng):
    frame = table(rng).assign(queries_low=[np.nan, 0.09, 0.19], queries_high=[np.nan, 0.11, 0.21])
    frame = frame.assign(diff_low=[np.nan, 0.05, 0.1], diff_high=[np.nan, 0.15, 0.3])
    figure = forest_plot(frame)
    thick, thin = figure.axes[1].collections  # the thin ones lie on top
    ends = [{tuple(np.round(path.vertices[:, 0], 1)) for path in lines.get_paths()} for lines in (thick, thin)]
    assert ends[0] >= {(9, 11), (19, 21)} and ends[1] >= {(5, 15), (10, 30)}
    assert (thick.get_linewidth()[0], thin.get_linewidth()[0]) == (4, 1)
    assert not np.array_equal(thick.get_color()[0], thin.get_color()[-1])
    assert "queries alone" in texts(figure)
    assert "queries alone" not in texts(forest_plot(frame.drop(columns=["queries_low", "queries_high"])))


def test_forest_plot_draws_the_csv_of_a_table_as_its_comparison(tmp_path, rng):
    aps = rng.uniform(0.3, 0.7, (3, 40))
    noisy = np.clip(aps + rng.normal(0, 0.1, aps.shape), 0, 1)
    frame = compare_rows({"base": aps, "same": noisy, "better": np.clip(aps + 0.1, 0, 1)}, "base")
    names = {"low": "mAP low", "high": "mAP high", "diff_low": "diff low", "diff_high": "diff high"}
    names |= {"queries_low": "queries low", "queries_high": "queries high"}
    percent = (100 * frame[["mAP", "difference", *names]]).round(2).rename(columns=names)
    p = [p_text(*of) for of in zip(frame["p_holm"], frame["p"] <= frame["p_floor"], strict=True)]
    frame[["row"]].join(percent).assign(**{"p (Holm)": p}).to_csv(tmp_path / "T1.csv", index=False)
    assert str(p[2]).startswith("<") and not str(p[1]).startswith("<")
    read, direct = forest_plot(pd.read_csv(tmp_path / "T1.csv")), forest_plot(frame)
    assert texts(read) == texts(direct)
    for one, other in zip(read.axes, direct.axes, strict=True):
        points = [[line.get_xydata() for line in ax.lines] for ax in (one, other)]
        assert all(np.allclose(a, b, atol=0.01, equal_nan=True) for a, b in zip(*points, strict=True))
        ends = [[path.vertices for lines in ax.collections for path in lines.get_paths()] for ax in (one, other)]
        assert all(np.allclose(a, b, atol=0.01, equal_nan=True) for a, b in zip(*ends, strict=True))


def test_a_table_at_column_width_has_its_models_once_and_differences_from_baselines_at_0(rng):
    frame = table(rng, ("a: none", "a: hard", "b")).assign(mAP=[0.4, 0.55, 0.612])
    figure = table_plot(frame)
    (ax,) = figure.axes
    assert figure.get_figwidth() == style.COLUMN_WIDTH
    assert [text.get_text() for text in ax.texts] == ["a", "mAP (%)", "40.0", "55.0", "61.2"]
    heading, rows = ax.texts[0].xy[1], ax.get_yticks()
    assert (rows - heading).tolist() == [1, 2, 3]
    points = {line.get_marker(): line.get_xydata().tolist() for line in ax.lines if line.get_marker() in "oD"}
    assert points["D"] == [[0, rows[0]]]


def test_names_of_models_that_are_too_long_for_a_column_are_cut(rng):
    figure = table_plot(table(rng, ("model " * 30 + ": hard", "x" * 99)))
    figure.draw_without_rendering()
    ends = [text.get_window_extent() for text in figure.findobj(plt.Text) if text.get_text()]
    assert min(end.x0 for end in ends) >= 0 and max(end.x1 for end in ends) <= figure.bbox.x1


def test_a_cmc_of_several_seeds_is_their_mean_in_a_band_from_lowest_to_highest():
    ax = plots.cmc_curves({"ViT": [[0.5, 0.8], [0.7, 0.8]], "one seed": [0.6, 0.9]}).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [pytest.approx([60, 80]), pytest.approx([60, 90])]
    bands = [np.unique(band.get_paths()[0].vertices[:, 1].round(9)) for band in ax.collections]
    assert [band.tolist() for band in bands] == [[50, 70, 80], [60, 90]]


def test_epochs_without_a_measurement_are_points_that_no_line_joins():
    history = pd.DataFrame({"seed": 0, "epoch": [0, 1, 2, 3] * 2, "label": ["each"] * 4 + ["last"] * 4, "loss": 1.0})
    history = history.assign(mAP=[0.1, 0.2, 0.3, 0.4, 0.1, np.nan, np.nan, 0.4], rank1=0.5)
    drawn = [line for line in plots.training_curves(history).axes[1].lines if line.get_label() == "last"]
    assert (
        np.isnan(drawn[0].get_ydata()).tolist() == [False, True, True, False] and drawn[0].get_marker() in style.MARKERS
    )
    assert len({line.get_color() for line in plots.training_curves(history).axes[1].lines}) == 2


def test_each_of_many_series_has_a_look_of_its_own():
    looks = style.looks(range(70))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 70
    assert len({looks[name]["color"] for name in range(10)}) == 10


def test_a_set_of_one_player_is_drawn():
    nobody_else = {"genuine": np.array([0.5, 0.6]), "impostor": np.array([])}
    assert "impostor (0 pairs)" in texts(plots.pair_histogram(nobody_else, "distance", stat="density"))
    assert "genuine (2 pairs)" in texts(plots.pair_histogram(nobody_else, "distance", log=True))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: galleries.ranked_list_page([]), "no ranked lists"),
        (lambda: galleries.ranked_list_page([(crop(), {"plain": []}, "q")]), "no ranked lists"),
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
style.save_figure(plots.pair_histogram({"a": rng.normal(size=99), "b": rng.normal(size=99)}, "d"), sys.argv[1], "d")
images = [rng.integers(0, 255, (40, 20, 3), np.uint8)] * 2
style.save_figure(galleries.ranked_list_page([(images[0], {"m": [(images[1], True, 0.1)]}, "q")]), sys.argv[1], "lists")
"""


def test_same_data_same_bytes_in_another_process(tmp_path):
    for run in "ab":
        subprocess.run([sys.executable, "-c", _DRAW, str(tmp_path / run)], check=True)
    first, second = (sorted((tmp_path / run).iterdir()) for run in "ab")
    vector = [f"{stem}.{kind}" for stem in ("cmc", "d") for kind in ("pdf", "png", "svg")]
    assert [path.name for path in first] == [*vector, "lists.png"]  # photographs: PNG alone
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def noise(rng, height, width):
    return rng.integers(0, 255, (height, width, 3), np.uint8)


def test_png_of_many_crops_keeps_the_limit_at_300_dpi(tmp_path, rng, capsys):
    smooth = [
        np.asarray(Image.fromarray(noise(rng, 12, 6)).resize((60, 120), Image.Resampling.BICUBIC)) for _ in range(9)
    ]
    lists = {name: [(image, True, 0.1) for image in smooth[1:]] for name in ("plain", "hard")}
    (png,) = style.save_figure(galleries.ranked_list_page([(smooth[0], lists, "query")] * 3), tmp_path / "new", "lists")
    assert png.stat().st_size <= style.PNG_LIMIT and Image.open(png).width == 300 * style.TEXT_WIDTH
    assert [path.name for path in png.parent.iterdir()] == ["lists.png"] and capsys.readouterr().out == ""


def test_a_picture_that_cannot_be_made_small_is_written_legibly_and_said(tmp_path, rng, capsys):
    lists = {name: [(noise(rng, 156, 52), True, 0.1) for _ in range(12)] for name in ("plain", "hard", "DBA")}
    figure = galleries.ranked_list_page([(noise(rng, 156, 52), lists, "query")] * 4)
    (png,) = style.save_figure(figure, tmp_path, "lists")
    assert png.stat().st_size > style.PNG_LIMIT and Image.open(png).width == 150 * style.TEXT_WIDTH
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "lists.png" in said[0] and "fewer images" in said[0]


def test_a_vector_picture_has_real_text(tmp_path, rng):
    _, svg, pdf = style.save_figure(forest_plot(table(rng)), tmp_path, "forest")
    assert ">erasing</text>" in svg.read_text() and "<image" not in svg.read_text()
    assert b"/Type3" not in pdf.read_bytes() and b"/CIDFontType2" in pdf.read_bytes()  # as journals ask


def test_what_a_users_matplotlibrc_sets_holds(tmp_path, monkeypatch):
    (tmp_path / "matplotlibrc").write_text("font.size: 11\naxes.grid: False\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    with plt.rc_context({"font.size": 11, "axes.grid": False}):
        style.use_style()
        assert plt.rcParams["font.size"] == 11 and not plt.rcParams["axes.grid"]
        assert plt.rcParams["legend.frameon"] is False
        label = plots.cmc_curves({"a": [0.5, 1]}).axes[0].xaxis.label
        assert label.get_fontsize() == 11  # all sizes follow


@pytest.mark.parametrize("name, column, text", [("cvpr2024", 3.25, 6.875), ("neurips2024", 5.5, 5.5)])
def test_a_journals_style_gives_widths_and_letters_and_the_user_still_wins(tmp_path, monkeypatch, name, column, text):
    (tmp_path / "matplotlibrc").write_text("axes.labelsize: 13\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / "matplotlibrc"))
    with plt.rc_context({"axes.labelsize": 13}):
        style.use_style(name)
        widths = [style.new_figure(width, 2)[0].get_figwidth() for width in (style.COLUMN_WIDTH, style.TEXT_WIDTH)]
        axis = plots.cmc_curves({"a": [0.5, 1]}).axes[0].xaxis
    assert widths == pytest.approx([column, text])
    assert axis.label.get_fontsize() == 13 and axis.get_ticklabels()[0].get_fontname() == "STIXGeneral"


def test_an_unknown_style_is_told_with_the_known_ones():
    with pytest.raises(ValueError, match=r"style 'nature' is unknown; known: .*cvpr2024.*neurips2024"):
        style.use_style("nature")


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
    drawn = [
        forest_plot(frame, [name, name], note=name),
        plots.cmc_curves({name: [0.5, 1]}),
        plots.pair_histogram({name: rng.uniform(size=9), "b": rng.uniform(size=9)}, name),
    ]
    for number, figure in enumerate(drawn):
        for svg in style.save_figure(figure, tmp_path, str(number))[1:2]:
            ElementTree.parse(svg)
    if name.isprintable():
        assert name in texts(drawn[0])


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    figure = plots.cmc_curves({"a": [0.5, 0.9]})
    png, *_ = style.save_figure(figure, tmp_path, "cmc")
    before = png.read_bytes()
    monkeypatch.setattr(style.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        style.save_figure(plots.cmc_curves({"b": [0.1, 0.2]}), tmp_path, "cmc")
    assert png.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3
