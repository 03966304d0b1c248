//! TLS sessions that clients without tickets resume by id (TLS 1.2), shared by all cores.
//!
//! Each session has one place, found by its id, and the next one there replaces it: a full table forgets, and no core waits for
//! another. What a place gives is taken out and put back; a core that finds it out makes a full handshake instead.

use crossbeam::queue::ArrayQueue;
use futures_rustls::rustls::server::StoresServerSessions;

use crate::limits;

/// An id and what rustls keeps under it.
type Session = (Vec<u8>, Vec<u8>);

/// See the module text.
pub(super) struct Sessions {
    places: Box<[ArrayQueue<Session>]>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { places: (0..limits::TLS_SESSIONS_MAX).map(|_| ArrayQueue::new(1)).collect() }
    }
}

// By hand: what is in it opens recorded connections.
impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    /// Ids are random where they are ours, and may be anything where a client asks.
    fn place(&self, id: &[u8]) -> &ArrayQueue<Session> {
        let number = id.iter().take(4).fold(0, |number, byte| number << 8 | usize::from(*byte));
        &self.places[number % self.places.len()]
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let place = self.place(&key);
        place.force_push((key, value));
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let session = self.place(key).pop()?;
        let value = (session.0 == key).then(|| session.1.clone());
        // What came meanwhile is newer, and stays.
        let _ = self.place(key).push(session);
        value
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (id, value) = self.place(key).pop()?;
        if id == key {
            return Some(value);
        }
        let _ = self.place(key).push((id, value));
        None
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_until_another_takes_its_place() {
        let sessions = Sessions::default();
        let (first, other) = (vec![0, 0, 0, 1, 1], vec![0, 0, 0, 1, 2]);
        assert_eq!(sessions.get(&first), None);
        assert!(sessions.put(first.clone(), vec![7]));
        assert_eq!((sessions.get(&first), sessions.get(&first)), (Some(vec![7]), Some(vec![7])));
        assert_eq!(sessions.get(&other), None, "the same place, another session");
        assert_eq!(sessions.get(&[]), None);
        sessions.put(other.clone(), vec![8]);
        assert_eq!((sessions.get(&first), sessions.take(&first)), (None, None));
        assert_eq!((sessions.take(&other), sessions.take(&other)), (Some(vec![8]), None));
    }
}
