"""What a run of perf/bench says: a table of medians, a verdict for each target, and a folder with README.md, raw.json and plots."""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys

import measure
from scenario import PEER

BUSY_WARNING = 0.93
# The targets were written on a host where nginx took this long for the same request (wrk, 64 connections).
NGINX_CPU_US_THEN = 7.1
UNITS = {"cpu_us": "us CPU per message", "cpu_user_us": "us user CPU per message", "broker_us": "us of the brokers' CPU per message",
         "per_s": "messages a second", "p50_ms": "ms p50", "p99_ms": "ms p99", "core_percent": "% of a core", "rss_kb": "KB RSS",
         "rss_per_poll_kb": "KB RSS per poll", "threads": "threads", "fds": "descriptors",
         "end_to_end_p50_ms": "ms from publish to read, p50", "end_to_end_p99_ms": "ms from publish to read, p99"}
COLUMNS = [("per_s", "msg/s", "{:.0f}"), ("p50_ms", "p50 ms", "{:.2f}"), ("p99_ms", "p99 ms", "{:.2f}"), ("cpu_us", "CPU us", "{:.2f}"),
           ("cpu_user_us", "user us", "{:.2f}"), ("broker_us", "broker us", "{:.2f}"), ("core_percent", "% core", "{:.1f}"),
           ("rss_mb", "RSS MB", "{:.0f}"), ("rss_per_poll_kb", "KB/poll", "{:.1f}"), ("threads", "threads", "{:.0f}"), ("fds", "fds", "{:.0f}"),
           ("end_to_end_p50_ms", "read p50", "{:.2f}"), ("end_to_end_p99_ms", "read p99", "{:.2f}"), ("generator_busy", "gen busy", "{:.2f}")]


def folder(name):
    commit, _ = measure.commit()
    date = measure.machine()["date"][:10]
    return measure.HERE / "results" / "-".join(filter(None, (date, commit, name)))


def line(scenario, row):
    """One run, while it goes on."""
    cost = f"{row['cpu_us']:7.2f} us CPU" if "cpu_us" in row else f"{row['rss_per_poll_kb']:7.1f} KB a poll, {row['core_percent']} % of a core"
    label = " ".join(filter(None, (scenario.name, scenario.value_text(row["value"]), row["variant"])))
    return f"{label:44} {row['per_s']:8}/s {row.get('p50_ms', 0):8.2f} ms p50 {cost}"


def number(value):
    """With as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Result:
    """Rows of a run and what follows from them."""

    def __init__(self, options, chosen, rows, facts, took_s):
        self.options, self.chosen, self.rows, self.facts, self.took_s = options, chosen, rows, facts, took_s
        for row in rows:
            row["rss_mb"] = row["rss_kb"] / 1024
        self.by_name = {scenario.name: scenario for scenario in chosen}
        self.labels = [variant.label for variant in options.variants]

    def runs(self, name, value=None, label=None):
        label = self.labels[0] if label is None else label
        return [row for row in self.rows if (row["scenario"], row["value"], row["variant"]) == (name, value, label)]

    def points(self):
        """Every scenario, value and variant there are runs of."""
        for scenario in self.chosen:
            for value in scenario.values:
                for label in self.labels:
                    runs = self.runs(scenario.name, value, label)
                    if runs:
                        yield scenario, value, label, runs

    def table(self):
        """Medians, as Markdown; columns that nobody fills are left out."""
        columns = [column for column in COLUMNS if any(column[0] in row for row in self.rows)]
        heads = ["scenario"] + [head for _, head, _ in columns]
        if "CPU us" in heads:
            heads.insert(heads.index("CPU us") + 1, "spread")
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for scenario, value, label, runs in self.points():
            cells = [", ".join(filter(None, (scenario.name, scenario.value_text(value), label)))]
            for figure, head, form in columns:
                has = figure in runs[0]
                cells.append(form.format(measure.median(runs, figure)) if has else "")
                if head == "CPU us":
                    cells.append(measure.spread(runs, figure) if has else "")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def verdicts(self):
        """One line for each target."""
        lines = ["| target | limit | reached | spread | verdict |", "|---|---|---|---|---|"]
        for scenario in self.chosen:
            for target in scenario.target:
                lines.append(self.verdict(scenario, target))
        return "\n".join(lines) if len(lines) > 2 else ""

    def verdict(self, scenario, target):
        value, figure = target.get("at"), target["figure"]
        what = f"{scenario.row}{', ' + scenario.value_text(value) if scenario.sweep_key else ''}: {UNITS[figure]}"
        sign, limit = ("<=", target["max"]) if "max" in target else (">=", target["min"])
        other = target.get("of")
        shown = f"{sign} {number(limit)}" + (f" x {other.removeprefix(PEER)}" if other else "")
        if "note" in target:
            what += f" ({target['note']})"
        reached = self.reached(scenario, target)
        if not reached:
            own = [row[figure] for row in self.runs(scenario.name, value)]
            why = "`make bench-peers` judges it" if other and other.startswith(PEER) else "not in this run"
            return f"| {what} | {shown} | {number(statistics.median(own)) if own else '-'} (not a ratio) | | {why} |"
        middle = statistics.median(reached)
        is_good = middle <= limit if "max" in target else middle >= limit
        spread = f"{number(min(reached))} .. {number(max(reached))}"
        return f"| {what} | {shown} | {number(middle)} | {spread} | {'reached' if is_good else 'MISSED'} |"

    def reached(self, scenario, target):
        """The figure round by round, or what it is of the other scenario's in the same round."""
        value, figure = target.get("at"), target["figure"]
        own = {row["round"]: row[figure] for row in self.runs(scenario.name, value)}
        if "of" not in target:
            return list(own.values())
        base = {row["round"]: row[figure] for row in self.runs(target["of"], target.get("of_at", value))}
        return [own[index] / base[index] for index in own if base.get(index)]

    def ratios(self):
        """Each variant as a multiple of the first, round by round."""
        if len(self.labels) < 2:
            return ""
        lines = [f"| against {self.labels[0]} | CPU us | spread | msg/s | p50 | p99 | broker us |", "|---|---|---|---|---|---|---|"]
        for scenario, value, label, runs in self.points():
            if label == self.labels[0]:
                continue
            base = {row["round"]: row for row in self.runs(scenario.name, value)}
            cells = [", ".join(filter(None, (scenario.name, scenario.value_text(value), label)))]
            for figure in ("cpu_us", "per_s", "p50_ms", "p99_ms", "broker_us"):
                found = [row[figure] / base[row["round"]][figure] for row in runs if figure in row and base[row["round"]].get(figure)]
                cells.append(f"{statistics.median(found):.3f}" if found else "")
                if figure == "cpu_us":
                    cells.append(f"{min(found):.3f} .. {max(found):.3f}" if found else "")
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def doubts(self):
        """What a reader has to know before he believes a figure."""
        found = []
        busy = [f"{s.name} {s.value_text(v)}".strip() for s, v, _, runs in self.points() if measure.median(runs, "generator_busy") > BUSY_WARNING]
        if busy:
            found.append(f"The generator was at its limit (more than {BUSY_WARNING:.0%} of a core) in: {', '.join(busy)}. Their rates are the "
                         "generator's; their CPU per message stands.")
        missed = [f"{s.name} {s.value_text(v)}" for s, v, _, runs in self.points()
                  if statistics.median("were asked for" in " ".join(row["warnings"]) for row in runs)]
        if missed:
            found.append(f"The rate asked for was not kept in: {', '.join(missed)}.")
        if self.options.rounds < 5:
            found.append(f"{self.options.rounds} rounds: fewer than the five that a verdict wants.")
        nginx = self.runs("nginx")
        if nginx:
            here = measure.median(nginx, "cpu_us")
            found.append(f"nginx took {here:.2f} us of CPU here; the targets in us were written beside an nginx of {NGINX_CPU_US_THEN} us, so this host "
                         f"(or hour) is {here / NGINX_CPU_US_THEN:.2f} x as slow. The verdicts are not scaled by it.")
        load = measure.machine()["load_average"]
        found.append(f"Load average at the end: {load:.1f}.")
        return found

    def text(self):
        parts = [self.verdicts(), self.ratios(), self.table(), "\n".join(self.doubts())]
        return "\n\n".join(filter(None, parts)) + "\n"

    # === the folder ===

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        commit, has_changed = measure.commit()
        machine = measure.machine()
        command = self.options.command or measure.repeatable_command("perf/bench", ["--load", "--testbed", "--out", "--gateway"])
        rows = [{name: value for name, value in row.items() if name != "rss_mb"} for row in self.rows]
        raw = {"machine": machine, "commit": commit, "uncommitted_changes": has_changed, "command": command, "rows": rows}
        (folder / "raw.json").write_text(json.dumps(raw, indent=1) + "\n")
        plots = Plots(self, folder).draw()
        (folder / "README.md").write_text(self.readme(commit, has_changed, machine, command, plots))

    def readme(self, commit, has_changed, machine, command, plots):
        seconds = f"{self.options.rounds} rounds, alternating, {self.options.seconds:g} s a run unless its line below says otherwise; medians"
        facts = [
            f"Command: `{command}` ({seconds}; took {self.took_s / 60:.0f} min)",
            f"Commit: {commit}{' with uncommitted changes' if has_changed else ''}",
            f"Machine: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}",
            f"Versions: {machine['nginx']}; {measure.first_line(['java', '-version'])}; {measure.first_line([self.options.load, '--version'])}",
            "Pinning: scenarios with `pinned = true`: the server on the first core, the generator on the second; all others unpinned",
        ] + self.doubts()
        parts = [f"# {'bench ' + self.options.suite if not self.options.scenario else 'bench ' + ', '.join(self.by_name)}, "
                 f"{machine['date']}, {commit}", "\n".join(f"- {fact}" for fact in facts)]
        sections = [("Verdicts", self.verdicts()), ("Ratios", self.ratios()), ("Medians", self.table()),
                    ("Plots", "\n".join(f"![{says}]({name})" for name, says in plots)), ("What was run", self.commands()),
                    ("Brokers", self.broker_settings())]
        parts += [f"## {title}\n{text}" for title, text in sections if text]
        parts.append("Every run is in `raw.json`. Columns and terms: `perf/README.md`.")
        return "\n\n".join(parts) + "\n"

    def commands(self):
        blocks = [f"# {name}\n" + "\n".join(commands) for name, commands in self.facts["commands"].items()]
        return "```\n" + "\n".join(blocks) + "\n```"

    def broker_settings(self):
        blocks = [f"{count} broker{'s' if count > 1 else ''} (the first of them; `testbed --brokers {count}`):\n```\n{text}\n```"
                  for count, text in self.facts["brokers"].items()]
        return "\n\n".join(blocks)


class Plots:
    """The result's SVG files, by gnuplot."""

    HEAD = ("set terminal svg size {width},{height} dynamic font 'sans-serif,13' background 'white'\n"
            "set output '{file}'\nset grid lc rgb '#d8d8d8' lw 0.7\nset key tmargin center horizontal reverse Left samplen 2\nset border 3\n"
            "set tics nomirror\nset yrange [0:*]\nset style data yerrorlines\nset bars 0.6\nset pointsize 0.6\n")
    COLOURS = ["#0060ad", "#c23b22", "#3a7d34", "#7b4ea3", "#b8860b", "#444444"]

    def __init__(self, result, folder):
        self.result, self.folder = result, pathlib.Path(folder)

    def draw(self):
        """Gives the files written, each with what it shows."""
        if not shutil.which("gnuplot"):
            print("no plots: gnuplot is not installed (apt-get install gnuplot-nox)", file=sys.stderr)
            return []
        drawn = []
        for scenario in self.result.chosen:
            if len({row["value"] for row in self.result.rows if row["scenario"] == scenario.name}) < 2:
                continue
            if scenario.sweep_key == "rate_share":
                drawn.append(self.latency(scenario))
            elif scenario.suite == "scale":
                drawn.append(self.scale(scenario))
            else:
                drawn.append(self.cost(scenario))
        return drawn

    def latency(self, scenario):
        name = f"{scenario.name}-latency.svg"
        series = [(f"{label} {figure[:3]}".strip(), [(rate / 1000, *rest) for rate, *rest in self.series(scenario, "rate", figure, label)])
                  for label in self.result.labels for figure in ("p50_ms", "p99_ms")]
        script = self.head(name) + f"set title {quoted(scenario.row)}\n"
        script += ("set xlabel 'thousand messages a second (open loop)'\nset xrange [0:*]\n"
                   "set ylabel 'latency from the intended sending, ms'\n" + decades(series))
        limits = [target["max"] for target in scenario.target if target["figure"] == "p99_ms" and "max" in target]
        self.plot(script, series, [f"{limit} title 'target p99' with lines dashtype 2 lc rgb '#888888'" for limit in limits])
        return name, "latency against rate"

    def cost(self, scenario):
        name = f"{scenario.name}-cpu.svg"
        series = [(f"{label} gateway".strip(), self.series(scenario, "value", "cpu_us", label)) for label in self.result.labels]
        series.append(("brokers", self.series(scenario, "value", "broker_us", self.result.labels[0])))
        script = self.head(name) + f"set title {quoted(scenario.row)}\n" + self.sweep_axis(scenario)
        self.plot(script + decades(series) + "set ylabel 'CPU per message, us'\n", series)
        return name, f"CPU per message against {scenario.sweep_key}"

    def scale(self, scenario):
        """Four panels: what a message costs and what the process holds."""
        name = f"{scenario.name}.svg"
        script = self.head(name, 960, 720) + f"set multiplot layout 2,2 title {quoted(scenario.row)} font ',15'\n" + self.sweep_axis(scenario)
        panels = [("CPU per message, us", [("gateway", "cpu_us"), ("broker", "broker_us")]), ("messages a second", [("", "per_s")]),
                  ("RSS of the gateway, MB", [("", "rss_mb")]), ("held by the gateway", [("threads", "threads"), ("descriptors", "fds")])]
        for label, figures in panels:
            series = [(" ".join(filter(None, (variant, title))), self.series(scenario, "value", figure, variant))
                      for variant in self.result.labels for title, figure in figures]
            highest = max((row[3] for _, rows in series for row in rows), default=0)
            shown = f"set ylabel '{label}'\nset format y '{'%.0s%c' if highest >= 10_000 else '%g'}'\n"
            linear = "unset logscale y\nset yrange [0:*]\nset ytics autofreq\n"
            script += shown + (decades(series) or linear) + plot_line(series, self.COLOURS)
        self.gnuplot(script + "unset multiplot\n")
        return name, f"cost against {scenario.sweep_key}"

    def head(self, name, width=860, height=500):
        return self.HEAD.format(width=width, height=height, file=name)

    def sweep_axis(self, scenario):
        """As the values are spread: by their logarithm when they go over a decade, each with its tick."""
        values = sorted({row["value"] for row in self.result.rows if row["scenario"] == scenario.name})
        ticks = ", ".join(f"'{short(value)}' {value}" for value in values)
        scale = "set logscale x 2\n" if values[0] > 0 and values[-1] / values[0] > 10 else ""
        span = f"set xrange [{values[0] * 0.8}:{values[-1] * 1.25}]\n" if scale else f"set xrange [0:{values[-1] * 1.1}]\n"
        names = {"size": "bytes of a message"}
        return f"{scale}{span}set xtics ({ticks})\nset xlabel '{names.get(scenario.sweep_key, scenario.sweep_key)}'\n"

    def series(self, scenario, across, figure, label):
        """Rows of x, median, lowest, highest."""
        found = []
        for value in scenario.values:
            runs = [row for row in self.result.runs(scenario.name, value, label) if figure in row]
            if runs:
                values = [row[figure] for row in runs]
                found.append((runs[0][across], statistics.median(values), min(values), max(values)))
        return found

    def plot(self, script, series, more=()):
        self.gnuplot(script + plot_line(series, self.COLOURS, more))

    def gnuplot(self, script):
        done = subprocess.run(["gnuplot"], input=script, text=True, capture_output=True, cwd=self.folder, check=False)
        if done.returncode:
            raise measure.Failure(f"gnuplot: {done.stderr.strip()}")


def short(value):
    """A tick: 512Ki rather than 524,288, 2k rather than 2,000."""
    for unit, sign in ((1 << 20, "Mi"), (1 << 10, "Ki"), (1_000_000, "M"), (1_000, "k")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{sign}"
    return f"{value:,g}"


def decades(series):
    """A logarithmic y axis where the values go over a decade: small ones could not be told apart on a linear one."""
    values = [value for _, rows in series for row in rows for value in row[2:]]
    if not values or min(values) <= 0 or max(values) / min(values) < 10:
        return ""
    steps = [digit * 10**power for power in range(-3, 7) for digit in (1, 2, 5)]
    ticks = [step for step in steps if min(values) / 2.5 <= step <= max(values) * 2.5]
    listed = ", ".join(f"'{short(tick)}' {tick}" for tick in ticks)
    return f"set logscale y\nset yrange [{ticks[0]}:{ticks[-1]}]\nset ytics ({listed})\n"


def plot_line(series, colours, more=()):
    """Data in line, then the plot of it."""
    series = [(title, rows) for title, rows in series if rows]
    blocks = "".join(f"$d{n} << END\n" + "\n".join(" ".join(map(str, row)) for row in rows) + "\nEND\n" for n, (_, rows) in enumerate(series))
    parts = [f"$d{n} using 1:2:3:4 title {quoted(title)} pt 7 lw 1.6 lc rgb '{colours[n % len(colours)]}'" for n, (title, _) in enumerate(series)]
    return f"{blocks}plot {', '.join([*parts, *more])}\n"


def quoted(text):
    """A string that gnuplot takes as it is."""
    return "'" + text.replace("'", "''").replace("`", "") + "' noenhanced" if text else "''"
