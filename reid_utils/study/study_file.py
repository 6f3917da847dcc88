"""The study file: reading and checking it; a mistake costs one line, not a run."""

import difflib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

STUDY_FIELDS = {
    "study": str,
    "question": str,
    "data": str,
    "rendering": dict,
    "threads": int,
    "estimate": dict,
    "notebooks": list,
}
ENTRY_FIELDS = {
    "notebook": str,
    "name": str,
    "minutes": (int, float),
    "gpus": int,
    "parameters": dict,
    "grid": list,
    "named_by": list,
    "reads": dict,
    "each": dict,
    "sets": dict,
    "after": (str, list),
}
SELECTION_FIELDS = {"notebook": str, "name": str, "where": dict}
READS_FIELDS = {"notebook": str, "name": str, "same": list}
NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
SHAPES = ("grid", "each", "sets", "after")  # an entry has at most one of these
GIVEN = ("data", "out", "run_id", "inputs", "features")  # parameters that the engine passes


class StudyError(ValueError):
    """A mistake in a study file, a notebook's parameters or the command line, told in one line."""


@dataclass(frozen=True)
class Study:
    """A study file as read: `entries` are the mappings under `notebooks`, `estimate` what an image costs (or empty)."""

    name: str
    question: str
    data: str
    rendering: dict
    threads: int
    entries: tuple
    estimate: dict = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML in which 4e-5 is a number, as it is in YAML 1.2, and a key that stands twice is a mistake."""

    def construct_mapping(self, node, deep=False):
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
    except yaml.YAMLError as error:
        raise StudyError(f"{origin} is not readable YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError):
        raise StudyError(
            f"{origin} holds a value that cannot be read, is nested too deep or refers to itself"
        ) from None
    return value


def unknown(what, name, known):
    """A StudyError for a name nobody knows, with the closest known one."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
    return StudyError(f"{what} {str(name)!r} is unknown; {hint}")


def find_study(name, studies):
    """The path of a study: a yaml file, or a name in the folder `studies`. Raises StudyError naming the closest."""
    if str(name).endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise StudyError(f"study file {name} does not exist")
        return Path(name)
    known = {path.stem: path for path in sorted(Path(studies).glob("*.yaml"))}
    if name not in known:
        raise unknown("study", name, known)
    return known[name]


def check_fields(mapping, fields, where):
    """Raise StudyError for an unknown key or a value of the wrong type."""
    if not isinstance(mapping, dict):
        raise StudyError(f"{where} must be a mapping of names to values, not {mapping!r}")
    for key, value in mapping.items():
        if key not in fields:
            raise unknown(f"{where}: key", key, fields)
        if not isinstance(value, fields[key]) or isinstance(value, bool):
            kinds = fields[key] if isinstance(fields[key], tuple) else (fields[key],)
            names = " or ".join(kind.__name__ for kind in kinds)
            raise StudyError(f"{where}: {key} must be {names}, not {value!r}")


def _check_entry(entry, where):
    """Raise StudyError unless an entry under `notebooks` is well formed."""
    check_fields(entry, ENTRY_FIELDS, where)
    if "notebook" not in entry:
        raise StudyError(f"{where} lacks the key 'notebook'")
    if not re.fullmatch(NAME, entry["notebook"]):
        raise StudyError(
            f"{where}: notebook must be a file's name without folder and .ipynb, not {entry['notebook']!r}"
        )
    where = f"{where} ({entry['notebook']})"
    for key in ("minutes", "gpus"):
        if not 0 <= entry.get(key, 0) < float("inf"):
            raise StudyError(f"{where}: {key} must be at least 0, not {entry[key]}")
    shapes = [key for key in SHAPES if key in entry]
    if len(shapes) > 1:
        raise StudyError(f"{where} has both {shapes[0]!r} and {shapes[1]!r}; keep one")
    if "named_by" in entry and "grid" not in entry:
        raise StudyError(f"{where} has 'named_by' without 'grid'")
    if "reads" in entry:
        check_fields(entry["reads"], READS_FIELDS, f"{where}: reads")
        if "grid" not in entry or "notebook" not in entry["reads"]:
            raise StudyError(f"{where}: 'reads' needs a key 'notebook', and a 'grid' beside it")
    for block in entry.get("grid", []):
        if not isinstance(block, dict) or not block:
            raise StudyError(f"{where}: a grid block must be a mapping of parameters to values, not {block!r}")
        if [] in block.values():
            empty = next(name for name, value in block.items() if value == [])
            raise StudyError(f"{where}: grid: {empty} has no value; an empty list as a value is written [[]]")
    selections = {"each": entry["each"]} if "each" in entry else entry.get("sets", {})
    for name, selection in selections.items():
        check_fields(selection, SELECTION_FIELDS, f"{where}: {name}")
        if "notebook" not in selection:
            raise StudyError(f"{where}: {name} lacks the key 'notebook'")


def read_study(path):
    """Read and check a study file -> Study. Raises StudyError for anything unknown, missing or of the wrong type."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path.name} is not UTF-8 text ({error}); save it as such") from None
    content = parse_yaml(text, path.name)
    check_fields(content, STUDY_FIELDS, path.name)
    for key in ("study", "data", "notebooks"):
        if not content.get(key):
            raise StudyError(f"{path.name} lacks the key {key!r}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", content["study"]):
        raise StudyError(f"{path.name}: study must be a plain word, not {content['study']!r}")
    if content.get("threads", 1) < 1:
        raise StudyError(f"{path.name}: threads must be at least 1, not {content['threads']}")
    for number, entry in enumerate(content["notebooks"], 1):
        _check_entry(entry, f"{path.name}: notebook {number}")
    return Study(
        content["study"],
        content.get("question", ""),
        content["data"],
        content.get("rendering", {}),
        content.get("threads", 1),
        tuple(content["notebooks"]),
        content.get("estimate", {}),
    )


def results_name(study, data=None, features=None):
    """The name of a study's results folder: other data than the study's own, or own features, get one of their own.

    Every set in the layout may be called data_reid, so the folder above it lends its name.
    """
    other = features or (data if data != study.data else None)
    if not other:
        return study.name
    path = Path(other).resolve()
    name = path.parent.name if path.name == "data_reid" else path.name
    return f"{study.name}-features-{name}" if features else f"{study.name}-{name}"


def check_plain(value, where):
    """Raise StudyError unless a value is plain JSON: text, finite numbers, booleans, None, lists, mappings."""
    if isinstance(value, list):
        for item in value:
            check_plain(item, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise StudyError(f"{where} has the key {key!r}; keys must be text")
            check_plain(item, where)
    elif not (value is None or isinstance(value, str | bool | int) or _finite(value)):
        raise StudyError(f"{where} is {value!r}, which is not plain JSON (text, finite number, true/false, null, list)")


def _finite(value):
    return isinstance(value, float) and abs(value) < float("inf")


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
        if key == "threads":
            if type(value) is not int or value < 1:
                raise StudyError(f"--set {setting}: threads must be a whole number of at least 1")
            study = replace(study, threads=value)
        elif "." in key:
            section, name = key.split(".", 1)
            if section != "rendering":
                raise unknown("--set: field", key, [f"rendering.{known}" for known in study.rendering])
            study = replace(study, rendering={**study.rendering, name: value})
        else:
            study = replace(study, entries=_set_parameter(study.entries, key, value, declared))
    return study


def _set_parameter(entries, name, value, declared):
    """The entries with one parameter set wherever the notebook declares it, in grid blocks too."""
    if name in GIVEN:
        raise StudyError(f"--set {name}: this parameter is passed by run_all itself (see --data, --features, --runs)")
    known = {key for entry in entries for key in declared[entry["notebook"]]}
    if name not in known - set(GIVEN):
        raise unknown("--set: parameter", name, known.union(["threads"]) - set(GIVEN))
    result = []
    for entry in entries:
        defaults = declared[entry["notebook"]]
        if name in defaults:
            in_grid = [value] if isinstance(defaults[name], list) else value
            grid = [{**block, name: in_grid} if name in block else block for block in entry.get("grid", [])]
            # a list for a parameter that is not a list spans a grid, so it belongs in a block only
            swept = bool(grid) and all(name in block for block in grid)
            common = {} if swept else {name: value}
            entry = {**entry, "parameters": {**entry.get("parameters", {}), **common}}
            entry |= {"grid": grid} if grid else {}
        result.append(entry)
    return tuple(result)
