//! Tests of the whole: sources in, configuration or errors out.

use std::{io::Write as _, path::PathBuf, time::Duration};

use super::{
    error::{Origin, Problem},
    keys::{Kind, Preset},
    table::{KEYS, SHORT_FLAGS},
    *,
};

fn host() -> Host {
    Host { name: "h".to_owned(), pid: 7, cpus: vec![0, 1, 2, 3] }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn flags(list: &[(&str, &str)]) -> Sources {
    Sources { flags: pairs(list), ..Sources::default() }
}

fn memory(list: &[(&str, &str)]) -> Config {
    let mut sources = flags(&[("store", "memory")]);
    sources.flags.extend(pairs(list));
    resolve(&sources).expect("the configuration is valid")
}

fn resolve(sources: &Sources) -> Result<Config, Vec<ConfigError>> {
    Settings::read(sources)?.resolve(&host())
}

fn errors(sources: &Sources) -> Vec<String> {
    resolve(sources).expect_err("the configuration is in error").iter().map(ToString::to_string).collect()
}

/// A file that goes away with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kateway-config-{}-{name}.toml", std::process::id()));
        let mut file = std::fs::File::create(&path).expect("a temporary file can be made");
        file.write_all(text.as_bytes()).expect("a temporary file can be written");
        Self(path)
    }

    fn sources(&self) -> Sources {
        Sources { file: Some(self.0.clone()), ..Sources::default() }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = memory(&[]);
    assert_eq!(config.publish.deadline, Duration::from_secs(5));
    assert_eq!(config.subscribe.commit_interval, Duration::from_millis(100));
    assert_eq!(config.subscribe.leases_max, 10_000);
    assert_eq!(config.drain, DrainConfig { notice: Duration::from_secs(5), timeout: Duration::from_secs(20) });
    assert_eq!((config.shard.count, config.shard.cpus.as_slice()), (4, [0, 1, 2, 3].as_slice()));
    assert_eq!(config.gateway.id, "h-7");
    assert_eq!(config.man_listeners.first().map(|man| man.addr.to_string()).as_deref(), Some("127.0.0.1:9193"));
    let ports: Vec<u16> = config.data_listeners.iter().map(|listener| listener.addr.port()).collect();
    assert_eq!(ports, [9191, 9192]);
    assert!(config.topics.auto_create, "the embedded store makes topics");
}

#[test]
fn the_command_line_wins_over_variables_over_the_file() {
    let file = File::new("precedence", "[pub]\ndeadline_ms = 2_000\ninflight_max = 1\n[topics]\npartitions = 9\n");
    let sources = Sources {
        env: pairs(&[("KATEWAY_PUB__DEADLINE_MS", "3000"), ("KATEWAY_PUB__INFLIGHT_MAX", "2"), ("PATH", "/bin")]),
        flags: pairs(&[("pub.deadline_ms", "3500"), ("store", "null"), ("pub.deadline_ms", "4000")]),
        ..file.sources()
    };
    let config = resolve(&sources).expect("the configuration is valid");
    assert_eq!(config.publish.deadline, Duration::from_secs(4), "the last flag wins");
    assert_eq!((config.publish.inflight_max, config.topics.partitions), (2, 9));
}

#[test]
fn all_errors_are_told_at_once_each_with_its_place() {
    let text = "[pub]\ndeadline_ms = 12\ninflight = 3\n[drain]\nnotice_s = 30\n[shard]\npin = \"yes\"\nkicker_ms = -1\n[log]\nlevel = 7\n";
    let file = File::new("errors", text);
    let name = file.0.display();
    let sources = Sources {
        env: pairs(&[("KATEWAY_HTTP__HEAD_BYTES", "1")]),
        flags: pairs(&[("brokers", "x")]),
        ..file.sources()
    };
    let expected = [
        format!("drain.notice_s = 30 ({name}:5): expected less than drain.timeout_s, which is 20"),
        "kafka.brokers = x (command line): expected a list, each item `HOST:PORT` of a broker".to_owned(),
        format!(
            "log.level = 7 ({name}:10): expected `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,kateway::kafka=debug`"
        ),
        "KATEWAY_HTTP__HEAD_BYTES: there is no such key; did you mean `KATEWAY_HTTP__HEAD_BYTES_MAX`?".to_owned(),
        format!("pub.deadline_ms = 12 ({name}:2): expected a whole number from 1500 to 600000"),
        format!("pub.inflight ({name}:3): there is no such key; did you mean `pub.inflight_max`?"),
        format!("shard.kicker_ms = -1 ({name}:8): expected a whole number from 0 to 1000"),
        format!("shard.pin = \"yes\" ({name}:7): expected true or false"),
    ];
    let mut found = errors(&sources);
    found.sort_by_key(|error| error.to_lowercase());
    let mut expected = expected.to_vec();
    expected.sort_by_key(|error| error.to_lowercase());
    assert_eq!(found, expected);
}

/// What we hand to operators loads; the sample itself sets nothing, so it lacks brokers.
#[test]
fn every_file_in_config_is_valid() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config");
    let paths =
        std::fs::read_dir(&folder).expect("config/ is there").map(|entry| entry.expect("it can be listed").path());
    let files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let is_sample = file.file_name().is_some_and(|name| name == "kateway.toml");
        let flags = if is_sample { pairs(&[("store", "memory")]) } else { Vec::new() };
        let sources = Sources { file: Some(file.clone()), flags, ..Sources::default() };
        assert_eq!(resolve(&sources).err(), None, "{}", file.display());
    }
}

#[test]
fn a_file_that_is_missing_or_broken_is_one_error() {
    let sources = Sources { file: Some("/nonexistent/kateway.toml".into()), ..Sources::default() };
    let found = errors(&sources);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("/nonexistent/kateway.toml: cannot be read: "), "{found:?}");

    let file = File::new("broken", "[pub]\naddr = \n");
    let found = errors(&file.sources());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(".toml:2: is not TOML: "), "{found:?}");
}

#[test]
fn shapes_that_are_no_sections_are_refused() {
    let file =
        File::new("shapes", "pub = 3\ndeadline_ms = 1\n[publish]\n[sub.addr]\nport = 1\n[kafka]\nbrokers = [1]\n");
    let found = errors(&file.sources());
    for start in ["pub = 3 (", "deadline_ms (", "publish (", "sub.addr = ", "kafka.brokers = [1] ("] {
        assert!(found.iter().any(|error| error.starts_with(start)), "{start}: {found:#?}");
    }
    assert_eq!(found.len(), 5, "{found:#?}");
}

#[test]
fn relations_are_held() {
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("store", "kafka")], "kafka.brokers"),
        (&[("drain.notice_s", "20")], "drain.notice_s"),
        (&[("http.target_bytes_max", "1024"), ("http.head_bytes_max", "1024")], "http.target_bytes_max"),
        (&[("sub.batch_bytes_max", "1000")], "sub.batch_bytes_max"),
        (&[("pub.deadline_ms", "1500"), ("kafka.linger_us", "500000")], "kafka.linger_us"),
        (&[("kafka.batch_bytes_max", "2000000"), ("kafka.queue_bytes_max", "1048576")], "kafka.queue_bytes_max"),
        (&[("shard.kicker_ms", "600")], "shard.kicker_ms"),
        (&[("pub", ""), ("sub", "")], "pub.addr"),
        (&[("pub", "0.0.0.0:9192")], "sub.addr"),
        (&[("man", "[::]:9191")], "man.addr"),
        (&[("zookeeper.servers", "zk:2181"), ("sub", "0.0.0.0:1")], "gateway.advertise"),
        (&[("zookeeper.servers", "zk:2181"), ("pub", "0.0.0.0:1"), ("sub", "")], "gateway.advertise"),
        (&[("zookeeper.servers", "zk:2181"), ("gateway.advertise", "0.0.0.0:1")], "gateway.advertise"),
        (&[("shard.cpus", "0-4")], "shard.cpus"),
    ];
    for (list, path) in cases {
        let mut sources = flags(&[("store", "memory")]);
        sources.flags.extend(pairs(list));
        let errors = resolve(&sources).expect_err("the relation is broken");
        assert_eq!(errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), [*path], "{list:?}");
    }
}

#[test]
fn what_is_not_built_is_refused_and_never_shown() {
    for (path, value) in [("handoff.dir", "/d"), ("tenancy.mode", "file")] {
        let errors = resolve(&flags(&[("store", "memory"), (path, value)])).expect_err("it is not built");
        assert_eq!((errors.len(), &errors[0].problem), (1, &Problem::NotBuilt), "{path}");
    }
    assert!(resolve(&flags(&[("store", "memory"), ("tenancy.mode", "open")])).is_ok());
}

#[test]
fn a_secret_is_obeyed_and_never_shown() {
    const SECRET: &str = "0123456789abcdef";
    let set = |secret| flags(&[("store", "memory"), ("gateway.peer_secret", secret)]);
    let config = resolve(&set(SECRET)).expect("16 characters are enough");
    assert_eq!(config.gateway.peer_secret.as_deref(), Some(SECRET));
    assert!(!format!("{config:?}").contains(SECRET));
    let text = Settings::read(&set(SECRET)).expect("valid").to_toml();
    assert!(text.contains("peer_secret = \"***\" # command line\n") && !text.contains(SECRET), "{text}");
    assert_eq!(memory(&[]).gateway.peer_secret, None);
    for wrong in ["0123456789abcde", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
        let errors = errors(&set(wrong));
        assert!(errors.len() == 1 && !errors[0].contains("012"), "{errors:?}");
    }
}

#[test]
fn where_others_find_the_sub_role() {
    let advertised = |flags: &[(&str, &str)], bound: Option<&str>| {
        let mut gateway = memory(flags).gateway;
        gateway.advertise_bound(bound.map(|addr| addr.parse().expect("an address")));
        gateway.advertise
    };
    let said: &[(&str, &str)] = &[("gateway.advertise", "gw-1.example.org:9192")];
    assert_eq!(advertised(said, Some("0.0.0.0:9192")).as_deref(), Some("gw-1.example.org:9192"));
    assert_eq!(advertised(&[], Some("10.0.0.1:9192")).as_deref(), Some("10.0.0.1:9192"));
    for none in [Some("0.0.0.0:9192"), Some("[::]:9192"), None] {
        assert_eq!(advertised(&[], none), None);
    }
}

#[test]
fn listeners_with_the_same_address_are_one() {
    let roles = |publish, subscribe, manage| Roles { publish, subscribe, manage, tls: false };
    let one = memory(&[("pub", "127.0.0.1:80"), ("sub", "127.0.0.1:80"), ("man", "127.0.0.1:80")]);
    assert_eq!(
        one.data_listeners,
        [ListenerConfig { addr: ([127, 0, 0, 1], 80).into(), roles: roles(true, true, true) }]
    );
    assert!(one.man_listeners.is_empty());

    let free = memory(&[("pub", "127.0.0.1:0"), ("sub", "127.0.0.1:0"), ("man", "127.0.0.1:0")]);
    let found: Vec<Roles> =
        free.data_listeners.iter().chain(&free.man_listeners).map(|listener| listener.roles).collect();
    assert_eq!(found, [roles(true, false, false), roles(false, true, false), roles(false, false, true)]);

    let only_pub = memory(&[("sub", ""), ("man", "")]);
    assert_eq!((only_pub.data_listeners.len(), only_pub.man_listeners.len()), (1, 0));

    let tls =
        &[("pub.tls_addr", "127.0.0.1:443"), ("sub.tls_addr", "127.0.0.1:443"), ("man.tls_addr", "127.0.0.1:444")];
    let both = memory(&[&tls[..], &[("sub", ""), ("tls.certificates", "both.pem,a.pem:a.key")]].concat());
    let found: Vec<_> = both.data_listeners.iter().map(|l| (l.addr.port(), l.roles)).collect();
    assert_eq!(found, [(9191, roles(true, false, false)), (443, Roles { tls: true, ..roles(true, true, false) })]);
    assert_eq!(
        both.man_listeners.iter().map(|l| (l.addr.port(), l.roles.tls)).collect::<Vec<_>>(),
        [(9193, false), (444, true)]
    );
    let files: Vec<_> = both.tls.certificates.iter().map(|pair| (pair.chain.to_str(), pair.key.to_str())).collect();
    assert_eq!(files, [(Some("both.pem"), Some("both.pem")), (Some("a.pem"), Some("a.key"))]);
}

#[test]
fn variables_that_are_not_ours_are_passed_over_and_slips_are_not() {
    let with = |name: &str| Sources { env: pairs(&[(name, "1")]), ..flags(&[("store", "memory")]) };
    for foreign in ["KATEWAY_BIN", "KATEWAY_PORT_9191_TCP", "KATEWAY_SERVICE_HOST", "HOME"] {
        assert!(resolve(&with(foreign)).is_ok(), "{foreign}");
    }
    for slip in ["KATEWAY_PUB_DEADLINE_MS", "KATEWAY_PUB__DEADLINE", "KATEWAY_NO__SUCH"] {
        let errors = resolve(&with(slip)).expect_err("it looks like a key");
        assert_eq!(errors[0].path, slip);
    }
}

#[test]
fn every_short_flag_works() {
    for (flag, value) in [
        ("store", "null"),
        ("brokers", "b:1"),
        ("pub", "[::1]:1"),
        ("sub", ""),
        ("man", "127.0.0.1:0"),
        ("shards", "8"),
    ] {
        assert!(SHORT_FLAGS.iter().any(|(short, _)| *short == flag));
        assert!(memory(&[(flag, value)]) != memory(&[]), "--{flag} changes nothing");
    }
}

/// A value that is valid and not the default, for any key.
fn another_value(path: &str, kind: &Kind, default: Preset) -> String {
    match (kind, default) {
        (Kind::Bool, Preset::Bool(on)) => (!on).to_string(),
        (Kind::Int { min, max }, Preset::Int(n)) => if n < *max { n + 1 } else { (n - 1).max(*min) }.to_string(),
        (Kind::Choice(of), Preset::Text(default)) => {
            (*of.iter().find(|choice| **choice != default).expect("two")).to_owned()
        }
        (Kind::List(_), _) if path == "kafka.options" => "socket.nagle.disable=true".to_owned(),
        (Kind::List(_), _) if path == "topics.compression" => "app1.*=zstd".to_owned(),
        (Kind::List(_), _) if path.ends_with("_from") => "10.0.0.0/8".to_owned(),
        (Kind::List(_), _) if path == "http.origins" => "https://app.example.org".to_owned(),
        (Kind::List(_), _) => "broker:9092".to_owned(),
        (Kind::Text(_), _) if path.ends_with("addr") => "127.0.0.2:1".to_owned(),
        (Kind::Text(_), _) if path == "shard.cpus" => "2".to_owned(),
        (Kind::Text(_), _) if path == "gateway.advertise" => "gateway:1".to_owned(),
        (Kind::Secret(_), _) => "0123456789abcdef".to_owned(),
        (Kind::Text(_), _) => "debug".to_owned(),
        (kind, default) => unreachable!("{path}: a default {default:?} for {kind:?}"),
    }
}

/// What a key does not stand without.
fn beside(path: &str) -> &'static [(&'static str, &'static str)] {
    const USER: &[(&str, &str)] =
        &[("kafka.security_protocol", "sasl_ssl"), ("kafka.sasl_username", "u"), ("kafka.sasl_password", "p")];
    const OWN: &[(&str, &str)] =
        &[("kafka.security_protocol", "ssl"), ("kafka.tls_cert", "own.pem"), ("kafka.tls_key", "own.key")];
    match path {
        _ if path.ends_with("tls_addr") => &[("tls.certificates", "a.pem")],
        _ if path.starts_with("kafka.sasl_") => USER,
        _ if path.starts_with("kafka.tls_") => OWN,
        _ => &[],
    }
}

/// No key is read and then forgotten: each changes what the gateway is told.
#[test]
fn every_key_that_is_built_changes_the_configuration() {
    let base = [
        ("kafka.brokers", "b:1"),
        ("http.target_bytes_max", "1000"),
        ("pub.message_bytes_max", "1000"),
        ("drain.timeout_s", "30"),
    ];
    for key in KEYS.iter().filter(|key| !matches!(key.kind, Kind::NotBuilt)) {
        let value = another_value(key.path, &key.kind, key.default);
        let mut sources = flags(&[&base[..], beside(key.path)].concat());
        let before = resolve(&sources).expect("the base is valid");
        sources.flags.extend(pairs(&[(key.path, &value)]));
        let after = resolve(&sources).unwrap_or_else(|errors| panic!("{}={value}: {errors:?}", key.path));
        assert!(before != after, "{}={value} changes nothing", key.path);
    }
}

#[test]
fn what_is_in_effect_reads_back_as_itself() {
    let sources = Sources {
        env: pairs(&[("KATEWAY_LOG__LEVEL", "info,kateway=\"x\"")]),
        flags: pairs(&[
            ("brokers", "a:1,b:2"),
            ("log.file", "/tmp/a \"b\"\\c"),
            ("log.level", "debug"),
            ("shard.pin", "false"),
        ]),
        ..Sources::default()
    };
    let sources = Sources { env: Vec::new(), ..sources };
    let text = Settings::read(&sources).expect("the configuration is valid").to_toml();
    assert!(text.contains("level = \"debug\" # command line\n"), "{text}");
    let file = File::new("effective", &text);
    assert_eq!(resolve(&file.sources()), resolve(&sources));
}

#[test]
fn a_reload_takes_what_is_hot_and_names_the_rest() {
    let old = Settings::read(&flags(&[("store", "memory")])).expect("valid");
    let new =
        Settings::read(&flags(&[("store", "memory"), ("log.level", "debug"), ("pub", "127.0.0.1:1")])).expect("valid");
    let changes = old.changes(&new);
    assert_eq!(changes, [Change { path: "pub.addr", hot: false }, Change { path: "log.level", hot: true }]);
    let reloaded = old.reloaded(&new);
    assert_eq!(old.changes(&reloaded), [Change { path: "log.level", hot: true }]);
}

#[test]
fn set_arguments_are_split_at_the_first_equals_sign() {
    assert_eq!(key_value("kafka.options=a=b"), Ok(("kafka.options".to_owned(), "a=b".to_owned())));
    assert!(key_value("pub.addr").is_err());
}

#[test]
fn origins_are_kept() {
    let (written, errors) = model::read(&flags(&[("pub.addr", "127.0.0.1:1")]));
    assert!(errors.is_empty());
    assert_eq!(written.setting("pub.addr").origin, Origin::CommandLine);
    assert_eq!(written.setting("sub.addr").origin, Origin::Default);
}

#[test]
fn what_secures_kafka_is_whole_or_refused() {
    let said = |list: &[(&str, &str)]| errors(&flags(&[&[("brokers", "b:1")][..], list].concat())).join("\n");
    let without = said(&[("kafka.sasl_password", "sesame")]);
    assert!(without.contains("kafka.sasl_password = \"***\" (command line): expected nothing, or"), "{without}");
    let half = said(&[("kafka.security_protocol", "sasl_ssl")]);
    assert!(half.contains("kafka.sasl_username") && half.contains("kafka.sasl_password"), "{half}");
    let alone = said(&[("kafka.security_protocol", "ssl"), ("kafka.tls_key", "own.key")]);
    assert!(alone.contains("kafka.tls_cert and kafka.tls_key together"), "{alone}");
    let shown = format!("{:?}", resolve(&flags(&[&[("brokers", "b:1")][..], beside("kafka.sasl_password")].concat())));
    assert!(shown.contains("sasl_username: \"u\"") && !shown.contains("\"p\""), "{shown}");
}
