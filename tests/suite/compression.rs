//! Bodies may be compressed, in both directions, and nobody is harmed by it.
//!
//! Method: messages and batches go in as gzip and as zstd, over HTTP/1.1 and HTTP/2, and what is read is held against what was compressed. What is
//! broken, unknown or longer than it may be is refused and stores nothing; of bodies that grow a thousandfold the peak of the gateway's memory
//! is looked at. Readers that say `Accept-Encoding` get every format compressed, of a stream each message by itself; those that do not, nothing new.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use flate2::{Compression, Decompress, FlushDecompress, write::GzEncoder};
use kateway_tests::client::{Part, Request, Response};
use kateway_tests::frames;
use kateway_tests::kateway::Kateway;
use kateway_tests::topic::Topic;
use kateway_tests::{hinder, problem, process, wait_until};
use serde_json::json;

use crate::batches::{ARRAY, FRAMES, LINES, batch, framed, payloads, read};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("compression::what_was_compressed_is_stored", what_was_compressed_is_stored),
    Case::new("compression::what_cannot_be_is_refused", what_cannot_be_is_refused),
    Case::new("compression::a_bomb_takes_no_memory", a_bomb_takes_no_memory).alone(),
    Case::new("compression::whole_bodies_need_no_window", whole_bodies_need_no_window),
    Case::new("compression::what_becomes_nothing_has_a_limit", what_becomes_nothing_has_a_limit),
    Case::new("compression::windows_are_counted", windows_are_counted),
    Case::new("compression::readers_get_what_they_accept", readers_get_what_they_accept),
    Case::new("compression::streams_are_flushed_message_by_message", streams_are_flushed_message_by_message),
    Case::new("compression::whole_blocks_are_handed_over", whole_blocks_are_handed_over),
    Case::new("compression::curl_reads_over_both_protocols", curl_reads_over_both_protocols),
    Case::new("compression::kafka_has_a_codec_for_each_topic", kafka_has_a_codec_for_each_topic).kafka(),
];

const CODINGS: [&str; 2] = ["gzip", "zstd"];

fn coded(coding: &str, plain: &[u8]) -> Vec<u8> {
    if coding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("memory takes it");
        return encoder.finish().expect("memory takes it");
    }
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    zstd_safe::compress(&mut out, plain, 3).expect("there is room");
    out
}

/// zstd with a window of so many bits; with the length in its head or without. Levels from 16 on have 23.
fn windowed(plain: &[u8], window_log: u32, is_length_said: bool) -> Vec<u8> {
    use zstd_safe::{CParameter, InBuffer, OutBuffer, zstd_sys::ZSTD_EndDirective as Directive};
    let mut context = zstd_safe::CCtx::create();
    context.set_parameter(CParameter::WindowLog(window_log)).expect("in its range");
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    if is_length_said {
        context.compress2(&mut out, plain).expect("there is room");
        return out;
    }
    let (mut from, mut into) = (InBuffer::around(plain), OutBuffer::around(&mut out));
    for how in [Directive::ZSTD_e_continue, Directive::ZSTD_e_end] {
        while context.compress_stream2(&mut into, &mut from, how).expect("there is room") > 0
            && (how == Directive::ZSTD_e_end || from.pos() < plain.len())
        {}
    }
    out
}

/// What cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| byte()).collect()
}

/// What has come of a body so far.
fn decoded(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 << 20);
    if coding == "gzip" {
        Decompress::new_gzip(15).decompress_vec(bytes, &mut out, FlushDecompress::Sync).expect("it is gzip");
        return out;
    }
    let (mut context, mut from) = (zstd_safe::DCtx::create(), zstd_safe::InBuffer::around(bytes));
    let mut into = zstd_safe::OutBuffer::around(&mut out);
    while from.pos() < bytes.len() {
        context.decompress_stream(&mut into, &mut from).expect("it is zstd");
    }
    out
}

fn with(coding: &str, plain: &[u8], request: impl Fn(Vec<u8>) -> Request) -> Request {
    request(coded(coding, plain)).header("Content-Encoding", coding)
}

fn what_was_compressed_is_stored() {
    let gateway = Kateway::memory().start();
    for coding in CODINGS {
        let topic = Topic::fresh("coded");
        let large: Vec<u8> = (0..512 * 1024_u32).map(|n| (n / 100).to_be_bytes()[3]).collect();
        let messages: [&[u8]; 2] = [b"one", &large];
        // It becomes longer, which is not its sender's fault.
        let full = noise(512 * 1024);
        assert!(coded(coding, &full).len() > full.len());
        gateway.publish(&with(coding, &full, |body| Topic::fresh("noise").publish("", body))).expect(201);
        gateway.publish(&with(coding, messages[0], |body| topic.publish("partition=0", body))).expect(201);
        let request = with(coding, messages[1], |body| topic.publish("partition=0", body)).chunked(1_000);
        gateway.publish(&request).expect(201);
        gateway.publish(&topic.publish("partition=0", "plain").header("Content-Encoding", "identity")).expect(201);
        assert!(payloads(&read(&gateway, &topic)) == [messages[0], messages[1], b"plain"], "{coding}");

        let topic = Topic::fresh("coded");
        let array = format!("[{}\"last\"]", "{\"like\":\"others\"},".repeat(3_999));
        let request = with(coding, array.as_bytes(), |body| batch(&topic, "partition=1", ARRAY, body));
        assert_eq!(gateway.publish(&request).expect(201).json()["ok"], 4_000);
        let stored = read(&gateway, &topic);
        assert!(stored.len() == 4_000 && stored[0].payload == b"{\"like\":\"others\"}", "{coding}");
        assert_eq!(stored[3_999].payload, b"last");

        let topic = Topic::fresh("coded");
        let body = framed(&[b"a", &large, b"b"]);
        let request = with(coding, &body, |body| batch(&topic, "partition=2", FRAMES, body)).chunked(7);
        assert_eq!(gateway.publish(&request).expect(201).json()["ok"], 3);
        over_http2(&gateway, &topic, coding, b"3\n4\n");
        assert!(payloads(&read(&gateway, &topic)) == [&b"a"[..], &large, b"b", b"3", b"4"], "{coding}");
    }
}

fn over_http2(gateway: &Kateway, topic: &Topic, coding: &str, plain: &[u8]) {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "40",
        "--http2-prior-knowledge",
        "--write-out",
        "%{http_code}",
    ]);
    command.args([
        "-H",
        &format!("Content-Encoding: {coding}"),
        "-H",
        &format!("Content-Type: {LINES}"),
        "-H",
        "Expect:",
    ]);
    command.args(["-H", &format!("Appid: {}", topic.appid), "--data-binary", "@-"]);
    command.arg(format!("http://{}/v1/msgs/{}/v1?batch=1&partition=3", gateway.publish, topic.name));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut curl = process::spawn(command).expect("curl can be run");
    curl.stdin.take().expect("stdin is piped").write_all(&coded(coding, plain)).expect("curl reads");
    let output = curl.wait_with_output().expect("curl can be waited for");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("{\"ok\":2,") && text.ends_with("201"), "{text}");
}

fn what_cannot_be_is_refused() {
    let gateway = Kateway::memory().set("pub.message_bytes_max", 100_000).start();
    let topic = Topic::fresh("broken");
    for unknown in ["br", "deflate", "gzip, gzip", "compress"] {
        let answer = gateway.publish(&topic.publish("", "x").header("Content-Encoding", unknown));
        assert_eq!(problem::check(&answer, 415).code, 41500);
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"));
    }
    for coding in CODINGS {
        let whole = coded(coding, &[b'x'; 1_000]);
        for broken in [&whole[..whole.len() - 1], &whole[..5], b"no such thing at all"] {
            let request = topic.publish("", broken).header("Content-Encoding", coding);
            assert_eq!(problem::check(&gateway.publish(&request), 400).code, 40017, "{coding}");
            for form in [ARRAY, LINES] {
                let request = batch(&topic, "", form, broken).header("Content-Encoding", coding);
                assert_eq!(problem::check(&gateway.publish(&request), 400).code, 40017, "{coding} {form}");
            }
        }
        let over = with(coding, &vec![b'x'; 100_001], |body| topic.publish("", body));
        assert_eq!(problem::check(&gateway.publish(&over), 413).code, 41301, "{coding}");
        let empty = with(coding, b"", |body| topic.publish("", body));
        assert_eq!(problem::check(&gateway.publish(&empty), 400).code, 40006, "{coding}");
        // What is past the end of the coding makes the message after it the last result.
        let lines = [coded(coding, b"1\n2\n"), b"and more".to_vec()].concat();
        let answer =
            gateway.publish(&batch(&topic, "partition=0", LINES, lines).header("Content-Encoding", coding)).expect(207);
        assert_eq!(
            (&answer.json()["ok"], &answer.json()["results"][2]["code"]),
            (&json!(2), &json!(40017)),
            "{coding}"
        );
        gateway.publish(&with(coding, &vec![b'y'; 100_000], |body| topic.publish("", body))).expect(201);
    }
    let stored = read(&gateway, &topic);
    assert_eq!(stored.len(), 6, "two lines and a message, twice");
}

/// What streams has a window while it does, and its bound is more by that; whole messages and documents need none.
fn a_bomb_takes_no_memory() {
    const MIB: usize = 1 << 20;
    const GROWN_KIB_MAX: u64 = 2_048;
    type Coder = fn(&[u8]) -> Vec<u8>;
    // One of them is all that may be taken, whatever asked for it.
    let gateway = Kateway::memory().hindered(hinder::forbid_huge_pages).start();
    let topic = Topic::fresh("bomb");
    let mut over = Vec::new();
    let coders: [(&str, &str, Coder, u64); 6] = [
        ("gzip", "gzip", |plain| coded("gzip", plain), 0),
        ("zstd", "zstd", |plain| coded("zstd", plain), 0),
        ("zstd of a wide window", "zstd", |plain| windowed(plain, 23, true), 0),
        // As a client's encoder has it that streams.
        ("zstd of unknown length", "zstd", |plain| windowed(plain, 21, false), 2_048),
        ("zstd of a wide window and unknown length", "zstd", |plain| windowed(plain, 23, false), 8_192),
        ("zstd of a window that is too wide", "zstd", |plain| windowed(plain, 27, false), 0),
    ];
    for (what, coding, coder, window_kib) in coders {
        let plain = vec![0; 100 * MIB];
        let (bomb, spaces) = (coder(&plain), coder(&vec![b' '; 100 * MIB]));
        let is_refused = what.ends_with("too wide");
        // What is used once is there from then on.
        let usual = [b"[", &vec![b' '; MIB][..], b"1]"].concat();
        for form in [ARRAY, LINES] {
            gateway.publish(&with(coding, &usual, |body| batch(&topic, "", form, body)));
        }
        gateway.publish(&with(coding, &plain[..512 * 1024], |body| topic.publish("", body))).expect(201);
        gateway.publish(&topic.publish("", noise(128 * 1024))).expect(201);
        for (form, request, code, grown_kib_max) in [
            ("a message", topic.publish("", bomb.clone()), 41301, GROWN_KIB_MAX),
            ("an array", batch(&topic, "", ARRAY, spaces.clone()), 41302, GROWN_KIB_MAX),
            ("lines", batch(&topic, "", LINES, spaces.clone()), 41302, GROWN_KIB_MAX + window_kib),
            ("frames", batch(&topic, "", FRAMES, spaces.clone()), 41302, GROWN_KIB_MAX + window_kib),
        ] {
            let before = process::resident_kib(gateway.pid());
            process::forget_peak(gateway.pid());
            let answer = gateway.publish(&request.header("Content-Encoding", coding));
            let (status, code) = if is_refused { (400, 40017) } else { (413, code) };
            assert_eq!(problem::check(&answer, status).code, code, "{form} as {what}");
            let grown = process::peak_kib(gateway.pid()).saturating_sub(before);
            let figure = format!("compression, a bomb of 100 MiB, {form} as {what}: peak");
            kateway_tests::figures::note(figure, format!("{grown} KiB"));
            if grown >= grown_kib_max {
                over.push(format!("{grown} KiB for {form} as {what}"));
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

/// Bodies of an encoder that streams, with every window there may be, as whole messages and documents: each is what it was.
fn whole_bodies_need_no_window() {
    let gateway = Kateway::memory().start();
    let message: Vec<u8> = noise(100_000).repeat(3);
    // Over what is decompressed in one step.
    let elements: Vec<String> = (0..3_000_u32).map(|n| format!("{n} {}", "of many, ".repeat(40))).collect();
    let texts: Vec<&[u8]> = elements.iter().map(String::as_bytes).collect();
    let array = format!("[{}]", elements.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(","));
    for window_log in [10, 17, 21, 23] {
        let topic = Topic::fresh("whole");
        let request = topic.publish("partition=0", windowed(&message, window_log, false));
        gateway.publish(&request.header("Content-Encoding", "zstd")).expect(201);
        let body = windowed(array.as_bytes(), window_log, false);
        let request = batch(&topic, "partition=1", ARRAY, body).header("Content-Encoding", "zstd");
        assert_eq!(gateway.publish(&request).expect(201).json()["ok"], 3_000, "{window_log}");
        let stored = read(&gateway, &topic);
        let stored = payloads(&stored);
        assert!(stored[0] == message && stored[1..] == texts, "{window_log}: {} messages", stored.len());
    }
}

/// Frames and members that become nothing, without end: the limit holds for what is sent as well, and others are served meanwhile.
fn what_becomes_nothing_has_a_limit() {
    let gateway = Kateway::memory().set("pub.batch_bytes_max", 600_000).start();
    let topic = Topic::fresh("nothing");
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for (coding, nothing) in [("zstd", skippable.to_vec()), ("gzip", coded("gzip", b""))] {
        let nothing = |bytes: usize| nothing.repeat(bytes / nothing.len());
        let within = [nothing(550_000), coded(coding, b"1\n")].concat();
        let request = |body: Vec<u8>| batch(&topic, "", LINES, body).header("Content-Encoding", coding).chunked(50_000);
        gateway.publish(&request(within)).expect(201);
        let over = [coded(coding, b"1\n"), nothing(700_000)].concat();
        let answer = gateway.publish(&request(over)).expect(207).json();
        assert_eq!((&answer["ok"], &answer["results"][1]["code"]), (&json!(1), &json!(41302)), "{coding}");
    }
}

/// A stream whose window is large takes of what a core has for batches, as long as it is open.
fn windows_are_counted() {
    let gateway = Kateway::memory().set("pub.batch_memory_bytes_max", 16 << 20).start();
    let topic = Topic::fresh("windows");
    let lines = windowed(b"1\n", 23, false);
    let open = || {
        let mut connection = gateway.publisher();
        let whole = batch(&topic, "", LINES, lines.clone()).header("Content-Encoding", "zstd").chunked(1_000).bytes();
        connection.send(&whole[..whole.len() - b"0\r\n\r\n".len()]).expect("it can be sent");
        connection
    };
    let mut first = open();
    wait_until(Duration::from_secs(10), "the window is counted", || {
        gateway.scrape().sum("kateway_pub_batch_bytes", &[]) > f64::from(8 << 20)
    });
    let answer = open().read_response().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(problem::check(&answer, 429).code, 42900);
    first.send(b"0\r\n\r\n").expect("it can be sent");
    first.read_response().unwrap_or_else(|e| panic!("{e}")).expect(201);
    assert_eq!(gateway.scrape().sum("kateway_pub_batch_bytes", &[]), 0.0);
}

fn get(gateway: &Kateway, topic: &Topic, query: &str, accept: &str, encoding: &str) -> Response {
    let request = topic.read(&kateway_tests::folder::unique("group"), query).header("Accept", accept);
    gateway.subscribe(&request.header("Accept-Encoding", encoding))
}

fn readers_get_what_they_accept() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("accepted");
    let messages: Vec<Vec<u8>> =
        (0..600).map(|n| format!("{{\"message\":{n},\"of\":\"many\"}}").repeat(40).into_bytes()).collect();
    let bodies: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    gateway.publish(&batch(&topic, "partition=0", FRAMES, framed(&bodies))).expect(201);
    for (encoding, coding) in [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("deflate, gzip;q=0.5, br", "gzip"),
        ("gzip;q=0.2, zstd;q=0.1", "gzip"),
        ("*", "zstd"),
    ] {
        let answer = get(&gateway, &topic, "wait=5s", "*/*", encoding).expect(200);
        assert_eq!((answer.header("content-encoding"), answer.header("vary")), (Some(coding), Some("Accept-Encoding")));
        assert!(answer.body.len() < messages[0].len() / 4 && answer.header("content-length").is_some());
        assert_eq!(decoded(coding, &answer.body), messages[0]);
        assert_eq!(answer.number("x-offset"), 0);
        let answer = get(&gateway, &topic, "batch=600&wait=5s", LINES, encoding).expect(200);
        assert_eq!(answer.header("content-encoding"), Some(coding));
        let lines = frames::decode_lines(&decoded(coding, &answer.body));
        assert!(payloads(&lines) == bodies, "{encoding}: {} lines", lines.len());
        let answer = get(&gateway, &topic, "batch=600&wait=5s", "application/octet-stream", encoding).expect(200);
        assert_eq!(frames::decode(&decoded(coding, &answer.body)).len(), 600);
    }
    for refused in ["identity", "gzip;q=0", "br", "gzip;q=0.1, identity;q=0.5"] {
        let answer = get(&gateway, &topic, "wait=5s", "*/*", refused).expect(200);
        assert_eq!(
            (answer.header("content-encoding"), answer.header("vary")),
            (None, Some("Accept-Encoding")),
            "{refused}"
        );
        assert_eq!(answer.body, messages[0]);
    }
    let plain = gateway.subscribe(&topic.read("plain", "wait=5s")).expect(200);
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), (None, None));
    let small = Topic::fresh("small");
    gateway.publish(&small.publish("", "a short message")).expect(201);
    let answer = gateway.subscribe(&small.read("g", "wait=5s").header("Accept-Encoding", "gzip")).expect(200);
    assert_eq!((answer.header("content-encoding"), answer.text().as_str()), (None, "a short message"));
    let nothing = gateway.subscribe(&small.read("g", "wait=100ms").header("Accept-Encoding", "gzip")).expect(204);
    assert_eq!((nothing.header("content-encoding"), nothing.body.len()), (None, 0));
}

fn streams_are_flushed_message_by_message() {
    let gateway = Kateway::memory().start();
    for coding in CODINGS {
        for accept in ["text/event-stream", LINES] {
            let topic = Topic::fresh("flushed");
            gateway.publish(&topic.publish("partition=0", "message 0")).expect(201);
            let mut connection = gateway.subscriber();
            let request = topic.read("g", "stream=1").header("Accept", accept).header("Accept-Encoding", coding);
            connection.send(&request.bytes()).expect("it can be sent");
            let head = connection.head().unwrap_or_else(|e| panic!("{e}")).expect(200);
            assert_eq!((head.header("content-encoding"), head.header("content-type")), (Some(coding), Some(accept)));
            let mut come = Vec::new();
            for n in 0..20 {
                if n > 0 {
                    gateway.publish(&topic.publish("partition=0", format!("message {n}"))).expect(201);
                }
                let wanted = format!("\"message {n}\"");
                while !String::from_utf8_lossy(&decoded(coding, &come)).contains(&wanted) {
                    match connection.part().unwrap_or_else(|e| panic!("{coding} {accept}, message {n}: {e}")) {
                        Part::Chunk(bytes) => come.extend_from_slice(&bytes),
                        Part::End(_) => panic!("a stream has no end"),
                    }
                }
            }
        }
    }
}

/// Of messages that are whole blocks of the encoder it holds nothing back, and the stream goes on after them.
fn whole_blocks_are_handed_over() {
    let gateway = Kateway::memory().start();
    // With its head a frame is once and twice 64 KiB.
    for (coding, bytes) in [("zstd", 65_520), ("zstd", 131_056), ("gzip", 65_520)] {
        let topic = Topic::fresh("blocks");
        let message = noise(bytes);
        for _ in 0..3 {
            gateway.publish(&topic.publish("partition=0", message.clone())).expect(201);
        }
        let mut connection = gateway.subscriber();
        let request = topic.read("g", "stream=1&batch=1").header("Accept-Encoding", coding);
        connection.send(&request.header("Accept", "application/octet-stream").bytes()).expect("it can be sent");
        connection.head().unwrap_or_else(|e| panic!("{e}")).expect(200);
        let mut come = Vec::new();
        while decoded(coding, &come).len() < 3 * (bytes + 16) {
            match connection.part().unwrap_or_else(|e| panic!("{coding}, {bytes} bytes: {e}")) {
                Part::Chunk(chunk) => come.extend_from_slice(&chunk),
                Part::End(_) => panic!("a stream has no end"),
            }
        }
    }
}

fn curl_reads_over_both_protocols() {
    let gateway = Kateway::memory().start();
    let topic = Topic::fresh("curl");
    let message = "what repeats, ".repeat(40_000);
    gateway.publish(&topic.publish("", message.clone().into_bytes().split_off(100_000))).expect(201);
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for query in ["wait=5s", "wait=5s&batch=2"] {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "40", "--compressed", protocol]);
            command.args(["--write-out", "%{stderr}%{size_download} %header{content-encoding}"]);
            command.args(["-H", &format!("Appid: {}", topic.appid)]);
            let group = kateway_tests::folder::unique("group");
            command.arg(format!("http://{}/v1/msgs/{}?group={group}&{query}", gateway.subscribe, topic.path()));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut curl = process::spawn(command).expect("curl can be run");
            let mut body = Vec::new();
            curl.stdout.take().expect("stdout is piped").read_to_end(&mut body).expect("curl writes");
            let output = curl.wait_with_output().expect("curl can be waited for");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let payload = if query.contains("batch") { &body[16..] } else { &body[..] };
            assert!(payload == &message.as_bytes()[100_000..], "{protocol} {query}: {} bytes", body.len());
            let bytes: usize = said.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            assert!(bytes < 100_000, "{protocol} {query}: {said}");
        }
    }
}

/// The segments on the broker's disk say how large the messages are that it was sent.
fn kafka_has_a_codec_for_each_topic() {
    let admin = kafka().admin();
    let topics = ["none", "gzip", "snappy", "lz4", "zstd"].map(|codec| (codec, Topic::fresh(codec)));
    let rules: Vec<String> = topics.iter().map(|(codec, topic)| format!("{}={codec}", topic.in_kafka())).collect();
    let gateway = Kateway::kafka(admin.brokers()).set("topics.compression", rules.join(",")).start();
    let message = "{\"field\":\"the same in all\"}".repeat(100);
    let body = format!("[{}\"last\"]", format!("{message:?},").repeat(400));
    for (codec, topic) in &topics {
        admin.create_topic(&topic.in_kafka(), 1);
        let answer = gateway.publish(&batch(topic, "ack=all", ARRAY, body.clone())).expect(201).json();
        assert_eq!(answer["ok"], 401, "{codec}");
        let records = kateway_tests::kcat::read_all(admin.brokers(), &topic.in_kafka());
        assert!(records.len() == 401 && records[0].payload.as_deref() == Some(message.as_bytes()), "{codec}");
    }
    let size = |topic: &Topic| kafka().log_bytes(&topic.in_kafka());
    let plain = size(&topics[0].1);
    for (codec, topic) in &topics[1..] {
        let bytes = size(topic);
        kateway_tests::figures::note(format!("compression, {codec}: of {plain} bytes on disk"), bytes);
        assert!(bytes < plain / 4, "{codec}: {bytes} of {plain} bytes");
    }
}
