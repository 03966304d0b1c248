//! `stream=1` gives messages as they come, in three formats over both versions of HTTP, for as long as the client wants; a reader that is
//! slow is waited for, one that is dead is cut, and neither loses a message nor costs memory.
//!
//! Method: streams are read by independent decoders as the bytes arrive, over HTTP/1.1 by the raw client, over HTTP/2 by curl. Idle ones
//! must show a heartbeat within 15 s; all must end by themselves when the gateway drains, with what they gave committed. An SSE client
//! that is cut goes on with `Last-Event-ID`. When its topic is deleted, a stream says so in the way of its format, and never looks
//! complete. For a minute (`KATEWAY_STREAM_S`, `make soak` takes ten) 2,000 messages a second are
//! streamed to a reader that stalls for 5 s at a time: everything must come, in order, resident memory must stay flat, and a steady
//! reader of another group must not notice. A reader that stops for ever is cut by `http.write_timeout_ms`, and another gets what it had.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kateway_tests::admin::Pace;
use kateway_tests::kateway::Kateway;
use kateway_tests::process::Process;
use kateway_tests::readers::{Decoder, Delivery, End, Event, Format, Next, Stream};
use kateway_tests::topic::Topic;
use kateway_tests::{figures, problem, wait_until};

use crate::stage::{EndOnDrop, SOON, Stage, call, lines};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("streams::formats_as_they_come_on_memory", || formats_as_they_come(&Stage::on_memory("streamed"))),
    Case::new("streams::formats_as_they_come_on_kafka", || formats_as_they_come(&Stage::on_kafka("streamed", 4)))
        .kafka(),
    Case::new("streams::heartbeats_when_idle", heartbeats_when_idle),
    Case::new("streams::end_on_drain_on_memory", || end_on_drain(Stage::on_memory("streamed"))),
    Case::new("streams::end_on_drain_on_kafka", || end_on_drain(Stage::on_kafka("streamed", 1))).kafka(),
    Case::new("streams::end_after_their_time", end_after_their_time),
    Case::new("streams::last_event_id_resumes_on_memory", || last_event_id_resumes(&Stage::on_memory("streamed"))),
    Case::new("streams::last_event_id_resumes_on_kafka", || last_event_id_resumes(&Stage::on_kafka("streamed", 4)))
        .kafka(),
    Case::new("streams::error_after_the_first_byte", error_after_the_first_byte).kafka(),
    Case::new("streams::dead_reader_is_cut_on_memory", dead_reader_is_cut_on_memory),
    Case::new("streams::dead_reader_is_cut_on_kafka", dead_reader_is_cut_on_kafka).kafka(),
    Case::new("streams::stalling_reader_soak", stalling_reader).kafka().alone(),
];

/// Over HTTP/1.1 the raw client; over HTTP/2 curl, whose output is what came.
enum AnyStream {
    One(Box<Stream>),
    Two(Box<Curl>),
}

/// curl(1): "Stream error in HTTP/2 framing layer", which RST_STREAM is.
const CURL_STREAM_RESET: i32 = 92;

struct Curl {
    process: Process,
    bytes: mpsc::Receiver<Vec<u8>>,
    decoder: Decoder,
    ready: Vec<Event>,
    heartbeats: usize,
}

impl Curl {
    fn open(gateway: &Kateway, topic: &Topic, group: &str, format: Format) -> Self {
        let url = format!("http://{}/v1/msgs/{}?group={group}&stream=1", gateway.subscribe, topic.path());
        let mut command = Command::new("curl");
        command.args(["--silent", "--no-buffer", "--http2-prior-knowledge", "--max-time", "120"]);
        command.args([
            "-H",
            &format!("Appid: {}", topic.appid),
            "-H",
            &format!("Accept: {}", format.media_type()),
            &url,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process::start("curl", command).expect("the tests need curl");
        let mut stdout = process.stdout();
        let (sender, bytes) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { process, bytes, decoder: Decoder::new(format), ready: Vec::new(), heartbeats: 0 }
    }

    fn next(&mut self, limit: Duration) -> Next {
        let deadline = Instant::now() + limit;
        loop {
            while !self.ready.is_empty() {
                match self.ready.remove(0) {
                    Event::Heartbeat => self.heartbeats += 1,
                    Event::Retry(_) => {}
                    event => return Next::Event(event),
                }
            }
            match self.bytes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.ready = self.decoder.feed(&bytes),
                Err(mpsc::RecvTimeoutError::Timeout) => return Next::Nothing,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Next::End(self.end()),
            }
        }
    }

    /// How it ended, once its output has.
    fn end(&mut self) -> End {
        match self.process.wait(SOON).code() {
            Some(0) => End::Complete(Vec::new()),
            Some(CURL_STREAM_RESET) => End::Cut,
            code => panic!("curl ended with {code:?}"),
        }
    }
}

impl AnyStream {
    fn next(&mut self, limit: Duration) -> Next {
        match self {
            Self::One(stream) => stream.next(limit),
            Self::Two(curl) => curl.next(limit),
        }
    }

    fn heartbeats(&self) -> usize {
        match self {
            Self::One(stream) => stream.heartbeats,
            Self::Two(curl) => curl.heartbeats,
        }
    }

    #[track_caller]
    fn message(&mut self, limit: Duration) -> Delivery {
        match self.next(limit) {
            Next::Event(Event::Message(delivery)) => delivery,
            other => panic!("a message within {limit:?}, not {other:?}"),
        }
    }
}

fn stream(gateway: &Kateway, topic: &Topic, group: &str, format: Format) -> Stream {
    let request = topic.read(group, "stream=1");
    Stream::open(gateway.subscribe, &request, format).unwrap_or_else(|e| panic!("{format:?}: {e}"))
}

/// Each format by each version of HTTP, every one with a group of its own.
fn all_streams(stage: &Stage) -> Vec<(String, AnyStream)> {
    let both = |format: Format| {
        let (one, two) = (format!("{format:?}-1"), format!("{format:?}-2"));
        let first = stream(&stage.gateway, &stage.topic, &one, format);
        let second = Curl::open(&stage.gateway, &stage.topic, &two, format);
        [(one, AnyStream::One(Box::new(first))), (two, AnyStream::Two(Box::new(second)))]
    };
    Format::ALL.into_iter().flat_map(both).collect()
}

fn formats_as_they_come(stage: &Stage) {
    // The embedded store makes the topic so; the head of an answer does not wait for a message.
    stage.fill(0, 0..1);
    let mut streams = all_streams(stage);
    for (name, stream) in &mut streams {
        assert_eq!(stream.message(SOON).text(), "0", "{name}");
    }
    let mut slowest = Duration::ZERO;
    for n in 1..20 {
        stage.fill(0, n..n + 1);
        let start = Instant::now();
        for (name, stream) in &mut streams {
            let message = stream.message(SOON);
            assert_eq!((message.position(), message.text()), ((0, n), n.to_string()), "{name}");
        }
        slowest = slowest.max(start.elapsed());
    }
    figures::note(
        format!("streams, kafka {}: published, and with six streams", stage.on_kafka),
        format!("{slowest:?}"),
    );
    assert!(slowest < Duration::from_secs(3), "a message is not held back: {slowest:?}");
    for (name, _) in &streams {
        wait_until(SOON, format!("{name}: all of it is committed"), || stage.committed(name, 0) == Some(20));
    }
    // Many at once come in order and are neither joined nor torn.
    stage.fill(0, 20..520);
    for (name, stream) in &mut streams {
        for n in 20..520 {
            assert_eq!(stream.message(SOON).text(), n.to_string(), "{name}");
        }
    }
}

fn heartbeats_when_idle() {
    let stage = Stage::on_memory("streamed");
    stage.fill(0, 0..1);
    let mut streams = all_streams(&stage);
    for (name, stream) in &mut streams {
        assert_eq!(stream.message(SOON).text(), "0", "{name}");
    }
    // One heartbeat each 15 s; all streams began within a second or two.
    let deadline = Instant::now() + Duration::from_secs(17);
    for (name, stream) in &mut streams {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(300));
        assert_eq!(stream.next(left), Next::Nothing, "{name}");
        assert!((1..=2).contains(&stream.heartbeats()), "{name}: {} heartbeats in 17 s", stream.heartbeats());
    }
    // A heartbeat is no message: nothing is out of step after it.
    stage.fill(0, 1..2);
    for (name, stream) in &mut streams {
        let message = stream.message(SOON);
        assert_eq!((message.offset, message.text().as_str()), (1, "1"), "{name}");
    }
}

fn end_on_drain(mut stage: Stage) {
    stage.fill(0, 0..10);
    let mut streams = all_streams(&stage);
    for (name, stream) in &mut streams {
        for n in 0..10 {
            assert_eq!(stream.message(SOON).text(), n.to_string(), "{name}");
        }
    }
    let start = Instant::now();
    stage.gateway.signal(libc::SIGTERM);
    for (name, stream) in &mut streams {
        let end = stream.next(SOON);
        assert!(matches!(end, Next::End(End::Complete(_))), "{name}: {end:?}");
    }
    assert!(stage.gateway.wait_end(SOON).success(), "every stream ended by itself");
    figures::note(
        format!("streams, kafka {}: drained with six streams in", stage.on_kafka),
        format!("{:?}", start.elapsed()),
    );
    if stage.on_kafka {
        for (name, _) in &streams {
            assert_eq!(stage.committed(name, 0), Some(10), "{name}: what was given is committed");
        }
    }
}

fn end_after_their_time() {
    let stage = Stage::on_memory_with("streamed", |builder| builder.set("sub.max_stream_s", 2));
    stage.fill(0, 0..1);
    for n in 0..2 {
        let mut stream = stream(&stage.gateway, &stage.topic, "g", Format::Lines);
        let start = Instant::now();
        assert_eq!(stream.message(SOON).offset, n);
        let end = stream.next(SOON);
        assert!(matches!(end, Next::End(End::Complete(_))), "{end:?}");
        let took = start.elapsed();
        assert!(took > Duration::from_millis(1_500) && took < Duration::from_secs(6), "{took:?}");
        // The next one goes on where this one ended.
        stage.fill(0, n + 1..n + 2);
    }
}

/// The client goes on behind the last event it has processed, however much more was on its way.
fn last_event_id_resumes(stage: &Stage) {
    const EACH: i64 = 50;
    for partition in 0..4 {
        stage.fill(partition, 0..EACH);
    }
    let mut seen: HashMap<(i32, i64), usize> = HashMap::new();
    let mut cursor = String::new();
    for (cut_after, life) in [(30, 1), (1, 2), (60, 3), (usize::MAX, 4)] {
        let request = stage.topic.read("g", "stream=1");
        let request = if cursor.is_empty() { request } else { request.header("Last-Event-ID", &cursor) };
        let mut stream = Stream::open(stage.gateway.subscribe, &request, Format::Sse).unwrap_or_else(|e| panic!("{e}"));
        let mut taken = 0;
        while taken < cut_after && seen.len() < 4 * usize::try_from(EACH).expect("few") {
            let message = stream.message(SOON);
            *seen.entry(message.position()).or_default() += 1;
            assert_eq!(message.text(), message.offset.to_string(), "life {life}");
            cursor = message.cursor.expect("SSE has one");
            taken += 1;
        }
        stream.reset();
    }
    let again: usize = seen.values().map(|count| count - 1).sum();
    figures::note(format!("streams, kafka {}: came again over three resumes", stage.on_kafka), again);
    assert_eq!(seen.len(), 4 * usize::try_from(EACH).expect("few"), "nothing is lost");
}

// === errors ===

/// What a stream says at last, and how long after its topic was deleted.
fn end_of(mut stream: Stream, topic: &Topic) -> (Vec<Event>, End, Duration) {
    let start = Instant::now();
    kafka().admin().delete_topic(&topic.in_kafka());
    let mut events = Vec::new();
    loop {
        match stream.next(SOON) {
            Next::Event(event) => events.push(event),
            Next::End(end) => return (events, end, start.elapsed()),
            Next::Nothing => panic!("a stream whose topic is gone says nothing, {} heartbeats", stream.heartbeats),
        }
    }
}

fn error_after_the_first_byte() {
    let admin = kafka().admin();
    let gateway = Kateway::kafka(admin.brokers()).shards(2).set("kafka.metadata_interval_s", 1).start();
    // That have begun to look good.
    let begun = |format: Format, field: Option<(&str, &str)>| {
        let topic = Topic::fresh("failing");
        admin.create_topic(&topic.in_kafka(), 1);
        gateway.publish(&topic.publish("", "0")).expect(201);
        let request = topic.read("g", "stream=1");
        let request = field.iter().fold(request, |request, (name, value)| request.header(name, value));
        let mut stream = Stream::open(gateway.subscribe, &request, format).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(stream.message(SOON).text(), "0", "{format:?}");
        (stream, topic)
    };
    let (lines, lines_topic) = begun(Format::Lines, None);
    let (frames, frames_topic) = begun(Format::Frames, Some(("TE", "trailers")));
    let (sse, sse_topic) = begun(Format::Sse, None);
    let mut two = Curl::open(&gateway, &lines_topic, "two", Format::Lines);
    assert!(matches!(two.next(SOON), Next::Event(Event::Message(_))));
    assert_eq!(frames.head.header("trailer"), Some("X-Error"), "trailers are announced");

    let (events, end, first) = end_of(lines, &lines_topic);
    assert_eq!((events, end), (Vec::new(), End::Cut), "no last chunk, and the connection is closed");
    assert_eq!(two.next(SOON), Next::End(End::Cut), "HTTP/2 resets the stream");

    let (events, end, second) = end_of(frames, &frames_topic);
    let End::Complete(trailers) = end else { panic!("trailers stand behind a last chunk") };
    assert_eq!((events.len(), trailers.len(), trailers[0].0.as_str()), (0, 1, "x-error"), "{trailers:?}");
    let (code, detail) = trailers[0].1.split_once(' ').unwrap_or_else(|| panic!("a code, and why: {trailers:?}"));
    assert!(code.len() == 5 && code.starts_with("50") && !detail.is_empty(), "{trailers:?}");

    let (events, end, third) = end_of(sse, &sse_topic);
    assert_eq!(end, End::Complete(Vec::new()));
    let [Event::Error(document)] = &events[..] else { panic!("one event `error`: {events:?}") };
    let found = problem::check_document(serde_json::from_str(document).expect("the problem is JSON"), 503);
    assert_eq!(found.code.to_string(), code, "the same is said either way");
    let longest = first.max(second).max(third);
    figures::note(
        "streams: the topic is deleted, and the stream says so after",
        format!("{:?}", [first, second, third]),
    );
    assert!(longest < 5 * Duration::from_secs(3), "{longest:?}");
}

// === dead and slow readers ===

/// Of 200 kB each: more than the sockets' buffers take, so that the gateway finds it cannot write.
const LARGE: usize = 120;

fn dead_reader_is_cut_on_memory() {
    dead_reader_is_cut(&Stage::on_memory_with("dead", |builder| builder.set("http.write_timeout_ms", 2_000)));
}

fn dead_reader_is_cut_on_kafka() {
    dead_reader_is_cut(&Stage::on_kafka_with("dead", 4, |builder| builder.set("http.write_timeout_ms", 2_000)));
}

fn dead_reader_is_cut(stage: &Stage) {
    let mut publisher = stage.gateway.publisher();
    let mut publish = |n: usize| {
        let mut body = vec![b'.'; 200_000];
        body[..8].copy_from_slice(&n.to_be_bytes());
        call(&mut publisher, &stage.topic.publish("partition=0", body)).expect(201);
    };
    (0..LARGE).for_each(&mut publish);
    let request = stage.topic.read("g", "stream=1&ack=1&lease=10m");
    let mut dead = Stream::open(stage.gateway.subscribe, &request, Format::Frames).unwrap_or_else(|e| panic!("{e}"));
    dead.message(SOON);
    let stopped = Instant::now();
    let cut = || stage.gateway.scrape().sum("kateway_connections_expired_total", &[]) > 0.0;
    wait_until(SOON, "a reader that takes nothing is cut", cut);
    let mut got = Vec::new();
    wait_until(SOON, "another client has what the dead one had", || {
        let request = stage.topic.read("g", "ack=1&lease=10m&batch=100&wait=1s");
        let answer = stage.call(&request.header("Accept", Format::Lines.media_type()));
        if answer.status == 200 {
            got.extend(lines(&answer).into_iter().map(|delivery| delivery.offset));
        }
        got.len() >= LARGE
    });
    let took = stopped.elapsed();
    figures::note(
        format!("streams, kafka {}: a dead reader's messages with another after", stage.on_kafka),
        format!("{took:?}"),
    );
    got.sort_unstable();
    assert_eq!(got, (0..i64::try_from(LARGE).expect("few")).collect::<Vec<_>>(), "each once");
    assert!(took < Duration::from_secs(10), "write deadline of 2 s and what it takes to read: {took:?}");
    let (_, end) = dead.rest(SOON);
    assert_eq!(end, Some(End::Cut), "what is not complete does not look so");
}

const PARTITIONS: i32 = 4;
const PACE: Pace = Pace { per_second: 2_000, bytes: 1_024 };
const STALL: Duration = Duration::from_secs(5);
/// Both groups read steadily for so long, for comparison.
const CALM: Duration = Duration::from_secs(10);
const GROWTH_KIB_MAX: u64 = 64 * 1024;

fn stream_seconds() -> Duration {
    let seconds =
        std::env::var("KATEWAY_STREAM_S").ok().map_or(60, |s| s.parse().expect("KATEWAY_STREAM_S is a number"));
    Duration::from_secs(seconds)
}

/// What the steady reader got: how many, and the longest time between two.
#[derive(Default)]
struct Steady {
    count: u64,
    last: Option<Instant>,
    longest: Duration,
}

fn stalling_reader() {
    let topic = Topic::fresh("stalled");
    let admin = kafka().admin();
    admin.create_topic(&topic.in_kafka(), PARTITIONS);
    let gateway = Kateway::kafka(admin.brokers()).shards(2).start();
    let (is_over, steady) = (AtomicBool::new(false), Mutex::new(Steady::default()));
    let published = std::thread::scope(|scope| {
        let end = EndOnDrop(&is_over);
        let producer = scope.spawn(|| kafka().admin().produce_paced(&topic.in_kafka(), PARTITIONS, PACE, &is_over));
        scope.spawn(|| read_steadily(&gateway, &topic, &steady, &is_over));
        let mut stalling = Stalling::new(&gateway, &topic);
        // The group has joined when the first message comes.
        stalling.read_for(CALM / 2);
        reset(&steady);
        stalling.read_for(CALM);
        let calm = rate(&steady, CALM);
        let rss = gateway.resident_kib();
        let mut highest = rss;
        reset(&steady);
        let (start, whole) = (Instant::now(), stream_seconds());
        while start.elapsed() < whole {
            stalling.stream.stall(STALL);
            highest = highest.max(gateway.resident_kib());
            // Twice the pace is what it takes to catch up in the same time.
            stalling.read_for(STALL);
            highest = highest.max(gateway.resident_kib());
        }
        let stalled = rate(&steady, start.elapsed());
        drop(end);
        let published = producer.join().expect("the producer does not panic");
        stalling.read_to(published);
        let (now, longest) = (gateway.resident_kib(), steady.lock().expect("no reader panicked").longest);
        note_soak(published, [calm, stalled], [rss, highest, now], longest);
        assert!(stalled > 0.8 * calm, "another group reads as before: {stalled:.0}/s, before {calm:.0}/s");
        assert!(highest - rss < GROWTH_KIB_MAX, "memory is flat: {rss} KiB, highest {highest} KiB");
        published
    });
    let count = i64::try_from(published).expect("fewer");
    wait_until(SOON, "all of it is committed", || {
        admin.committed_sum(&topic.group_in_kafka("stalling"), &topic.in_kafka()) == count
    });
}

fn note_soak(published: u64, [calm, stalled]: [f64; 2], [rss, highest, now]: [u64; 3], longest: Duration) {
    figures::note(
        format!("streams, {:?} of a reader that stalls 5 s at a time", stream_seconds()),
        format!(
            "{published} messages, none lost; other group {stalled:.0}/s, before {calm:.0}/s, longest pause {longest:?}; \
             RSS {rss} KiB, highest {highest} KiB, at the end {now} KiB"
        ),
    );
}

fn reset(steady: &Mutex<Steady>) {
    *steady.lock().expect("no reader panicked") = Steady::default();
}

fn rate(steady: &Mutex<Steady>, time: Duration) -> f64 {
    let count = steady.lock().expect("no reader panicked").count;
    f64::from(u32::try_from(count).expect("fewer")) / time.as_secs_f64()
}

fn read_steadily(gateway: &Kateway, topic: &Topic, steady: &Mutex<Steady>, is_over: &AtomicBool) {
    let mut stream = stream(gateway, topic, "steady", Format::Frames);
    while !is_over.load(Ordering::Relaxed) {
        let Next::Event(Event::Message(_)) = stream.next(Duration::from_millis(100)) else { continue };
        let mut steady = steady.lock().expect("no reader panicked");
        let now = Instant::now();
        steady.longest = steady.last.map_or(Duration::ZERO, |last| steady.longest.max(now - last));
        (steady.count, steady.last) = (steady.count + 1, Some(now));
    }
}

/// A reader that sees to it that every number comes once and in order.
struct Stalling {
    stream: Stream,
    next: [u64; PARTITIONS as usize],
}

impl Stalling {
    fn new(gateway: &Kateway, topic: &Topic) -> Self {
        let next = std::array::from_fn(|partition| u64::try_from(partition).expect("few"));
        Self { stream: stream(gateway, topic, "stalling", Format::Frames), next }
    }

    fn read_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.read(Duration::from_millis(100));
        }
    }

    fn read_to(&mut self, published: u64) {
        let step = u64::try_from(PARTITIONS).expect("positive");
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.next.iter().any(|next| *next < published) {
            assert!(Instant::now() < deadline, "next {:?} of {published} by {step}", self.next);
            self.read(Duration::from_millis(100));
        }
    }

    fn read(&mut self, limit: Duration) {
        match self.stream.next(limit) {
            Next::Event(Event::Message(message)) => {
                let number: u64 = message.text().trim_end().parse().expect("a number");
                let next = &mut self.next[usize::try_from(message.partition).expect("a partition number")];
                assert_eq!(number, *next, "in order, none twice, none lost, in partition {}", message.partition);
                *next += u64::try_from(PARTITIONS).expect("positive");
            }
            Next::Nothing => {}
            other => panic!("the stream goes on: {other:?}"),
        }
    }
}
