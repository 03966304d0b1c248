//! What is to be done: as written (flags over a scenario file), then as meant (complete, checked).
//!
//! Flags and file have the same names. An unknown name is refused, because a misspelt one would measure something else.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{answer::Wanted, stamp};

/// The kind of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// POST /v1/msgs/:topic/:ver, one message each.
    Publish,
    /// GET /v1/msgs/:appid/:topic/:ver by group, waiting.
    Subscribe,
    /// GET of a fixed path.
    Get,
    /// Long polls that are only held.
    Idle,
}

/// The protocol spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, keep-alive.
    H1,
    /// HTTP/2 in clear text, by prior knowledge.
    H2,
    /// WebSocket: publishing and reading.
    Ws,
}

/// How the messages of a published batch stand in its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON array of objects.
    Json,
    /// A JSON object a line.
    Ndjson,
    /// Lengths and bytes.
    Frames,
}

macro_rules! written {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ty = $default:expr,)+) => {
        /// As written: what is left out keeps its default.
        #[derive(Clone, Default, Debug, PartialEq, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Written {
            $($(#[doc = $doc])+ #[arg(long, value_name = stringify!($kind))] pub $name: Option<$kind>,)+
        }

        impl Written {
            /// These values over those of `below`.
            pub fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)+ }
            }

            fn complete(self) -> Plan {
                Plan { $($name: self.$name.unwrap_or($default),)+ }
            }
        }

        /// As meant.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Plan {
            $($(#[doc = $doc])+ pub $name: $kind,)+
        }
    };
}

written! {
    /// Address of the listener, IP:PORT.
    target: SocketAddr = ([127, 0, 0, 1], 9191).into(),
    /// What to do.
    work: Work = Work::Publish,
    /// HTTP/1.1, HTTP/2 or WebSocket.
    protocol: Protocol = Protocol::H1,
    /// Over TLS, for HTTP/1.1; any certificate is believed.
    tls: bool = false,
    /// Connections in all.
    connections: usize = 64,
    /// Requests under way on one connection: streams of HTTP/2, pipelining of HTTP/1.1, messages of a WebSocket.
    depth: usize = 1,
    /// Threads of the generator; connections are dealt out evenly.
    threads: usize = 1,
    /// Requests a second in all, on a fixed schedule (open loop); 0: the next one when an answer came (closed loop).
    rate: f64 = 0.0,
    /// Seconds whose requests are not counted.
    warmup_s: f64 = 1.0,
    /// Seconds that count.
    seconds: f64 = 10.0,
    /// End earlier, after so many messages; 0: by time alone.
    messages: u64 = 0,
    /// Seconds an answer may take; for reads on top of their wait.
    timeout_s: f64 = 10.0,
    /// The Appid of the client, which also owns the topics.
    appid: String = "load".to_owned(),
    /// Topic name; with more than one topic a number follows it.
    topic: String = "load".to_owned(),
    /// Topics to go round.
    topics: usize = 1,
    /// Bytes of a published message.
    size: usize = 1_024,
    /// Publishing, puts the time of sending into each message; reading, counts the time from there to the answer.
    stamp: bool = false,
    /// How sure a publish has to be: all, local or none.
    ack: String = "all".to_owned(),
    /// Partition keys to go round; 0: none.
    keys: usize = 0,
    /// Group name; with more than one group a number follows it.
    group: String = "load".to_owned(),
    /// Groups to go round, connection by connection.
    groups: usize = 1,
    /// Most messages of one answer; publishing, messages of one request.
    batch: usize = 1,
    /// How the messages of a published batch stand in its body: json, ndjson or frames.
    format: Format = Format::Json,
    /// Seconds a read waits when there is nothing.
    wait_s: u64 = 30,
    /// Where a new group starts: oldest or newest.
    reset: String = "oldest".to_owned(),
    /// Path of work `get`.
    path: String = "/alive".to_owned(),
}

impl Written {
    /// The scenario of a file.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// The plan, or everything that is wrong with it.
    pub fn resolve(self) -> Result<Plan, String> {
        let plan = self.complete();
        let wrong = [
            (
                plan.connections == 0 || plan.depth == 0 || plan.threads == 0,
                "connections, depth and threads are 1 or more",
            ),
            (plan.tls && plan.protocol == Protocol::H2, "tls goes with HTTP/1.1 (h2load speaks HTTP/2 over it)"),
            (plan.threads > plan.connections, "a thread has a connection at least"),
            (!(plan.rate >= 0.0 && plan.rate <= 10e6), "rate is 0 or up to ten million a second"),
            (!(plan.seconds > 0.0 && plan.seconds <= 86_400.0), "seconds is more than 0, and a day at most"),
            (!(plan.warmup_s >= 0.0 && plan.warmup_s <= 3_600.0), "warmup-s is 0 or more, and an hour at most"),
            (!(plan.timeout_s > 0.0 && plan.timeout_s <= 3_600.0), "timeout-s is more than 0, and an hour at most"),
            (plan.topics == 0 || plan.groups == 0, "topics and groups are 1 or more"),
            (plan.size == 0, "size is 1 or more: an empty message is refused"),
            (plan.stamp && plan.size < stamp::BYTES, "a stamp does not fit a message of this size"),
            (plan.stamp && plan.is_batch(), "a stamp is for messages that go one by one"),
            (!["all", "local", "none"].contains(&plan.ack.as_str()), "ack is all, local or none"),
            (!(1..=4_000).contains(&plan.batch), "batch is 1 to 4000"),
            (plan.wait_s > 30, "wait-s is 30 at most"),
            (!["oldest", "newest"].contains(&plan.reset.as_str()), "reset is oldest or newest"),
            (
                plan.protocol == Protocol::Ws && !matches!(plan.work, Work::Publish | Work::Subscribe),
                "a WebSocket publishes or subscribes",
            ),
            (
                plan.protocol == Protocol::H1 && plan.depth > 1 && matches!(plan.work, Work::Subscribe | Work::Idle),
                "reads are not pipelined: use more connections",
            ),
        ];
        let said: Vec<_> = wrong.into_iter().filter_map(|(is_wrong, text)| is_wrong.then_some(text)).collect();
        if said.is_empty() { Ok(plan) } else { Err(said.join("\n")) }
    }
}

// === impl Plan ===

impl Plan {
    pub fn is_read(&self) -> bool {
        matches!(self.work, Work::Subscribe | Work::Idle)
    }

    /// Whether one request publishes several messages.
    pub fn is_batch(&self) -> bool {
        self.work == Work::Publish && self.batch > 1
    }

    /// `Content-Type` of what is sent, where it matters.
    pub fn content_type(&self) -> Option<&'static str> {
        self.is_batch().then_some(match self.format {
            Format::Json => "application/json",
            Format::Ndjson => "application/x-ndjson",
            Format::Frames => "application/vnd.kateway.frames",
        })
    }

    /// Whether what is sent carries the time of sending.
    pub fn is_stamped(&self) -> bool {
        self.work == Work::Publish && self.stamp
    }

    /// What is wanted of the bodies of answers.
    pub fn wanted(&self) -> Wanted {
        let published = if self.is_batch() { self.batch as u64 } else { 1 };
        Wanted { frames: self.is_read() && self.batch > 1, stamps: self.is_read() && self.stamp, published }
    }

    /// How long an answer may take.
    pub fn patience(&self) -> Duration {
        let wait = if self.is_read() { Duration::from_secs(self.wait_s) } else { Duration::ZERO };
        wait + Duration::from_secs_f64(self.timeout_s)
    }

    pub fn method(&self) -> &'static str {
        if self.work == Work::Publish { "POST" } else { "GET" }
    }

    /// The request targets one connection goes round.
    pub fn targets(&self, connection: usize) -> Vec<String> {
        let numbered =
            |name: &str, count: usize, n: usize| if count > 1 { format!("{name}{n}") } else { name.to_owned() };
        let ws = if self.protocol == Protocol::Ws { "ws/" } else { "" };
        match self.work {
            Work::Get => vec![self.path.clone()],
            Work::Publish => {
                let one = |n: usize| {
                    let topic = numbered(&self.topic, self.topics, n % self.topics);
                    let key = if self.keys > 0 { format!("&key=k{}", n % self.keys) } else { String::new() };
                    let batch = if self.is_batch() { "&batch=1&results=range" } else { "" };
                    format!("/v1/{ws}msgs/{topic}/v1?ack={}{key}{batch}", self.ack)
                };
                // So many that every topic meets every key; connections start at different ones.
                let rounds = (self.topics * self.keys.max(1)).min(4_096);
                (0..rounds).map(|n| one(n + connection)).collect()
            }
            Work::Subscribe | Work::Idle => {
                let topic = numbered(&self.topic, self.topics, connection % self.topics);
                let group = numbered(&self.group, self.groups, connection % self.groups);
                let Self { appid, batch, wait_s, reset, .. } = self;
                let query = format!("group={group}&batch={batch}&wait={wait_s}s&reset={reset}");
                vec![format!("/v1/{ws}msgs/{appid}/{topic}/v1?{query}")]
            }
        }
    }

    pub fn body(&self) -> Vec<u8> {
        match self.work {
            Work::Publish if self.batch > 1 => self.batch_body(),
            Work::Publish => vec![b'x'; self.size],
            _ => Vec::new(),
        }
    }

    fn batch_body(&self) -> Vec<u8> {
        let (open, close) = ("{\"m\":\"", "\"}");
        let message = |n: usize| match self.size.checked_sub(open.len() + close.len()) {
            Some(pad) => format!("{open}{}{close}", words(pad, n)),
            // As JSON, a number of so many digits.
            None => "1".repeat(self.size),
        };
        let messages: Vec<String> = (0..self.batch).map(message).collect();
        match self.format {
            Format::Json => format!("[{}]", messages.join(",")).into_bytes(),
            Format::Ndjson => (messages.join("\n") + "\n").into_bytes(),
            Format::Frames => {
                let length = u32::try_from(self.size).unwrap_or(u32::MAX).to_be_bytes();
                messages.iter().flat_map(|message| [&length, message.as_bytes()].concat()).collect()
            }
        }
    }
}

/// Text of so many bytes that compresses about as well as what applications write; another one for each `seed`.
fn words(bytes: usize, seed: usize) -> String {
    const WORDS: [&str; 16] = [
        "order",
        "customer",
        "2026-11-27T08:15",
        "shipped",
        "pending",
        "EUR",
        "quantity",
        "00417",
        "warehouse",
        "north",
        "invoice",
        "paid",
        "9.99",
        "retry",
        "status",
        "region",
    ];
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        text.push_str(WORDS[usize::try_from(state >> 60).unwrap_or(0)]);
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        written: Written,
    }

    #[test]
    fn flags_and_file_mean_the_same_and_flags_win() {
        let flags = ["load", "--work", "subscribe", "--rate", "1000", "--batch", "500", "--target", "127.0.0.1:1"];
        let flags = Flags::parse_from(flags).written;
        let file: Written =
            toml::from_str("work = 'subscribe'\nrate = 1000.0\nbatch = 500\ntarget = '127.0.0.1:1'").expect("valid");
        assert_eq!(flags, file);
        let below: Written = toml::from_str("rate = 5.0\nconnections = 3").expect("valid");
        let plan = flags.over(below).resolve().expect("valid");
        assert_eq!((plan.rate, plan.connections, plan.size), (1000.0, 3, 1_024));
    }

    #[test]
    fn a_batch_has_messages_of_the_size_that_was_said() {
        let plan = |format, size| {
            let written = Written { batch: Some(3), size: Some(size), format: Some(format), ..Written::default() };
            written.resolve().expect("valid")
        };
        for size in [1, 8, 9, 100] {
            let json: Vec<serde_json::Value> = serde_json::from_slice(&plan(Format::Json, size).body()).expect("JSON");
            assert!(json.len() == 3 && json.iter().all(|message| message.to_string().len() == size), "{json:?}");
            assert_eq!(plan(Format::Ndjson, size).body().len(), 3 * (size + 1));
            assert_eq!(plan(Format::Frames, size).body().len(), 3 * (size + 4));
        }
        assert!(plan(Format::Json, 9).targets(0)[0].ends_with("?ack=all&batch=1&results=range"));
        assert_eq!(plan(Format::Json, 9).wanted().published, 3);
    }

    #[test]
    fn what_is_unknown_or_senseless_is_refused() {
        assert!(toml::from_str::<Written>("connection = 3").is_err());
        assert!(toml::from_str::<Written>("work = 'publsh'").is_err());
        let said = Written { connections: Some(0), batch: Some(4_001), ..Written::default() }.resolve();
        let said = said.expect_err("two values are wrong");
        assert!(said.contains("connections") && said.contains("batch"), "{said}");
    }

    #[test]
    fn topics_and_keys_are_gone_round() {
        let plan = Written { topics: Some(2), keys: Some(3), ..Written::default() }.resolve().expect("valid");
        let targets = plan.targets(0);
        let distinct: std::collections::HashSet<_> = targets.iter().collect();
        assert_eq!((targets.len(), distinct.len()), (6, 6), "{targets:?}");
        assert_eq!(targets[0], "/v1/msgs/load0/v1?ack=all&key=k0");
        assert_ne!(plan.targets(1)[0], targets[0]);
    }
}
