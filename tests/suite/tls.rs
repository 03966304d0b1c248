//! TLS listeners: what a client may speak, which certificate it gets, what a failed handshake costs, and how certificates are renewed.
//!
//! Method: an authority of the run issues certificates; curl, `openssl s_client` and the harness's own client (rustls) must get the
//! protocol and the certificate they asked for, on both HTTP versions and both TLS versions, and resume a session whatever shard they
//! come to. Renewal is done as certbot does it, by files put in place, with connections open that must not notice. Handshakes that
//! stall, or are none, are cut in time and counted by kind. `tls_traffic` has what goes over the connections.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kateway_tests::client::{Connection, Failure, Request};
use kateway_tests::kateway::{self, Builder, Kateway};
use kateway_tests::tls::{Authority, Pair};
use kateway_tests::topic::Topic;
use kateway_tests::{folder, process, wait_until};
use rustls::version::{TLS12, TLS13};

use crate::Case;

pub const CASES: &[Case] = &[
    Case::new("tls::curl_speaks_both_protocols_and_versions", curl_speaks_both_protocols_and_versions),
    Case::new("tls::alpn_chooses_the_protocol", alpn_chooses_the_protocol),
    Case::new("tls::host_name_chooses_the_certificate", host_name_chooses_the_certificate),
    Case::new("tls::sessions_resume_on_any_shard", sessions_resume_on_any_shard),
    Case::new("tls::renewed_certificates_serve_new_connections", renewed_certificates_serve_new_connections),
    Case::new("tls::stalled_handshake_is_cut", stalled_handshake_is_cut),
    Case::new("tls::failures_are_counted_by_kind", failures_are_counted_by_kind),
    Case::new("tls::version_may_be_1_3_only", version_may_be_1_3_only),
    Case::new("tls::cleartext_can_be_refused", cleartext_can_be_refused),
    Case::new("tls::what_cannot_serve_is_refused_at_start", what_cannot_serve_is_refused_at_start),
    Case::new("tls::check_reads_the_files", check_reads_the_files),
];

const SOON: Duration = Duration::from_secs(10);
/// Longer than the deadline of a handshake, 5 s.
const CUT: Duration = Duration::from_secs(8);
const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";
const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A gateway that speaks TLS beside cleartext, on all roles.
pub fn with_tls(builder: Builder, pairs: &[&Pair]) -> Builder {
    let certificates: Vec<String> = pairs.iter().map(|pair| pair.setting()).collect();
    let builder = builder.set("tls.certificates", certificates.join(","));
    ["pub", "sub", "man"].iter().fold(builder, |builder, role| builder.set(&format!("{role}.tls_addr"), "127.0.0.1:0"))
}

fn failures(gateway: &Kateway, kind: &str) -> f64 {
    gateway.scrape().sum("kateway_tls_handshake_failures_total", &[("kind", kind)])
}

/// Runs curl against a listener, as a client of host `a.test`. Gives status, HTTP version and body, or curl's exit code.
fn curl(authority: &Authority, port: u16, flags: &[&str], path: &str, body: &str) -> Result<(String, String), i32> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--cacert"]).arg(authority.certificate());
    command.args(["--resolve", &format!("a.test:{port}:127.0.0.1"), "--write-out", "\n%{http_code} %{http_version}"]);
    command.args(flags).arg(format!("https://a.test:{port}{path}"));
    if !body.is_empty() {
        command.args(["--data-binary", body]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = process::output("curl", command, SOON * 3).expect("the tests need curl (package curl)");
    match output.status.code() {
        Some(0) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let (body, tail) = text.rsplit_once('\n').expect("curl writes the status");
            Ok((tail.to_owned(), body.to_owned()))
        }
        code => Err(code.unwrap_or(-1)),
    }
}

fn curl_speaks_both_protocols_and_versions() {
    let authority = Authority::new();
    let gateway = with_tls(Kateway::memory().shards(2), &[&authority.issue("DNS:a.test")]).start();
    let topic = Topic::fresh("secured");
    let appid = format!("Appid: {}", topic.appid);
    let publish = format!("/v1/msgs/{}/v1?partition=0", topic.name);
    let read = format!("/v1/msgs/{}/{}/v1?group=g&wait=5s", topic.appid, topic.name);
    for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for tls in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
            let flags = [&[http, "-H", &appid][..], &tls].concat();
            let text = format!("{http} {tls:?}");
            let port = |role| gateway.address(role).port();
            let published = curl(&authority, port("pub_tls"), &flags, &publish, &text);
            assert_eq!(published, Ok((format!("201 {version}"), r#"{"ok":1}"#.to_owned())));
            assert_eq!(curl(&authority, port("sub_tls"), &flags, &read, ""), Ok((format!("200 {version}"), text)));
            let (status, document) = curl(&authority, port("man_tls"), &flags, "/v1/status", "").expect("an answer");
            assert_eq!(status, format!("200 {version}"));
            let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
            assert_eq!(document["listeners"]["pub_tls"], gateway.address("pub_tls").to_string());
            assert_eq!(document["listeners"]["pub"], gateway.publish.to_string());
        }
    }
    let old = ["--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0"];
    assert_eq!(curl(&authority, gateway.address("pub_tls").port(), &old, "/alive", ""), Err(35), "TLS 1.1 is refused");
    wait_until(SOON, "it is counted", || failures(&gateway, "version") == 1.0);
    assert!(gateway.scrape().sum("kateway_tls_handshakes_total", &[]) >= 8.0, "of the shards; man is not counted");
}

fn connect(
    gateway: &Kateway,
    client: &std::sync::Arc<rustls::ClientConfig>,
    host: &str,
) -> Result<Connection, Failure> {
    Connection::open_tls(gateway.address("pub_tls"), client, host)
}

fn alpn_chooses_the_protocol() {
    let authority = Authority::new();
    let gateway = with_tls(Kateway::memory(), &[&authority.issue("DNS:a.test")]).start();
    for version in BOTH {
        let agreed = |alpn: &[&[u8]]| {
            let connection = connect(&gateway, &authority.client(&[version], alpn), "a.test");
            connection.map(|connection| connection.session().alpn_protocol().map(<[u8]>::to_vec))
        };
        assert_eq!(agreed(&[H1, H2]).ok().flatten().as_deref(), Some(H2), "the gateway's order is what counts");
        assert_eq!(agreed(&[H1]).ok().flatten().as_deref(), Some(H1));
        assert!(matches!(agreed(&[b"spdy/3"]), Err(Failure::Connect(_))), "no protocol in common");
        // Without ALPN the first bytes tell, as in cleartext.
        let plain = authority.client(&[version], &[]);
        let mut connection = connect(&gateway, &plain, "a.test").expect("a connection");
        assert_eq!(connection.session().alpn_protocol(), None);
        connection.call(&Request::get("/alive")).expect("an answer").expect(200);
        let mut connection = connect(&gateway, &plain, "a.test").expect("a connection");
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("sent");
        let frame = connection.read_raw(9).expect("a frame");
        assert_eq!(frame[3], 4, "SETTINGS comes first: {frame:?}");
    }
    assert_eq!(failures(&gateway, "protocol"), 2.0);
}

fn host_name_chooses_the_certificate() {
    let authority = Authority::new();
    let pairs = [
        authority.issue("DNS:first.test,IP:127.0.0.1"),
        authority.issue("DNS:b.test,DNS:*.wild.test"),
        authority.issue_rsa("DNS:rsa.test"),
    ];
    let gateway = with_tls(Kateway::memory(), &[&pairs[0], &pairs[1], &pairs[2]]).start();
    let client = authority.client(&BOTH, &[]);
    let given = |host: &str| {
        let connection = connect(&gateway, &client, host).map_err(|error| error.to_string())?;
        Ok::<_, String>(connection.session().peer_certificates().expect("a certificate")[0].to_vec())
    };
    let der = |pair: &Pair| {
        let pem = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_file(
            &pair.certificate,
        );
        Ok(pem.expect("a certificate").to_vec())
    };
    assert_eq!(given("first.test"), der(&pairs[0]));
    assert_eq!(given("b.test"), der(&pairs[1]));
    assert_eq!(given("B.Test"), der(&pairs[1]));
    assert_eq!(given("any.wild.test"), der(&pairs[1]));
    assert_eq!(given("rsa.test"), der(&pairs[2]));
    // An address is not named (RFC 6066): the first of all, which is for it as well.
    assert_eq!(given("127.0.0.1"), der(&pairs[0]));
    let stranger = given("stranger.test").expect_err("the first, which is not for it");
    assert!(stranger.contains("NotValidForName"), "{stranger}");
    wait_until(SOON, "the client's refusal is counted", || failures(&gateway, "refused") >= 1.0);
    for (name, expected) in [("b.test", &pairs[1]), ("stranger.test", &pairs[0])] {
        let said = s_client(&gateway, &["-servername", name, "-showcerts"]);
        let pem = std::fs::read_to_string(&expected.certificate).expect("a file");
        assert!(said.contains(pem.trim()), "{name}: {said}");
    }
}

/// What `openssl s_client` says of one connection that sends nothing.
fn s_client(gateway: &Kateway, flags: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &gateway.address("pub_tls").to_string()]).args(flags);
    // Without an end of its input it waits for the session tickets of TLS 1.3, which come behind the handshake.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("the tests need openssl (package openssl)");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let request = b"GET /alive HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut stdin, request).expect("written");
    let output = child.wait_with_output().expect("openssl ends when the gateway closes");
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn sessions_resume_on_any_shard() {
    let authority = Authority::new();
    let gateway = with_tls(Kateway::memory().shards(4), &[&authority.issue("DNS:a.test")]).start();
    // By ticket, by session id, by pre-shared key.
    for (n, flags) in [&["-tls1_2"][..], &["-tls1_2", "-no_ticket"], &["-tls1_3"]].into_iter().enumerate() {
        let file = folder::fresh("session", ".pem").display().to_string();
        let first = s_client(&gateway, &[flags, &["-sess_out", &file]].concat());
        assert!(first.contains("New, TLSv1."), "{flags:?}: {first}");
        for _ in 0..8 {
            // OpenSSL's client throws a TLS 1.3 ticket away once it was used: it keeps the one that comes behind.
            let again = s_client(&gateway, &[flags, &["-sess_in", &file, "-sess_out", &file]].concat());
            assert!(again.contains("Reused, TLSv1."), "{flags:?}: {again}");
        }
        let resumed = gateway.scrape().sum("kateway_tls_resumed_total", &[]);
        assert!(resumed >= 8.0 * f64::from(u32::try_from(n + 1).expect("three")), "{flags:?}: {resumed}");
    }
    let shards = (0..4)
        .filter(|shard| gateway.scrape().sum("kateway_tls_resumed_total", &[("shard", &shard.to_string())]) > 0.0);
    assert!(shards.count() > 1, "they came to more than one shard");
}

fn renewed_certificates_serve_new_connections() {
    let authority = Authority::new();
    let pair = authority.issue("DNS:old.test");
    let gateway = with_tls(Kateway::memory().shards(2), &[&pair]).start();
    let client = authority.client(&BOTH, &[]);
    let mut kept: Vec<Connection> =
        (0..8).map(|_| connect(&gateway, &client, "old.test").expect("a connection")).collect();
    let mut serve_kept = || {
        for connection in &mut kept {
            connection.call(&Request::get("/alive")).unwrap_or_else(|e| panic!("{e}")).expect(200);
        }
    };
    serve_kept();
    pair.replace_with(&authority.issue("DNS:new.test"));
    // On every shard: eight in a row.
    let all_speak_for = |host: &str| (0..8).all(|_| connect(&gateway, &client, host).is_ok());
    wait_until(SOON, "new connections get the new certificate", || all_speak_for("new.test"));
    serve_kept();

    for broken in ["not a certificate\n", ""] {
        let before = gateway.log().matches("the earlier ones stay in use").count();
        std::fs::write(&pair.certificate, broken).expect("the run's folder can be written");
        wait_until(SOON, "the log says so", || {
            gateway.log().matches("the earlier ones stay in use").count() == before + 1
        });
        assert!(all_speak_for("new.test"), "what cannot be used changes nothing");
    }
    // A certificate that does not belong to the key.
    std::fs::copy(&authority.issue("DNS:other.test").certificate, &pair.certificate).expect("copied");
    gateway.wait_log(SOON, "does not go with the key");
    assert!(all_speak_for("new.test"));
    pair.replace_with(&authority.issue("DNS:last.test"));
    wait_until(SOON, "new connections get the last certificate", || all_speak_for("last.test"));
    serve_kept();
}

fn stalled_handshake_is_cut() {
    let authority = Authority::new();
    let gateway = with_tls(Kateway::memory(), &[&authority.issue("DNS:a.test")]).start();
    // Nothing at all, and the beginning of a handshake message.
    for beginning in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let (before, start) = (failures(&gateway, "timeout"), Instant::now());
        let mut silent = Connection::open(gateway.address("pub_tls")).expect("a connection");
        silent.send(beginning).expect("sent");
        assert!(silent.closes_within(CUT), "it is cut");
        assert!(start.elapsed() >= Duration::from_millis(4_900), "not before its time: {:?}", start.elapsed());
        wait_until(SOON, "it is counted", || failures(&gateway, "timeout") == before + 1.0);
    }
    assert_eq!(gateway.scrape().sum("kateway_connections_expired_total", &[]), 2.0);
}

fn failures_are_counted_by_kind() {
    let authority = Authority::new();
    let gateway = with_tls(Kateway::memory(), &[&authority.issue("DNS:a.test")]).start();
    let mut cleartext = Connection::open(gateway.address("pub_tls")).expect("a connection");
    cleartext.send(b"GET /alive HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
    // An alert, which is no answer of HTTP, and the end.
    match cleartext.read_response() {
        Err(Failure::Malformed(_) | Failure::NoAnswer | Failure::Cut(_)) => {}
        answer => panic!("cleartext is not served: {answer:?}"),
    }
    wait_until(SOON, "it is counted", || failures(&gateway, "not_tls") == 1.0);
    Connection::open(gateway.address("pub_tls")).expect("a connection").reset();
    drop(Connection::open(gateway.address("pub_tls")).expect("a connection"));
    wait_until(SOON, "they are counted", || failures(&gateway, "cut") == 2.0);
    let stranger = Authority::new().client(&BOTH, &[]);
    assert!(
        matches!(connect(&gateway, &stranger, "a.test"), Err(Failure::Connect(_))),
        "it does not know the authority"
    );
    wait_until(SOON, "it is counted", || failures(&gateway, "refused") == 1.0);
    let flags = ["-tls1_2", "-cipher", "AES128-SHA"];
    assert!(s_client_fails(&gateway, &flags), "a suite of long ago");
    wait_until(SOON, "it is counted", || failures(&gateway, "parameters") == 1.0);
    // The cleartext listeners are as they were, and do not take TLS for a request.
    gateway.publish(&Request::get("/alive")).expect(200);
    assert!(matches!(
        Connection::open_tls(gateway.publish, &authority.client(&BOTH, &[]), "a.test"),
        Err(Failure::Connect(_))
    ));
}

fn s_client_fails(gateway: &Kateway, flags: &[&str]) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &gateway.address("pub_tls").to_string()]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    !process::output("openssl", command, SOON * 3).expect("openssl runs").status.success()
}

fn version_may_be_1_3_only() {
    let authority = Authority::new();
    let builder = with_tls(Kateway::memory(), &[&authority.issue("DNS:a.test")]);
    let gateway = builder.set("tls.min_version", "1.3").start();
    assert!(connect(&gateway, &authority.client(&[&TLS13], &[]), "a.test").is_ok());
    assert!(matches!(connect(&gateway, &authority.client(&[&TLS12], &[]), "a.test"), Err(Failure::Connect(_))));
    wait_until(SOON, "it is counted", || failures(&gateway, "version") == 1.0);
}

/// No address for cleartext: the ready line says so, and only TLS is served.
fn cleartext_can_be_refused() {
    let authority = Authority::new();
    let pair = authority.issue("DNS:a.test");
    let config = folder::fresh("only-tls", ".toml");
    let text = format!(
        "[pub]\naddr = \"\"\ntls_addr = \"127.0.0.1:0\"\n[sub]\naddr = \"\"\n[man]\naddr = \"\"\n[tls]\ncertificates = [\"{}\"]\n",
        pair.setting()
    );
    std::fs::write(&config, text).expect("the run's folder can be written");
    let mut process = {
        let mut command = Command::new(kateway::binary());
        command.args(["run", "--store", "memory", "--shards", "1", "--config"]).arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        process::Process::start("kateway", command).expect("the gateway binary can be started")
    };
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout()), &mut line).expect("a line");
    let address =
        line.trim_end().strip_prefix("ready pub=- sub=- man=- pub_tls=").unwrap_or_else(|| panic!("{line:?}"));
    let address = address.parse().expect("an address");
    let mut connection = Connection::open_tls(address, &authority.client(&BOTH, &[]), "a.test").expect("a connection");
    connection.call(&Request::get("/alive")).expect("an answer").expect(200);
}

fn what_cannot_serve_is_refused_at_start() {
    let authority = Authority::new();
    let (pair, other) = (authority.issue("DNS:a.test"), authority.issue("DNS:b.test"));
    let crossed = format!("{}:{}", pair.certificate.display(), other.key.display());
    let swapped = format!("{}:{}", pair.key.display(), pair.certificate.display());
    let good = pair.setting();
    for (settings, says) in [
        (
            vec!["pub.tls_addr=127.0.0.1:0"],
            "pub.tls_addr = \"127.0.0.1:0\" (command line): expected a certificate in tls.certificates",
        ),
        (
            vec!["pub.tls_addr=127.0.0.1:0", "tls.certificates=/nowhere.pem"],
            "tls.certificates: /nowhere.pem: No such file",
        ),
        (
            vec!["pub.tls_addr=127.0.0.1:0", "tls.certificates=:x"],
            "expected a list, each item `CERTIFICATE.pem:KEY.pem`",
        ),
        (vec!["pub.tls_addr=127.0.0.1:0", &format!("tls.certificates={crossed}")], "does not go with the key in"),
        (vec!["pub.tls_addr=127.0.0.1:0", &format!("tls.certificates={swapped}")], "holds no certificate"),
        (
            vec!["pub.addr=127.0.0.1:19191", "pub.tls_addr=127.0.0.1:19191", &format!("tls.certificates={good}")],
            "expected another address than pub.addr, which speaks cleartext",
        ),
    ] {
        let mut args = vec!["run", "--store", "memory", "--sub", "127.0.0.1:0", "--man", "127.0.0.1:0"];
        if !settings.iter().any(|setting| setting.starts_with("pub.addr")) {
            args.extend(["--pub", "127.0.0.1:0"]);
        }
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let (code, _, said) = kateway::run(&args);
        assert_eq!(code, 64, "{said}");
        assert!(said.contains(says), "{says:?} in {said}");
    }
}

/// All that is wrong with files is told at once, and without a start.
fn check_reads_the_files() {
    let files = ["tls.certificates=/nowhere.pem", "kafka.security_protocol=ssl", "kafka.tls_ca=/neither.pem"];
    for (command, fails) in [("check", 64), ("run", 64), ("doctor", 69)] {
        let mut args = vec![command, "--brokers", "127.0.0.1:1"];
        args.extend(["--pub", "127.0.0.1:0", "--sub", "127.0.0.1:0", "--man", "127.0.0.1:0"]);
        args.extend(files.iter().flat_map(|setting| ["--set", setting]));
        let (code, out, said) = kateway::run(&args);
        assert_eq!(code, fails, "{command}: {said}");
        for says in ["tls.certificates: /nowhere.pem: No such file", "kafka.tls_ca: /neither.pem: No such file"] {
            assert!((out.clone() + &said).contains(says), "{command}: {says:?} in {out}{said}");
        }
    }
}
