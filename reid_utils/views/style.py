"""One figure style for screen and print, and reproducible saving as PNG and SVG."""

import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
from cycler import cycler
from PIL import Image

COLUMN_WIDTH, TEXT_WIDTH = 3.4, 7.0  # inches, of a two-column paper
PNG_LIMIT = 300_000  # bytes

# Okabe and Ito's palette, told apart with every common form of colour blindness; yellow is too faint for lines.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6E6E6E"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "os^Dv<>"
MATCH, MISMATCH = GREEN, VERMILLION

_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 120,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.alpha": 0.4,
    "grid.linewidth": 0.5,
    "image.cmap": "cividis",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def use_style():
    """Sets Matplotlib's defaults to the study's style: 7–8 pt text, colour-blind-safe colours, quiet axes."""
    plt.rcParams.update(_STYLE)


def blank_figure(width, height):
    """An empty constrained-layout figure of width × height inches.

    It is closed for pyplot, so that a notebook shows it once, as a cell's value.
    """
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def new_figure(width, height, rows=1, columns=1, **settings):
    """A `blank_figure` and its 2-D array of rows × columns axes; `settings` go to `Figure.subplots`."""
    figure = blank_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def finish(figure, note=None):
    """Prints `note` (such as "rendered data") small in the lower right corner, below the axes; returns the figure."""
    if note:
        strip = 0.16 / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        inset = 0.03 / figure.get_figwidth()
        figure.text(1 - inset, strip / 8, note, ha="right", va="bottom", fontsize=7, color=GREY, style="italic")
    return figure


def save_figure(figure, folder, stem):
    """Writes `<stem>.svg` and `<stem>.png` into `folder`; the same data give the same bytes.

    figure: a Matplotlib Figure; folder: made if absent. The PNG has 300 dpi, or as many, in as many colours, as
    keep it within 300 KB. Returns the two paths, PNG first. Raises ValueError if no PNG is small enough. Each
    file is complete or absent.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: each further drawing would do it again
    vector = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "reid_utils", "svg.fonttype": "path"}):
        figure.savefig(vector, format="svg", metadata={"Date": None}, dpi=150)
    _write(svg, vector.getvalue())
    _write(png, _small_png(figure, stem))
    return png, svg


def _small_png(figure, stem):
    """The figure as PNG bytes within the limit: fewer dots an inch first, then 256 colours as well."""
    for dpi, quantised in ((300, False), (200, False), (200, True), (150, True), (110, True), (75, True)):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        if quantised:
            image = Image.open(drawn).convert("RGB").quantize(256)
            drawn = io.BytesIO()
            image.save(drawn, format="png", optimize=True)
        if drawn.tell() <= PNG_LIMIT:
            return drawn.getvalue()
    raise ValueError(f"{stem}.png is above {PNG_LIMIT // 1000} KB even at 75 dpi; draw fewer images in one figure")


def _write(path, content):
    """Writes bytes under a temporary name in the same folder, then gives the file its name."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
