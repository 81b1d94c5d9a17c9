//! Randomness from the system, for what must be unguessable or unique.

use handfast_protocol::Incarnation;
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::control::api::{ApiError, ErrorCode};

/// `N` random bytes.
///
/// # Errors
/// `Failure` when the system gives none.
pub fn bytes<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| ApiError::new(ErrorCode::Failure, format!("The system gives no randomness: {error}.")))?;
    Ok(bytes)
}

/// A new run of a node.
///
/// # Errors
/// As [`bytes`].
pub fn incarnation() -> Result<Incarnation, ApiError> {
    bytes().map(Incarnation)
}
