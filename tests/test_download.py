"""The checked download, against a server on this machine."""

import contextlib
import hashlib
import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reid_utils.data import sources

NAMES = ("reid_training/001_000_00.jpeg", "reid_test/query/2_0_00.jpeg", "reid_test/gallery/2_0_01.jpeg")


def make_zip(*extra, top="data_reid/"):
    """Bytes of a zip in the challenge's form; `extra` are (ZipInfo or name, bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(NAMES):
            archive.writestr(zipfile.ZipInfo(top + name), hashlib.sha256(bytes([i])).digest() * 2000)
        for name, data in extra:
            archive.writestr(name, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


# Incompressible, so that the zip is long enough to be cut in the middle.
NOISE = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(256) for j in range(64))
ZIP = make_zip(("data_reid/noise.bin", NOISE))


def md5(data):
    return hashlib.md5(data).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; breaks the first `cuts` answers off after `cut_at` bytes; counts how often it is asked."""

    content, cuts, cut_at, status, asked = ZIP, 0, 2**17, None, 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/synergyreid_data.zip"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked += 1
        if server.status:
            self.send_error(server.status)
            return
        body = server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut_at]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def fetch(server, target, **settings):
    return sources.download_synergy(target, accept_md5=md5(server.content), url=server.url, **settings)


def test_downloads_checks_and_extracts_once(server, tmp_path):
    data = fetch(server, tmp_path)
    assert data == tmp_path / "data_reid" and names(tmp_path) == ["data_reid", "synergyreid_data.zip"]
    assert all((data / name).stat().st_size == 64_000 for name in NAMES)
    assert fetch(server, tmp_path) == data and server.asked == 1


def test_a_cut_download_is_repeated(server, tmp_path):
    server.cuts = 1
    fetch(server, tmp_path)
    assert server.asked == 2 and (tmp_path / "synergyreid_data.zip").read_bytes() == ZIP


def test_a_download_that_stays_cut_leaves_nothing_and_starts_anew(server, tmp_path):
    server.cuts = 4
    with pytest.raises(ConnectionError, match=r"synergyreid_data\.zip, and run again") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []
    fetch(server, tmp_path)
    assert names(tmp_path) == ["data_reid", "synergyreid_data.zip"]


def test_an_unknown_md5_names_the_known_sums_and_the_mend(server, tmp_path):
    with pytest.raises(ValueError, match=f"--accept-md5 {md5(ZIP)}") as caught:
        sources.download_synergy(tmp_path, url=server.url)
    assert all(known in str(caught.value) for known in sources.KNOWN_MD5.values())
    assert names(tmp_path) == ["synergyreid_data.zip"]
    # The bytes are kept: accepting the sum does not fetch them again.
    fetch(server, tmp_path)
    assert server.asked == 1 and "data_reid" in names(tmp_path)


@pytest.mark.parametrize("year", [2022, 2023])
def test_the_zips_of_both_years_are_taken(server, tmp_path, monkeypatch, year):
    monkeypatch.setitem(sources.KNOWN_MD5, year, md5(ZIP))
    assert sources.download_synergy(tmp_path, url=server.url) == tmp_path / "data_reid"


def test_what_is_no_md5_fails_before_anything_is_asked(server, tmp_path):
    with pytest.raises(ValueError, match="32 hexadecimal"):
        sources.download_synergy(tmp_path / "new", accept_md5="abc", url=server.url)
    assert not server.asked and not (tmp_path / "new").exists()


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_without_the_file_is_named_with_what_to_do(server, tmp_path, status):
    server.status = status
    with pytest.raises(ConnectionError, match=rf"{status} .*put it at .*/synergyreid_data\.zip, and") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_without_network_a_zip_put_there_by_hand_is_used(server, tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/synergyreid_data.zip"
    with pytest.raises(ConnectionError, match=f"put it at {tmp_path}/synergyreid_data.zip"):
        sources.download_synergy(tmp_path, url=url)
    (tmp_path / "synergyreid_data.zip").write_bytes(ZIP)
    monkeypatch.setitem(sources.KNOWN_MD5, 2023, md5(ZIP))
    assert (sources.download_synergy(tmp_path, url=url) / "reid_training").is_dir()


def linked(name, target="/etc/passwd"):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, target


DAMAGED = {
    "2 reid_training folders": make_zip(("other/reid_training/1_0_0.jpeg", b"x")),
    "0 reid_training folders": make_zip(top="x").replace(b"reid_training", b"raid_training"),
    "cannot be extracted": ZIP[:-100],
    "cannot be extracted ": ZIP[:2000] + bytes(300) + ZIP[2300:],
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_zip_leaves_nothing(tmp_path, message):
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    (target / "synergyreid_data.zip").write_bytes(DAMAGED[message])
    with pytest.raises(ValueError, match=message) as caught:
        sources.download_synergy(target, accept_md5=md5(DAMAGED[message]))
    assert str(target / "synergyreid_data.zip") in str(caught.value)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".download.lock"]
    assert left == ["synergyreid_data.zip"] and names(target) == ["synergyreid_data.zip"]


def test_what_leads_out_of_the_folder_stays_inside(tmp_path):
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    names = ("data_reid/../../escaped", "/escaped", "..\\escaped", "../../escaped")
    content = make_zip(*((name, b"x") for name in names), linked("data_reid/reid_training/link", str(tmp_path)))
    (target / "synergyreid_data.zip").write_bytes(content)
    data = sources.download_synergy(target, accept_md5=md5(content))
    link = data / "reid_training" / "link"
    assert link.is_file() and not link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a"} and {path.name for path in target.parent.iterdir()} == {
        "b"
    }


def test_an_interrupted_extraction_is_repeated_whole(tmp_path, monkeypatch):
    (tmp_path / "synergyreid_data.zip").write_bytes(ZIP)
    extract = zipfile.ZipFile.extract

    def stop_at_gallery(archive, member, folder):
        if "gallery" in member.filename:
            raise KeyboardInterrupt
        return extract(archive, member, folder)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extract", stop_at_gallery)
        sources.download_synergy(tmp_path, accept_md5=md5(ZIP))
    assert names(tmp_path) == ["synergyreid_data.zip"]
    # What a killed run leaves must not get into the data.
    (tmp_path / ".data_reid.partial" / "data_reid" / "reid_training").mkdir(parents=True)
    (tmp_path / ".data_reid.partial" / "data_reid" / "reid_training" / "9_0_0.jpeg").touch()
    data = sources.download_synergy(tmp_path, accept_md5=md5(ZIP))
    assert names(data / "reid_training") == ["001_000_00.jpeg"]


def test_resource_forks_are_left_out_and_a_bare_layout_is_taken(tmp_path):
    content = make_zip(("__MACOSX/reid_training/._1_0_0.jpeg", b"x"), top="")
    (tmp_path / "synergyreid_data.zip").write_bytes(content)
    data = sources.download_synergy(tmp_path, accept_md5=md5(content))
    assert names(data) == ["reid_test", "reid_training"]


def test_a_zip_made_on_windows_is_taken(tmp_path):
    content = make_zip(("data_reid/Thumbs.db", b"x"), ("data_reid/reid_training/._1.jpeg", b"x"))
    for name in (*NAMES, "data_reid"):
        content = content.replace(f"data_reid/{name}".encode(), f"data_reid/{name}".replace("/", "\\").encode())
    (tmp_path / "synergyreid_data.zip").write_bytes(content)
    data = sources.download_synergy(tmp_path, accept_md5=md5(content))
    assert sorted(path.relative_to(data).as_posix() for path in data.rglob("*.*")) == sorted(NAMES)


def test_two_callers_download_once(server, tmp_path):
    folders = []
    callers = [threading.Thread(target=lambda: folders.append(fetch(server, tmp_path))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert folders == [tmp_path / "data_reid"] * 3 and server.asked == 1
