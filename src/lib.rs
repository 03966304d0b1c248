//! kateway: an HTTP gateway in front of Apache Kafka.
//!
//! ```text
//!             core 0                          core 1                     plain threads, none of which touches a message
//!   listeners pub/sub (SO_REUSEPORT)   listeners pub/sub            kicker:  ticks every core each 5 ms (50 if idle), counts stalls
//!   proto: HTTP/1.1, HTTP/2            ...                          control: man listener, signals, drain, reload
//!   api: plan > run                                                 offload: Kafka calls that may stall a core; bounded
//!   store: kafka | memory | null
//!   groups this core is home of        groups this core is home of   zookeeper: presence; nobody waits for it
//!         \____________________ mesh: bounded inboxes ____________________/
//! ```
//!
//! **One published message walks one way**, on one core: `server/listener` accepts, `server/conn` reads the head, `api/mod`
//! routes, `api/admit` admits, `api/publish` decides, the store takes the record, its report wakes the waiting request, the
//! answer leaves. A read of a group that lives on another core crosses the mesh; one of a partition that another gateway owns
//! goes to that gateway, once.
//!
//! **Import rule**, checked by `tests/tidy.rs`; a module sees only what stands before it:
//! `error, limits < config < metrics < offload, profile, readiness < store < registry < kafka < mesh < api < server < shard | control < boot < main`;
//! `proto` stands after `metrics` and sees neither `store`, `registry` nor `kafka`.
//!
//! **Words**: app (tenant), topic (app + topic + version), group, shard (one core), lease (messages handed out and not yet
//! acknowledged), grant (the right to settle one), home (the core a group lives on), owner (the gateway a partition is assigned
//! to), peer (another gateway), shadow (a group's retry and dead queue), bury (copy there and acknowledge), report (librdkafka's
//! delivery report).

pub mod error;
pub mod limits;

pub mod config;
pub mod metrics;
pub mod offload;

pub mod profile;

pub mod readiness;

pub mod proto;

pub mod store;
pub mod within;

pub mod registry;

pub mod kafka;

pub mod mesh;

pub mod api;

pub mod server;

pub mod shard;

pub mod control;

pub mod boot;
