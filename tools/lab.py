"""`python tools/lab.py`: copies of the notebooks in lab/, which `make lab` opens: running them changes nothing in git.

lab/ lies beside notebooks/, so that a relative path in a copy means what it means in the notebook itself.
"""

import shutil
import sys
from pathlib import Path

from notebook_study.study_file import read_cells
from reid_utils.files import digest, read_json, write_json
from reid_utils.paper.results import REPOSITORY


def renew(notebooks, lab):
    """Copy a folder of notebooks with its README.md into `lab`, but for copies whose cells were changed there.

    Returns the names (list of str) of copies kept although the notebook itself has changed since. Raises StudyError
    for a copy that is no readable notebook.
    """
    notebooks, lab = Path(notebooks), Path(lab)
    made = read_json(lab / ".made.json") or {}
    behind = []
    lab.mkdir(exist_ok=True)
    shutil.copy(notebooks / "README.md", lab)
    for path in sorted(notebooks.glob("*.ipynb")):
        copy, present = lab / path.name, _cells(path)
        if copy.exists() and _cells(copy) != made.get(path.name):
            behind += [path.name] if present != made.get(path.name) else []
        elif not copy.exists() or present != made[path.name]:
            shutil.copy(path, copy)
            made[path.name] = present
    write_json(lab / ".made.json", made)
    return behind


def _cells(path):
    """A digest of what the cells of a notebook say; outputs do not count."""
    return digest([(kind, source) for kind, source, _ in read_cells(path)])


def main():
    """Renew lab/ -> exit status."""
    try:
        behind = renew(REPOSITORY / "notebooks", REPOSITORY / "lab")
    except (ValueError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    for name in behind:
        print(
            f"lab/{name} has changes of yours and stays; the notebook has changed too: delete the copy for the new one"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
