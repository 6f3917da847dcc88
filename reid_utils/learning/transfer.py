"""What encoders trained on one data set are worth on another.

`python -m reid_utils.learning.transfer RUN RUN [RUN ...]` takes result folders of notebook 02, each trained on another
set with the same encoder and seeds, and prints a row a pair: trained there (or not at all), tested here.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from reid_utils.data.images import decode, letterbox
from reid_utils.files import read_json
from reid_utils.learning.features import crops_of, extract_features, save_features, trained_encoder
from reid_utils.learning.models import build_encoder
from reid_utils.learning.processes import default_device
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.methods import score_features
from reid_utils.ranking.statistics import mean_interval, paired_difference

ALIKE = ("backbone", "image_size", "loss", "augmentation", "seeds")  # settings that no two runs may differ in


def compared_runs(folders):
    """{name of the set: (folder, results.json)} of result folders of notebook 02.

    Raises ValueError where two were trained on one set, or differ in a setting of `ALIKE`.
    """
    runs, first = {}, None
    for folder in map(Path, folders):
        result = read_json(folder / "results.json")
        if result is None or result["notebook"] != "02_training":
            raise ValueError(f"{folder} holds no results.json of notebook 02; give results/RUN of a study")
        name, first = result["values"]["note"], first or result
        if name in runs:
            raise ValueError(f"{folder} was trained on {name} as {runs[name][0]} was; give runs on two sets")
        for key in ALIKE:
            own, others = result["settings"][key], first["settings"][key]
            if own != others:
                raise ValueError(f"{key} is {own!r} in {folder} and {others!r} in the first run; give runs alike in it")
        runs[name] = folder, result
    return runs


def transfer_table(runs):
    """Every encoder on every test split: a DataFrame, a row a pair of sets and one a set for the encoder untrained.

    runs: as `compared_runs` gives them. Columns: trained on ("nothing": before training), tested on, mAP, low, high
    (95 %, over queries and seeds), rank-1, and gain, gain low, gain high: against the untrained encoder of the same
    seeds. In per cent.
    """
    lines = []
    for tested, (own, result) in runs.items():
        crops, data = crops_of(result["values"]["data_dir"]), Path(result["values"]["data_dir"])
        size = result["settings"]["image_size"]
        images = np.stack([letterbox(decode(data / path), *size) for path in crops["path"]])
        trained = {"nothing": own} | {name: folder for name, (folder, _) in runs.items()}
        scores = {
            name: [_scores(folder, seed, crops, images, name != "nothing") for seed in result["settings"]["seeds"]]
            for name, folder in trained.items()
        }
        aps = {name: np.stack([each["aps"] for each in of_seeds]) for name, of_seeds in scores.items()}
        for name, of_seeds in scores.items():
            low, high = mean_interval(aps[name])
            line = {"mAP": np.nanmean(aps[name]), "low": low, "high": high}
            line["rank-1"] = np.mean([each["rank1"] for each in of_seeds])
            if name != "nothing":
                gain = paired_difference(aps[name], aps["nothing"], shared_weights=True)  # its own start
                line |= {"gain": gain["difference"], "gain low": gain["low"], "gain high": gain["high"]}
            shown = {key: round(100 * float(value), 2) for key, value in line.items()}
            lines.append({"trained on": name, "tested on": tested, **shown})
    return pd.DataFrame(lines)


def _scores(folder, seed, crops, images, trained):
    """Scores of plain distances over images, by a seed of a run or, not `trained`, by its encoder before training."""
    encoder, run = trained_encoder(folder / f"seed{seed}" / "weights.safetensors")
    if not trained:
        torch.manual_seed(seed)
        encoder = build_encoder(
            run["backbone"], run["image_size"], projection=run["projection"], normalisation=run["normalisation"]
        )
    features = extract_features(encoder.to(default_device()), images, flip=run["flip_features"])
    with TemporaryDirectory() as place:
        save_features(Path(place) / "test.npz", crops, features)
        return score_features(load_features(Path(place) / "test.npz"))


def main(arguments=None):
    """The command line: what was trained on each of several sets, tested on each of them."""
    parser = argparse.ArgumentParser(prog="python -m reid_utils.learning.transfer", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="result folders of notebook 02, each of another set")
    parser.add_argument("--out", metavar="TABLE.csv", help="write the table there too")
    given = parser.parse_args(arguments)
    try:
        table = transfer_table(compared_runs(given.runs))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(table.to_string(index=False, na_rep=""))
    if given.out:
        table.to_csv(given.out, index=False)


if __name__ == "__main__":
    main()
