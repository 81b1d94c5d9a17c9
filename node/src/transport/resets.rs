//! What packets of a connection are answered with that a run before this one had: a stateless reset (RFC 9000, section
//! 10.3), so that the other end knows at once that it is over, and not after its idle time.
//!
//! Invariant: the keys follow from the identity and the address, so that the next run there has the same ones, and no
//! other endpoint of this node can be made to end a connection of this one (RFC 9000, section 21.11).

use std::net::SocketAddr;
use std::sync::Arc;

use handfast_protocol::SecretKey;
use quinn::EndpointConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn_proto::HashedConnectionIdGenerator;
use zeroize::Zeroizing;

const PURPOSE: &str = "handfast 2026 stateless resets of an endpoint";

/// Of one endpoint: for its resets, and for the connection ids that it gives out.
pub(super) struct Keys {
    tokens: Zeroizing<[u8; 32]>,
    ids: u64,
}

impl Keys {
    /// Those of the endpoint at `local`.
    pub(super) fn of(key: &SecretKey, local: SocketAddr) -> Keys {
        let mut hasher = blake3::Hasher::new_derive_key(PURPOSE);
        hasher.update(&*Zeroizing::new(key.signing_key().to_bytes()));
        hasher.update(local.to_string().as_bytes());
        let mut keys = Zeroizing::new([0; 40]);
        hasher.finalize_xof().fill(&mut *keys);
        let (tokens, ids) = keys.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
        let ids = ids.first_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
        Keys { tokens: Zeroizing::new(*tokens), ids }
    }

    /// What gives out connection ids, and knows them again.
    pub(super) fn ids(&self) -> HashedConnectionIdGenerator {
        HashedConnectionIdGenerator::from_key(self.ids)
    }

    /// Settings of the endpoint.
    pub(super) fn endpoint_config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(TokenKey(self.tokens.clone())));
        // A packet with an id that was never given out is not answered.
        let ids = self.ids;
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        config
    }
}

struct TokenKey(Zeroizing<[u8; 32]>);

impl HmacKey for TokenKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let made = blake3::keyed_hash(&self.0, data);
        // In constant time.
        if signature.try_into().is_ok_and(|signature: [u8; blake3::OUT_LEN]| made == signature) {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}
