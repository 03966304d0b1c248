//! Linking: `src/kafka/native/linger.rs` stands in front of one function of librdkafka, and says why.

fn main() {
    println!("cargo:rustc-link-arg=-Wl,--wrap=rd_kafka_msgq_allow_wakeup_at");
    println!("cargo:rerun-if-changed=build.rs");
}
