//! Decoders with a fault each, so that a test can see that the fuzzer finds it.

use crate::Target;

/// All of them.
pub const ALL: &[Target] = &[
    broken("broken.panics", panics),
    broken("broken.allocates", allocates),
    broken("broken.hoards", hoards),
    broken("broken.loops", loops),
    broken("broken.recurses", |input| recurses(input, 0)),
    broken("broken.forgets", forgets),
];

const fn broken(name: &'static str, run: fn(&[u8]) -> Result<(), String>) -> Target {
    Target {
        name,
        per_byte: 8,
        constant: 4096,
        corpus: || vec![b"\0\0\0\x08kedge\x01[]".to_vec(), vec![7; 40]],
        run,
    }
}

/// Trusts that one byte has one of a few values.
fn panics(input: &[u8]) -> Result<(), String> {
    match input.get(5) {
        Some(0xfe) => panic!("nobody sends 0xfe"),
        _ => Ok(()),
    }
}

/// Makes room for as much as the first four bytes say.
fn allocates(input: &[u8]) -> Result<(), String> {
    let Some(head) = input.first_chunk::<4>() else {
        return Ok(());
    };
    let room: Vec<u8> = Vec::with_capacity(u32::from_be_bytes(*head) as usize);
    drop(std::hint::black_box(room));
    Ok(())
}

/// Makes a kilobyte of each byte.
fn hoards(input: &[u8]) -> Result<(), String> {
    let kept: Vec<Vec<u8>> = input.iter().map(|byte| vec![*byte; 1024]).collect();
    drop(std::hint::black_box(kept));
    Ok(())
}

/// Goes on by as much as a byte says: zero is for ever.
fn loops(input: &[u8]) -> Result<(), String> {
    let mut at = 0;
    while at < input.len() {
        if input[at] == 0xff {
            std::hint::black_box(at);
            continue;
        }
        at += 1;
    }
    Ok(())
}

/// One stack frame a bracket.
fn recurses(input: &[u8], depth: usize) -> Result<(), String> {
    let frame = std::hint::black_box([depth; 64]);
    match input.split_first() {
        Some((b'[', rest)) => recurses(rest, frame[0] + 1),
        Some((_, rest)) if depth == 0 => recurses(rest, 0),
        _ => Ok(()),
    }
}

/// Encodes something else than it decoded.
fn forgets(input: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let again = text.trim_end();
    if text.len() > 2 && again.len() != text.len() {
        return Err(format!("{again:?} is not {text:?}"));
    }
    Ok(())
}
