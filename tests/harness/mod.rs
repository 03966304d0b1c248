//! What the tests of kateway stand on.
//!
//! Nothing here links gateway code: the gateway is a built binary, started as a process and spoken to over sockets, and
//! Kafka is the real one, started by [`kafka`] on free ports. What the gateway stored is read back by tools that are
//! not ours ([`kcat`], Kafka's own in [`java`]), so that one misunderstanding cannot hide on both sides.
//!
//! From the bottom: [`wait`] and [`ports`]; [`process`], which sees to it that no child outlives a run; [`folder`],
//! where a run keeps its logs; [`zookeeper`], [`kafka`], [`kateway`], which start things; [`client`], [`problem`],
//! [`frames`], [`h2`], [`readers`], [`exposition`], [`ws`], which understand answers; [`admin`], [`kcat`], [`java`], which look at Kafka
//! from the other side; [`transaction`], which writes as the gateway does not; [`tls`], [`haproxy`], [`nginx`] and [`link`], which stand
//! between clients and gateways; [`hinder`], which gets in a gateway's way; [`ledger`] and [`load`], which prove that
//! nothing was lost on the way in, [`read_ledger`] and [`crowd`], on the way out; [`figures`], which collects what a run
//! measured; [`tools`], which fetches what others have written; [`page`], which shows a
//! page to a browser.

pub mod admin;
pub mod client;
pub mod crowd;
pub mod exposition;
pub mod figures;
pub mod folder;
pub mod frames;
pub mod h2;
pub mod haproxy;
pub mod hinder;
pub mod java;
pub mod kafka;
pub mod kateway;
pub mod kcat;
pub mod ledger;
pub mod link;
pub mod load;
pub mod nginx;
pub mod page;
pub mod ports;
pub mod problem;
pub mod process;
pub mod read_ledger;
pub mod readers;
pub mod tls;
pub mod tools;
pub mod topic;
pub mod transaction;
pub mod wait;
pub mod ws;
pub mod zookeeper;

pub use wait::{wait_for, wait_until};
