//! The record: `format (1) | checksum (4) | payload`, or encrypted `format (1) | nonce (12) | AES-256-GCM(payload)`.
//!
//! The checksum is the first four bytes of SHA-256 over key and payload, and the key is the cipher's associated data:
//! a record that ended up under another key is not valid there.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

use crate::error::{CommitError, ReadError};

const PLAIN: u8 = 1;
const ENCRYPTED: u8 = 2;
const CHECKSUM: usize = 4;

/// Encodes and decodes records.
pub(crate) struct Codec {
    cipher: Option<LessSafeKey>,
    random: SystemRandom,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec")
            .field("encrypted", &self.cipher.is_some())
            .finish_non_exhaustive()
    }
}

impl Codec {
    pub(crate) fn new(key: Option<&[u8; 32]>) -> Self {
        let cipher = key.map(|key| {
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are the length of an AES-256 key"))
        });
        Self {
            cipher,
            random: SystemRandom::new(),
        }
    }

    pub(crate) fn encode(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, CommitError> {
        let Some(cipher) = &self.cipher else {
            let mut record = Vec::with_capacity(1 + CHECKSUM + value.len());
            record.push(PLAIN);
            record.extend_from_slice(&checksum(key, value));
            record.extend_from_slice(value);
            return Ok(record);
        };
        let fail = |_| CommitError::Encrypt(key.to_owned());
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(fail)?;
        let mut sealed = value.to_vec();
        cipher
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(key.as_bytes()),
                &mut sealed,
            )
            .map_err(fail)?;
        let mut record = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        record.push(ENCRYPTED);
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    pub(crate) fn decode(&self, key: &str, record: &[u8]) -> Result<Bytes, ReadError> {
        let (&format, rest) = record.split_first().ok_or(ReadError::Short)?;
        match format {
            PLAIN => {
                let (sum, payload) = rest.split_at_checked(CHECKSUM).ok_or(ReadError::Short)?;
                if sum != checksum(key, payload) {
                    return Err(ReadError::Checksum);
                }
                Ok(Bytes::copy_from_slice(payload))
            }
            ENCRYPTED => {
                let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(ReadError::Short)?;
                let cipher = self.cipher.as_ref().ok_or(ReadError::Decrypt)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| ReadError::Decrypt)?;
                let mut payload = sealed.to_vec();
                let opened = cipher
                    .open_in_place(nonce, Aad::from(key.as_bytes()), &mut payload)
                    .map_err(|_| ReadError::Decrypt)?;
                let length = opened.len();
                payload.truncate(length);
                Ok(payload.into())
            }
            other => Err(ReadError::Format(other)),
        }
    }
}

fn checksum(key: &str, value: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key.as_bytes());
    hash.update(value);
    let hash = hash.finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(key in ".{0,40}", value in prop::collection::vec(any::<u8>(), 0..300), secret in any::<Option<[u8; 32]>>()) {
            let codec = Codec::new(secret.as_ref());
            let record = codec.encode(&key, &value).unwrap();
            prop_assert_eq!(codec.decode(&key, &record).unwrap(), Bytes::from(value));
        }

        #[test]
        fn mangled_records_are_refused(value in prop::collection::vec(any::<u8>(), 0..100), at in any::<usize>(), bit in 0..8_u8, secret in any::<Option<[u8; 32]>>()) {
            let codec = Codec::new(secret.as_ref());
            let mut record = codec.encode("key", &value).unwrap();
            let at = at % record.len();
            record[at] ^= 1 << bit;
            prop_assert!(codec.decode("key", &record).is_err());
            record.truncate(at);
            prop_assert!(codec.decode("key", &record).is_err());
        }
    }

    #[test]
    fn a_record_is_not_valid_under_another_key() {
        for secret in [None, Some([7; 32])] {
            let codec = Codec::new(secret.as_ref());
            let record = codec.encode("a", b"value").unwrap();
            assert!(codec.decode("b", &record).is_err());
        }
    }

    #[test]
    fn another_cipher_key_does_not_open_it() {
        let record = Codec::new(Some(&[1; 32])).encode("a", b"value").unwrap();
        assert!(matches!(
            Codec::new(Some(&[2; 32])).decode("a", &record),
            Err(ReadError::Decrypt)
        ));
        assert!(matches!(Codec::new(None).decode("a", &record), Err(ReadError::Decrypt)));
    }
}
