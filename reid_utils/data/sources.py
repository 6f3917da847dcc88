"""Where a study's data come from: rendered here, downloaded, or a folder of the user's."""

import hashlib
import inspect
import json
from pathlib import Path

from reid_utils.data.layouts import find_root


def prepare_data(data="rendered", root=Path("runs/data"), rendering=None, accept_md5=None) -> Path:
    """The absolute folder that has one of the layouts, made first where `data` asks for it.

    "rendered": renders with the keyword arguments `rendering` into a folder of `root` named after them; "synergy":
    downloads into root/synergy (see `download_synergy` for `accept_md5`); anything else is a folder in one of the
    layouts and is only looked for. Several processes may call it at once: one does the work, the others wait. Raises
    FileNotFoundError for a folder that is missing or in no layout, ValueError for wrong rendering settings, and what
    `download_synergy` raises.
    """
    folder = planned_data_dir(data, root, rendering)
    if str(data) == "rendered":
        from rendered_players.dataset import render_dataset

        render_dataset(out_dir=folder, **(rendering or {}))
    elif str(data) == "synergy":
        from reid_utils.data.download import download_synergy

        download_synergy(folder.parent, accept_md5=accept_md5)
    return folder


def planned_data_dir(data="rendered", root=Path("runs/data"), rendering=None) -> Path:
    """The absolute folder that `prepare_data` returns for the same arguments, without making anything.

    Raises FileNotFoundError for a user's folder that is missing or in no layout.
    """
    root = Path(root).absolute()
    if str(data) == "rendered":
        return root / _rendered_name(rendering or {})
    if str(data) == "synergy":
        return root / "synergy" / "data_reid"
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {data} is missing: give rendered, synergy or a folder of crops")
    return find_root(folder).absolute()


def _rendered_name(rendering):
    """A name for all settings in force, defaults too, that do change the images (`workers` does not)."""
    from rendered_players.dataset import RENDERER_VERSION, render_dataset

    parameters = inspect.signature(render_dataset).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("out_dir", "workers")}
    unknown = sorted(set(rendering) - set(defaults) - {"workers"})
    if unknown:
        raise ValueError(f"rendering has no setting {unknown[0]}: it has {', '.join(defaults)}, workers")
    settings = defaults | {name: value for name, value in rendering.items() if name != "workers"}
    if settings["difficulty"] == defaults["difficulty"]:
        del settings["difficulty"]  # sets of the default are older than the setting, and keep their name
    described = json.dumps([RENDERER_VERSION, settings], sort_keys=True)
    return f"rendered-{hashlib.sha256(described.encode()).hexdigest()[:10]}"
