"""What a notebook leaves behind: its folders, results.json, tables as csv and md, arrays."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pandas as pd

from reid_utils.code import installed_versions
from reid_utils.files import read_json, write_json, write_text

REPOSITORY = Path(__file__).resolve().parents[2]
GIT_LIMIT = 20  # seconds
LIBRARIES = ("numpy", "pandas", "scipy", "scikit-learn", "numba", "torch", "torchvision", "timm", "open_clip_torch",
             "matplotlib")  # fmt: skip


@dataclass(frozen=True)
class RunFolders:
    """Where a run writes: its own `folder`, the study's `figures` and `tables`; `started` is a time.monotonic value.

    `files`: what it wrote into `figures` and `tables` so far; results.json lists them.
    """

    run_id: str
    notebook: str
    folder: Path
    figures: Path
    tables: Path
    started: float
    files: list = field(default_factory=list)

    @property
    def runs(self):
        """The folder of all studies, their data and caches: nothing that a run writes lies outside it."""
        return self.figures.parents[1]

    def figure(self, name, figure):
        """Save a figure as figures/<run id>_<name>.png, .svg and .pdf and record them -> the figure, to show."""
        from reid_utils.views.style import save_figure

        self.files.extend(save_figure(figure, self.figures, f"{self.run_id}_{name}"))
        return figure


def start_run(out, run_id, stem):
    """Make the folders of a run -> RunFolders.

    out: the study's folder as run_all passes it, or "" in JupyterLab, where runs/lab of the repository is used and
    the run is called by its notebook, `stem`.
    """
    root = Path(out) if out else REPOSITORY / "runs" / "lab"
    name = run_id or stem
    folders = root / "results" / name, root / "figures", root / "tables"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return RunFolders(name, stem, *folders, time.monotonic())


def write_results(run, settings, **values):
    """Write results.json, atomically.

    settings: the parameters in force; values: numbers, texts, lists and mappings of them (numpy's too; NaN and infinity
    become null). The entry of the study file, seeds, versions, commit, device, data fingerprint (unless given as
    `data_fingerprint`), seconds since start_run and peak memory in MiB are added. Raises TypeError naming what JSON
    cannot hold.
    """
    fingerprint = values.pop("data_fingerprint", os.environ.get("REID_DATA_FINGERPRINT"))
    content = {
        "run": run.run_id,
        "notebook": run.notebook,
        "entry": os.environ.get("STUDY_ENTRY", ""),
        "settings": _plain(settings),
        "seeds": _plain(settings).get("seeds"),
        "values": _plain(values),
        "data_fingerprint": fingerprint,
        "files": sorted({path.relative_to(run.figures.parent).as_posix() for path in run.files}),
        "versions": {"python": platform.python_version(), **installed_versions(*LIBRARIES)},
        "git": _git_state(),
        "device": _device(),
        "seconds": round(time.monotonic() - run.started, 2),
        "peak_memory_mib": _peak_memory(),
    }
    write_json(run.folder / "results.json", content)


def _plain(values):
    """A mapping as plain JSON holds it."""
    plain = {}
    for name, value in values.items():
        try:
            plain[name] = msgspec.json.decode(msgspec.json.encode(value, enc_hook=_listed))
        except NotImplementedError as error:
            raise TypeError(f"{name} holds {error}, which results.json cannot; give numbers, text or lists") from None
    return plain


def _listed(value):
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, pandas series, tensors
        return value.tolist()
    raise NotImplementedError(f"a {type(value).__name__}")


def _git_state():
    """Commit of the repository and whether files differ from it; both None outside a git checkout."""
    # Another user's checkout counts too: its code is what runs here.
    command = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a disk that does not answer
        told = ""
    commit, _, dirty = told.partition("-")
    return {"commit": commit or None, "dirty": bool(dirty) if commit else None}


def _device():
    """The accelerator's name where torch is in use and sees one, otherwise the processor type."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {processor()}" + (f", {torch.backends.cpu.get_cpu_capability()}" if torch is not None else "")


def processor():
    """The processor's name; the architecture where the system does not tell."""
    described = Path("/proc/cpuinfo")
    named = re.search("model name\\s*: (.+)", described.read_text() if described.exists() else "")
    return named[1].strip() if named else platform.processor() or platform.machine()


def _peak_memory():
    """Peak resident memory of this process in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def load_results(folder):
    """The content of a run's results.json. Raises FileNotFoundError naming the run to execute first."""
    path = Path(folder) / "results.json"
    if (content := read_json(path)) is None:
        raise FileNotFoundError(f"{path} does not exist; execute the run {Path(folder).name} first")
    return content


def write_table(run, name, frame, notes=()):
    """Write a DataFrame as tables/<name>.csv (full precision), .md (rounded, notes below) and .tex (`latex_table`).

    A run that is one of several of its notebook (its id goes on after "__") adds that part to the name. The index is
    left out, missing cells are blank. notes: lines of text. No cell may hold times, memory or hosts. Returns the .md
    file's content (IPython's Markdown), for a cell to show.
    """
    from IPython.display import Markdown

    stem = "_".join(filter(None, (name, run.run_id.partition("__")[2])))
    text = markdown_table(frame) + "".join(f"\n{one_line(note)}\n" for note in notes)
    texts = {"csv": frame.to_csv(index=False, lineterminator="\n"), "md": text, "tex": latex_table(frame)}
    for kind, content in texts.items():
        run.files.append(run.tables / f"{stem}.{kind}")
        write_text(run.files[-1], content)
    return Markdown(text)


def markdown_table(frame):
    """A DataFrame as a Markdown pipe table (str): columns of numbers right-aligned, missing cells blank."""
    align = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in frame]
    shown = frame.astype(object).map(cell_text).rename(columns=cell_text)
    return shown.to_markdown(index=False, disable_numparse=True, colalign=align) + "\n" if align else ""


def latex_table(frame):
    """A DataFrame as a LaTeX table (str) for the package booktabs, names escaped.

    A comparison of rows shows its main columns alone, each interval small in one column, the best mAP bold.
    """
    intervals = {}
    if "mAP low" in frame:
        for name, of in (("mAP", "mAP"), ("difference", "diff")):
            low, high = (frame[f"{of} {end}"].map(cell_text) for end in ("low", "high"))
            intervals[f"{name} (95 %)"] = (low + " to " + high).str.strip(" to")
        frame = frame.assign(**intervals).filter(_MAIN_COLUMNS)
    styled = frame.reset_index(drop=True).style.hide(axis="index")
    styled.format(_latex_cell, escape="latex").format_index(escape="latex", axis=1)
    if intervals:
        styled.highlight_max("mAP", props="textbf:--rwrap;").set_properties(list(intervals), small="--wrap")
    return styled.to_latex(hrules=True)


_MAIN_COLUMNS = ["no.", "row", "mAP", "mAP (95 %)", "rank-1", "difference", "difference (95 %)", "p (Holm)"]


def _latex_cell(value):
    """A cell as LaTeX, text escaped already: what its text mode prints as something else (-5, < 0.01) goes into $."""
    return re.sub(r"(?<!\S)[-<](?=[ .\d])", r"$\g<0>$", cell_text(value).replace(r"\|", "|"))


def cell_text(value):
    """A table cell as text: two decimals, or two significant digits below 0.1; a bar in it is escaped."""
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"
    return one_line(str(value)).replace("|", r"\|")


def one_line(text):
    """Text (str) without line ends, which would end a table or a paragraph of Markdown."""
    return " ".join(text.splitlines())
