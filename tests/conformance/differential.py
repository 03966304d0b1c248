#!/usr/bin/env python3
"""Ten thousand requests, good and bad, read by kateway, h11 and llhttp: kateway accepts nothing that either of them refuses.

    differential.py --publish HOST:PORT --subscribe HOST:PORT [--count N] [--seed N]

Method: requests come from a corpus of forms that parsers have disagreed on, and from mutations of them by a seeded generator. Each
is sent as raw bytes on a connection whose sending side is then closed, so an unfinished message is seen as such. What kateway
accepts (any answer that is not about the bytes themselves) must be accepted by h11 and by llhttp, message by message; and what it
stored, read back at the end, must be the body that both of them found. kateway may refuse more: that is counted, not a failure.

Where it accepts what one of the others refuses, EXCEPTIONS says why that is right. Needs the packages h11 and llhttp.
"""

import argparse
import collections
import json
import random
import re
import socket
import struct
import sys
import urllib.request

import h11
import llhttp

APP, TOPIC = "differential", "t"
TARGET = f"/v1/msgs/{TOPIC}/v1?partition=0"
HOST = "Host: kateway\r\nAppid: " + APP + "\r\n"

# Codes of answers that are about the bytes, not about what they ask for.
ABOUT_BYTES = {40000, 40800, 40801, 40802, 41400, 41700, 43100}

# What one of the others refuses and kateway accepts: who, the beginning of its complaint, what the request then has to look like, and
# why kateway is right.
EXCEPTIONS = [
    ("llhttp", "Invalid method", b"", "it has a list of methods; RFC 9110 section 9.1 leaves it open, and kateway answers 405"),
    ("llhttp", "Expected space after method", b"", "the same: a method that begins like one of the list"),
    ("llhttp", "Invalid word encountered", b"", "the same"),
    ("llhttp", "Expected HTTP/2 Connection Preface", rb"PRI [^*]", "the same: PRI alone is no preface"),
    ("llhttp", "Request has invalid `Transfer-Encoding`", rb"(?i)transfer-encoding:[ \t]*chunked[ \t]+\r\n",
     "RFC 9112 section 5: white space behind a value is no part of it"),
    ("h11", "no request line received", b"", "RFC 9112 section 2.2: empty lines before a request are ignored"),
]


# === requests ===

def post(fields="", body="", method="POST", target=TARGET, version="HTTP/1.1", host=HOST):
    return f"{method} {target} {version}\r\n{host}{fields}\r\n{body}".encode("latin-1")


def chunked(body, fields=""):
    return post("Transfer-Encoding: chunked\r\n" + fields, body)


CORPUS = [
    post("Content-Length: 5\r\n", "hello"),
    post("Content-Length: 5\r\n", "hello") * 3,
    post("Content-Length: 005\r\n", "hello"),
    post("content-length:5\r\n", "hello"),
    post("Content-Length: \t5 \r\n", "hello"),
    post("Content-Length: 5\r\nConnection: close\r\n", "hello"),
    post("Content-Length: 5\r\n", "hello", version="HTTP/1.0"),
    post("Content-Length: 5\r\nConnection: keep-alive\r\n", "hello", version="HTTP/1.0") * 2,
    post("Content-Length: 5\r\nExpect: 100-continue\r\n", "hello"),
    post("Content-Length: 5\r\nX-Tag: a;b\r\nX-Empty:\r\n", "hello"),
    post("Content-Length: 5\r\n", "hello", target="http://kateway" + TARGET),
    post("Content-Length: 5\r\n", "hello", method="PUT"),
    post("", "", method="GET", target="/alive"),
    post("", "", method="HEAD", target="/alive"),
    post("", "", method="OPTIONS", target="*"),
    post("", "", method="CONNECT", target="kateway:443"),
    post("Content-Length: 5\r\n", "hello", method="FOO"),
    b"\r\n" + post("Content-Length: 5\r\n", "hello"),
    chunked("5\r\nhello\r\n0\r\n\r\n"),
    chunked("5\r\nhello\r\n0\r\n\r\n") + post("Content-Length: 5\r\n", "hello"),
    chunked("3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"),
    chunked("005\r\nhello\r\n000\r\n\r\n"),
    chunked("A\r\n0123456789\r\n0\r\n\r\n"),
    chunked("5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n"),
    chunked("5\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n"),
    chunked("5\r\nhello\r\n0\r\n\r\n", "Trailer: X-A\r\n"),
    # Two lengths.
    post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
    post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"),
    post("Content-Length: 5, 5\r\n", "hello"),
    post("Content-Length: 5,6\r\n", "hello!"),
    # Lengths that are none.
    *[post(f"Content-Length: {n}\r\n", "hello") for n in
      ["+5", "-5", "0x5", "5.0", "5e0", "\x0b5", "5\x0b", "5 5", "", "five", "\xb2", "99999999999999999999", "18446744073709551621"]],
    # Codings that are none.
    *[post(f"Transfer-Encoding: {c}\r\n", "5\r\nhello\r\n0\r\n\r\n") for c in
      ["gzip, chunked", "chunked, chunked", "chunked, identity", "identity, chunked", "identity", "xchunked", "chunkedx", "\"chunked\"",
       "chunked;q=1", ",chunked", "chunked,", "\x0bchunked", "chunked\x0b", "cHuNkEd", "\tchunked\t", "", "gzip", "chunk", "\u00a0chunked"]],
    post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    post("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", version="HTTP/1.0"),
    *[post(f"{name}: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n") for name in
      ["Transfer-Encoding ", " Transfer-Encoding", "Transfer_Encoding", "Transfer-Encoding\t", "Transfer\rEncoding", "X\nTransfer-Encoding"]],
    # Chunks that are none.
    *[chunked(body) for body in
      ["5 \r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n",
       "5;\r\nhello\r\n0\r\n\r\n", "5; a\r\nhello\r\n0\r\n\r\n", "5 ;a\r\nhello\r\n0\r\n\r\n", "5;a=\r\nhello\r\n0\r\n\r\n",
       "5;a=\"b\r\nhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5;a\x00\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n",
       "5\r\nhello\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n", "6\r\nhello\r\n0\r\n\r\n", "5\rhello\r\n0\r\n\r\n",
       "5\r\nhello\r\n0\r\n", "5\r\nhello\r\n0\r\n\n", "5\r\nhello\r\n0\n\r\n", "5\r\nhello\r\n", "\r\nhello\r\n0\r\n\r\n",
       "10000000000000005\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n", "5,5\r\nhello\r\n0\r\n\r\n",
       "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
       "5\r\nhello\r\n0\r\n: a\r\n\r\n", "5\r\nhello\r\n0\r\nX-A\r\n\r\n", "5\r\nhello\r\n0\r\n X-A: a\r\n\r\n",
       "5\r\nhello\r\n0\r\nX-A: a\nX-B: b\r\n\r\n", "5\r\nhello\r\n0\r\nX-A: \x00\r\n\r\n", "5\r\nhello\r\n-0\r\n\r\n"]],
    # Lines.
    post("Content-Length: 5\r\n", "hello").replace(b"\r\n", b"\n"),
    post("Content-Length: 5\n", "hello"),
    post("X-A: b\r\n c\r\nContent-Length: 5\r\n", "hello"),
    post("X-A: b\r\n\tContent-Length: 5\r\n", ""),
    post("X-A: b\rContent-Length: 5\r\n", "hello"),
    post("X-A: b\x00\r\nContent-Length: 5\r\n", "hello"),
    post("X-A: \x7f\r\nContent-Length: 5\r\n", "hello"),
    post("X-A: \xe9\xff\r\nContent-Length: 5\r\n", "hello"),
    post("X\xe9: a\r\nContent-Length: 5\r\n", "hello"),
    post("X-A\r\nContent-Length: 5\r\n", "hello"),
    post(": a\r\nContent-Length: 5\r\n", "hello"),
    post("X A: a\r\nContent-Length: 5\r\n", "hello"),
    post("Content-Length : 5\r\n", "hello"),
    post("\r\nContent-Length: 5\r\n", "hello"),
    # Hosts and targets.
    post("Content-Length: 5\r\n", "hello", host=""),
    post("Content-Length: 5\r\n", "hello", host=HOST + "Host: b\r\n"),
    *[post("Content-Length: 5\r\n", "hello", host=f"Host: {h}\r\n") for h in ["", "a b", "a/b", "a@b", "a,b", "[::1]:80", "a:b", "\xe9"]],
    *[post("Content-Length: 5\r\n", "hello", target=t) for t in
      ["v1", "", "/a b", "/a\tb", "/\xe9", "/a#b", "//a", "http://", "http:///a", "http://a?b", "HTTP://a/", "/a\x00", "/%zz", "*", "a:1"]],
    *[post("Content-Length: 5\r\n", "hello", version=v) for v in
      ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.10", "HTTP/01.1", "HTTP/1", "HTTP/1.1 ", "HTTP/ 1.1", "XTTP/1.1", ""]],
    *[post("Content-Length: 5\r\n", "hello", method=m) for m in ["post", "PO ST", "P(ST", "", "POST\t", " POST", "PRI", "\xe9"]],
    b"PRI * HTTP/2.0\r\n\r\n",
    b"GET /alive\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]

PIECES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b"\x0b", b"\x0c", b":", b";", b",", b"=", b"\"", b"0", b"5", b"a", b"-", b"+", b"_",
          b"\x7f", b"\x80", b"\xff", b"\r\n\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
          b"Transfer-Encoding: identity\r\n", b"Connection: close\r\n", b"Host: b\r\n", b"chunked", b"0\r\n\r\n", b"5\r\nhello\r\n", b"HTTP/1.0",
          b"HTTP/1.1", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n"]


def mutate(rng, request):
    """One to three small changes, mostly where the framing is."""
    data = bytearray(request)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at:at] = rng.choice(PIECES)
        elif kind == 1:
            del data[at:at + rng.choice([1, 1, 2, 4])]
        elif kind == 2:
            data[at:at + 1] = rng.choice(PIECES)
        elif kind == 3:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind == 4:
            # A line twice, or somewhere else.
            lines = bytes(data).split(b"\r\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            data = bytearray(b"\r\n".join(lines))
        else:
            lines = bytes(data).split(b"\r\n")
            line = lines.pop(rng.randrange(len(lines)))
            if rng.random() < 0.5:
                lines.insert(rng.randrange(len(lines) + 1), line)
            data = bytearray(b"\r\n".join(lines))
    return bytes(data)


def requests(count, seed):
    rng = random.Random(seed)
    yield from CORPUS[:count]
    for _ in range(count - len(CORPUS)):
        # The first ones are well-formed: a small change of a good request is what slips through.
        base = rng.choice(CORPUS[:26]) if rng.random() < 0.7 else rng.choice(CORPUS)
        request = mutate(rng, base)
        yield request if rng.random() < 0.8 else request + rng.choice(CORPUS)


# === readers ===

class Llhttp(llhttp.Request):
    def __init__(self):
        self.bodies, self.body = [], b""

    def on_message_begin(self):
        self.body = b""

    def on_body(self, data):
        self.body += bytes(data)

    def on_message_complete(self):
        self.bodies.append(self.body)


def read_llhttp(request):
    """Bodies of the messages accepted, and the complaint about what follows."""
    parser = Llhttp()
    try:
        parser.execute(request)
        parser.finish()
    except llhttp.Error as error:
        return parser.bodies, str(error.args[0])
    return parser.bodies, None


def read_h11(request):
    bodies, data = [], request
    while True:
        found, complaint, rest = read_h11_connection(data)
        bodies += found
        if rest is None:
            return bodies, complaint
        data = rest


def read_h11_connection(data):
    """The same; and what follows, where h11 ends a connection that HTTP/1.0 keeps by `Connection: keep-alive`, which it does not do."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
    bodies, body, kept = [], b"", False
    try:
        connection.receive_data(data)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                body = b""
                options = b",".join(value for name, value in event.headers if name == b"connection").lower()
                kept = event.http_version == b"1.0" and b"keep-alive" in options and b"close" not in options
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                bodies.append(body)
                if connection.our_state is h11.SEND_RESPONSE:
                    connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if h11.MUST_CLOSE in (connection.our_state, connection.their_state):
                    rest = connection.trailing_data[0]
                    return bodies, "the connection was to close", rest if kept and rest else None
                connection.start_next_cycle()
            elif event is h11.PAUSED:
                return bodies, "paused", None
            else:
                return bodies, None, None
    except h11.RemoteProtocolError as error:
        return bodies, str(error), None


def answers(data):
    """Splits what kateway sent into (status, fields, body)."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        if status == 100:
            data = rest
            continue
        fields = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines[1:])}
        # An answer to HEAD has a length without a body; no body of kateway's looks like an answer.
        length = 0 if rest.startswith(b"HTTP/1.1 ") else int(fields.get("content-length", 0))
        found.append((status, fields, rest[:length]))
        data = rest[length:]
    return found


def read_kateway(address, request):
    """Answers to the messages accepted, and whether what follows was refused by an answer."""
    with socket.create_connection(address, timeout=20) as connection:
        received = b""
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    accepted = []
    for status, fields, body in answers(received):
        # An error that closes the connection may have come before the body was looked at: nothing was accepted.
        if status >= 400 and (fields.get("connection") == "close" or json.loads(body or b'{"code": 0}')["code"] in ABOUT_BYTES):
            return accepted, True
        accepted.append((status, fields))
    return accepted, False


def stored(address):
    """What the topic holds, by offset."""
    messages = {}
    while True:
        url = f"http://{address[0]}:{address[1]}/v1/msgs/{APP}/{TOPIC}/v1?group=g&batch=4000&wait=1s"
        request = urllib.request.Request(url, headers={"Appid": APP})
        with urllib.request.urlopen(request, timeout=30) as answer:
            frames = answer.read()
        if not frames:
            return messages
        at = 0
        while at < len(frames):
            partition, offset, length = struct.unpack_from(">iqi", frames, at)
            messages[(partition, offset)] = frames[at + 16:at + 16 + length]
            at += 16 + length


# === the comparison ===

def is_excepted(reader, complaint, request):
    return any(reader == name and complaint.startswith(start) and re.search(looks, request) for name, start, looks, _ in EXCEPTIONS)


def is_ours(request):
    """Whether all of its messages go to the topic that is read back: a change may have hit path or app as well."""
    messages = request.count(b" HTTP/1.")
    whole = len(re.findall(rb" HTTP/1\.[01]\r\n" + re.escape(HOST.encode()), request))
    return messages == whole == request.count(TARGET.encode() + b" ")


def compare(request, accepted, readings, expected, faults):
    for n, (status, fields) in enumerate(accepted):
        bodies = set()
        for reader, (found, complaint) in readings.items():
            if n < len(found):
                bodies.add(found[n])
            elif not is_excepted(reader, complaint or "", request):
                faults.append(f"kateway answers {status} to message {n + 1}, {reader} refuses it ({complaint}): {request!r}")
                return
        if len(bodies) > 1:
            faults.append(f"message {n + 1} has two bodies: {bodies!r} of {request!r}")
            return
        if status == 201 and bodies and is_ours(request):
            expected[(int(fields["x-partition"]), int(fields["x-offset"]))] = (bodies.pop(), request)


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--publish", type=address, required=True)
    parser.add_argument("--subscribe", type=address, required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args()

    faults, expected, tally = [], {}, collections.Counter()
    for request in requests(args.count, args.seed):
        accepted, refused = read_kateway(args.publish, request)
        readings = {"h11": read_h11(request), "llhttp": read_llhttp(request)}
        compare(request, accepted, readings, expected, faults)
        least = min(len(bodies) for bodies, _ in readings.values())
        tally["requests"] += 1
        tally["accepted by kateway"] += not refused and bool(accepted)
        tally["refused by kateway, accepted by both others"] += len(accepted) < least
        for reader, (_, complaint) in readings.items():
            tally[f"refused by {reader}"] += complaint is not None

    found = stored(args.subscribe)
    for place, (body, request) in expected.items():
        if found.get(place) != body:
            faults.append(f"stored {found.get(place)!r} instead of {body!r} of {request!r}")
    for what, count in sorted(tally.items()):
        print(f"{what}: {count}")
    print(f"stored and read back alike: {sum(found.get(place) == body for place, (body, _) in expected.items())}")
    for fault in faults[:20]:
        print("FAULT", fault)
    print(f"faults: {len(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
