"""A scenario: what to start, what load to put on it, what it is judged by. One file each, `scenarios/*.toml`.

Unknown keys are refused, in the tables of load flags too: a misspelt key would measure something else. A file says:

    row      = "what the target table calls it"
    suite    = "targets" or "scale": which `make bench*` runs it
    server   = "gateway" (default) or "nginx"
    store    = "kafka", "memory" or "null"
    brokers  = 0, 1 or 3; scenarios with the same number share one cluster in one run
    shards   = 1
    pinned   = false; true: the server on the first core, the generator on the second
    tls      = false; true: publishing goes to the gateway's TLS listener
    fresh    = false; true: a gateway of its own for each run (else those of equal settings share one)
    set      = ["KEY=VALUE", ..] for the gateway
    order    = 0; runs of a stage go by it, then by name
    [load]     flags of perf/load
    [fill]     flags of the load that fills the topics, once for each gateway (kafka: once)
    [prepare]  flags over those of [load], run before each run: joins a group, connects
    [beside]   flags of a second load that runs during each run
    [sweep]    one name and its values: a flag of perf/load, `shards`, or `rate_share` (of the rate of `rate_of` at `rate_at`)
    [[target]] figure, max or min, and: at (value of the sweep), of (scenario whose figure it is a multiple of; `peer:NAME`: the
               peers' bench judges it), of_at (its value of the sweep), note
"""

import pathlib
import tomllib

import measure

FOLDER = measure.HERE / "scenarios"
PEER = "peer:"
DEFAULTS = {
    "row": None, "suite": None, "server": "gateway", "store": None, "brokers": 0, "shards": 1, "pinned": False, "tls": False, "fresh": False,
    "set": [], "order": 0, "rate_of": None, "rate_at": None, "load": None, "fill": None, "prepare": None, "beside": None, "sweep": {},
    "target": [],
}
CHOICES = {"suite": ("targets", "scale"), "server": ("gateway", "nginx"), "store": ("kafka", "memory", "null", None), "brokers": (0, 1, 3)}
TARGET_KEYS = {"figure", "at", "max", "min", "of", "of_at", "note"}
FIGURES = {"cpu_us", "cpu_user_us", "broker_us", "per_s", "p50_ms", "p99_ms", "core_percent", "rss_kb", "rss_per_poll_kb", "threads", "fds",
           "end_to_end_p50_ms", "end_to_end_p99_ms"}


class Scenario:
    """See the module text; each key is an attribute."""

    def __init__(self, name, written, flags):
        self.name = name
        self.refuse(set(written) - set(DEFAULTS), "unknown keys")
        for key, default in DEFAULTS.items():
            setattr(self, key, written.get(key, default))
        for key, choices in CHOICES.items():
            self.refuse(getattr(self, key) not in choices, f"{key} is one of {choices}")
        for key, default in DEFAULTS.items():
            self.refuse(default is not None and not isinstance(getattr(self, key), type(default)), f"{key} is a {type(default).__name__}")
        for table in (self.load, self.fill, self.prepare, self.beside):
            self.refuse(set(table or {}) - flags, "unknown flags of perf/load")
        self.refuse(not self.row, "row is missing")
        self.refuse(self.load is None, "[load] is missing")
        self.refuse((self.server == "nginx") == (self.store is not None), "a gateway has a store, nginx has none")
        self.refuse((self.store == "kafka") != (self.brokers > 0), "brokers go with store kafka")
        self.refuse(len(self.sweep) > 1, "[sweep] has one name")
        self.sweep_key, self.values = next(iter(self.sweep.items()), (None, [None]))
        self.refuse(self.sweep_key is not None and self.sweep_key not in flags | {"shards", "rate_share"}, "[sweep] names no flag of perf/load")
        self.refuse(not isinstance(self.values, list) or not self.values, "[sweep] has a list of values")
        self.refuse((self.sweep_key == "rate_share") != (self.rate_of is not None), "rate_of goes with a sweep of rate_share")
        for target in self.target:
            self.check_target(target)

    def refuse(self, found, says):
        if found:
            listed = f" {', '.join(sorted(found))}" if isinstance(found, set) else ""
            raise measure.Failure(f"scenarios/{self.name}.toml: {says}{listed}")

    def check_target(self, target):
        self.refuse(set(target) - TARGET_KEYS, "unknown keys of a target")
        self.refuse(target.get("figure") not in FIGURES, f"a target's figure is one of {', '.join(sorted(FIGURES))}")
        self.refuse(("max" in target) == ("min" in target), "a target has max or min")
        self.refuse(self.sweep_key and target.get("at") not in self.values, "a target is judged at one of the values of the sweep")

    def is_read(self):
        return self.load.get("work") in ("subscribe", "idle")

    def shards_at(self, value):
        return value if self.sweep_key == "shards" else self.shards

    def settings(self):
        """What the gateway is started with beside its store and shards."""
        # Gateway, brokers and generator share the cores as the scheduler likes: pinning would starve one of them.
        own = ["drain.notice_s=0"] + ([] if self.pinned else ["shard.pin=false"])
        return own + (["topics.auto_create=true"] if self.store == "kafka" else []) + self.set

    def flags_at(self, value, seconds, rate=None):
        """The flags of the measured load at this value of the sweep."""
        flags = {"topic": self.name, "warmup-s": 0.5, "seconds": seconds, **self.load}
        if self.tls:
            flags["tls"] = True
        if self.sweep_key == "rate_share":
            flags["rate"] = rate
        elif self.sweep_key not in (None, "shards"):
            flags[self.sweep_key] = value
            # As many connections as there are groups to read by.
            if self.sweep_key == "groups":
                flags["connections"] = max(value, flags.get("connections", 1))
        return flags

    def value_text(self, value):
        return "" if value is None else f"{self.sweep_key.replace('_', ' ')} {value}"


def read_all(flags, folder=FOLDER):
    """Every scenario by name, checked, with what they say of each other."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.toml")):
        try:
            written = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise measure.Failure(f"scenarios/{path.name}: {error}") from None
        found[path.stem] = Scenario(path.stem, written, flags)
    for scenario in found.values():
        named = [(scenario.rate_of, scenario.rate_at)] if scenario.rate_of else []
        named += [(target["of"], target.get("of_at", target.get("at"))) for target in scenario.target if "of" in target]
        for name, at in named:
            if name.startswith(PEER):
                continue
            scenario.refuse(name not in found, f"there is no scenario {name}")
            scenario.refuse(found[name].sweep_key and at not in found[name].values, f"{name} is not run at {at}")
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
