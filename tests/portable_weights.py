"""Are the weights of a study's trainings the same bits on this processor? `python tests/portable_weights.py`

Trains the micro study with the instruction sets that all x86-64 processors of the last ten years have, and compares
the SHA-256 of each tensor with tests/golden/portable_weights.json. Where one differs, it is named and the exit status
stays 0: equal bits across processors are looked into here, not promised. `--record` writes the file.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from safetensors.numpy import load_file

from notebook_study.worker import PORTABLE
from reid_utils.paper.results import processor

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "golden" / "portable_weights.json"


def train(folder):
    """Train the micro study below a folder with the portable environment; each run's weights file."""
    command = [sys.executable, "run_all.py", "micro", "--only", "02*", "--runs", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **PORTABLE}, check=True, stdout=subprocess.DEVNULL)
    return sorted(Path(folder).rglob("seed*/weights.safetensors"))


def hashes(file):
    """{tensor: SHA-256 of its values} of a weights file, in the order of the network's layers as far as names tell."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in load_file(file).items()}


def main():
    """Train, then record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {file.parents[1].name: hashes(file) for file in train(folder)}
    here = {"processor": processor(), "torch": version("torch"), "numpy": version("numpy"), "weights": found}
    if options.record:
        RECORD.write_text(json.dumps(here, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    print(f"recorded on {recorded['processor']}, now on {here['processor']}")
    for run, tensors in recorded["weights"].items():
        first = next((name for name, value in tensors.items() if found.get(run, {}).get(name) != value), None)
        print(f"{run}: {'the same bits' if first is None else f'the first tensor that differs is {first}'}")


if __name__ == "__main__":
    main()
