"""Damaged downloads, zips and checkpoints, chosen by a random generator; the faults of faults.py that need no study."""

import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tiny_study import wait_until

from reid_utils.data import sources

SHARE = 2**14
FETCH = """\
import sys
from reid_utils.data import sources
sources.TIMEOUTS_S, sources.RETRIES = (2, 0.3), 0
sources.download_synergy(sys.argv[1], accept_md5=sys.argv[2], url=sys.argv[3])
"""


class Server(ThreadingHTTPServer):
    """Serves `content` on 127.0.0.1; `faults` are taken one an answer.

    A fault is (kind, byte): "cut" and "stall" stop there, "short" and "long" lie about the length, "flip" spoils that
    byte, "busy" answers 503, "slow" sends in small shares, "other" sends another file.
    """

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults = content, []
        self.url = f"http://127.0.0.1:{self.server_port}/synergyreid_data.zip"

    def handle_error(self, request, client_address):
        pass  # a client that went away is what the faults are about

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        kind, place = self.server.faults.pop(0) if self.server.faults else ("", 0)
        content = bytearray(self.server.content)
        if kind == "busy":
            self.send_error(503)
            return
        if kind == "flip":
            content[place] ^= 255
        if kind == "other":
            content = bytearray(hashlib.sha256(content).digest() * (place // 32 + 1))
        body, told = bytes(content), len(content) + {"short": -1000, "long": 1000}.get(kind, 0)
        self.send_response(200)
        self.send_header("Content-Length", str(told))
        self.end_headers()
        self._send(body[:place] if kind in ("cut", "stall") else body, kind)

    def _send(self, body, kind):
        for at in range(0, len(body), SHARE):
            self.wfile.write(body[at : at + SHARE])
            time.sleep(0.02 if kind == "slow" else 0)
        if kind == "stall":
            time.sleep(1)  # longer than the client waits


def archive():
    """Bytes of a zip of the challenge's form, long enough to be cut in the middle, and the MD5 of the zip."""
    from test_download import ZIP, md5

    return ZIP, md5(ZIP)


def check_download(target, sum_, url):
    """Assert that a download, started once more, ends with the whole set and leaves nothing unfinished."""
    from test_download import NAMES, ZIP

    data = sources.download_synergy(target, accept_md5=sum_, url=url)
    assert all((data / name).stat().st_size == 64_000 for name in NAMES)
    assert (target / sources.ZIP_NAME).read_bytes() == ZIP
    assert sorted(path.name for path in target.iterdir() if path.name[0] != ".") == ["data_reid", sources.ZIP_NAME]


@contextlib.contextmanager
def impatient():
    """Let downloads wait for a fraction of a second only."""
    before = sources.TIMEOUTS_S, sources.RETRIES
    sources.TIMEOUTS_S, sources.RETRIES = (2, 0.3), 1
    try:
        yield
    finally:
        sources.TIMEOUTS_S, sources.RETRIES = before


def download(folder, rng, times=6):
    """A server that cuts, stalls, lies about the length, sends a spoilt byte, another file, or an error."""
    content, sum_ = archive()
    kinds = ("cut", "stall", "short", "long", "flip", "busy", "other")
    with Server(content) as server, impatient():
        for number in range(times):
            target = folder / str(number)
            server.faults = [(rng.choice(kinds), rng.randrange(len(content))) for _ in range(rng.randint(1, 4))]
            told = list(server.faults)
            try:
                sources.download_synergy(target, accept_md5=sum_, url=server.url)
            except (ConnectionError, ValueError) as error:
                assert "\n" not in str(error) and str(target / sources.ZIP_NAME) in str(error), f"{told}: {error}"
                assert not (target / "data_reid").exists(), told
                if isinstance(error, ValueError):  # the wrong bytes came, whole: the message says to delete them
                    assert "delete it to download again" in str(error), f"{told}: {error}"
                    (target / sources.ZIP_NAME).unlink()
            server.faults = []
            check_download(target, sum_, server.url)
    return times


def killed_download(folder, rng, times=4):
    """SIGKILL of a process that downloads and extracts."""
    content, sum_ = archive()
    with Server(content) as server:
        for number in range(times):
            target = folder / str(number)
            server.faults = [("slow", 0)]
            command = [sys.executable, "-c", FETCH, str(target), sum_, server.url]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            wait_until(lambda target=target: any(target.glob(".download/*")))
            time.sleep(rng.uniform(0, 1.2))
            process.kill()
            process.wait()
            zip_path, data = target / sources.ZIP_NAME, target / "data_reid"
            assert not zip_path.exists() or zip_path.read_bytes() == content
            assert not data.exists() or len(list(data.rglob("*.*"))) == 4
            server.faults = []
            check_download(target, sum_, server.url)
    return times


def zip_file(folder, rng, times=30):
    """A zip with bytes spoilt or cut off: refused with its name, or extracted whole."""
    from test_download import NAMES, make_zip

    content = make_zip()
    for number in range(times):
        target, spoilt = folder / str(number), bytearray(content)
        if rng.random() < 0.3:
            del spoilt[rng.randrange(len(spoilt)) :]
        else:
            for _ in range(rng.randint(1, 3)):
                spoilt[rng.randrange(len(spoilt))] ^= rng.randrange(1, 256)
        target.mkdir()
        zip_path = target / sources.ZIP_NAME
        zip_path.write_bytes(spoilt)
        sum_ = hashlib.md5(spoilt).hexdigest()
        try:
            data = sources.download_synergy(target, accept_md5=sum_)
            assert all((data / name).stat().st_size == 64_000 for name in NAMES if (data / name).exists())
        except ValueError as error:
            assert str(zip_path) in str(error) and "\n" not in str(error)
            left = {path.name for path in target.rglob("*")}
            assert left <= {sources.ZIP_NAME, ".download.lock"}, left
    return times


def checkpoint(folder, rng, times=8):
    """The newest checkpoint of a training cut off, spoilt, or replaced by a pickle: the training ends the same."""
    import pickle

    import torch
    from test_training import SIZE, TINY, encoder, labels_of, train

    images = torch.randint(
        0, 255, (48, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()

    def trained():
        train(
            encoder(),
            images,
            labels_of(images),
            TINY,
            folder,
            lambda _: {"mAP": 0.5, "aps": torch.ones(2).numpy()},
            str,
        )
        return (folder / "weights.safetensors").read_bytes()

    torch.set_num_threads(1)
    whole, newest = trained(), folder / "checkpoint.pt"
    kept = {path.name: path.read_bytes() for path in folder.glob("checkpoint*.pt")}
    for number in range(times):
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        content = bytearray(kept[newest.name])
        kind = ("cut", "spoilt", "pickle", "gone")[number % 4]
        if kind == "cut":
            del content[rng.randrange(len(content)) :]
        elif kind == "spoilt":
            at = rng.randrange(
                rng.choice((0, len(content) - 3000)), len(content)
            )  # the zip's directory lies at its end
            content[at : at + 64] = rng.randbytes(len(content[at : at + 64]))
        elif kind == "pickle":
            content = pickle.dumps(Exploit(folder / "pickle_was_run"))
        newest.write_bytes(content)
        if kind == "gone":
            newest.unlink()
        (folder / "weights.safetensors").unlink()
        assert trained() == whole, f"a {kind} checkpoint changed the weights"
        assert not (folder / "pickle_was_run").exists(), "a pickle was executed"
    return times


class Exploit:
    """What a hostile pickle does: run a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)
