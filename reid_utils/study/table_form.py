"""The form of the paper tables: rows against their baselines, numbers as printed, the lines below a table."""

from itertools import groupby

import numpy as np
import pandas as pd

from reid_utils.ranking.statistics import compare_rows, holm
from reid_utils.study.files import read_json


def compare(rows, baseline):
    """`compare_rows` of a table; `baseline` is one name, or {row: its baseline}. Holm corrects over the whole table."""
    baselines = baseline if isinstance(baseline, dict) else dict.fromkeys(rows, baseline)
    if not rows:
        return pd.DataFrame(columns=["row", "mAP", "difference", "p", "p_holm", "queries"])
    parts = []
    for base in dict.fromkeys(baselines.values()):
        members = dict.fromkeys([base, *(name for name in rows if baselines[name] == base)])
        part = compare_rows({name: rows[name]["aps"] for name in members}, baseline=base)
        parts.append(part[part["row"].map(baselines) == base])
    table = pd.concat(parts).set_index("row").loc[list(rows)].reset_index()
    return table.assign(p_holm=holm(table["p"]))


def printable(comparison, rows, extra=None):
    """A table as it is written: row numbers, per cent with two decimals, `extra` columns last."""
    lines = []
    for number, line in enumerate(comparison.to_dict("records"), start=1):
        arrays = rows[line["row"]]
        percent = {key: 100 * float(np.mean(arrays[column])) for key, column in _PRINTED.items()}
        interval = {"mAP low": 100 * line["low"], "mAP high": 100 * line["high"]}
        change = {key: 100 * line[column] for key, column in _CHANGES.items()}
        shown = {k: round(v, 2) for k, v in {**percent, **interval, **change}.items()}
        shown |= {"p (Holm)": round(line["p_holm"], 4), "seeds": line["seeds"], "queries": line["queries"]}
        more = {key: round(value, 3) for key, value in (extra or {}).get(line["row"], {}).items()}
        lines.append({"no.": number, "row": line["row"], **shown, **more})
    return pd.DataFrame(lines)


_PRINTED = {"mAP": "mAP", "rank-1": "rank1", "rank-5": "rank5", "mINP": "mINP"}
_CHANGES = {"difference": "difference", "diff low": "diff_low", "diff high": "diff_high", "seed sd": "seed_sd"}


def study_command(folder):
    """`python run_all.py …` as the study in `folder` was started, without what only picks runs or places."""
    record = read_json(folder / "study.json") or {"name": folder.name, "command": []}
    words, kept = iter(record["command"]), []
    for word in words:
        if word in ("--data", "--set", "--features"):
            kept += [word, f"'{next(words)}'"]
        elif word.startswith(("--data=", "--set=", "--features=")):
            kept.append(f"'{word}'")
        elif word in ("--only", "--jobs", "--runs", "--scheduler", "--accept-md5"):
            next(words)
    file = next((f"'{word}'" for word in record["command"] if word.endswith((".yaml", ".yml"))), record["name"])
    return " ".join(["python run_all.py", file, *kept])


def row_commands(command, comparison, rows):
    """The commands that make the rows again, a line for each run of rows that one command makes."""
    ids = [rows[name]["run"] for name in comparison["row"]]
    lines, start = [], 0
    for run, members in groupby(ids):
        stop = start + len(list(members))
        numbers = f"Row {stop}" if stop == start + 1 else f"Rows {start + 1}–{stop}"
        lines.append(f"{numbers}: `{command} --only '{run}'`")
        start = stop
    return lines


def question(comparison, baselines, text):
    """The line "compare rows i and j, … to answer: text" for every row that has another as its baseline."""
    numbers = {name: number for number, name in enumerate(comparison["row"], start=1)}
    base = baselines if isinstance(baselines, dict) else dict.fromkeys(numbers, baselines)
    pairs = [f"{numbers[base[name]]} and {number}" for name, number in numbers.items() if base[name] != name]
    return f"Compare rows {', '.join(pairs)} to answer: {text}" if pairs else f"No two rows here answer: {text}"
