"""One figure style for screen and print, and reproducible saving as PNG and SVG."""

import base64
import io
import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
from cycler import cycler
from PIL import Image

from reid_utils.files import replacing, write_text

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
    "lines.solid_capstyle": "butt",  # an interval ends where it ends
    "text.parse_math": False,  # names of files and folders are shown as they are, $ and _ too
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}


def use_style():
    """Sets Matplotlib's defaults to the study's style: 7–8 pt text, colour-blind-safe colours, quiet axes."""
    plt.rcParams.update(_STYLE)
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for what no font holds


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


def printable(text):
    """Text that can be drawn: what is no character (control codes, bytes of a broken file name) becomes �."""
    return _UNPRINTABLE.sub("�", str(text))


_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def finish(figure, note=None):
    """Prints `note` (such as "rendered data") small in the lower right corner, below the axes; returns the figure."""
    for text in figure.findobj(plt.Text):
        text.set_text(printable(text.get_text()))
    if note:
        strip = 0.16 / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0, strip, 1, 1 - strip))
        inset = 0.03 / figure.get_figwidth()
        style = {"fontsize": 7, "color": GREY, "style": "italic"}
        figure.text(1 - inset, strip / 8, printable(note), ha="right", va="bottom", **style)
    return figure


def looks(names):
    """A colour and a marker for each name, in order of appearance; the first 49 pairs all differ."""
    names = list(dict.fromkeys(names))
    colours = {name: PALETTE[k % 7] for k, name in enumerate(names)}
    return {"palette": colours, "markers": {name: MARKERS[(k + k // 7) % 7] for k, name in enumerate(names)}}


def legend_above(figure, ax):
    """Moves an axes' legend above the figure, in four columns or, where its labels are long, fewer and more rows."""
    handles, labels = ax.get_legend_handles_labels()
    columns = min(4, max(1, int(72 * figure.get_figwidth() / (34 + 3.7 * max(map(len, labels))))))  # points
    figure.set_figheight(figure.get_figheight() + 0.15 * (-(-len(labels) // columns) + -len(labels) // 4))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    ax.get_legend().remove()


def too_heavy(path):
    """Whether a figure's file is above the 300 KB that may be published."""
    return Path(path).stat().st_size > PNG_LIMIT


def save_figure(figure, folder, stem):
    """Writes `<stem>.svg` and `<stem>.png` into `folder`; the same data give the same bytes.

    figure: a Matplotlib Figure; folder: made if absent. The PNG has 300 dpi, or as many, in as many colours, as keep it
    within 300 KB; one that no setting makes that small is written all the same, and a line says so. Photographs inside
    the SVG are JPEGs. Returns the two paths, PNG first. Each file is complete or absent.
    """
    png, svg = Path(folder) / f"{stem}.png", Path(folder) / f"{stem}.svg"
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: each further drawing would do it again
    vector = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "reid_utils", "svg.fonttype": "path"}):
        figure.savefig(vector, format="svg", metadata={"Date": None}, dpi=150)
    write_text(svg, _EMBEDDED.sub(_photograph, vector.getvalue()))
    with replacing(png) as temporary:
        temporary.write_bytes(_small_png(figure))
    if too_heavy(png):
        size = png.stat().st_size // 1000
        print(f"{png.name} has {size} KB, too much to be published (300 KB): draw fewer images in one figure")
    return png, svg


def _small_png(figure):
    """The figure as PNG bytes within the limit: fewer dots an inch first, then 256 colours as well; else at 150 dpi."""
    legible = b""
    for dpi, quantised in ((300, False), (200, False), (200, True), (150, True), (110, True), (75, True)):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi)
        if quantised:
            image = Image.open(drawn).convert("RGB").quantize(256)
            drawn = io.BytesIO()
            image.save(drawn, format="png", optimize=True)
        if drawn.tell() <= PNG_LIMIT:
            return drawn.getvalue()
        legible = drawn.getvalue() if dpi == 150 else legible
    return legible


_EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")


def _photograph(found):
    """A PNG inside an SVG as a JPEG where that is much smaller, as it is for photographs and not for flat colours."""
    content = base64.b64decode(found[1])
    image = Image.open(io.BytesIO(content))
    if "A" in image.getbands() and image.getchannel("A").getextrema()[0] < 255:
        return found[0]
    packed = io.BytesIO()
    image.convert("RGB").save(packed, format="jpeg", quality=85)
    if packed.tell() > len(content) / 2:
        return found[0]
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
