//! TLS 1.3 (RFC 8446) with raw public keys (RFC 7250) on both sides: what goes into rustls.
//!
//! Invariants: only Ed25519, both in the key and in the signature scheme; a key is canonical and not of small order; a
//! client takes no key but the one it dialled; nothing is ever resumed, because resumption skips the verifiers and
//! would let a revoked peer back in. The secret key signs here and is never handed to the library.
//!
//! What a verifier finds wrong goes over the wire, text included, so it is one constant ([`refusal`]). The key that a
//! wrong server showed goes to the local dial alone ([`Found`]).

use std::sync::{Arc, OnceLock};

use handfast_protocol::limits::ALPN;
use handfast_protocol::{PeerId, SecretKey};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};

use super::ending::TransportError;

/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410, section 4). DER has one form for it.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// How the two ends agree on keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519 (RFC 7748).
    #[default]
    X25519,
    /// X25519 together with ML-KEM-768, against those who record today and compute later; about 65 us more for a
    /// handshake. With a peer that only has X25519 it falls back to that.
    X25519MlKem768,
}

/// Where a client's verifier leaves the key that it found instead of the one it dialled.
#[derive(Debug, Clone, Default)]
pub(super) struct Found(Arc<OnceLock<PeerId>>);

impl Found {
    pub(super) fn key(&self) -> Option<PeerId> {
        self.0.get().copied()
    }
}

/// The TLS side of a node.
#[derive(Debug)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    identity: Arc<CertifiedKey>,
    client_identity: Arc<AlwaysResolvesClientRawPublicKeys>,
}

impl Tls {
    pub(super) fn new(key: &SecretKey, key_exchange: KeyExchange) -> Tls {
        Tls::with_provider(key, provider(key_exchange))
    }

    /// As [`Tls::new`]; many identities share a provider.
    pub(super) fn with_provider(key: &SecretKey, provider: Arc<CryptoProvider>) -> Tls {
        let spki = spki_of(&key.peer_id());
        let signing = Arc::new(NodeKey { key: Arc::new(key.clone()), spki: spki.clone() });
        let identity = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing));
        let client_identity = Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&identity)));
        Tls { provider, identity, client_identity }
    }

    /// For whoever comes.
    pub(super) fn server(&self) -> Result<Arc<QuicServerConfig>, TransportError> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(AnyClient))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.identity))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Arc::new(QuicServerConfig::try_from(config)?))
    }

    /// For one dial to one peer.
    pub(super) fn client(&self, expected: &PeerId, found: &Found) -> Result<Arc<QuicClientConfig>, TransportError> {
        Ok(Arc::new(QuicClientConfig::try_from(self.client_settings(expected, found)?)?))
    }

    pub(super) fn client_settings(&self, expected: &PeerId, found: &Found) -> Result<ClientConfig, TransportError> {
        let verifier = Arc::new(OneServer { expected: *expected, found: found.clone() });
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::clone(&self.client_identity) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

impl From<NoInitialCipherSuite> for TransportError {
    fn from(_: NoInitialCipherSuite) -> TransportError {
        TransportError::NoInitialCipher
    }
}

/// AES-128-GCM first: the cheapest on machines with AES instructions, and QUIC needs it anyway.
pub(super) fn provider(key_exchange: KeyExchange) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: match key_exchange {
            KeyExchange::X25519 => vec![kx_group::X25519],
            KeyExchange::X25519MlKem768 => vec![kx_group::X25519MLKEM768, kx_group::X25519],
        },
        ..default_provider()
    })
}

/// Each thread's generator is seeded when it first gives something, which takes some 200 us: no handshake is to wait for it.
pub fn seed_generator() {
    // Where it fails, the first handshake says so.
    let _ = default_provider().secure_random.fill(&mut [0]);
}

pub(super) fn spki_of(peer: &PeerId) -> Vec<u8> {
    let mut spki = SPKI_PREFIX.to_vec();
    spki.extend_from_slice(peer.as_bytes());
    spki
}

fn key_bytes(spki: &CertificateDer<'_>) -> Option<[u8; 32]> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

/// The key of a finished handshake: its verifier has checked these bytes, once is enough.
pub(super) fn proven_key(spki: &CertificateDer<'_>) -> Option<PeerId> {
    key_bytes(spki).map(PeerId::from_stored)
}

/// The one thing that a verifier says, whatever it found.
fn refusal() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn checked_key(spki: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<PeerId, Error> {
    if !others.is_empty() {
        return Err(refusal());
    }
    key_bytes(spki).and_then(|bytes| PeerId::from_bytes(bytes).ok()).ok_or_else(refusal)
}

/// `message` is the whole of RFC 8446, section 4.4.3, its context included.
fn checked_signature(
    message: &[u8],
    spki: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let key = checked_key(spki, &[])?;
    let bytes: &[u8; 64] = signature.signature().try_into().map_err(|_| refusal())?;
    if signature.scheme == SignatureScheme::ED25519 && key.verify(message, bytes) {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(refusal())
    }
}

/// Takes every client that proves a key. Whether it may stay is decided after TLS.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        checked_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refusal())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        checked_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Takes the one server that was dialled.
#[derive(Debug)]
struct OneServer {
    expected: PeerId,
    found: Found,
}

impl ServerCertVerifier for OneServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = checked_key(end_entity, intermediates)?;
        if key == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        // A verifier serves one dial and is asked once; a second answer would change nothing.
        let _ = self.found.0.set(key);
        Err(refusal())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refusal())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        checked_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The node's key as rustls wants it.
#[derive(Debug, Clone)]
struct NodeKey {
    key: Arc<SecretKey>,
    spki: Vec<u8>,
}

impl SigningKey for NodeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki.as_slice()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for NodeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.key.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}
