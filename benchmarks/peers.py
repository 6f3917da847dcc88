"""`make bench-peers`: the ranking core beside the packages that users would pick, on the same features and settings.

Each call runs in a process of its own, ours in this environment and theirs in .venv-peers (`peers-requirements.txt`),
so a package that is missing or fails is said and passed over. The table is written into benchmarks/README.md.
`--growth` draws time and memory of re-ranking against the size of the gallery too.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.__main__ import synthetic_features
from benchmarks.measure import machine
from benchmarks.peer_calls import CALLS, NEAREST
from reid_utils.files import write_text
from reid_utils.ranking import squared_euclidean
from reid_utils.ranking.neighbours import TILE, thread_count

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
START, END = "<!-- peers: written by make bench-peers -->\n", "<!-- end of peers -->"
SIZES, WIDTH = ("468x8703", "618x9505"), 1024
GALLERIES, QUERIES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000), 500
MOST_MEGABYTES, MOST_SECONDS = 16_000, 1_800
HEADER = ("work", "size", "package", "seconds", "of ours", "peak MB above inputs", "of ours", "result against ours")


def one_call(work, package, inputs, result):
    """What `peer_calls` measured in a process of its own; {"problem": text} where it failed."""
    python = sys.executable if package == "ours" else str(PEERS_PYTHON)
    command = [python, "-m", "benchmarks.peer_calls", work, package, str(inputs), str(result)]
    try:
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=4 * MOST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": type(error).__name__}
    if done.returncode:
        return {"problem": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def write_inputs(folder, size):
    """Synthetic features of a size, and their distances, as two files: {"features": path, "distances": path}."""
    query, gallery, query_ids, gallery_ids = synthetic_features(*map(int, size.split("x")), WIDTH)
    ids = {"query_ids": query_ids, "gallery_ids": gallery_ids}
    files = {kind: folder / f"{size}-{kind}.npz" for kind in ("features", "distances")}
    np.savez(files["features"], query=query, gallery=gallery, **ids)
    np.savez(files["distances"], distances=squared_euclidean(query, gallery), **ids)
    return files


def rows_of(work, size, files, folder):
    """The lines of one work at one size, ours first: lists of cells as in HEADER."""
    inputs = files["distances" if work.endswith("of distances") else "features"]
    lines, ours = [], None
    for package in CALLS[work]:
        print(f"{work}, {size}: {package}", flush=True)
        result = folder / f"{package}.npy"
        found = one_call(work, package, inputs, result)
        if "problem" in found:
            lines.append([work, size, package, "–", "–", "–", "–", found["problem"]])
            continue
        values = np.load(result)
        ours = ours or {**found, "values": values}
        lines.append([work, size, f"{package} {found['version']}".strip(), *_compared(found, values, ours)])
    return lines


def _compared(found, values, ours):
    """Cells of one contender: seconds and megabytes with their ratio to ours, and the largest difference."""
    if values is ours["values"]:
        return [f"{found['seconds']:.3f}", "1", _megabytes(found), "1", ""]
    differences = np.abs(values - ours["values"])
    difference = float(differences.max())
    known = found["megabytes"] is not None and ours["megabytes"] is not None
    memory = f"{found['megabytes'] / max(ours['megabytes'], 1):.1f}" if known else "–"
    told = "equal" if difference == 0 else f"equal to {difference:.0e}"
    if difference > 1e-4:
        told = f"{(differences > 1e-4).mean():.3%} of the values differ, by up to {difference:.1e}"
    return [f"{found['seconds']:.3f}", f"{found['seconds'] / ours['seconds']:.1f}", _megabytes(found), memory, told]


def _megabytes(found):
    return "–" if found["megabytes"] is None else f"{found['megabytes']:.0f}"


def product_rate(seconds=2.0):
    """Floating-point operations a second of the search's own product, two tiles, on all threads at once."""
    from threadpoolctl import threadpool_limits

    tile = np.random.default_rng(0).random((TILE, WIDTH), np.float32)
    counts, stop = [0] * thread_count(), time.perf_counter() + seconds

    def work(number):
        left, out = tile.copy(), np.empty((TILE, TILE), np.float32)
        while time.perf_counter() < stop:
            np.matmul(left, tile.T, out=out)
            counts[number] += 1

    with threadpool_limits(1, "blas"):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return 2 * TILE * TILE * WIDTH * sum(counts) / seconds


def limits(lines, rate):
    """Sentences that set our re-ranking and search beside half the multiply-adds of an N × N product at `rate`."""
    told = []
    for work, size, package, seconds, *_ in lines:
        if package == "ours" and work in ("re-ranking", f"{NEAREST} nearest of every image"):
            limit = sum(map(int, size.split("x"))) ** 2 * WIDTH / rate
            told.append(f"{work} at {size}: {float(seconds) / limit:.2f} times the limit of {limit:.2f} s")
    return told


def measure(sizes):
    """The text between the markers of the README: machine, table, limits."""
    rate, lines = product_rate(), []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            files = write_inputs(Path(folder), size)
            for work in CALLS:
                lines += rows_of(work, size, files, Path(folder))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *lines))
    told = (
        f"The limit is half the N²·d multiply-adds of all distances (they are symmetric) at {rate / 1e9:.0f} GFLOP/s, "
        f"the rate of the search's own product of two tiles of {TILE} images on {thread_count()} threads."
    )
    return f"{machine()}\n\n{table}\n\n{told} {'; '.join(limits(lines, rate))}.\n"


def put_into_readme(text, path=HERE / "README.md"):
    """Replace what stands between the markers of a README. Raises ValueError where it has none."""
    content = path.read_text(encoding="utf-8")
    if START not in content or END not in content:
        raise ValueError(f"{path} lacks the lines {START.strip()} and {END}")
    before, _, rest = content.partition(START)
    write_text(path, f"{before}{START}{text}{END}{rest.partition(END)[2]}")


def growth():
    """[(package, gallery, seconds, megabytes)] of re-ranking; a package ends where the next size would be too much."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for package in CALLS["re-ranking"]:
            last = None
            for gallery in GALLERIES:
                if last and _too_much(package, *last, gallery):
                    break
                inputs = features_file(Path(folder), gallery)
                measured = one_call("re-ranking", package, inputs, Path(folder) / "result.npy")
                print(f"{package}, {gallery}: {measured}", flush=True)
                if "problem" in measured:
                    break
                last = gallery, measured["seconds"], measured["megabytes"] or 0
                found.append((package, *last))
    return found


def _too_much(package, gallery, seconds, megabytes, larger):
    """Whether a larger gallery would take too long or, of packages that hold N × N matrices, too much memory."""
    factor = (larger / gallery) ** 2
    return factor * seconds > MOST_SECONDS or (package != "ours" and factor * megabytes > MOST_MEGABYTES)


def features_file(folder, gallery):
    """The features of one gallery size, written at their first use."""
    path = folder / f"{gallery}.npz"
    if not path.exists():
        query, images, query_ids, gallery_ids = synthetic_features(QUERIES, gallery, WIDTH)
        np.savez(path, query=query, gallery=images, query_ids=query_ids, gallery_ids=gallery_ids)
    return path


def draw_growth(found, folder=HERE):
    """Write growth.csv and growth.svg: seconds and megabytes against the size of the gallery."""
    import matplotlib.pyplot as plt

    with (folder / "growth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("package", "gallery", "seconds", "megabytes"), *found])
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for axis, column, label in zip(axes, (2, 3), ("seconds", "peak MB above inputs"), strict=True):
        for package, marker in zip(CALLS["re-ranking"], "osv", strict=True):
            points = [(row[1], row[column]) for row in found if row[0] == package]
            if points:
                axis.loglog(*zip(*points, strict=True), marker=marker, label=package)
        axis.set_xlabel(f"gallery images, {QUERIES} queries")
        axis.set_ylabel(label)
    axes[0].legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "growth"
    figure.savefig(folder / "growth.svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="QxG", help="queries x gallery")
    parser.add_argument("--growth", action="store_true", help="the plot against gallery size too (about an hour)")
    parser.add_argument("--print", action="store_true", help="print the table and leave the README as it is")
    given = parser.parse_args()
    text = measure(given.sizes)
    print(text)
    if given.growth:
        draw_growth(growth())
    if (HERE / "growth.svg").exists():
        text += "\n![Seconds and memory of re-ranking against the size of the gallery](growth.svg)\n"
    if not given.print:
        put_into_readme(text)


if __name__ == "__main__":
    main()
