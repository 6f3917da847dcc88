"""Checkpoints: what a killed training needs to go on to the same bits; the one before the newest is kept."""

import zipfile

import torch

from reid_utils.files import replacing
from reid_utils.learning.models import PLAIN
from reid_utils.learning.processes import from_all, process_count, process_index


def save_checkpoint(folder, described, parts, state):
    """Write all that a run needs to go on; the checkpoint before it is kept as `checkpoint.previous.pt`.

    `described`: plain JSON that determines the run; `parts`: {name: what has a state_dict}; `state`: where the run is,
    with its `history`, dicts of numbers and arrays. The generators of all processes go with them; the main one writes,
    and all of them must call this.
    """
    generators = from_all(_generators())
    if process_index():
        return
    content = {name: part.state_dict() for name, part in parts.items()}
    target = folder / "checkpoint.pt"
    with replacing(target) as part:
        _write(part, described, state, generators, content)
        if target.exists():
            target.replace(folder / "checkpoint.previous.pt")


def finish_checkpoint(folder, described, state):
    """Leave what a finished run needs: its history. Optimiser and encoder go, the weights have a file of their own."""
    for name in ("checkpoint.previous.pt", "checkpoint.pt"):  # two, since one may be damaged
        with replacing(folder / name) as part:
            _write(part, described, {**state, "finished": True})


def read_checkpoint(folder, described):
    """The content of the newest readable checkpoint of a folder, or None where there is nothing to go on from.

    Raises ValueError when the only checkpoints are unreadable or belong to a run of other settings.
    """
    for unfinished in folder.glob(".checkpoint.pt.*.tmp"):  # of a run that was killed while writing: gigabytes
        unfinished.unlink(missing_ok=True)
    paths = [p for p in (folder / "checkpoint.pt", folder / "checkpoint.previous.pt") if p.exists()]
    content = next((found for found in map(_read, paths) if found is not None), None)
    if content is None:
        if paths:
            raise ValueError(f"no checkpoint in {folder} can be read; delete checkpoint*.pt there to start again")
        return None
    if content["described"] != described:
        raise ValueError(f"{folder} belongs to other settings; delete the folder or restore the settings")
    if content["state"].get("finished") and not (folder / "weights.safetensors").exists():
        return None
    return content


def restore(content, parts):
    """Put an unfinished run's checkpoint into its `parts`, and this process's generators where they were."""
    for name, part in parts.items():
        part.load_state_dict(content[name])
    if len(content["generators"]) == process_count():  # else dropout's masks will be others
        own = content["generators"][process_index()]
        torch.set_rng_state(own["cpu"])
        if "gpu" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["gpu"])


def _generators():
    """The states of this process's generators, of its CPU and of its current GPU."""
    gpu = {"gpu": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def _write(path, described, state, generators=(), content=None):
    torch.save({**(content or {}), "described": described, "generators": list(generators), "state": state}, path)


def _read(path):
    """The content of a checkpoint, or None (and a line that says so) where the file is damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip():  # torch.load looks at no checksums, and a spoilt bit would change the weights
                raise zipfile.BadZipFile(f"the checksum of {file.testzip()} is wrong")
        # Mapped: processes of one machine share the memory of a file that may hold many gigabytes.
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any kind may come of spoilt bytes; it is printed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{path} is damaged ({reason}); trying the one before it")
        return None
