"""Checkpoints of a training run: written whole, the one before kept, read back to the bit."""

import pickle
import zipfile
import zlib

import numpy as np
import torch

from reid_utils.files import replacing
from reid_utils.learning.processes import from_all, on_main, process_count, process_index

# What reading a checkpoint with spoilt bytes raises.
_DAMAGED = (RuntimeError, ValueError, EOFError, OverflowError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)
_KEYS = {"described", "generators", "state"}


def save_checkpoint(folder, described, parts, state):
    """Write all that a run needs to go on; the checkpoint before it is kept as `checkpoint.previous.pt`.

    `described`: plain JSON that determines the run; `parts`: {name: what has a state_dict}; `state`: where the run is,
    with its `history`, dicts of numbers and arrays. The generators of all processes go with them; the main one writes,
    and all of them must call this.
    """
    generators = from_all(_generators())
    if process_index():
        return
    history = [_convert(row, np.ndarray, torch.from_numpy) for row in state["history"]]
    content = {name: part.state_dict() for name, part in parts.items()}
    content |= {"described": described, "generators": generators, "state": {**state, "history": history}}
    target = folder / "checkpoint.pt"
    with replacing(target) as part:
        torch.save(content, part)
        if target.exists():
            target.replace(folder / "checkpoint.previous.pt")


def finish_checkpoint(folder, described, state):
    """Leave what a finished run needs: its history. Optimiser and encoder go, the weights have a file of their own."""
    history = [_convert(row, np.ndarray, torch.from_numpy) for row in state["history"]]
    finished = {**state, "history": history, "finished": True}
    for name in ("checkpoint.previous.pt", "checkpoint.pt"):  # two, since one may be damaged
        with replacing(folder / name) as part:
            torch.save({"described": described, "generators": [], "state": finished}, part)


def load_checkpoint(folder, described, parts):
    """Put the newest readable checkpoint of a folder into `parts`; returns its state, or None where there is none.

    Raises ValueError when the only checkpoints are unreadable or belong to a run of other settings.
    """
    for unfinished in folder.glob(".checkpoint.pt.*.tmp"):  # of a run that was killed while writing: gigabytes
        unfinished.unlink(missing_ok=True)
    paths = [p for p in (folder / "checkpoint.pt", folder / "checkpoint.previous.pt") if p.exists()]
    for path in paths:
        content = _read(path)
        if content is None:
            continue
        if content["described"] != described:
            raise ValueError(f"{path} belongs to other settings; delete the folder {folder} or restore the settings")
        state = content["state"]
        if state.get("finished") and not (folder / "weights.safetensors").exists():
            return None
        if not state.get("finished"):
            for name, part in parts.items():
                part.load_state_dict(content[name])
            _restore_generators(content["generators"])
        history = [_convert(row, torch.Tensor, torch.Tensor.numpy) for row in state["history"]]
        return {**state, "history": history}
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read; delete checkpoint*.pt there to start again")
    return None


def _generators():
    """The states of this process's generators, of its CPU and of its current GPU."""
    gpu = {"gpu": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def _restore_generators(saved):
    if len(saved) != process_count():  # another number of processes: dropout's masks will be others
        return
    own = saved[process_index()]
    torch.set_rng_state(own["cpu"])
    if "gpu" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["gpu"])


def _read(path):
    """The content of a checkpoint, or None (and a line that says so) where the file is damaged."""
    try:
        reason = on_main(_damage)(path)
        # Mapped: processes of one machine share the memory of a file that may hold many gigabytes.
        content = None if reason else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    if not reason and not (isinstance(content, dict) and content.keys() >= _KEYS):
        reason = "it is no checkpoint of a training"
    if not reason:
        return content
    print(f"{path} is damaged ({reason}); trying the one before it")
    return None


def _damage(path):
    """What speaks against a file, or None: torch.load does not look at checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except _DAMAGED as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return bad and f"the checksum of {bad} is wrong"


def _convert(row, kind, convert):
    return {key: convert(value) if isinstance(value, kind) else value for key, value in row.items()}
