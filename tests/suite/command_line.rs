//! The command line and the configuration: errors are found before anything starts, all of them at once.
//!
//! Method: the binary is run to its end with good and bad arguments; exit codes and texts are compared. A running
//! gateway is reloaded by SIGHUP, once with a change that must take effect and once with a file full of errors, which
//! must change nothing.

use std::path::PathBuf;
use std::time::Duration;

use kateway_tests::folder;
use kateway_tests::kateway::{Kateway, run};
use kateway_tests::topic::Topic;
use kateway_tests::wait_until;

use crate::{Case, kafka};

pub const CASES: &[Case] = &[
    Case::new("command_line::version_and_help", version_and_help),
    Case::new("command_line::check_names_all_errors", check_names_all_errors),
    Case::new("command_line::check_prints_what_holds", check_prints_what_holds),
    Case::new("command_line::shipped_configuration_is_valid", shipped_configuration_is_valid),
    Case::new("command_line::published_codes_are_current", published_codes_are_current),
    Case::new("command_line::run_refuses_bad_settings", run_refuses_bad_settings),
    Case::new("command_line::taken_address_is_one_sentence", taken_address_is_one_sentence),
    Case::new("command_line::doctor_examines", doctor_examines).kafka(),
    Case::new("command_line::sighup_reloads", sighup_reloads),
    Case::new("command_line::one_port_for_all_roles", one_port_for_all_roles),
];

fn config_file(text: &str) -> PathBuf {
    let path = folder::fresh("config", ".toml");
    std::fs::write(&path, text).expect("the run's folder can be written");
    path
}

fn version_and_help() {
    let (status, out, _) = run(&["--version"]);
    assert_eq!(status, 0);
    assert!(out.starts_with("kateway ") && out.contains(char::is_numeric), "{out}");
    let (status, out, _) = run(&["--help"]);
    assert_eq!(status, 0);
    for command in ["run", "check", "doctor"] {
        assert!(out.contains(command), "{command} in {out}");
        let (status, out, _) = run(&[command, "--help"]);
        assert_eq!(status, 0, "{command} --help");
        assert!(out.contains("Usage:"), "{out}");
    }
    let (status, out, _) = run(&["run", "--help"]);
    assert_eq!(status, 0);
    for flag in ["--config", "--store", "--brokers", "--pub", "--sub", "--man", "--shards", "--set"] {
        assert!(out.contains(flag), "{flag} in {out}");
    }
    let (status, _, err) = run(&["frobnicate"]);
    assert!(status != 0 && err.contains("frobnicate"), "{status} {err}");
}

const BAD: &str = "
[pub]
deadline_ms = 10
addr = \"nowhere\"
[sub]
commit_interval_ms = \"soon\"
[shards]
count = 2
[log]
level = \"info\"
colour = true
";

fn check_names_all_errors() {
    let file = config_file(BAD);
    let (status, out, err) = run(&["check", "--config", &file.display().to_string()]);
    assert_eq!(status, 64, "{out}{err}");
    let text = out + &err;
    for path in ["pub.deadline_ms", "pub.addr", "sub.commit_interval_ms", "shards", "log.colour"] {
        assert!(text.contains(path), "{path} is named in\n{text}");
    }
    let (status, out, err) = run(&["check", "--config", &config_file("[pub\naddr = 1").display().to_string()]);
    assert_eq!(status, 64, "a syntax error: {out}{err}");
    let (status, out, err) = run(&["check", "--config", "/nonexistent/kateway.toml"]);
    assert!(status != 0 && (out + &err).contains("/nonexistent/kateway.toml"), "a missing file is named");
}

fn check_prints_what_holds() {
    let file = config_file("[pub]\ndeadline_ms = 7000\n[kafka]\nbrokers = [\"localhost:9092\"]\n");
    let (status, out, err) = run(&["check", "--config", &file.display().to_string()]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("deadline_ms = 7000"), "what the file says:\n{out}");
    assert!(out.contains("commit_interval_ms = 100"), "and what holds by default:\n{out}");
}

/// Brokers are the one thing that has no default: the sample of all keys needs them from elsewhere, and complains of nothing else.
fn shipped_configuration_is_valid() {
    let config = folder::root().join("config");
    let files = std::fs::read_dir(&config).expect("config/ is there").map(|entry| entry.expect("readable").path());
    let samples: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
    assert!(!samples.is_empty());
    for file in samples {
        let file = file.display().to_string();
        let (status, out, err) = run(&["check", "--config", &file, "--brokers", "localhost:9092"]);
        assert_eq!(status, 0, "{file}: {out}{err}");
    }
    let sample = config.join("kateway.toml").display().to_string();
    let (status, _, err) = run(&["check", "--config", &sample]);
    assert_eq!((status, err.matches("expected").count()), (64, 1), "{err}");
    assert!(err.contains("kafka.brokers"), "{err}");
}

fn published_codes_are_current() {
    let (status, out, err) = run(&["check", "--codes"]);
    assert_eq!(status, 0, "{err}");
    let published = std::fs::read_to_string(folder::root().join("config/error-codes.md")).expect("the list is there");
    assert!(out.trim_end() == published.trim_end(), "config/error-codes.md is not what `kateway check --codes` prints");
}

fn run_refuses_bad_settings() {
    let (status, _, err) = run(&["run", "--store", "memory", "--set", "pub.deadline_ms=10", "--set", "no.such=1"]);
    assert_eq!(status, 64, "{err}");
    assert!(err.contains("pub.deadline_ms") && err.contains("no.such"), "both are named: {err}");
    let (status, _, err) = run(&["run", "--config", &config_file(BAD).display().to_string()]);
    assert_eq!(status, 64, "{err}");
}

fn taken_address_is_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let (status, out, err) =
        run(&["run", "--store", "memory", "--pub", &address, "--sub", "127.0.0.1:0", "--man", "127.0.0.1:0"]);
    assert!(status > 0, "{out}{err}");
    assert!(err.contains(&address) && !err.contains("panicked"), "{err}");
    assert!(!out.contains("ready"), "{out}");
}

fn doctor_examines() {
    let (status, out, err) = run(&["doctor", "--brokers", &kafka().bootstrap()]);
    let text = out + &err;
    for word in ["io_uring", "locked memory", "open files", "broker 127.0.0.1"] {
        assert!(text.contains(word), "{word} is examined:\n{text}");
    }
    assert!(status == 0 || text.contains("io_uring"), "{status}:\n{text}");
    let nobody = format!("127.0.0.1:{}", kateway_tests::ports::reserve());
    let (status, out, err) = run(&["doctor", "--brokers", &nobody]);
    assert_ne!(status, 0, "unreachable brokers are a finding:\n{out}{err}");
    assert!((out + &err).contains(&nobody), "and named");
}

fn sighup_reloads() {
    let file = config_file("[log]\nlevel = \"error\"\n[pub]\nmessage_bytes_max = 1000\n");
    let gateway = Kateway::memory().config(&file).start();
    let topic = Topic::fresh("reloaded");
    gateway.publish(&topic.publish("", vec![b'x'; 1_000])).expect(201);
    assert_eq!(gateway.log(), "", "the warnings of the start are below `error`");

    std::fs::write(&file, "[log]\nlevel = \"info\"\n[pub]\nmessage_bytes_max = 100\n").expect("written");
    gateway.signal(libc::SIGHUP);
    wait_until(Duration::from_secs(5), "the new limit holds", || {
        gateway.publish(&topic.publish("", vec![b'x'; 1_000])).status == 413
    });
    gateway.wait_log(Duration::from_secs(5), "INFO");

    std::fs::write(&file, BAD).expect("written");
    gateway.signal(libc::SIGHUP);
    gateway.wait_log(Duration::from_secs(5), "pub.deadline_ms");
    gateway.publish(&topic.publish("", vec![b'x'; 100])).expect(201);
    let answer = gateway.publish(&topic.publish("", vec![b'x'; 101]));
    assert_eq!(answer.status, 413, "a bad file changes nothing");
}

/// Roles with one address share one listener.
fn one_port_for_all_roles() {
    let port = kateway_tests::ports::reserve();
    let address = format!("127.0.0.1:{port}");
    let file = config_file(&format!(
        "[pub]\naddr = \"{address}\"\n[sub]\naddr = \"{address}\"\n[man]\naddr = \"{address}\"\n"
    ));
    let gateway = Kateway::memory().config(&file).addresses_from_config().start();
    assert_eq!(gateway.publish, gateway.subscribe);
    let topic = Topic::fresh("shared");
    let mut connection = gateway.publisher();
    connection.call(&topic.publish("", "x")).unwrap_or_else(|e| panic!("{e}")).expect(201);
    connection.call(&topic.read("g", "wait=5s")).unwrap_or_else(|e| panic!("{e}")).expect(200);
    gateway.manage(&kateway_tests::client::Request::get("/v1/status")).expect(200);
}
