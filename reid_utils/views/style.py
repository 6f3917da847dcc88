"""One figure style for screen and print, and reproducible saving as PNG, SVG and PDF."""

import io
import re
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.image import AxesImage
from PIL import Image

from reid_utils.files import replacing

COLUMN_WIDTH, TEXT_WIDTH = 3.4, 7.0  # inches, of a two-column paper
PNG_LIMIT = 300_000  # bytes

# Okabe and Ito's palette (yellow is too faint for lines), then three colours that, seen with any common form of
# colour blindness, lie as far from all others as these do from each other.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6E6E6E"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, "#7A3E00", "#5E2CA5", "#DDCC77")
MARKERS = "os^Dv<>"
MATCH, MISMATCH = GREEN, VERMILLION

_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": "medium",
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 120,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,  # "small", which most numbers have, is 7.1
    "grid.alpha": 0.4,
    "grid.linewidth": 0.5,
    "image.cmap": "cividis",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "legend.title_fontsize": "small",
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "lines.solid_capstyle": "butt",  # an interval ends where it ends
    "pdf.fonttype": 42,  # whole letters (TrueType): journals refuse matplotlib's Type 3
    "svg.fonttype": "none",  # text stays text, to be searched and edited
    "text.parse_math": False,  # names of files and folders are shown as they are, $ and _ too
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}


_scales = [1.0, 1.0]  # of a journal's column and text width to those above


def use_style(name=""):
    """Sets Matplotlib's defaults to the study's style, but for what the user's own matplotlibrc sets.

    name: a journal of tueplots, such as cvpr2024, for its widths and sizes of text, in a Times that needs no LaTeX;
    without one all sizes follow `font.size`. Raises ValueError for an unknown name.
    """
    from tueplots import bundles

    known = [journal for journal in vars(bundles) if journal[-4:].isdigit()]
    if name and name not in known:
        raise ValueError(f"style {name!r} is unknown; known: {', '.join(known)}")
    journal, widths = {}, (COLUMN_WIDTH, TEXT_WIDTH)
    if name:
        bundle = getattr(bundles, name)
        in_columns = "column" in bundle.__kwdefaults__
        sides = [bundle(column=side) if in_columns else bundle() for side in ("half", "full")]
        widths = [side["figure.figsize"][0] for side in sides]
        journal = {**sides[0], "text.usetex": False, "font.family": ["STIXGeneral", "DejaVu Sans"]}
    _scales[:] = widths[0] / COLUMN_WIDTH, widths[1] / TEXT_WIDTH
    own = matplotlib.rc_params_from_file(matplotlib.matplotlib_fname(), use_default_template=False)
    plt.rcParams.update({key: value for key, value in {**_STYLE, **journal}.items() if key not in own})
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for what no font holds


def blank_figure(width, height):
    """An empty constrained-layout figure of width × height inches; a journal's style in force scales the width.

    It is closed for pyplot, so that a notebook shows it once, as a cell's value.
    """
    figure = plt.figure(figsize=(width * _scales[width > COLUMN_WIDTH], height), layout="constrained")
    plt.close(figure)
    return figure


def new_figure(width, height, rows=1, columns=1, **settings):
    """A `blank_figure` and its axes: one, or an array of rows × columns; `settings` go to `Figure.subplots`."""
    figure = blank_figure(width, height)
    return figure, figure.subplots(rows, columns, **settings)


def printable(text):
    """Text that can be drawn: what is no character (control codes, bytes of a broken file name) becomes �."""
    return _UNPRINTABLE.sub("�", str(text))


_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def finish(figure, note=None):
    """Prints `note` (such as "rendered data") small in the lower right corner, below the axes; returns the figure."""
    for text in figure.findobj(plt.Text):
        text.set_text(printable(text.get_text()))
    if note:
        strip = 0.16 / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        style = {"fontsize": "small", "color": GREY, "style": "italic"}
        figure.text(0.995, strip / 8, printable(note), ha="right", va="bottom", **style)
    return figure


def looks(names):
    """{name: its colour and marker} in order of appearance; the first 70 pairs, the first 10 colours differ."""
    n = len(PALETTE)
    numbered = enumerate(dict.fromkeys(names))
    return {name: {"color": PALETTE[k % n], "marker": MARKERS[(k + k // n) % len(MARKERS)]} for k, name in numbered}


def band(ax, x, middle, low, high, color, **look):
    """Draw a line (n,), with the range between low and high in a paler tone; `look` goes to `Axes.plot`."""
    ax.plot(x, middle, color=color, **{"linestyle": "-", **look})
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def legend_above(figure, ax):
    """A legend of an axes' lines above the figure, in four columns or, where labels are long, fewer and more rows."""
    handles, labels = ax.get_legend_handles_labels()
    columns = int(19.3 * figure.get_figwidth()) // (9 + max(map(len, labels)))  # 19.3 characters are an inch
    columns = max(1, min(4, columns))
    figure.set_figheight(figure.get_figheight() + 0.15 * (-(-len(labels) // columns) - 1))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def save_figure(figure, folder, stem):
    """Writes `<stem>.png` and, unless it shows photographs, `<stem>.svg` and `.pdf`; the same data, the same bytes.

    figure: a Matplotlib Figure; folder: made if absent. The PNG has 300 dpi and, to stay within 300 KB, 64 colours, or
    150 dpi as well; one that does not is written all the same, and a line says so. Returns the paths, PNG first. Each
    file is complete or absent.
    """
    paths = [Path(folder) / f"{stem}.{kind}" for kind in ("png", *_DATES)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: each further drawing would do it again
    with replacing(paths[0]) as temporary:
        temporary.write_bytes(_small_png(figure))
    if (size := paths[0].stat().st_size) > PNG_LIMIT:
        print(f"{paths[0].name} has {size // 1000} KB, too much to be published (300 KB): draw fewer images")
    if any(image.get_array().ndim == 3 for image in figure.findobj(AxesImage)):
        return paths[:1]
    for path, (kind, date) in zip(paths[1:], _DATES.items(), strict=True):
        with replacing(path) as temporary, plt.rc_context({"svg.hashsalt": "reid_utils"}):
            figure.savefig(temporary, format=kind, metadata={date: None}, dpi=150)
    return paths


_DATES = {"svg": "Date", "pdf": "CreationDate"}  # what would make the bytes differ from day to day


def _small_png(figure):
    """The figure as PNG bytes within the limit where 64 colours, then 150 dpi, reach that."""
    for dpi in (300, 150):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        if drawn.tell() > PNG_LIMIT:
            image, drawn = Image.open(drawn).convert("RGB").quantize(64), io.BytesIO()
            image.save(drawn, format="png", optimize=True, dpi=(dpi, dpi))
        if drawn.tell() <= PNG_LIMIT:
            break
    return drawn.getvalue()
