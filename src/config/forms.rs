//! What a piece of text has to look like to be the value of a key. The keys stand in [`super::table`]; this file knows none of them.

use crate::limits;

const PEER_SECRET_BYTES_MIN: usize = 16;

/// librdkafka options that other keys set, or that the guarantees of the gateway rest on.
const OPTIONS_OF_OURS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "delivery.timeout.ms",
    "dr_cb",
    "dr_msg_cb",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.ssl.certificate.verification",
    "enabled_events",
    "group.id",
    "group.instance.id",
    "linger.ms",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.ms",
    "request.required.acks",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "sticky.partitioning.linger.ms",
    "transactional.id",
];

/// Beginnings of such options: among them are secrets, which would be shown, and other ways to say who we are.
const OPTION_FAMILIES_OF_OURS: &[&str] = &["sasl.kerberos.", "sasl.oauthbearer.", "ssl.keystore."];

pub fn is_id(text: &str) -> bool {
    text.len() <= limits::NAME_BYTES_MAX && text.bytes().all(is_id_byte)
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

pub fn is_address_or_empty(text: &str) -> bool {
    text.is_empty() || text.parse::<std::net::SocketAddr>().is_ok()
}

/// As browsers write it: without a path, a user, capitals or the scheme's own port.
pub fn is_origin(text: &str) -> bool {
    let schemes = [("https://", ":443"), ("http://", ":80")];
    let found = schemes.iter().find_map(|(scheme, port)| text.strip_prefix(scheme).map(|host| (host, *port)));
    let Some((host, port)) = found else { return text == "*" };
    if host.ends_with(port) && is_host_port(host) {
        return false;
    }
    let is_whole = is_host_port(host) || is_host_port(&format!("{host}:1"));
    is_whole && !host.bytes().any(|byte| byte.is_ascii_uppercase())
}

pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_id_byte),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A file, or two with a colon between them.
pub fn is_certificate(text: &str) -> bool {
    let (certificate, key) = text.split_once(':').unwrap_or((text, text));
    !certificate.is_empty() && !key.is_empty() && !key.contains(':')
}

pub fn is_peer_secret(text: &str) -> bool {
    text.len() >= PEER_SECRET_BYTES_MIN && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A topic of Kafka or the beginning of several, and what librdkafka compresses with.
pub fn is_topic_compression(text: &str) -> bool {
    text.split_once('=').is_some_and(|(pattern, codec)| {
        let name = pattern.trim().strip_suffix('*').unwrap_or(pattern.trim());
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        is_name && !pattern.trim().is_empty() && ["none", "gzip", "snappy", "lz4", "zstd"].contains(&codec.trim())
    })
}

pub fn is_free_option(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim();
        let is_ours = OPTIONS_OF_OURS.contains(&name) || OPTION_FAMILIES_OF_OURS.iter().any(|of| name.starts_with(of));
        !name.is_empty() && !is_ours
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_host_and_port() {
        for good in ["kafka-1.example.org:9092", "10.0.0.1:1", "[fe80::1]:65535"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in
            ["", "host", "host:", "host:0", "host:65536", ":9092", "PLAINTEXT://h:1", "fe80::1:9092", "[x]:1", "a b:1"]
        {
            assert!(!is_host_port(bad), "{bad}");
        }
    }

    #[test]
    fn topics_have_a_codec_each() {
        for good in ["app1.logs.v1=zstd", "app1.*=lz4", "*=none", " a.b.v1 = gzip "] {
            assert!(is_topic_compression(good), "{good}");
        }
        for bad in ["", "=zstd", "a.b.v1", "a.b.v1=brotli", "a*b=zstd", "a/b=zstd"] {
            assert!(!is_topic_compression(bad), "{bad}");
        }
    }

    #[test]
    fn origins_are_those_of_browsers() {
        for good in ["*", "https://app.example.org", "http://localhost:8080", "https://[::1]:1", "http://[::1]"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "null",
            "app.example.org",
            "https://",
            "https://a/",
            "https://A",
            "ftp://a",
            "https://a:0",
            "http://u@a",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn options_the_promises_rest_on_are_refused() {
        assert!(is_free_option("socket.nagle.disable=true"));
        assert!(!is_free_option("enable.idempotence=false"));
        assert!(!is_free_option(" acks =0"));
        assert!(!is_free_option("linger.ms=5"), "kafka.linger_us");
        assert!(!is_free_option("sasl.password=x"), "kafka.sasl_password, which is not shown");
        assert!(!is_free_option("debug"));
        for secret in
            ["ssl.key.pem", "ssl.keystore.password", "ssl.keystore.location", "sasl.oauthbearer.client.secret"]
        {
            assert!(!is_free_option(&format!("{secret}=x")), "{secret} would be shown");
        }
        assert!(!is_free_option("ssl.certificate.pem=x"), "kafka.tls_cert");
        assert!(!is_free_option("sasl.kerberos.keytab=x"), "kafka.sasl_mechanism has no GSSAPI");
        assert!(
            !is_free_option("enable.ssl.certificate.verification=false"),
            "security.protocol would mean less than it says"
        );
        assert!(is_free_option("ssl.cipher.suites=ECDHE-RSA-AES256-GCM-SHA384"));
    }
}
