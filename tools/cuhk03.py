"""`python tools/cuhk03.py SOURCE FOLDER`: CUHK03 split by people into two data sets that share their training people.

SOURCE is the release `cuhk-03.mat` (needs h5py), a CUHK03-NP folder, a folder with a person a sub-folder, or files
named {person}_{image}; in folders train, val and test numbers may begin anew. FOLDER/CUHK03-tuning and FOLDER/CUHK03,
in the Synergy layout, test on people of their own: settings are chosen on the one, reported on the other. As in Synergy
a person's first image is the query and all others, of both cameras, are the gallery; `groups.csv` parts the people into
galleries of 50, `people.csv` says who is who. Training images lie there once, where the disk has hard links.

CUHK03 is for research only and shows people who did not publish themselves: get it from its authors, keep to their
terms (http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html), and pass no image on.
"""

import argparse
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from reid_utils.data.layouts import by_numbers, find_layout, layout_rows
from reid_utils.data.manifest import is_nobody

PARTS = ("train", "val", "test")
NAMES = {"tested": "CUHK03", "tuning": "CUHK03-tuning"}  # tables call a set after its folder


def people_of_release(path, boxes="labeled"):
    """The people of `cuhk-03.mat` in its order -> {name: images}, an image as (its ending, a function that writes it).

    boxes: "labeled" or "detected". Raises ValueError for another file, ImportError without h5py.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path} is read with h5py, which is not installed: pip install h5py") from None
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is no MATLAB 7.3 file: give cuhk-03.mat as its authors release it")
    file = h5py.File(path)
    if boxes not in file:
        raise ValueError(f"{path} holds no {boxes!r}, only {sorted(file)}: give cuhk-03.mat as its authors release it")
    return {  # MATLAB's axes come in the opposite order; a missing image is an empty matrix
        f"pair {pair}, person {person}": [
            (".png", partial(_write_cell, file, cell)) for cell in cells if file[cell].ndim == 3
        ]
        for pair, people in enumerate(file[boxes][()].ravel(), 1)
        for person, cells in enumerate(file[people][()].T, 1)
    }


def _write_cell(file, cell, target):
    Image.fromarray(file[cell][()].T).save(target)


def people_of_folder(source):
    """The people of a folder of crops -> {path of a person's first image: images}, as `people_of_release`.

    Raises what `layouts.layout_rows` raises, ValueError where no name tells a person.
    """
    layout, root = find_layout(source)
    parts = [root / part for part in PARTS if (root / part).is_dir()] if layout == "a folder a player" else []
    people = {}
    for place in parts or [root]:
        rows = layout_rows(place)
        for _, paths in rows[~is_nobody(rows)].groupby("player")["path"]:
            paths = sorted(paths, key=lambda path: (by_numbers(Path(path).name), path))
            images = [(Path(path).suffix.lower(), partial(shutil.copyfile, place / path)) for path in paths]
            people[(place / paths[0]).relative_to(root).as_posix()] = images
    if not people:
        raise ValueError(f"no name in {source} tells a person: name crops person_image, or give each person a folder")
    return people


def split_people(count, tested=300, tuning=100, train=None, seed=0):
    """Numbers 1 … count of people (int arrays) in a random order of the seed -> {"tested", "tuning", "training"}.

    `train` None: all others train. The people tested do not depend on `tuning` and `train`. Raises ValueError where
    these numbers do not go.
    """
    sizes = {"tested": tested, "tuning": tuning, "training": count - tested - tuning if train is None else train}
    if min(sizes.values()) < 1 or sum(sizes.values()) > count:
        wanted = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"{count} people do not part into {wanted}: change these numbers")
    order = np.random.default_rng(seed).permutation(count) + 1
    return dict(zip(sizes, np.split(order, np.cumsum(list(sizes.values())))[:3], strict=True))


def _names(person, images, role):
    """(path in the layout, function that writes it) of each image of a person."""
    for frame, (ending, write) in enumerate(images):
        folder = role or ("reid_test/gallery" if frame else "reid_test/query")
        yield f"{folder}/{person:04d}_{person:04d}_{frame:02d}{ending}", write


def _write(folder, people, images, role=None):
    """Write the images of people, to `role` or to query and gallery -> their paths and the person's place (DataFrame).

    people: numbers; images: those of all people, by number − 1.
    """
    rows = []
    for place, person in enumerate(people):
        for path, write in _names(person, images[person - 1], role):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write(folder / path)
            rows.append((path, place))
    return pd.DataFrame(rows, columns=["path", "place"])


def _link(source, target):
    """A hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_sets(folder, people, gallery=50, **split):
    """Write FOLDER/CUHK03, FOLDER/CUHK03-tuning and people.csv, whole or not at all -> people and images of each set.

    people: {name: images}; those with one image are left out; gallery: people of a group, 0 for a gallery of all;
    split: as `split_people`. Raises FileExistsError for a folder with something in it, ValueError for numbers of people
    that do not go.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder or remove it")
    people = {name: images for name, images in people.items() if len(images) > 1}
    sets = split_people(len(people), **split)
    for name in NAMES:
        if gallery < 0 or (gallery and len(sets[name]) % gallery):
            raise ValueError(f"{len(sets[name])} people {name} do not part into galleries of {gallery}: change one")
    images, partial_dir = list(people.values()), folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    training = _write(partial_dir / NAMES["tested"], sets["training"], images, "reid_training")
    shutil.copytree(partial_dir / NAMES["tested"], partial_dir / NAMES["tuning"], copy_function=_link)
    counts = {"training": len(training)}
    for name, place in NAMES.items():
        table = _write(partial_dir / place, sets[name], images)
        counts[name] = len(table)
        if gallery:
            table["group"] = table["place"] // gallery + 1
            table[["path", "group"]].to_csv(partial_dir / place / "groups.csv", index=False)
    about = pd.DataFrame({"source": list(people), "images": [len(own) for own in images]})
    about.index += 1
    for name, numbers in sets.items():
        about.loc[numbers, "set"] = name
    about.dropna().to_csv(partial_dir / "people.csv", index_label="player")
    partial_dir.replace(folder)
    return pd.DataFrame({"people": {name: len(sets[name]) for name in counts}, "images": counts})


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="cuhk-03.mat or a folder of its crops")
    parser.add_argument("folder", type=Path, help="folder to make, with the data sets CUHK03 and CUHK03-tuning in it")
    parser.add_argument("--tested", type=int, default=300, help="people that results are reported on (300)")
    parser.add_argument("--tuning", type=int, default=100, help="people that settings are chosen on (100)")
    parser.add_argument("--train", type=int, help="people to train on (all others)")
    parser.add_argument("--gallery", type=int, default=50, help="people that a query is ranked among, 0 for all (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (0)")
    parser.add_argument("--boxes", choices=("labeled", "detected"), default="labeled", help="of cuhk-03.mat (labeled)")
    given = vars(parser.parse_args(arguments))
    source, folder, boxes = given.pop("source"), given.pop("folder"), given.pop("boxes")
    try:
        people = people_of_release(source, boxes) if source.is_file() else people_of_folder(source)
        alone = [name for name, images in people.items() if len(images) < 2]
        if alone:
            print(f"left out, with fewer than two images: {len(alone)} people (first: {alone[0]})")
        print(write_sets(folder, people, **given).to_string())
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, " ".join(str(error).splitlines()) + "\n")


if __name__ == "__main__":
    main()
