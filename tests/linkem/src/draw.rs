//! Random numbers that are functions of (seed, packet, purpose): no draw moves another.
//!
//! The mixer is SplitMix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).

/// What a packet's number is drawn for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Loss = 1,
    State = 2,
    Corrupt = 3,
    Duplicate = 4,
    Jitter = 5,
    Angle = 6,
    Copy = 7,
    CopyAngle = 8,
}

/// Mixes the bits of `x` so that neighbours have nothing in common.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A seed of its own for part `part` of what `seed` names.
pub(crate) fn derive(seed: u64, part: u64) -> u64 {
    mix(mix(seed) ^ mix(part.wrapping_mul(0xD6E8_FEB8_6659_FD93)))
}

/// Uniform in [0, 1): packet `k`'s number for `purpose`.
pub(crate) fn unit(seed: u64, k: u64, purpose: Purpose) -> f64 {
    to_unit(derive(derive(seed, purpose as u64), k))
}

/// The 53 bits that a float in [0, 1) can hold.
fn to_unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A sequence of numbers from a seed, for what is made once.
#[derive(Debug)]
pub(crate) struct Sequence(u64);

impl Sequence {
    pub(crate) fn new(seed: u64) -> Self {
        Self(derive(seed, 0))
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        to_unit(mix(self.0))
    }

    /// Normal with mean 0 and deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        normal(self.unit(), self.unit())
    }
}

/// Box and Muller's transformation of two uniform numbers.
pub(crate) fn normal(a: f64, b: f64) -> f64 {
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
