//! Towards Kafka: TLS, and a user proven by PLAIN or SCRAM, for whatever the gateway asks of the cluster.
//!
//! Method: the brokers of the run have two more listeners, one that wants a user over TLS and one that wants a certificate. A gateway on each
//! publishes, reads, acknowledges, peeks and makes a topic, so that producers, consumers, the admin client and the simple one all came through.
//! With a wrong password, or brokers whose certificate nobody vouches for, it starts, says why in its log, answers 503 and is not ready; the
//! password is shown nowhere.

use kateway_tests::client::Request;
use kateway_tests::kafka::{PASSWORD, USER};
use kateway_tests::kateway::{self, Builder, Kateway};
use kateway_tests::tls::Authority;
use kateway_tests::topic::Topic;
use kateway_tests::{problem, wait_until};

use crate::stage::{SOON, single};
use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("kafka_security::sasl_over_tls_serves_everything", sasl_over_tls_serves_everything).kafka(),
    Case::new("kafka_security::a_certificate_of_its_own_serves_everything", a_certificate_of_its_own_serves_everything)
        .kafka(),
    Case::new("kafka_security::wrong_password_is_said", wrong_password_is_said).kafka(),
    Case::new("kafka_security::unknown_authority_is_said", unknown_authority_is_said).kafka(),
    Case::new("kafka_security::settings_that_do_not_fit_are_refused", settings_that_do_not_fit_are_refused),
];

fn sasl(mechanism: &str, password: &str) -> Builder {
    Kateway::kafka(&kafka().bootstrap_sasl_ssl())
        .shards(2)
        .set("topics.auto_create", true)
        .set("topics.replicas", 3)
        .set("kafka.security_protocol", "sasl_ssl")
        .set("kafka.sasl_mechanism", mechanism)
        .set("kafka.sasl_username", USER)
        .set("kafka.sasl_password", password)
        .set("kafka.tls_ca", kafka().authority().certificate().display())
}

fn serves_everything(gateway: &Kateway) {
    let topic = Topic::fresh("secured");
    gateway.publish(&topic.publish("partition=0", "one")).expect(201);
    gateway.publish(&topic.publish("partition=0&ack=local", "two")).expect(201);
    for text in ["one", "two"] {
        let message = single(&gateway.subscribe(&topic.read("g", "ack=1&lease=1m&wait=20s")).expect(200));
        gateway.subscribe(&topic.ack_all("g", "", &[message.position()])).expect(200);
        assert_eq!(message.text, text);
    }
    let peeked = gateway.subscribe(&topic.peek("n=1&partition=0&offset=1")).expect(200).text();
    assert!(peeked.contains(r#""value":"two""#), "{peeked}");
    let rows = gateway.subscribe(&topic.readers_as(&topic.appid, "group=g")).expect(200).json();
    assert!(rows.as_array().is_some_and(|rows| !rows.is_empty()), "{rows}");
    gateway.manage(&Request::get("/readyz")).expect(200);
    assert_eq!(kafka().admin().message_count(&topic.in_kafka()), 2, "by a client that came in the open");
}

fn sasl_over_tls_serves_everything() {
    kafka().add_scram_user();
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let gateway = sasl(mechanism, PASSWORD).start();
        serves_everything(&gateway);
        is_kept_secret(&gateway, PASSWORD);
    }
}

fn is_kept_secret(gateway: &Kateway, secret: &str) {
    for path in ["/v1/status", "/metrics"] {
        assert!(!gateway.manage(&Request::get(path)).expect(200).text().contains(secret), "{path} shows it");
    }
    assert!(!gateway.log().contains(secret), "the log shows it");
}

fn a_certificate_of_its_own_serves_everything() {
    let pair = kafka().authority().issue("DNS:gateway.test");
    let builder = Kateway::kafka(&kafka().bootstrap_ssl())
        .set("topics.auto_create", true)
        .set("topics.replicas", 3)
        .set("kafka.security_protocol", "ssl")
        .set("kafka.tls_ca", kafka().authority().certificate().display());
    let with_own =
        builder.clone().set("kafka.tls_cert", pair.certificate.display()).set("kafka.tls_key", pair.key.display());
    serves_everything(&with_own.start());
    is_not_ready(&builder.start(), "certificate");
}

/// It runs, says why, and is not ready.
fn is_not_ready(gateway: &Kateway, reason: &str) {
    wait_until(SOON, format!("the log says {reason:?}"), || {
        gateway.log().to_ascii_lowercase().contains(&reason.to_ascii_lowercase())
    });
    problem::check(&gateway.manage(&Request::get("/readyz")), 503);
    gateway.manage(&Request::get("/alive")).expect(200);
    let topic = Topic::fresh("unsent");
    problem::check(&gateway.publish(&topic.publish("", "x")), 503);
}

fn wrong_password_is_said() {
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let gateway = sasl(mechanism, "wrong-password-9").start();
        is_not_ready(&gateway, "authentication");
        is_kept_secret(&gateway, "wrong-password-9");
    }
}

fn unknown_authority_is_said() {
    let stranger = Authority::new();
    let gateway = sasl("PLAIN", PASSWORD).set("kafka.tls_ca", stranger.certificate().display()).start();
    is_not_ready(&gateway, "certificate verify failed");
}

fn settings_that_do_not_fit_are_refused() {
    let base = [
        "run",
        "--store",
        "kafka",
        "--brokers",
        "127.0.0.1:1",
        "--pub",
        "127.0.0.1:0",
        "--sub",
        "127.0.0.1:0",
        "--man",
        "",
    ];
    for (settings, says) in [
        (&["kafka.sasl_username=u"][..], "kafka.security_protocol to be `sasl_plaintext` or `sasl_ssl`"),
        (
            &["kafka.security_protocol=sasl_ssl", "kafka.sasl_username=u"],
            "kafka.sasl_password = \"\": expected text, because",
        ),
        (&["kafka.tls_ca=/x.pem"], "kafka.security_protocol to be `ssl` or `sasl_ssl`"),
        (&["kafka.security_protocol=ssl", "kafka.tls_cert=/x.pem"], "kafka.tls_cert and kafka.tls_key together"),
        (&["kafka.security_protocol=ssl", "kafka.tls_ca=/nowhere/x.pem"], "kafka.tls_ca: /nowhere/x.pem: No such file"),
        (&["kafka.options=sasl.password=x"], "none of the options the gateway's promises rest on"),
    ] {
        let args: Vec<&str> = base.into_iter().chain(settings.iter().flat_map(|setting| ["--set", setting])).collect();
        let (code, _, said) = kateway::run(&args);
        assert_eq!(code, 64, "{said}");
        assert!(said.contains(says), "{says:?} in {said}");
    }
    let secret = "sesame-in-the-open";
    let (code, out, said) = kateway::run(&[
        "check",
        "--store",
        "memory",
        "--set",
        "kafka.security_protocol=sasl_ssl",
        "--set",
        "kafka.sasl_username=u",
        "--set",
        &format!("kafka.sasl_password={secret}"),
    ]);
    assert_eq!(code, 0, "{said}");
    assert!(out.contains("sasl_password = \"***\"") && !out.contains(secret), "{out}");
}
