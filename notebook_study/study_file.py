"""The study file and its notebooks' parameters, read and checked; a mistake costs one line, not a run."""

import ast
import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct
from msgspec.structs import replace

GIVEN = ("data", "out", "run_id", "inputs", "features")  # parameters that the engine passes to who declares them
REQUIRED = ("out", "run_id", "inputs")  # of what the engine passes, what no run does without
SHAPES = ("grid", "each", "sets", "after")  # an entry has at most one of these


class StudyError(ValueError):
    """A mistake in a study file, a notebook's parameters or the command line, told in one line."""


class _Strict(Struct, forbid_unknown_fields=True, frozen=True):
    pass


_Filled, _Count = Meta(min_length=1), Annotated[int, Meta(ge=0)]


class Selection(_Strict):
    """Runs of an earlier entry: by its notebook, its name, and the settings in force (a value, or those accepted)."""

    notebook: str
    name: str = ""
    where: dict[str, Any] = {}


class Reads(_Strict):
    """Which earlier runs a run of a grid reads: those of an entry that have its own values of the parameters `same`."""

    notebook: str
    name: str = ""
    same: list[str] = []


class Entry(_Strict):
    """One item under `notebooks`: a notebook, its parameters, and which runs of it there are."""

    notebook: str
    name: str = ""
    minutes: Annotated[float, Meta(ge=0, le=1e6)] = 1.0
    gpus: _Count = 0
    parameters: dict[str, Any] = {}
    grid: Annotated[list[Annotated[dict[str, Any], _Filled]], _Filled] | None = None
    named_by: list[str] | None = None
    reads: Reads | None = None
    each: Selection | None = None
    sets: Annotated[dict[str, Selection], _Filled] | None = None
    after: str | list[str] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.+-]*", self.notebook):
            raise ValueError(f"notebook must be a file's name without folder and .ipynb, not {self.notebook!r}")
        shapes = [shape for shape in SHAPES if getattr(self, shape) is not None]
        if len(shapes) > 1:
            raise ValueError(f"{self.notebook} has both {shapes[0]!r} and {shapes[1]!r}; keep one")
        for name in ("named_by", "reads"):
            if getattr(self, name) is not None and not self.grid:
                raise ValueError(f"{self.notebook} has {name!r} without 'grid'")
        empty = [name for block in self.grid or () for name, value in block.items() if value == []]
        if empty:
            raise ValueError(f"grid: {empty[0]} has no value; an empty list as a value is written [[]]")


class Study(_Strict):
    """A study file as read; `entries` are the items under `notebooks`."""

    name: str = msgspec.field(name="study")
    data: Annotated[str, _Filled]
    entries: Annotated[list[Entry], _Filled] = msgspec.field(name="notebooks")
    question: str = ""
    rendering: dict[str, Any] = {}
    threads: Annotated[int, Meta(ge=1)] = 1
    images: _Count = 0  # in training, where `minutes` were measured; 0: they never change
    without_gpu: float = 1.0  # a run that asks for a GPU takes so many times its minutes where there is none
    tables: dict[str, Any] = {}  # a notebook that declares the parameter `tables` gets them as they are
    portable: bool = False  # the same instructions on every x86-64 processor; about a sixth slower

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(f"study must be a plain word, not {self.name!r}")


class _Loader(yaml.SafeLoader):
    """YAML in which 4e-5 is a number, as it is in YAML 1.2, and a key that stands twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        """A mapping; a key that stands twice is an error, where YAML takes the last."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text, origin):
    """The value of a YAML text (str); `origin` names it in errors. Raises StudyError where it is not YAML."""
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only
        json.dumps(value, default=str, skipkeys=True)  # ends where a value holds itself
        return value
    except yaml.YAMLError as error:
        raise StudyError(f"{origin} is not readable YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError):
        raise StudyError(
            f"{origin} holds a value that cannot be read, is nested too deep or refers to itself"
        ) from None


def check_known(what, names, known):
    """Raise StudyError for the first of `names` that is not among the known ones, with the closest of these."""
    for name in (name for name in names if name not in known):
        words = sorted(map(str, known))
        close = difflib.get_close_matches(str(name), words, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(words) or 'none'}"
        raise StudyError(f"{what} {str(name)!r} is unknown; {hint}")


def find_study(name, studies):
    """The path of a study: a yaml file, or a name in the folder `studies`. Raises StudyError naming the closest."""
    if str(name).endswith((".yaml", ".yml")):
        return Path(name)
    known = [path.stem for path in Path(studies).glob("*.yaml")]
    check_known("study", [name], known)
    return Path(studies) / f"{name}.yaml"


def read_study(path):
    """Read and check a study file -> Study. Raises StudyError for anything unknown, missing or of the wrong type."""
    path = Path(path)
    try:
        study = msgspec.convert(parse_yaml(path.read_text(encoding="utf-8-sig"), path.name), Study)
    except FileNotFoundError:
        raise StudyError(f"study file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is not UTF-8 text ({error}); save it as such") from None
    except msgspec.ValidationError as error:
        raise StudyError(f"{path.name}: {error}") from None
    check_plain(study.tables, f"{path.name}: tables")
    return study


def check_plain(value, where):
    """Raise StudyError unless a value is plain JSON: text, finite numbers, booleans, None, lists, mappings."""
    try:
        plain = json.loads(json.dumps(value, allow_nan=False)) == value  # keys that are no text come back as text
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise StudyError(
            f"{where} is {value!r}, which is not plain JSON (text, finite number, true/false, null, list, text: value)"
        )


def override(study, settings, declared):
    """A Study with `--set key=value` texts applied.

    A dotted key (rendering.seed) or `threads` sets the study's own field; a bare name sets that parameter in every
    entry whose notebook declares it. `declared`: notebook -> {parameter: default}. Raises StudyError for unknown names.
    """
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise StudyError(f"--set {setting} is not of the form key=value")
        value = parse_yaml(text, f"--set {setting}")
        section, dot, name = key.partition(".")
        if key == "threads":
            if type(value) is not int or value < 1:
                raise StudyError(f"--set {setting}: threads must be a whole number of at least 1")
            study = replace(study, threads=value)
        elif dot and section != "rendering":
            check_known("--set: field", [key], [f"rendering.{known}" for known in study.rendering])
        elif dot:
            study = replace(study, rendering={**study.rendering, name: value})
        else:
            study = replace(study, entries=_set_parameter(study.entries, key, value, declared))
    return study


def _set_parameter(entries, name, value, declared):
    """The entries with one parameter set wherever the notebook declares it, in grid blocks too."""
    if name in GIVEN:
        raise StudyError(f"--set {name}: this parameter is passed by run_all itself (see --data, --features, --runs)")
    known = {key for entry in entries for key in declared[entry.notebook]} - set(GIVEN)
    check_known("--set: parameter", [name], known | {"threads"})
    return [_with(entry, name, value, declared[entry.notebook]) for entry in entries]


def _with(entry, name, value, defaults):
    """An entry with a parameter set, where its notebook declares it."""
    if name not in defaults:
        return entry
    in_grid = [value] if isinstance(defaults[name], list) else value
    grid = entry.grid and [{**block, name: in_grid} if name in block else block for block in entry.grid]
    # a list for a parameter that is not a list spans a grid, so it belongs in a block only
    swept = bool(grid) and all(name in block for block in grid)
    parameters = entry.parameters if swept else {**entry.parameters, name: value}
    return replace(entry, parameters=parameters, grid=grid)


# The notebooks that a study names: what is read in them without running them


def read_cells(path):
    """The cells of a notebook as (type, source, tags) triples. Raises StudyError where it is missing or no notebook."""
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"notebook {path.name} does not exist in {path.parent}")
    try:
        return [
            (cell["cell_type"], "".join(cell["source"]), tuple(cell.get("metadata", {}).get("tags", ())))
            for cell in json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        ]
    except (ValueError, TypeError, KeyError):
        raise StudyError(f"notebook {path} is not readable; save it again from JupyterLab") from None


def declared_parameters(path):
    """The parameters a notebook declares: {name: default}, from its one cell tagged `parameters`.

    Raises StudyError where the notebook, the cell or a parameter that every notebook needs is missing, or where a
    default is not a literal. The kernel is always this interpreter, whatever name the notebook was saved with.
    """
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
