"""Overriding a study from the command line: `--set key=value`."""

from dataclasses import replace

from reid_utils.study.study_file import GIVEN, StudyError, parse_yaml, unknown


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
