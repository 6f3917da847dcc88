"""What the engine reads in a notebook without running it: its cells, its parameters, its kernel."""

import ast
import json
from pathlib import Path

from reid_utils.study.study_file import StudyError

REQUIRED = ("out", "run_id", "inputs")  # of what the engine passes, what no run does without


def read_cells(path):
    """The cells of a notebook as (type, source, tags) triples. Raises StudyError where it is missing or no notebook."""
    content = _read(path)
    return [
        (cell["cell_type"], "".join(cell["source"]), tuple(cell.get("metadata", {}).get("tags", ())))
        for cell in content["cells"]
    ]


def _read(path):
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"notebook {path.name} does not exist in {path.parent}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        complete = {"cells", "metadata"} <= content.keys()
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise StudyError(f"notebook {path} is not readable; save it again from JupyterLab")
    return content


def declared_parameters(path):
    """The parameters a notebook declares: {name: default}, from its one cell tagged `parameters`.

    Raises StudyError where the notebook, the cell or a parameter that every notebook needs is missing, where a
    default is not a literal, or where the notebook asks for another kernel than python3.
    """
    path = Path(path)
    kernel = _read(path)["metadata"].get("kernelspec", {}).get("name", "python3")
    if kernel != "python3":
        raise StudyError(f"notebook {path.name} asks for the kernel {kernel!r}; store it with the kernel 'python3'")
    tagged = [source for kind, source, tags in read_cells(path) if kind == "code" and "parameters" in tags]
    if len(tagged) != 1:
        raise StudyError(f"notebook {path.name} has {len(tagged)} cells tagged 'parameters'; it needs exactly one")
    declared = _literals(tagged[0], path.name)
    missing = [name for name in REQUIRED if name not in declared]
    if missing:
        raise StudyError(f"notebook {path.name} does not declare {', '.join(missing)} in its parameters cell")
    return declared


def declared_in(study, folder):
    """{notebook: declared parameters} of the notebooks that a study names, read in `folder`."""
    stems = [entry.notebook for entry in study.entries]
    return {stem: declared_parameters(Path(folder) / f"{stem}.ipynb") for stem in stems}


def _literals(source, where):
    """The assignments of a parameters cell -> {name: value}."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise StudyError(f"notebook {where}: the parameters cell has a syntax error in line {error.lineno}") from None
    declared = {}
    for statement in statements:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        try:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            declared[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError, TypeError):
            raise StudyError(
                f"notebook {where}: line {statement.lineno} of the parameters cell is not 'name = literal'"
            ) from None
    return declared
