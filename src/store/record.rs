//! What a store is given: a record, and the words it is made of.
//!
//! Apart from the seam, because parsers of the API make records without knowing any store: they are fuzzed with this file alone.

use bytes::Bytes;

/// Partition number, as Kafka counts.
pub type Partition = i32;
/// One record header: name and value as bytes; a value may be null.
pub type Header = (Bytes, Option<Bytes>);

/// The record header that carries `X-Tag`.
pub const TAG_HEADER: &[u8] = b"kateway-tag";

/// A record on its way in.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// `None` for a keyless record; an empty key never occurs.
    pub key: Option<Bytes>,
    pub value: Bytes,
    /// The value is null: with a key, compaction removes that key. `value` is empty then.
    pub is_tombstone: bool,
    /// In order, repeats kept. The tag is one of them ([`TAG_HEADER`]).
    pub headers: Vec<Header>,
    /// Explicit partition; else the partitioner decides.
    pub partition: Option<Partition>,
}

impl Record {
    /// What it holds: key, value and headers.
    pub fn bytes(&self) -> usize {
        let header = |(name, value): &Header| name.len() + value.as_ref().map_or(0, Bytes::len);
        self.value.len() + self.key.as_ref().map_or(0, Bytes::len) + self.headers.iter().map(header).sum::<usize>()
    }
}
