//! The instruments are tested before they judge: the cluster, the reader and the tools, without any gateway.
//!
//! Method: messages made to confuse a reader that goes by separators are produced directly and must come back from kcat
//! unchanged; Kafka's own tools must start and agree; a broker that is killed must be replaced as leader and come back
//! at its old address with its data.

use std::time::Duration;

use kateway_tests::topic::Topic;
use kateway_tests::{figures, java, kcat, wait_until};

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("instruments::kcat_reads_any_bytes", kcat_reads_any_bytes).kafka(),
    Case::new("instruments::java_tools_run", java_tools_run).kafka(),
    Case::new("instruments::broker_is_replaced_and_comes_back", broker_is_replaced_and_comes_back).kafka().alone(),
];

fn kcat_reads_any_bytes() {
    let admin = kafka().admin();
    let topic = Topic::fresh("any").in_kafka();
    admin.create_topic(&topic, 2);
    let payloads: Vec<Vec<u8>> = vec![
        (0..=255).collect(),
        b"\n0 1 2 3 4\n".to_vec(),
        b"%p %o\\n".to_vec(),
        Vec::new(),
        vec![0; 1_000],
        vec![b'\n'; 600_000],
    ];
    admin.produce(&topic, 2, payloads.clone());
    let mut found: Vec<_> = kcat::read_all(admin.brokers(), &topic).into_iter().filter_map(|r| r.payload).collect();
    let mut expected = payloads;
    found.sort();
    expected.sort();
    assert!(found == expected, "kcat gives back what was produced");
    assert_eq!(admin.end_offsets(&topic), [3, 3]);
}

fn java_tools_run() {
    let admin = kafka().admin();
    let topic = Topic::fresh("java").in_kafka();
    admin.create_topic(&topic, 2);
    let args = ["--bootstrap-server", admin.brokers(), "--topic", &topic];
    java::tool(java::CONSOLE_PRODUCER, &[&args[..], &["--property", "parse.key=true"]].concat(), b"a\tone\nb\ttwo\n");
    let records = kcat::read_all(admin.brokers(), &topic);
    let mut found: Vec<_> = records.into_iter().map(|r| (r.key.expect("a key"), r.payload.expect("a value"))).collect();
    found.sort();
    assert_eq!(found, [(b"a".to_vec(), b"one".to_vec()), (b"b".to_vec(), b"two".to_vec())]);
}

fn broker_is_replaced_and_comes_back() {
    let admin = kafka().admin();
    let topic = Topic::fresh("killed").in_kafka();
    admin.create_topic(&topic, 1);
    admin.produce(&topic, 1, [b"before".to_vec()]);
    let leader = admin.leader(&topic, 0);
    kafka().kill(u32::try_from(leader).expect("a broker leads"));
    let took = wait_until(Duration::from_mins(1), "another broker leads", || {
        let now = admin.leader(&topic, 0);
        now >= 0 && now != leader
    });
    figures::note("instruments: leader replaced after kill -9", format!("{took:?}"));
    admin.produce(&topic, 1, [b"between".to_vec()]);
    kafka().restart(u32::try_from(leader).expect("a broker led"));
    kafka().wait_recovered();
    kafka().wait_in_sync(&topic);
    assert_eq!(admin.end_offsets(&topic), [2]);
}
