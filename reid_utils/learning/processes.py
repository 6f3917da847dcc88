"""One training on several devices, through Hugging Face Accelerate.

Each process encodes its share of the same global batch and gathers all features with their gradients, so that each has
the loss of the whole batch. The gather's backward sums over processes and DistributedDataParallel averages over them:
the gradient of one process on the whole batch. What differs: BatchNorm on CPUs normalises by a process's own share (on
GPUs it is synchronised), and dropout draws other masks in each process.
"""

import os
import pickle
import signal
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path

import torch

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def process_count():
    """How many processes share this training: 1 unless `launch` started this one with others."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def process_index():
    """This process's place among those that share the training, 0 for the main one."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


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
    found = [value] * process_count()
    if len(found) > 1:
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
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = (
        deterministic,
        cudnn_benchmark and not deterministic,
    )


def peak_gib():
    """The most memory that was in use on the current GPU so far, in GiB; 0 where none is used."""
    return torch.cuda.max_memory_allocated() / 2**30


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
