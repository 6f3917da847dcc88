"""What a study shows while it runs and before and after: the plan, live lines, the summary."""

import json
import shutil
import sys
import time

from notebook_study.plan import urgency


def duration(seconds):
    """Seconds as a person says them: "8 s", "4 min 05 s", "2 h 10 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def shown(text):
    """Text for a terminal: characters that would steer it are replaced, letters of every script stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def plan_text(runs, states, chosen, jobs, root, details=True):
    """What will be done, as text: with `details` every run of the plan, then one line with the estimate."""
    if chosen:
        total = duration(total_seconds(chosen, states, jobs))
        last = f"{len(chosen)} of {len(runs)} runs to execute, about {total} with {jobs} at once; results in {root}"
    else:
        left = sum(states[run.id].name != "done" for run in runs)
        done = f"the runs asked for are done, of the others {left} not" if left else f"all {len(runs)} runs are done"
        last = f"{done}; tables in {root / 'tables'}"
    return shown("\n".join([*(_run_lines(runs, states) if details else ()), last]))


def total_seconds(chosen, states, jobs):
    """Estimated seconds for the chosen runs, `jobs` at once: no shorter than the longest chain of them."""
    chains = urgency(chosen, states)
    return max(sum(states[run.id].seconds for run in chosen) / jobs, max(chains.values(), default=0))


def _run_lines(runs, states):
    """Each notebook with its common parameters, under it each run with state, estimate, own parameters and inputs."""
    lines = []
    for stem in dict.fromkeys(run.notebook for run in runs):
        group = [run for run in runs if run.notebook == stem]
        common = {
            name: value
            for name, value in group[0].parameters.items()
            if all(run.parameters.get(name) == value and name in run.parameters for run in group)
        }
        lines.append(f"{stem}  {_settings(common)}".rstrip())
        for run in group:
            state = states[run.id]
            own = {name: value for name, value in run.parameters.items() if name not in common}
            reason = f" ({_shorten(state.reason, 120)})" if state.reason else ""
            lines.append(f"  {state.name:<6} {duration(state.seconds):>12}  {run.id}{reason}")
            lines += [f"{'':23}{_settings(own)}"] if own else []
            lines += [f"{'':23}reads {_shorten(', '.join(run.inputs), 160)}"] if run.inputs else []
    return lines


def _settings(parameters):
    return "  ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items())


def _shorten(text, width):
    return text if len(text) <= width else text[: width - 1] + "…"


def summary_text(runs, states, outcomes):
    """The closing table: a line a run with state, seconds and seconds of kernel start, then the totals."""
    width = max(len(run.id) for run in runs)
    lines = [f"{'run':<{width}}  {'state':<8} {'seconds':>8} {'kernel start':>13}"]
    for run in runs:
        result = outcomes.get(run.id)
        if result is None:
            name, seconds, kernel = ("as before" if states[run.id].name == "done" else states[run.id].name), "", ""
        else:
            name, seconds = result.name, f"{result.seconds:.1f}" if result.seconds else ""
            kernel = "" if result.kernel_seconds is None else f"{result.kernel_seconds:.1f}"
        lines.append(f"{run.id:<{width}}  {name:<9}{seconds:>8} {kernel:>13}")
    executed = [result for result in outcomes.values() if result.seconds]
    kernels = sum(result.kernel_seconds or 0 for result in executed)
    spent = sum(result.seconds for result in executed)
    lines.append(f"{len(executed)} executed, {duration(spent)} in all, {duration(kernels)} of it starting kernels")
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
        self.running, self.ended_ids, self.drawn, self.drawn_at = {}, set(), 0, 0.0

    def started(self, run_id):
        """Note that a run began."""
        self.running[run_id] = time.monotonic()
        if not self.live:
            self._line(f"start   {run_id} (about {duration(self.seconds[run_id])})")

    def note(self, text):
        """Write a line that is neither a start nor an end."""
        self._clear()
        self._line(text)

    def ended(self, result):
        """Note what a run came to, with its message where it failed."""
        self.running.pop(result.run, None)
        self.ended_ids.add(result.run)
        count = f"{len(self.ended_ids)}/{len(self.seconds)}"
        spent = f" in {duration(result.seconds)}" if result.seconds else ""
        self._clear()
        self._line(f"{result.name:<7} {result.run}{spent} [{count}]{': ' if result.message else ''}{result.message}")

    def tick(self):
        """Redraw the live lines, at most twice a second."""
        if self.live and time.monotonic() - self.drawn_at >= 0.5:
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            lines = [_shorten(line, width) for line in self._lines()]
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()
            self.drawn, self.drawn_at = len(lines), time.monotonic()

    def _lines(self):
        now, left = time.monotonic(), 0.0
        for run_id, began in self.running.items():
            remaining = max(0.0, self.seconds[run_id] - (now - began))
            left += remaining
            yield f"  {run_id}  {duration(now - began)}, {f'about {duration(remaining)} left' if remaining else 'late'}"
        waiting = self.seconds.keys() - self.ended_ids - self.running.keys()
        left += sum(self.seconds[run_id] for run_id in waiting)
        yield f"  {len(self.ended_ids)} of {len(self.seconds)} ended, about {duration(left / self.jobs)} left"

    def _clear(self):
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0

    def _line(self, text):
        self.stream.write(shown(text) + "\n")
        self.stream.flush()
