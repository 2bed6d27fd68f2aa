//! Inputs from inputs: deterministic, so that a seed and a number name an input as long as this file and the corpus stay.

use serde_json::Value;

/// Most inputs are short: what goes wrong with a megabyte mostly goes wrong with a kilobyte, a thousand times as often.
const LONG: usize = 64 * 1024;

/// SplitMix64: the same numbers on every machine and in every version.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed, a name and a number.
    pub fn new(seed: u64, name: &str, number: u64) -> Self {
        let mixed = name.bytes().fold(seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut random = Self(mixed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// A range of `length` bytes, its size mostly small.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = length - start;
        let size = if self.below(3) == 0 { most } else { most.min(16) };
        start..start + self.below(size + 1)
    }
}

/// Words that decoders have opinions about.
const WORDS: &[&str] = &[
    "\0",
    "\n",
    "\r\n",
    "%",
    "%2",
    "%00",
    "%ff",
    "%2e%2e%2f",
    "..",
    "/",
    "//",
    "&",
    "=",
    "==",
    "!=",
    ",",
    ";",
    ":",
    "?",
    "+",
    "-",
    " ",
    "(",
    ")",
    " in (",
    " notin ()",
    "!",
    "{",
    "}",
    "[",
    "]",
    "[]",
    "{}",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "0",
    "-0",
    "-1",
    "1e999",
    "1e-999",
    "0.1",
    "NaN",
    "inf",
    "+Inf",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1Ei",
    "1e18",
    "100m",
    "1n",
    "8Ei",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999+23:59",
    "-9999-01-01T00:00:00Z",
    "2026-02-30T25:61:61Z",
    "é",
    "\u{feff}",
    "\u{1f980}",
    "\u{202e}",
    "İ",
    "255.255.255.255/32",
    "::/0",
    "::ffff:1.2.3.4",
    "0.0.0.0",
    "-----BEGIN CERTIFICATE-----",
    "$patch",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "$retainKeys",
    "~0",
    "~1",
    "/-",
    "metadata",
    "apiVersion",
    "kind",
    "&a ",
    "*a",
    "!!binary ",
    "<<: ",
    "application/json;as=Table;g=meta.k8s.io;v=v1",
];

/// Numbers that lengths and counters break at.
const NUMBERS: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fff0,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// An input made of one of `corpus`.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.pick(corpus).cloned().unwrap_or_default();
    if random.below(3) == 0
        && let Some(mutated) = json(random, &input, corpus)
    {
        input = mutated;
        if random.below(2) == 0 {
            return input;
        }
    }
    for _ in 0..=random.below(5) {
        once(random, &mut input, corpus);
    }
    let most = if random.below(64) == 0 { LONG * 16 } else { LONG };
    input.truncate(most);
    input
}

fn once(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    match random.below(14) {
        0 | 1 => flip(random, input),
        2 => input.truncate(at),
        3 => drop(input.drain(random.range(input.len()))),
        4 => repeat(random, input),
        5 | 6 => splice(random, input, corpus),
        7 => number(random, input),
        8 => varint(random, input),
        9 | 10 => insert(input, at, random.pick(WORDS).map_or(&[][..], |word| word.as_bytes())),
        11 => digits(random, input),
        12 => nest(random, input),
        _ => {
            let some: Vec<u8> = (0..random.below(8)).map(|_| random.byte()).collect();
            insert(input, at, &some);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn flip(random: &mut Random, input: &mut [u8]) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = match random.below(3) {
            0 => *byte ^ (1 << random.below(8)),
            1 => byte.wrapping_add([1, 255, 16, 128][random.below(4)]),
            _ => random.byte(),
        };
    }
}

/// A part once more, or very often.
fn repeat(random: &mut Random, input: &mut Vec<u8>) {
    let part = input[random.range(input.len())].to_vec();
    let times = [1, 2, 3, 40, 300, 5000][random.below(6)];
    let times = times.min(LONG / part.len().max(1));
    let at = random.below(input.len() + 1);
    insert(input, at, &part.repeat(times));
}

/// A part of another input, put in or put over.
fn splice(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let Some(other) = random.pick(corpus) else { return };
    let part = other[random.range(other.len())].to_vec();
    let at = random.below(input.len() + 1);
    let end = if random.below(2) == 0 {
        at
    } else {
        (at + part.len()).min(input.len())
    };
    input.splice(at..end, part);
}

/// A length or a counter in binary, over what is there.
fn number(random: &mut Random, input: &mut [u8]) {
    let value = random.pick(NUMBERS).copied().unwrap_or(0);
    let value = value.wrapping_add([0, 0, 1, u64::MAX][random.below(4)]);
    let width = [1, 2, 4, 8][random.below(4)];
    let bytes = if random.below(2) == 0 {
        value.to_be_bytes()[8 - width..].to_vec()
    } else {
        value.to_le_bytes()[..width].to_vec()
    };
    let at = random.below(input.len());
    for (to, from) in input.iter_mut().skip(at).zip(bytes) {
        *to = from;
    }
}

/// A protobuf varint, put in place of one byte.
fn varint(random: &mut Random, input: &mut Vec<u8>) {
    let mut value = random.pick(NUMBERS).copied().unwrap_or(0);
    let mut bytes = Vec::new();
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            break;
        }
        bytes.push(low | 0x80);
    }
    let at = random.below(input.len());
    let end = (at + 1).min(input.len());
    input.splice(at..end, bytes);
}

/// A run of digits becomes another number.
fn digits(random: &mut Random, input: &mut Vec<u8>) {
    let from = random.below(input.len());
    let Some(start) = input.iter().skip(from).position(u8::is_ascii_digit).map(|at| at + from) else {
        return;
    };
    let length = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = match random.below(3) {
        0 => random.pick(NUMBERS).copied().unwrap_or(0).to_string(),
        1 => format!("-{}", random.next() % 1000),
        _ => (random.next() % 100).to_string(),
    };
    input.splice(start..start + length, text.into_bytes());
}

/// Deep nesting, closed or not.
fn nest(random: &mut Random, input: &mut Vec<u8>) {
    let pairs = [
        ("[", "]"),
        ("{\"a\":", "}"),
        ("{\"spec\":", "}"),
        ("(", ")"),
        ("- ", ""),
        ("\n  a:", ""),
        ("0\u{80}", ""),
        ("\u{b}\u{c}", ""),
    ];
    let (open, close) = pairs[random.below(pairs.len())];
    let depth = [2, 20, 127, 128, 1000, 30_000][random.below(6)];
    let range = random.range(input.len());
    let inside = input[range.clone()].to_vec();
    let mut made = open.repeat(depth).into_bytes();
    made.extend_from_slice(&inside);
    if random.below(2) == 0 {
        made.extend_from_slice(close.repeat(depth).as_bytes());
    }
    input.splice(range, made);
}

/// One node of a JSON document becomes another; None when the input is none. What follows a NUL is a second document.
fn json(random: &mut Random, input: &[u8], corpus: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = input.split(|byte| *byte == 0).collect();
    let at = random.below(parts.len());
    let mut value: Value = serde_json::from_slice(parts[at])
        .ok()
        .filter(|v: &Value| v.is_object() || v.is_array())?;
    for _ in 0..=random.below(2) {
        let place = random.below(size(&value));
        let new = replacement(random, corpus);
        change(&mut value, &mut { place }, &mut |node| match new.clone() {
            Some(new) => *node = new,
            None => twice(node),
        });
    }
    let text = serde_json::to_vec(&value).ok()?;
    parts[at] = &text;
    Some(parts.join(&0))
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        _ => 1,
    }
}

/// Calls `with` on node number `at`.
fn change(value: &mut Value, at: &mut usize, with: &mut dyn FnMut(&mut Value)) {
    if *at == 0 {
        with(value);
        *at = usize::MAX;
        return;
    }
    *at -= 1;
    let mut children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    for child in &mut children {
        if *at == usize::MAX {
            return;
        }
        change(child, at, with);
    }
}

/// A list with its items twice, a text twice as long.
fn twice(node: &mut Value) {
    match node {
        Value::Array(items) => items.extend(items.clone()),
        Value::String(text) => *text = text.repeat(2),
        Value::Object(fields) => fields.clear(),
        other => *other = Value::Null,
    }
}

fn replacement(random: &mut Random, corpus: &[Vec<u8>]) -> Option<Value> {
    Some(match random.below(9) {
        0 => Value::Null,
        1 => Value::String(random.pick(WORDS).copied().unwrap_or_default().to_owned()),
        2 => Value::from(random.pick(NUMBERS).copied().unwrap_or(0)),
        3 => Value::from(i64::from_le_bytes(random.next().to_le_bytes()) >> random.below(64)),
        4 => serde_json::json!([random.pick(WORDS).copied().unwrap_or_default()]),
        5 => serde_json::json!({}),
        6 => Value::String(String::new()),
        7 => {
            // A node of another document.
            let other = random.pick(corpus)?;
            let mut other: Value = serde_json::from_slice(other.split(|byte| *byte == 0).next()?).ok()?;
            let mut found = Value::Null;
            let place = random.below(size(&other));
            change(&mut other, &mut { place }, &mut |node| found = node.take());
            found
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_an_input() {
        let corpus = [br#"{"a":[1,{"b":"c"}]}"#.to_vec(), b"seed".to_vec()];
        let made = |seed| -> Vec<Vec<u8>> {
            (0..200)
                .map(|n| mutate(&mut Random::new(seed, "t", n), &corpus))
                .collect()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
        let all = made(1);
        assert!(
            all.iter()
                .filter(|input| **input != corpus[0] && **input != corpus[1])
                .count()
                > 150
        );
    }

    #[test]
    fn an_empty_corpus_and_an_empty_seed_give_inputs() {
        for number in 0..500 {
            mutate(&mut Random::new(1, "t", number), &[]);
            mutate(&mut Random::new(1, "t", number), &[Vec::new()]);
        }
    }
}
