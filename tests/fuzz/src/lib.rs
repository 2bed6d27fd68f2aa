//! Feeds every decoder of Kedge that reads somebody else's bytes with mangled ones, and judges what it does.
//!
//! * [`targets`]: the table of decoders: name, memory budget, corpus, function; [`broken`]: those that the fuzzer must catch
//! * [`mutate`]: the inputs, made of the corpus, the same ones for the same seed
//! * [`hunt`]: one target in a process of its own: replays the regressions, then goes on with mutated inputs
//!   * a worker thread, small in stack as those of the programs, runs the decoder, metered by [`sys`]
//!   * the main thread watches it: an input that takes too much CPU or wants too much memory is named
//! * [`parent`]: starts those processes one after another; one that dies of a signal has its input named too
//!
//! A failing input is written to `regressions/TARGET/`, and replayed first from then on.

pub mod broken;
pub mod hunt;
pub mod mutate;
pub mod parent;
pub mod sys;
pub mod targets;

/// One decoder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also its folder under `regressions/`.
    pub name: &'static str,
    /// Bytes of memory that a byte of input may cost while it is decoded.
    pub per_byte: usize,
    /// Bytes of memory that any input may cost.
    pub constant: usize,
    /// Valid inputs, made by our own encoders where there are some.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Decodes. An error is a promise that was broken (decoded and encoded again it is another); a refusal of the input is none.
    pub run: fn(&[u8]) -> Result<(), String>,
}

impl Target {
    /// The target of that name; `broken` ones count only where they are asked for.
    pub fn find(name: &str) -> Option<&'static Self> {
        targets::ALL
            .iter()
            .chain(broken::ALL)
            .find(|target| target.name == name)
    }

    fn budget(&self, length: usize) -> usize {
        self.constant.saturating_add(self.per_byte.saturating_mul(length))
    }
}
