//! Files that the configuration names: looked at before anything starts, by `kateway check` and by the doctor. All that is wrong with
//! them is told at once. Blocks.

use crate::{
    config::{KafkaSecurityConfig, TlsConfig},
    proto::tls::{Acceptor, Keeper},
};

/// The certificates of listeners that speak TLS, or a line for each file that cannot be used.
pub fn load(tls: &TlsConfig, kafka: &KafkaSecurityConfig) -> Result<Option<(Keeper, Acceptor)>, Vec<String>> {
    let loaded = (!tls.certificates.is_empty()).then(|| Keeper::load(tls.clone())).transpose();
    let missing = missing_of_kafka(kafka);
    match loaded {
        Ok(loaded) if missing.is_empty() => Ok(loaded),
        Ok(_) => Err(missing),
        Err(error) => Err([vec![format!("tls.certificates: {error}")], missing].concat()),
    }
}

/// What librdkafka will read: it would say so later, and once for each client.
fn missing_of_kafka(security: &KafkaSecurityConfig) -> Vec<String> {
    let files = [("tls_ca", &security.tls_ca), ("tls_cert", &security.tls_cert), ("tls_key", &security.tls_key)];
    let missing = files.into_iter().filter_map(|(key, file)| {
        let file = file.as_ref()?;
        std::fs::File::open(file).err().map(|error| format!("kafka.{key}: {file}: {error}"))
    });
    missing.collect()
}
