//! As much of DNS (RFC 1035) as asking a recursive server for addresses takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    A = 1,
    Aaaa = 28,
}

const CLASS_IN: u16 = 1;
const HEADER: usize = 12;

/// A query; none when the name cannot be one.
pub(crate) fn query(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    // Recursion desired, one question.
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend((kind as u16).to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    Some(bytes)
}

/// The id of an answer, and the addresses in it; whose they are is the server's business, as it followed the aliases. None for what is no
/// answer.
pub(crate) fn answer(bytes: &[u8]) -> Option<(u16, Vec<IpAddr>)> {
    let number = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let (id, flags) = (number(0)?, number(2)?);
    let is_answer = flags & 0x8000 != 0;
    if !is_answer {
        return None;
    }
    let (questions, answers) = (number(4)?, number(6)?);
    let mut at = HEADER;
    for _ in 0..questions {
        at = after_name(bytes, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = after_name(bytes, at)?;
        let (kind, class, length) = (number(at)?, number(at + 2)?, usize::from(number(at + 8)?));
        let value = bytes.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        if class == CLASS_IN {
            found.extend(address(kind, value));
        }
    }
    Some((id, found))
}

fn address(kind: u16, value: &[u8]) -> Option<IpAddr> {
    match kind {
        1 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        28 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// Where a name ends: at its root, or at a pointer to the rest of it.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An alias, and an address of the family that was asked for.
    pub(crate) fn reply(query: &[u8]) -> Vec<u8> {
        let mut bytes = query.to_vec();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        let kind = query[query.len() - 3];
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 12]);
        bytes.extend([1, b'x', 0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60]);
        match kind {
            1 => bytes.extend([0, 4, 192, 0, 2, 7]),
            _ => bytes.extend([&[0, 16][..], &"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()].concat()),
        }
        bytes
    }

    #[test]
    fn a_query_is_as_rfc_1035_writes_it_and_its_answer_is_understood() {
        let bytes = query(0x1234, "hub.example.", Kind::Aaaa).unwrap();
        let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03hub\x07example\x00\x00\x1c\x00\x01";
        assert_eq!(bytes, expected);
        let found = answer(&reply(&bytes)).unwrap();
        assert_eq!(found, (0x1234, vec!["2001:db8::7".parse().unwrap()]));
        assert_eq!(answer(&bytes), None, "a query");
        for bad in ["", ".", "a..b", &"x".repeat(64), &"x.".repeat(128)] {
            assert_eq!(query(1, bad, Kind::A), None, "{bad:?}");
        }
    }

    #[test]
    fn mangled_answers_are_none_or_less() {
        let whole = reply(&query(7, "hub.example", Kind::A).unwrap());
        for cut in 0..whole.len() {
            assert_eq!(answer(&whole[..cut]), None, "{cut}");
        }
        for at in 0..whole.len() {
            for value in 0..=255 {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let found = answer(&bytes).map_or(0, |(_, found)| found.len());
                assert!(found <= 2);
            }
        }
    }
}
