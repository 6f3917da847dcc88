"""What a study shows while it runs and before and after: the plan, live lines, the summary."""

import json
import shutil
import sys
import time

from notebook_study.plan import urgency
from notebook_study.worker import Outcome


def duration(seconds):
    """Seconds as a person says them: "8 s", "4 min 05 s", "2 h 10 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, rest = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def shown(text):
    """Text for a terminal: characters that would steer it are replaced, letters of every script stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def plan_text(runs, states, chosen, jobs, root, listed=()):
    """What will be done, as text: the runs `listed`, then one line with the estimate."""
    if chosen:
        total = duration(total_seconds(chosen, states, jobs))
        last = f"{len(chosen)} of {len(runs)} runs to execute, about {total} with {jobs} at once; results in {root}"
    else:
        left = sum(states[run.id].name != "done" for run in runs)
        done = f"the runs asked for are done, of the others {left} not" if left else f"all {len(runs)} runs are done"
        last = f"{done}; tables in {root / 'tables'}"
    return shown("\n".join([*_run_lines(listed, states), last]))


def total_seconds(chosen, states, jobs):
    """Estimated seconds for the chosen runs, `jobs` at once: no shorter than the longest chain of them."""
    chains = urgency(chosen, states)
    return max(sum(states[run.id].seconds for run in chosen) / jobs, max(chains.values(), default=0))


def _run_lines(runs, states):
    """Each notebook with its common parameters, under it each run with state, estimate, own parameters and inputs."""
    for stem in dict.fromkeys(run.notebook for run in runs):
        group = [run for run in runs if run.notebook == stem]
        common = {
            name: value
            for name, value in group[0].parameters.items()
            if all(run.parameters.get(name, ...) == value for run in group)
        }
        yield f"{stem}  {_settings(common)}".rstrip()
        for run in group:
            state = states[run.id]
            own = {name: value for name, value in run.parameters.items() if name not in common}
            reason = f" ({_shorten(state.reason, 120)})" if state.reason else ""
            yield f"  {state.name:<6} {duration(state.seconds):>12}  {run.id}{reason}"
            if own:
                yield f"{'':23}{_settings(own)}"
            if run.inputs:
                yield f"{'':23}reads {_shorten(', '.join(run.inputs), 160)}"


def _settings(given):
    return "  ".join(f"{name}={_shorten(json.dumps(value, ensure_ascii=False), 200)}" for name, value in given.items())


def _shorten(text, width):
    return text if len(text) <= width else text[: width - 1] + "…"


def summary_text(runs, states, outcomes, seconds):
    """The closing table: a line a run with its state and time, then the totals; `seconds` passed on the clock."""
    width = max(len(run.id) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<9} {'time':>12}"]
    for run in runs:
        before = states[run.id].name.replace("done", "as before")
        result = outcomes.get(run.id, Outcome(run.id, before))
        lines.append(
            f"{run.id:<{width}}  {result.name:<9} {duration(result.seconds) if result.seconds else '':>12}".rstrip()
        )
    spent = [result.seconds for result in outcomes.values() if result.seconds]
    kernels = duration(sum(result.kernel_seconds for result in outcomes.values()))
    of_runs = f"the runs' own times add up to {duration(sum(spent))}, {kernels} of it starting kernels"
    lines.append(f"{len(spent)} executed in {duration(seconds)}; {of_runs}")
    return "\n".join(lines)


class Progress:
    """Shows running runs: live lines on a terminal, otherwise one line at each start and end.

    chosen: the runs to execute; states: their State, for the estimates; jobs: how many run at once; stream: where to
    write (standard output).
    """

    def __init__(self, chosen, states, jobs, stream=None):
        self.seconds, self.jobs = {run.id: states[run.id].seconds for run in chosen}, jobs
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.running, self.ended_ids, self.drawn = {}, set(), 0

    def started(self, run_id):
        """Note that a run began."""
        self.running[run_id] = time.monotonic()
        if not self.live:
            self.note(f"start   {run_id} (about {duration(self.seconds[run_id])})")

    def note(self, text):
        """Write a line that stays."""
        self._draw([])
        self.stream.write(shown(text) + "\n")
        self.stream.flush()

    def ended(self, result):
        """Note what a run came to, with its message where it failed."""
        self.running.pop(result.run, None)
        self.ended_ids.add(result.run)
        spent = f" in {duration(result.seconds)}" if result.seconds else ""
        message = f": {result.message}" if result.message else ""
        self.note(f"{result.name:<7} {result.run}{spent} [{len(self.ended_ids)}/{len(self.seconds)}]{message}")

    def tick(self):
        """Redraw the live lines."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self._draw([_shorten(line, width) for line in self._lines()])
            self.stream.flush()

    def _draw(self, lines):
        """Write lines in place of the former live lines."""
        above = f"\x1b[{self.drawn}A\x1b[J" if self.drawn else ""
        self.stream.write(above + "".join(f"{line}\n" for line in lines))
        self.drawn = len(lines)

    def _lines(self):
        left = sum(self.seconds[name] for name in self.seconds.keys() - self.ended_ids - self.running.keys())
        for run_id, began in self.running.items():
            spent = time.monotonic() - began
            remaining = max(0.0, self.seconds[run_id] - spent)
            left += remaining
            yield f"  {run_id}  {duration(spent)}, {f'about {duration(remaining)} left' if remaining else 'late'}"
        yield f"  {len(self.ended_ids)} of {len(self.seconds)} ended, about {duration(left / self.jobs)} left"
