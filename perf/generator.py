"""Runs perf/load, and measures the server while what it does counts.

`load --announce` says on stderr when its warm-up is over and when it has ended; CPU times are read at these two moments, memory,
threads and descriptors half way between them, so that connecting, joining a group and the warm-up are left out.
"""

import json
import os
import pathlib
import re
import resource
import select
import subprocess
import tempfile
import time

import measure


def raise_limits():
    """As many open files as the machine gives, for us and for all that we start: 10,000 connections need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def flag_names(binary):
    """The flags of perf/load that a plan is made of, as it names them itself."""
    done = subprocess.run([str(binary), "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^\s+--([a-z-]+) <", done.stdout, re.MULTILINE)) - {"scenario", "json", "target"}


def words(flags):
    """`{"wait-s": 30, "stamp": True}` as the words of a command line."""
    text = lambda value: str(value).lower() if isinstance(value, bool) else str(value)
    return [word for name, value in flags.items() for word in (f"--{name}", text(value))]


class Running:
    """perf/load under way."""

    def __init__(self, children, binary, target, flags, core=None):
        command = [] if core is None else ["taskset", "-c", core]
        command += [binary, "--target", target, *words(flags), "--announce", "--json", "-"]
        self.children, self.flags = children, flags
        self.out = tempfile.TemporaryFile()
        self.child = children.start(command, stdout=self.out, stderr=subprocess.PIPE)
        self.said = b""

    def wait_for(self, mark, timeout_s):
        """Whether it has said so, before `timeout_s` is over. Its end without the mark is a failure."""
        deadline = time.monotonic() + timeout_s
        descriptor = self.child.stderr.fileno()
        while mark.encode() not in self.said.split(b"\n")[:-1]:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not select.select([descriptor], [], [], left)[0]:
                continue
            more = os.read(descriptor, 65536)
            if not more:
                self.finish()
                raise measure.Failure(f"load ended before it said `{mark}`: {self.said.decode(errors='replace')[-500:]}")
            self.said += more
        return True

    def finish(self, is_allowed_to_fail=False):
        """Its report. A single failed request is a failure."""
        self.said += self.child.stderr.read()
        self.child.stderr.close()
        self.child.wait()
        self.children.running.remove(self.child)
        self.out.seek(0)
        text = self.out.read()
        self.out.close()
        if not text:
            raise measure.Failure(f"load gave no report (exit {self.child.returncode}): {self.said.decode(errors='replace')[-500:]}")
        report = json.loads(text)
        if self.child.returncode and not is_allowed_to_fail:
            raise measure.Failure(f"load had errors {report['errors']} with {' '.join(words(self.flags))}")
        return report


def run(children, binary, target, flags, core=None, is_allowed_to_fail=False):
    """One run without a measurement: to fill a topic, to warm up."""
    return Running(children, binary, target, flags, core).finish(is_allowed_to_fail)


def measured(children, binary, target, flags, pids, broker_pids=(), core=None):
    """One run, with what it cost the server (`pids`) and the brokers."""
    running = Running(children, binary, target, flags, core)
    rss_before_kb = held(pids)["rss_kb"]
    seconds = float(flags.get("seconds", 10))
    running.wait_for("counting", 600)
    started, before, before_broker = time.monotonic(), measure.user_and_system_us(pids), measure.user_and_system_us(broker_pids)
    is_over = running.wait_for("counted", seconds / 2)
    half_way = held(pids)
    if not is_over and not running.wait_for("counted", seconds + 60):
        raise measure.Failure(f"load did not end in time: {' '.join(words(flags))}")
    after, after_broker, elapsed_us = measure.user_and_system_us(pids), measure.user_and_system_us(broker_pids), (time.monotonic() - started) * 1e6
    report = running.finish()
    used_us, broker_us = sum(after) - sum(before), sum(after_broker) - sum(before_broker)
    messages = report["messages"]
    row = {
        "messages": messages, "requests": report["requests"], "per_s": round(report["messages_per_s"]),
        "core_percent": round(used_us / elapsed_us * 100, 2), "generator_busy": round(report["generator_busy"], 3),
        **half_way, "rss_before_kb": rss_before_kb, "warnings": report["warnings"],
    }
    if report["requests"]:
        row["p50_ms"], row["p99_ms"] = (round(report["latency_ms"][name], 3) for name in ("p50", "p99"))
    if flags.get("work") == "idle":
        row["rss_per_poll_kb"] = round((half_way["rss_kb"] - rss_before_kb) / flags["connections"], 2)
    elif messages == 0:
        raise measure.Failure(f"not a single message: {' '.join(words(flags))}")
    else:
        row["cpu_us"], row["cpu_user_us"] = round(used_us / messages, 3), round((after[0] - before[0]) / messages, 3)
        if broker_pids:
            row["broker_us"] = round(broker_us / messages, 3)
    if report["end_to_end_ms"]:
        row["end_to_end_p50_ms"] = round(report["end_to_end_ms"]["p50"], 3)
        row["end_to_end_p99_ms"] = round(report["end_to_end_ms"]["p99"], 3)
    return row


def held(pids):
    """What these processes hold now: memory, threads, descriptors."""
    sums = {"rss_kb": 0, "threads": 0, "fds": 0}
    for pid in pids:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        sums["rss_kb"] += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
        sums["threads"] += int(re.search(r"Threads:\s+(\d+)", status).group(1))
        sums["fds"] += len(os.listdir(f"/proc/{pid}/fd"))
    return sums
