//! The `id` of a server-sent event: how far this answer has come in each partition, opaque to the client.
//!
//! ```text
//!   id: 0:124,2:78      next to read are offset 124 of partition 0 and 78 of partition 2; ascending, none twice
//! ```
//!
//! A browser sends the last one back as `Last-Event-ID`. It has to fit a request head, so an answer of more partitions than
//! [`PARTITIONS_MAX`] forgets the one that moved longest ago; there the group's own position counts.

use super::json::put_number;
use crate::store::{Offset, Partition};

/// Partitions of one cursor.
pub const PARTITIONS_MAX: usize = 128;

/// See the module text.
#[derive(Debug, Default)]
pub struct Cursor {
    /// By partition.
    places: Vec<Place>,
    /// Advances so far.
    moves: u64,
}

#[derive(Debug)]
struct Place {
    partition: Partition,
    /// The offset to be read next.
    next: Offset,
    moved: u64,
}

impl Cursor {
    pub fn advance(&mut self, partition: Partition, next: Offset) {
        self.moves += 1;
        let moved = self.moves;
        match self.places.binary_search_by_key(&partition, |place| place.partition) {
            Ok(at) => {
                let place = &mut self.places[at];
                // What is delivered again does not take it back.
                place.next = place.next.max(next);
                place.moved = moved;
            }
            Err(at) => self.places.insert(at, Place { partition, next, moved }),
        }
        if self.places.len() > PARTITIONS_MAX {
            let stalest = self.places.iter().enumerate().min_by_key(|(_, place)| place.moved);
            if let Some((at, _)) = stalest {
                self.places.remove(at);
            }
        }
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        for (i, place) in self.places.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            put_number(place.partition, out);
            out.push(b':');
            put_number(place.next, out);
        }
    }
}

/// Reads what [`Cursor::put`] wrote, and nothing else: ascending partitions, plain decimal numbers, at most [`PARTITIONS_MAX`] places.
pub fn parse_cursor(text: &[u8]) -> Option<Vec<(Partition, Offset)>> {
    let mut places = Vec::new();
    for place in text.split(|b| *b == b',') {
        let colon = memchr::memchr(b':', place)?;
        let partition = Partition::try_from(decimal(&place[..colon])?).ok()?;
        let offset = decimal(&place[colon + 1..])?;
        if places.last().is_some_and(|(last, _)| *last >= partition) || places.len() == PARTITIONS_MAX {
            return None;
        }
        places.push((partition, offset));
    }
    Some(places)
}

/// Digits without a leading zero; below the largest offset, so that there is one after it.
fn decimal(digits: &[u8]) -> Option<i64> {
    let is_plain = digits.iter().all(u8::is_ascii_digit) && (digits.first() != Some(&b'0') || digits.len() == 1);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()?;
    (number < i64::MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cursor: &Cursor) -> String {
        let mut out = Vec::new();
        cursor.put(&mut out);
        String::from_utf8(out).expect("it is ASCII")
    }

    #[test]
    fn places_add_up_and_never_go_back() {
        let mut cursor = Cursor::default();
        for (partition, offset) in [(2, 70), (0, 123), (2, 77), (2, 71)] {
            cursor.advance(partition, offset);
        }
        assert_eq!(text(&cursor), "0:123,2:77");
        assert_eq!(parse_cursor(b"0:123,2:77"), Some(vec![(0, 123), (2, 77)]));
    }

    #[test]
    fn too_many_partitions_lose_the_stalest() {
        let mut cursor = Cursor::default();
        let count = i32::try_from(PARTITIONS_MAX).expect("it is small") + 1;
        cursor.advance(7, 1);
        (0..count).filter(|p| *p != 3).for_each(|partition| cursor.advance(partition, i64::from(partition)));
        cursor.advance(3, 3);
        let places = parse_cursor(text(&cursor).as_bytes()).expect("it is read back");
        assert_eq!(places.len(), PARTITIONS_MAX);
        assert!(!places.iter().any(|(partition, _)| *partition == 0), "0 moved longest ago");
        assert!(places.contains(&(3, 3)) && places.contains(&(7, 7)));
    }

    #[test]
    fn a_cursor_is_read_strictly() {
        assert_eq!(parse_cursor(b"0:0"), Some(vec![(0, 0)]));
        let long = format!("2147483647:{}", i64::MAX - 1);
        assert_eq!(parse_cursor(long.as_bytes()), Some(vec![(i32::MAX, i64::MAX - 1)]));
        for bad in [
            "",
            ",",
            "0",
            "0:",
            ":1",
            "0:1,",
            ",0:1",
            "0:1,,1:1",
            "0:-1",
            "-1:1",
            "+0:1",
            "00:1",
            "0:01",
            "0:1 ",
            " 0:1",
            "1:1,0:1",
            "0:1,0:2",
            "2147483648:1",
            "0:9223372036854775807",
            "0:99999999999999999999",
            "0:1:2",
            "0:a",
            "\u{663}:1",
        ] {
            assert_eq!(parse_cursor(bad.as_bytes()), None, "{bad:?}");
        }
        let many = |count: usize| (0..count).map(|p| format!("{p}:1")).collect::<Vec<_>>().join(",");
        assert!(parse_cursor(many(PARTITIONS_MAX).as_bytes()).is_some());
        assert_eq!(parse_cursor(many(PARTITIONS_MAX + 1).as_bytes()), None);
    }
}
