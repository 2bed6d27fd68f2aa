//! How a 64-bit little-endian ELF program was built: linked statically or not, stripped or not.

/// PT_INTERP: the program asks for a dynamic loader.
const INTERP: u32 = 3;
/// SHT_SYMTAB: what `strip` takes away.
const SYMTAB: u32 = 2;

/// In words; `None` of what is no such file.
pub(crate) fn describe(bytes: &[u8]) -> Option<String> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let programs = types(bytes, (32, 54, 56), 0)?;
    let sections = types(bytes, (40, 58, 60), 4)?;
    let linked = if programs.contains(&INTERP) {
        "linked against glibc, not static as it is shipped"
    } else {
        "static"
    };
    let stripped = if sections.contains(&SYMTAB) {
        "not stripped"
    } else {
        "stripped"
    };
    Some(format!("{linked}, {stripped}"))
}

/// The type of each entry of a header table, whose offset, entry size and count are at these places of the file header.
fn types(bytes: &[u8], (offset, size, count): (usize, usize, usize), field: usize) -> Option<Vec<u32>> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let offset = u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?);
    let (offset, size) = (usize::try_from(offset).ok()?, half(size)?);
    let entry = |n: usize| {
        let at = offset.checked_add(n.checked_mul(size)?)?.checked_add(field)?;
        Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    (0..half(count)?).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_described_and_rubbish_is_not() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(describe(&own).unwrap().ends_with("not stripped"));
        assert_eq!(describe(b"#!/bin/sh"), None);
        assert_eq!(describe(&own[..60]), None, "cut off");
    }
}
