//! The shared words of failure: whose fault it is, and whether trying again can help.
//!
//! Each layer keeps its own enum; the API turns them into answers. Only what two layers must agree on stands here.

/// How a start can fail, with the exit code of `sysexits.h` it ends with.
#[derive(Debug)]
pub enum StartError {
    /// The configuration is wrong (64).
    Config(Vec<String>),
    /// This host lacks what the gateway needs (69).
    Host(String),
    /// An address cannot be bound (71).
    Bind { addr: std::net::SocketAddr, source: std::io::Error },
    /// A thread or executor cannot be started (71).
    Spawn(std::io::Error),
}

impl StartError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Host(_) => 69,
            Self::Bind { .. } | Self::Spawn(_) => 71,
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(errors) => write!(f, "{}", errors.join("\n")),
            Self::Host(reason) => write!(f, "{reason}"),
            Self::Bind { addr, source } => write!(f, "cannot listen on {addr}: {source}"),
            Self::Spawn(source) => write!(f, "cannot start a thread or executor: {source}"),
        }
    }
}

impl std::error::Error for StartError {}
