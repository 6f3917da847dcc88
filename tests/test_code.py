"""What code does and what it stands on: the modules that are imported, the versions that are installed."""

import base64
import hashlib

import pytest

from reid_utils.code import _read_module, imported_code, installed_versions
from reid_utils.files import write_text

SOURCES = {
    "own/__init__.py": "",
    "own/rows/__init__.py": "from .near import squared\n",
    "own/rows/near.py": "import numpy as np\n",
    "own/rows/scores.py": "def late():\n    from ..pictures import letters\n",
    "own/pictures/__init__.py": "",
    "own/pictures/letters.py": "x = 1\n",
    "other/__init__.py": "",
}


@pytest.fixture
def tree(tmp_path):
    for name, source in SOURCES.items():
        write_text(tmp_path / name, source)
    _read_module.cache_clear()
    yield tmp_path
    _read_module.cache_clear()


def test_modules_count_directly_through_others_in_functions_and_with_their_packages(tree):
    found = imported_code(["own.rows.scores"], ["own"], tree)
    assert list(found) == [
        "own",
        "own.pictures",
        "own.pictures.letters",
        "own.rows",
        "own.rows.near",
        "own.rows.scores",
    ]
    assert "own.pictures.letters" not in imported_code(["own.rows.scores"], ["own"], tree, left_out=["own.pictures"])
    assert imported_code(["other", "numpy", "own.missing"], ["own"], tree) == {}


def test_what_a_module_does_counts_and_how_it_is_laid_out_does_not(tree):
    before = imported_code(["own.rows"], ["own"], tree)
    write_text(tree / "own/rows/near.py", '"""Distances."""\r\n\r\nimport numpy as np  # arrays\r\n')
    _read_module.cache_clear()
    assert imported_code(["own.rows"], ["own"], tree) == before
    write_text(tree / "own/rows/near.py", "import numpy as np\nx = 2\n")
    _read_module.cache_clear()
    after = imported_code(["own.rows"], ["own"], tree)
    assert [name for name in before if after[name] != before[name]] == ["own.rows.near"]


def install(folder, version, source="x = 1\n", origin=""):
    """Lay down a distribution `a-library` as an installer does."""
    written = {
        "a_library.py": source,
        f"a_library-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: a-library\nVersion: {version}\n",
        **({f"a_library-{version}.dist-info/direct_url.json": origin} if origin else {}),
    }
    for name, text in written.items():
        write_text(folder / name, text)
    lines = [f"{name},sha256={hash_of(folder / name)},1" for name in written]
    record = f"a_library-{version}.dist-info/RECORD"
    write_text(folder / record, "\n".join([*lines, f"{record},,"]))


def hash_of(path):
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def version_of(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    installed_versions.cache_clear()
    found = installed_versions("A_Library", "no-such-library")
    installed_versions.cache_clear()
    return found


def test_versions_are_those_installed(tmp_path, monkeypatch):
    install(tmp_path, "1.2")
    assert version_of(tmp_path, monkeypatch) == {"a-library": "1.2"}


def test_a_library_from_a_folder_or_a_repository_is_told_by_its_files(tmp_path, monkeypatch):
    found = set()
    for number, source in enumerate(("x = 1\n", "x = 2\n")):
        install(tmp_path / str(number), "1.2", source, '{"url": "https://x", "vcs_info": {"vcs": "git"}}')
        found |= {version_of(tmp_path / str(number), monkeypatch)["a-library"]}
        write_text(tmp_path / "source" / "a_library.py", source)
        origin = f'{{"url": "{(tmp_path / "source").as_uri()}", "dir_info": {{"editable": true}}}}'
        install(tmp_path / f"editable {number}", "1.2", "", origin)
        found |= {version_of(tmp_path / f"editable {number}", monkeypatch)["a-library"]}
    assert len(found) == 4 and all(version.startswith("1.2+") for version in found)
