//! The Internet checksum (RFC 1071): the complement of the ones' complement sum of 16-bit words. Pure.
//!
//! Words are added in the machine's order: the sum is the same but for the order of its bytes, which writing it back undoes.

/// A sum of words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at a word; an odd last one is followed by zero. 64 KiB many times over fit.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut wide = bytes.chunks_exact(32);
        // Independent lanes, so that the compiler makes vectors of them.
        let mut lanes = [0_u64; 8];
        for chunk in &mut wide {
            for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        self.0 += lanes
            .into_iter()
            .map(|lane| (lane & 0xffff_ffff) + (lane >> 32))
            .sum::<u64>();
        let mut words = wide.remainder().chunks_exact(2);
        for word in &mut words {
            self.0 += u64::from(u16::from_ne_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            self.0 += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self
    }

    /// Adds a number as it is on the wire.
    pub(crate) fn number(self, number: u32) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// The sum as it is on the wire: what a partial checksum is.
    pub(crate) fn partial(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The checksum as it is on the wire.
    pub(crate) fn checksum(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// Whether this is the sum of something with its right checksum in it.
    pub(crate) fn is_right(self) -> bool {
        self.folded() == 0xffff
    }

    fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum & 0xffff) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 1071 says it, byte by byte.
    fn slow(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0_u32;
        for (at, byte) in bytes.iter().enumerate() {
            sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).partial(), [0xdd, 0xf2]);
    }

    #[test]
    fn sums_are_those_of_the_slow_way_for_all_lengths() {
        for length in 0..300 {
            for fill in [0, 1, 0x7f, 0xff] {
                let bytes: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) | fill).collect();
                assert_eq!(Sum::default().bytes(&bytes).checksum(), slow(&bytes), "{length} bytes");
            }
        }
        let ones = vec![0xff; 65_535];
        assert_eq!(Sum::default().bytes(&ones).checksum(), slow(&ones));
    }
}
