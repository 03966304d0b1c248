"""The peers of this comparison: how each is installed, started, asked to publish and to be read. Measures nothing itself."""

import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import subprocess

import measure

HERE = pathlib.Path(__file__).resolve().parent
CACHE = measure.HERE / ".cache" / "peers"
PARTITIONS = 4
# What is read, as Kafka has it and as perf/load and the gateway say it (appid `load`).
DRAINED = "load.drain.v1"
DRAINED_SHORT = "drain"
PIXY_TOPIC = "peers.pixy.v1"
DIRECT_TOPIC = "peers.direct.v1"
NGINX_ANSWER = '{"partition":0,"offset":123456}'
# The settings that differ between the two kafka-pixys; the rest stands in kafka-pixy/config.yaml.in.
PIXY_VARIANTS = {
    # Its default.yaml, but flushing every ms instead of every 500 ms, with which a waiting publisher would wait as long.
    "pixy-1ms": ({"VERSION": "0.10.2.1", "COMPRESSION": "snappy", "FLUSH_BYTES": "1048576", "FLUSH_FREQUENCY": "1ms"}, {}),
    # The record format of today's brokers, no compression (as the others), the flush that gave the best rate here, less garbage collection.
    "pixy-tuned": ({"VERSION": "2.3.0", "COMPRESSION": "none", "FLUSH_BYTES": "1048576", "FLUSH_FREQUENCY": "200us"}, {"GOGC": "400"}),
}


@dataclasses.dataclass
class Peer:
    """A server under load. `reads`: for each kind of read, the arguments of perf/load for a group."""

    name: str
    pids: list
    port: int
    path: str
    script: pathlib.Path = measure.HERE / "post.lua"
    headers: dict = dataclasses.field(default_factory=dict)
    want: int = 201
    has_kafka: bool = True
    generator_core: int = None
    reads: dict = dataclasses.field(default_factory=dict)
    open_group: callable = None


def start_kateway(children, directory, options, fields, shards):
    log = pathlib.Path(directory) / f"kateway-{shards}.log"
    arguments = ["--store", "kafka", "--brokers", fields["brokers"], "--shards", shards]
    # Gateway, broker and generator share the cores as the scheduler likes: pinning would starve one of them.
    for setting in ["topics.auto_create=true", f"topics.partitions={PARTITIONS}", "shard.pin=false", *options.set]:
        arguments += ["--set", setting]
    child, addresses = measure.start_gateway_all(children, log, options.gateway, arguments)
    sub_port = int(addresses["sub"].rpartition(":")[2])

    def read(batch):
        return lambda group: ["--target", f"127.0.0.1:{sub_port}", "--work", "subscribe", "--topic", DRAINED_SHORT,
                              "--batch", batch, "--group", group, "--wait-s", 2]

    def open_group(group):
        path = f"/v1/msgs/load/{DRAINED_SHORT}/v1?group={group}&batch=1&wait=5s&reset=oldest"
        measure.probe(sub_port, path, want=200, method="GET", headers={"Appid": "load"})

    return Peer(f"kateway-{shards}", [child.pid], int(addresses["pub"].rpartition(":")[2]), f"/v1/msgs/bench{shards}/v1?ack=local",
                reads={"batch": read(500), "single": read(1)}, open_group=open_group)


def start_nginx(children, directory, cores):
    """As in bench-quick: one core for it, another for the generator."""
    _, port, pids = measure.start_nginx(children, directory, cores[0], NGINX_ANSWER)
    return Peer("nginx", pids, port, "/v1/msgs/bench/v1?ack=local", has_kafka=False, generator_core=cores[1])


def start_pixy(children, directory, fields, name):
    settings, environment = PIXY_VARIANTS[name]
    port, grpc_port = measure.free_port(), measure.free_port()
    text = (HERE / "kafka-pixy" / "config.yaml.in").read_text()
    places = {"PORT": port, "GRPC_PORT": grpc_port, "BROKERS": fields["brokers"], "ZOOKEEPER": fields["zookeeper"]}
    for key, value in {**places, **settings}.items():
        text = text.replace(f"@{key}@", str(value))
    config = pathlib.Path(directory) / f"{name}.yaml"
    config.write_text(text)
    with open(pathlib.Path(directory) / f"{name}.log", "wb") as log:
        child = children.start([pixy_binary(), "-config", config], stdout=log, stderr=log, env={**os.environ, **environment})
    measure.wait_for_port(port, 30)

    def open_group(group):
        # A new group would start at the end of the topic.
        beginning = [{"partition": partition, "offset": 0, "metadata": ""} for partition in range(PARTITIONS)]
        post_json(port, f"/topics/{DRAINED}/offsets?group={group}", beginning)
        measure.probe(port, f"/topics/{DRAINED}/messages?group={group}", want=200, method="GET", timeout_s=60)

    def single(group):
        return ["--target", f"127.0.0.1:{port}", "--work", "get", "--path", f"/topics/{DRAINED}/messages?group={group}"]

    return Peer(name, [child.pid], port, f"/topics/{PIXY_TOPIC}/messages?sync", script=HERE / "kafka-pixy" / "post.lua",
                headers={"Content-Type": "text/plain"}, want=200, reads={"single": single}, open_group=open_group)


def post_json(port, path, document):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, body=json.dumps(document), headers={"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise measure.Failure(f"POST {path}: {answer.status} {answer.read(300)!r}")


def pixy_binary():
    return CACHE / "bin" / "kafka-pixy"


def install_pixy():
    """Builds kafka-pixy if the version named in kafka-pixy/go.mod is not there. Gives what is in the way, or None."""
    named, built = HERE / "kafka-pixy" / "go.mod", CACHE / "kafka-pixy" / "go.mod"
    if pixy_binary().exists() and built.exists() and built.read_text().splitlines()[-1] == named.read_text().splitlines()[-1]:
        return None
    if not shutil.which("go"):
        return "kafka-pixy: no Go toolchain (apt-get install golang-go)"
    built.parent.mkdir(parents=True, exist_ok=True)
    pixy_binary().unlink(missing_ok=True)
    shutil.copy(named, built)
    # Not `go install ..@version`: that also asks for the list of all versions, which not every proxy gives.
    done = subprocess.run(["go", "build", "-mod=mod", "-o", str(pixy_binary()), "github.com/mailgun/kafka-pixy"], cwd=built.parent,
                          capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"kafka-pixy: go build: {done.stderr.strip()[-500:]}"


def version_of_pixy():
    return (HERE / "kafka-pixy" / "go.mod").read_text().split()[-1]
