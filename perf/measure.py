"""Shared by the benchmarks of this folder: start and stop processes by pid, run wrk, read CPU times from /proc, describe the machine.

What a figure means: `cpu_us` is user and system time of a whole process (all its threads, and those of its children named by
pid) from /proc/PID/stat over the run, divided by the requests the load generator counted as answered with 2xx.
"""

import datetime
import http.client
import json
import os
import pathlib
import platform
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
TRACING = pathlib.Path("/sys/kernel/tracing")
TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
# What nginx answers, as the gateway would.
NGINX_ANSWER = '{"partition":0,"offset":123456}'


class Failure(Exception):
    """Says in one line what went wrong; the benchmark ends with it."""


class Children:
    """Every process started here, so that all of them end with us, by pid, whatever happens."""

    def __init__(self):
        self.running = []

    def start(self, command, **options):
        child = subprocess.Popen([str(part) for part in command], **options)
        self.running.append(child)
        return child

    def stop(self, child, wait_s=10):
        if child.poll() is None:
            if child.stdin:
                child.stdin.close()
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(wait_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child in self.running:
            self.running.remove(child)

    def check(self):
        """A child that ended by itself ends the benchmark."""
        for child in self.running:
            if child.poll() is not None:
                raise Failure(f"{child.args[0]} ended by itself with exit code {child.returncode}")

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        return self

    def __exit__(self, *_):
        for child in reversed(list(self.running)):
            self.stop(child)


def ready_line(child, prefix, timeout_s):
    """Reads stdout of `child` until a line starts with `prefix`, and returns the `name=value` fields up to there."""
    deadline = time.monotonic() + timeout_s
    pending, fields = b"", {}
    descriptor = child.stdout.fileno()
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.1)[0]:
            continue
        more = os.read(descriptor, 65536)
        if not more:
            break
        pending += more
        *lines, pending = pending.split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            fields |= dict(field.split("=", 1) for field in text.split() if "=" in field)
            if text.startswith(prefix):
                return fields
    raise Failure(f"{child.args[0]}: no line `{prefix}..` within {timeout_s} s (exit {child.poll()})")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_nginx(children, directory, core, answer):
    """nginx with one worker on `core`; returns the child, its port, and the pids whose CPU counts."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    port = free_port()
    affinity = "1" + "0" * core
    text = (HERE / "nginx.conf.in").read_text()
    for name, value in {"AFFINITY": affinity, "DIR": str(directory), "PORT": str(port), "ANSWER": answer}.items():
        text = text.replace(f"@{name}@", value)
    conf = pathlib.Path(directory) / "nginx.conf"
    conf.write_text(text)
    child = children.start([nginx, "-c", conf, "-p", directory], stderr=subprocess.DEVNULL)
    wait_for_port(port)
    # The port is there before the worker, whose CPU is what counts.
    workers = wait_for("nginx has no worker", lambda: child_pids(child.pid))
    return child, port, [child.pid, *workers]


def wait_for(failure, look, timeout_s=10):
    """What `look` gives, once it is something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise Failure(f"{failure} after {timeout_s} s")


def wait_for_port(port, timeout_s=10):
    def listens():
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            return False
        return True

    wait_for(f"nothing listens on port {port}", listens, timeout_s)


def child_pids(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def numbers(text):
    return [int(word) for word in text.split(",")]


def target_folder():
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))


def starting_elsewhere(plan, index, rounds):
    """The plan of one round; each round starts elsewhere in the list, so that drift favours nobody."""
    turn = index * (len(plan) // rounds or 1) % len(plan)
    return plan[turn:] + plan[:turn]


def start_gateway(children, log_path, gateway, arguments, core=None):
    """The gateway on free ports; returns the child and its publish address."""
    child, addresses = start_gateway_all(children, log_path, gateway, arguments, core)
    return child, addresses["pub"]


def start_gateway_all(children, log_path, gateway, arguments, core=None, under=(), env=None):
    """The gateway on free ports, `under` another program if asked; returns the child and the addresses of its listeners: pub, sub, man."""
    command = [] if core is None else ["taskset", "-c", core]
    command += [*under, gateway, "run", *arguments]
    for listener in ("--pub", "--sub", "--man"):
        command += [listener, "127.0.0.1:0"]
    with open(log_path, "wb") as log:
        child = children.start(command, stdout=subprocess.PIPE, stderr=log, env=env)
    try:
        return child, ready_line(child, "ready ", 30)
    except Failure as failure:
        raise Failure(f"{failure}\n{pathlib.Path(log_path).read_text(errors='replace')[-2000:]}") from None


def certificate(directory):
    """A file with a certificate and its key, made for this run."""
    path = pathlib.Path(directory) / "certificate.pem"
    if not path.exists():
        key, pem = path.with_suffix(".key"), path.with_suffix(".crt")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", *curve, "-subj", "/CN=kateway", "-days", "2", "-keyout", key, "-out", pem]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        path.write_text(pem.read_text() + key.read_text())
    return path


def descendants(pid):
    found = child_pids(pid)
    return found + [deeper for child in found for deeper in descendants(child)]


def command_line(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def start_brokers(children, directory, command):
    """The test package's `testbed`; returns the brokers' addresses and the pids whose CPU counts."""
    fields, pids = start_testbed(children, directory, command)
    return fields["brokers"], pids


def start_testbed(children, directory, command):
    """As `start_brokers`, with all that the testbed says: brokers, zookeeper."""
    log = open(pathlib.Path(directory) / "testbed.log", "wb")
    # Its own stdin, kept open: the end of it stops the testbed, also when this script is killed.
    child = children.start(command, cwd=HERE.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    try:
        fields = ready_line(child, "zookeeper=", 180)
    except Failure as failure:
        raise Failure(f"{failure}\n{pathlib.Path(log.name).read_text(errors='replace')[-2000:]}") from None
    return fields, [pid for pid in descendants(child.pid) if b"kafka.Kafka" in command_line(pid)]


def broker_settings(pid):
    """The memory and the properties of a broker, without its places: addresses and folders."""
    words = command_line(pid).decode().split("\0")
    file = next(pathlib.Path(word) for word in words if word.endswith("server.properties"))
    lines = [line for line in file.read_text().splitlines() if line and "/" not in line and "127.0.0.1" not in line]
    return "\n".join([" ".join(word for word in words if word.startswith("-X")), *lines])


def log_tails(directory, lines_max=8):
    """The last lines of what the gateways and the testbed wrote, for whoever has to find out why."""
    tails = []
    for log in sorted(pathlib.Path(directory).glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-lines_max:]
        tails += [f"--- {log.name}", *lines]
    return "\n".join(tails)


def user_and_system_us(pids):
    """User and system time of these processes so far."""
    user, system = 0, 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11]) * TICK_US
        system += int(fields[12]) * TICK_US
    return user, system


def probe(port, path, want=201, timeout_s=15, method="POST", headers=None):
    """One request before the load: a wrong answer must not be measured. Retries while a topic is being made."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path, body=b"k" * 1024 if method == "POST" else None, headers=headers or {})
            answer = connection.getresponse()
            body = answer.read(400)
            if answer.status == want:
                return
            seen = f"{answer.status} {body[:200]!r}"
        except OSError as error:
            seen = str(error)
        if time.monotonic() > deadline:
            raise Failure(f"probe of port {port}: wanted {want}, got {seen}")
        time.sleep(0.3)


def wrk(port, path, connections, duration_s, core=None, threads=1, script=HERE / "post.lua"):
    """One run of wrk; returns its summary with the generator's own CPU time."""
    command = ["taskset", "-c", str(core)] if core is not None else []
    command += ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{duration_s}s", "--latency",
                "-s", str(script), f"http://127.0.0.1:{port}{path}"]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = os.times()
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise Failure(f"wrk gave no summary: {done.stderr.strip() or done.stdout.strip()}")
    summary = json.loads(lines[-1])
    used_s = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    summary["generator_busy"] = round(used_s / (summary["duration_us"] / 1e6), 3)
    return summary


def measured_run(port, path, connections, duration_s, pids, other_pids=(), **options):
    """One run with the CPU it cost the server (`pids`), and a second group (`other_pids`, brokers) beside it."""
    before, before_other = user_and_system_us(pids), user_and_system_us(other_pids)
    run = wrk(port, path, connections, duration_s, **options)
    after, after_other = user_and_system_us(pids), user_and_system_us(other_pids)
    used = sum(after) - sum(before)
    good = max(run["requests"] - run["not_2xx"], 1)
    run["requests_per_s"] = round(run["requests"] * 1e6 / run["duration_us"])
    run["cpu_us"] = round(used / good, 3)
    run["cpu_user_us"] = round((after[0] - before[0]) / good, 3)
    run["server_busy"] = round(used / run["duration_us"], 3)
    if other_pids:
        run["broker_cpu_us"] = round((sum(after_other) - sum(before_other)) / good, 3)
    return run


def count_calls(groups, events, port, path, connections, duration_s, core=None):
    """Events per request while wrk runs, of each group of threads: `{name: ["-p", pids] or ["-t", tids]}`. An event without a colon
    is a system call. By perf's tracepoints, which want root; strace would slow the server so much that batches, and with them the
    counts, change. Returns wrk's run and the counts by group."""
    if not (TRACING / "events").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "nodev", str(TRACING)], check=False, stderr=subprocess.DEVNULL)
    if not (TRACING / "events").is_dir():
        raise Failure(f"no tracepoints: {TRACING} cannot be mounted (wants root)")
    named = ",".join(event if ":" in event or "-" in event else f"syscalls:sys_enter_{event}" for event in events)
    with Children() as watchers, tempfile.TemporaryDirectory(prefix="calls.") as directory:
        reports = {name: pathlib.Path(directory) / name for name in groups}
        perf = [watchers.start(["perf", "stat", "-x", ";", "-o", reports[name], "-e", named, *threads]) for name, threads in groups.items()]
        # perf says nothing when it has attached; what it misses of the first moment is lost in seconds of load.
        time.sleep(0.5)
        run = wrk(port, path, connections, duration_s, core)
        for watcher in perf:
            watcher.send_signal(signal.SIGINT)
            watcher.wait(timeout=10)
        counts = {}
        for name, report in reports.items():
            rows = [line.split(";") for line in report.read_text().splitlines()]
            counts[name] = {row[2].removeprefix("syscalls:sys_enter_"): int(row[0]) / run["requests"]
                            for row in rows if len(row) > 2 and row[0].isdigit()}
            if not counts[name]:
                raise Failure(f"perf counted nothing of {name}: {report.read_text()}")
    return run, counts


def median(rows, name):
    return statistics.median(row[name] for row in rows)


def spread(rows, name):
    """Lowest and highest, as a share of the median."""
    values = [row[name] for row in rows]
    middle = statistics.median(values) or 1
    return f"-{(middle - min(values)) / middle * 100:.0f}/+{(max(values) - middle) / middle * 100:.0f} %"


def machine():
    """What a reader needs to compare figures; no host names."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
        "wrk": first_line(["wrk", "--version"]),
        "nginx": first_line([shutil.which("nginx") or "/usr/sbin/nginx", "-v"]),
    }


def commit():
    """The commit measured, and whether what is built differs from it."""
    name = first_line(["git", "-C", str(HERE.parent), "rev-parse", "--short", "HEAD"])
    changed = first_line(["git", "-C", str(HERE.parent), "status", "--porcelain", "--", "src", "Cargo.lock"])
    return ("nocommit" if " " in name else name), bool(changed)


def repeatable_command(script, places):
    """The command line without the places of this machine (flags with a value), which differ elsewhere."""
    words = iter(sys.argv[1:])
    kept = [script]
    for word in words:
        name = word.partition("=")[0]
        if name in places:
            if "=" not in word:
                next(words, None)
            continue
        kept.append(word)
    return " ".join(kept)


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "absent"
    return next(iter((done.stdout + done.stderr).splitlines()), "").strip()
