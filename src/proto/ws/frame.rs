//! Frames as a server writes them: whole, unmasked (RFC 6455 section 5.2).

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    Text = 0x1,
    Binary = 0x2,
    Ping = 0x9,
}

/// Appends a final frame whose payload is `parts`, one behind the other.
#[inline] // Once for each message that is delivered.
pub fn put(opcode: Opcode, parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // Put together first: each appending looks whether there is room.
    let mut head = [0x80 | opcode as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let head_bytes = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => {
            head[1] = short;
            2
        }
        (_, Ok(medium)) => {
            head[1] = 126;
            head[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    out.reserve(head_bytes + length);
    out.extend_from_slice(&head[..head_bytes]);
    for part in parts {
        out.extend_from_slice(part);
    }
}
