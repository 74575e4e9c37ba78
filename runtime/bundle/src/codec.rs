//! The encoding of plans. The only file that names bincode.
//!
//! Integers are little-endian and of fixed width, so that the decoder's limit equals the length of
//! its input.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::de::read::{Reader, SliceReader};
use bincode::de::{Decode, Decoder, DecoderImpl};
use bincode::serde::Compat;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::plan::Plan;

/// Largest encoded plan that is accepted.
pub const MAX_PLAN_BYTES: usize = 16 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_PLAN_BYTES>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_PLAN_BYTES>();

/// Why a plan could not be turned into bytes or back.
#[derive(Debug, Error)]
pub enum CodecError {
    /// The encoder gave up.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The bytes are not a plan.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// Bytes are left over after the plan.
    #[error("bytes are left over after the plan")]
    Trailing,
    /// The encoded plan is longer than [`MAX_PLAN_BYTES`].
    #[error("{len_bytes} bytes of plan, but at most {MAX_PLAN_BYTES} are allowed")]
    TooLong {
        /// How long it is.
        len_bytes: usize,
    },
}

/// Encodes a plan.
///
/// Errors: `TooLong` if [`decode`] would refuse the result.
pub fn encode(plan: &Plan) -> Result<Vec<u8>, CodecError> {
    encode_part(plan)
}

/// [`encode`] for other values.
pub(crate) fn encode_part(value: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIG)
        .map_err(|error| CodecError::Encode(error.to_string()))?;
    if bytes.len() > MAX_PLAN_BYTES {
        return Err(CodecError::TooLong { len_bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes a plan from bytes of any origin.
///
/// Memory: no string is longer than `bytes`, and a vector grows only as its elements are read.
/// Errors: `TooLong`, `Decode` or `Trailing`; never panics.
pub fn decode(bytes: &[u8]) -> Result<Plan, CodecError> {
    decode_part(bytes)
}

/// [`decode`] for other values.
pub(crate) fn decode_part<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let Some(unused_bytes) = MAX_PLAN_BYTES.checked_sub(bytes.len()) else {
        return Err(CodecError::TooLong { len_bytes: bytes.len() });
    };
    let mut decoder = DecoderImpl::new(SliceReader::new(bytes), CONFIG, ());
    let to_error = |error: bincode::error::DecodeError| CodecError::Decode(error.to_string());
    // bincode's limit is a constant; claiming the difference makes it the length of the input.
    decoder.claim_bytes_read(unused_bytes).map_err(to_error)?;
    let Compat(value) = Compat::<T>::decode(&mut decoder).map_err(to_error)?;
    match decoder.reader().peek_read(1) {
        Some(_) => Err(CodecError::Trailing),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_plan_survives_the_round_trip() {
        let plan = testing::plan();
        assert_eq!(decode(&encode(&plan).unwrap()).unwrap(), plan);
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let mut bytes = encode(&testing::plan()).unwrap();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes.push(0);
        assert!(matches!(decode(&bytes), Err(CodecError::Trailing)));
    }

    #[test]
    fn absurd_lengths_are_refused() {
        assert!(decode(&[0xff; 64]).is_err());
        let huge = vec![0; MAX_PLAN_BYTES + 1];
        assert!(matches!(decode(&huge), Err(CodecError::TooLong { .. })));
    }
}
