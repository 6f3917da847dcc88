"""What is known to have gone wrong with each rendered image, and which pairs of images it befalls."""

import numpy as np
import pandas as pd

from reid_utils.data.layout import beside, find_root

_HARD = 0.25  # the worst quarter of the gallery images counts as affected
_TURNED = 90  # degrees between two views from which on they show different sides


def read_nuisances(data_dir, paths):
    """Rows of `nuisances.csv` (see `rendering.render_dataset`) in the order of a manifest's paths (Series of text).

    Returns a DataFrame, or None where the data have no such file: then nothing is known. Raises ValueError naming an
    image without a row.
    """
    source = beside(find_root(data_dir), "nuisances.csv")
    if source is None:
        return None
    table = pd.read_csv(source).set_index("path")
    paths = paths.str.removeprefix("data_reid/")
    missing = paths[~paths.isin(table.index)]
    if len(missing):
        raise ValueError(f"{source} has no row for {missing.iloc[0]}; render the set again into an empty folder")
    return table.loc[paths].reset_index()


def causes_of_error(query, gallery, is_match, is_other):
    """Pairs of query and gallery image that a cause befalls, for `ranking.attribution.explained_shares`.

    query, gallery: rows of `read_nuisances`; is_match, is_other: (Q, G) masks of the true matches and of other players'
    images. Returns {cause: (pairs, affected)}. A match is affected where its image is in the worst quarter of the
    gallery (or occluded at all, where that befalls less than a quarter), or turned by 90° and more against the query;
    an intruder, where it is of the query's team.
    """
    turn = np.abs(query["view"].to_numpy()[:, None] - gallery["view"].to_numpy()[None, :]) % 360
    team = (query["sequence"].astype(str) + query["team"]).to_numpy(str)[:, None]
    mates = team == (gallery["sequence"].astype(str) + gallery["team"]).to_numpy(str)[None, :]
    of_match = {
        "match: motion blur": gallery["blur"] > gallery["blur"].quantile(1 - _HARD),
        "match: occluded": gallery["occluded"] > gallery["occluded"].quantile(1 - _HARD),
        "match: small": gallery["scale"] < gallery["scale"].quantile(_HARD),
        "match: low resolution": gallery["resolution"] < gallery["resolution"].quantile(_HARD),
        "match: turned away": np.minimum(turn, 360 - turn) >= _TURNED,
    }
    causes = {name: (is_match, np.broadcast_to(mask, is_match.shape)) for name, mask in of_match.items()}
    return causes | {"intruder: team mate": (is_other, mates)}
