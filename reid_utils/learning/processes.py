"""One training on several devices, through Hugging Face Accelerate, and the checkpoints that it goes on from.

Each process encodes its share of the same global batch; features are gathered with their gradients, so every process
computes the loss of the whole batch (InfoNCE's negatives, the ID loss's mean and triplet's hardest images are those of
the global batch). The gather's backward sums over processes and DistributedDataParallel averages over them: that is
the gradient of one process on the whole batch, with no factor. The objective's own parameters get it in every process
alike. What differs: BatchNorm on CPUs normalises by a process's own share (on GPUs it is synchronised), and dropout
draws other masks, of its own in each process.

A checkpoint holds what all of them need to go on to the same bits; the one before it is kept.
"""

import os
import pickle
import resource
import signal
import sys
import tempfile
import warnings
import zipfile
import zlib
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from reid_utils.files import replacing

# What reading a checkpoint with spoilt bytes raises.
_DAMAGED = (RuntimeError, ValueError, EOFError, OverflowError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)
_KEYS = {"described", "generators", "state"}

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def process_count():
    """How many processes share this training: 1 unless `launch` started this one with others."""
    return torch.distributed.get_world_size() if _shared() else 1


def process_index():
    """This process's place among those that share the training, 0 for the main one."""
    return torch.distributed.get_rank() if _shared() else 0


def _shared():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def default_device():
    """The device that this process trains on: the current GPU (Accelerate gives each process its own), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_in_force(precision):
    """The precision that "auto" stands for on this machine, any other as it is; looking starts no GPU."""
    return ("fp16" if torch.cuda.device_count() else "float32") if precision == "auto" else precision


def half_precision(precision, device):
    """The number type of mixed precision: torch.float16, torch.bfloat16 or None for float32.

    "auto" is fp16 on a GPU, as the paper, and float32 on a CPU. Raises ValueError for an unknown name, and for fp16 on
    a CPU, which has no fast arithmetic for it.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "float32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; known: auto, {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; set precision to float32 or bf16")
    return PRECISIONS[precision]


def gather_features(features, sides):
    """Features (n, d) of every process, with their gradients, in the order of the global batch -> (n · processes, d).

    `sides`: 2 where a batch holds queries, then their partners; 1 else.
    """
    if process_count() == 1:
        return features
    from torch.distributed.nn import functional

    shares = torch.stack(functional.all_gather(features))
    by_side = shares.unflatten(1, (sides, -1)).transpose(0, 1)
    return by_side.flatten(0, 2)


def distribute(encoder):
    """The encoder as the processes train it together: wrapped by Accelerate, its BatchNorm synchronised on GPUs.

    Alone, the encoder itself.
    """
    if process_count() == 1:
        return encoder
    from accelerate import Accelerator
    from timm.layers import convert_sync_batchnorm

    accelerator = Accelerator(cpu=default_device().type == "cpu")
    if accelerator.device.type == "cuda":
        convert_sync_batchnorm(encoder)
    return accelerator.prepare_model(encoder)


def on_main(function):
    """The function, called by the main process alone; the others wait and get what it returned."""
    if process_count() == 1:
        return function

    def call(*arguments, **keywords):
        results = [function(*arguments, **keywords) if process_index() == 0 else None]
        torch.distributed.broadcast_object_list(results)
        return results[0]

    return call


def from_all(value):
    """What each process gives here, in their order, for all of them: a list."""
    if process_count() == 1:
        return [value]
    found = [None] * process_count()
    torch.distributed.all_gather_object(found, value)
    return found


def without_tf32():
    """Let float32 be float32 in a GPU's convolutions, from here on: unless told so they use TF32, of 10 bits."""
    torch.backends.cudnn.allow_tf32 = False


def set_backends(cudnn_benchmark=False, deterministic=False):
    """Let cuDNN try its algorithms at the first step, or let every operation give equal bits or else fail.

    What it takes for the latter on a GPU: set before it is used, with `CUBLAS_WORKSPACE_CONFIG` in the environment.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    without_tf32()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, cudnn_benchmark


def peak_gib():
    """The most memory that was in use so far, in GiB: the current GPU's where one is used, else this process's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def launch(function, arguments, processes=1):
    """Call a function in as many processes that train together, forked by Accelerate -> what the main one returned.

    With 1 the function is simply called. Needs a session in which no GPU has been used yet (a forked process could not
    use it again). Without GPUs the processes share the CPU with one thread each, over gloo. Raises RuntimeError where a
    GPU has been used, and whatever the launcher raises when a process fails.
    """
    if processes == 1:
        return function(*arguments)
    if torch.cuda.is_initialized():
        raise RuntimeError("this session has used a GPU, so it cannot start processes; restart the kernel, then train")
    from accelerate import notebook_launcher
    from accelerate.utils import is_cuda_available, patch_environment

    on_cpu = {} if is_cuda_available() else {"accelerate_use_cpu": "yes", "gloo_socket_ifname": "lo"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with tempfile.TemporaryDirectory() as folder, patch_environment(omp_num_threads="1", **on_cpu):
        given = function, arguments, Path(folder) / "result.pickle"
        try:
            notebook_launcher(_work, given, processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0")
        finally:
            for number, handler in handlers.items():  # the launcher leaves its own
                signal.signal(number, handler)
        return pickle.loads(given[2].read_bytes())


def _work(function, arguments, result):
    """What each process does: join the others, work, and leave the main one's result in a file."""
    from accelerate import PartialState

    torch.set_num_threads(1)  # more would wait for threads that the fork left behind
    warnings.filterwarnings("ignore", message=".*all_gather is deprecated")
    # The others wait while the main one validates and extracts, which may take longer than the libraries' own limits.
    # Where one dies, the launcher ends the others within seconds: nobody waits a day for the dead.
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "yes", timeout=timedelta(days=1))
    found = function(*arguments)
    if state.is_main_process:
        result.write_bytes(pickle.dumps(found))
    state.destroy_process_group()


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
    state = _convert(state, np.ndarray, torch.from_numpy)
    content |= {"described": described, "generators": generators, "state": state}
    target = folder / "checkpoint.pt"
    with replacing(target) as part:
        torch.save(content, part)
        if target.exists():
            target.replace(folder / "checkpoint.previous.pt")


def finish_checkpoint(folder, described, state):
    """Leave what a finished run needs: its history. Optimiser and encoder go, the weights have a file of their own."""
    finished = {**_convert(state, np.ndarray, torch.from_numpy), "finished": True}
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
        return _convert(state, torch.Tensor, torch.Tensor.numpy)
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
        reason = _first_line(error)
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
        return _first_line(error)
    return bad and f"the checksum of {bad} is wrong"


def _convert(state, kind, convert):
    """The state with what is of a kind (array or tensor) in the rows of its history converted."""
    rows = state["history"]
    rows = [{key: convert(value) if isinstance(value, kind) else value for key, value in row.items()} for row in rows]
    return {**state, "history": rows}


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
