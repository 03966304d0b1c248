//! What the ZooKeeper thread lets others see: one block for the process, written by that thread, read by whoever asks.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Where the gateway's presence stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Presence {
    /// No `zookeeper.servers`.
    Off,
    /// No session, or none yet.
    Connecting,
    Registered,
    /// The gateway drains.
    Withdrawn,
}

impl Presence {
    const ALL: [Self; 4] = [Self::Off, Self::Connecting, Self::Registered, Self::Withdrawn];

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connecting => "connecting",
            Self::Registered => "registered",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// Shared: see the module text.
#[derive(Debug)]
pub struct SessionCells {
    presence: AtomicU8,
    is_connected: AtomicBool,
    /// Times the gateway entered itself.
    pub registrations: AtomicU64,
    /// Sessions begun.
    pub sessions: AtomicU64,
    /// Threads given up because a call of theirs did not return.
    pub replaced: AtomicU64,
    /// Times another gateway was found under this one's id.
    pub taken: AtomicU64,
}

/// This process's.
pub static SESSION: SessionCells = SessionCells {
    presence: AtomicU8::new(0),
    is_connected: AtomicBool::new(false),
    registrations: AtomicU64::new(0),
    sessions: AtomicU64::new(0),
    replaced: AtomicU64::new(0),
    taken: AtomicU64::new(0),
};

impl SessionCells {
    pub fn presence(&self) -> Presence {
        Presence::ALL[usize::from(self.presence.load(Ordering::Acquire)) % Presence::ALL.len()]
    }

    pub fn set_presence(&self, presence: Presence) {
        self.presence.store(presence as u8, Ordering::Release);
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    pub fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
    }

    pub fn count(&self, cell: fn(&Self) -> &AtomicU64) {
        cell(self).fetch_add(1, Ordering::Relaxed);
    }
}
