//! How attempts and connections end: one table from quinn's errors to ours. Texts that came over the wire are dropped
//! here; only numbers go on.

use std::io;
use std::net::SocketAddr;

use handfast_protocol::{CloseCode, PeerId};
use quinn::{ConnectError, ConnectionError, TransportErrorCode};

/// TLS alerts are the QUIC error codes from here on (RFC 9001, section 4.8).
const CRYPTO_ERROR_FIRST: u64 = 0x100;
const CRYPTO_ERROR_LAST: u64 = 0x1ff;
/// RFC 7301, section 3.2.
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Why the node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// There is nothing to bind.
    #[error("no address to listen on is given")]
    NoAddress,
    /// Another program, or another node, listens there.
    #[error("{address} is in use by another program")]
    AddressInUse { address: SocketAddr },
    /// The address is not one of this machine.
    #[error("{address} is not an address of this machine")]
    NotOurAddress { address: SocketAddr },
    /// A port below 1024, as a rule.
    #[error("not permitted to listen on {address}")]
    NotPermitted { address: SocketAddr },
    /// The system refused for another reason.
    #[error("cannot listen on {address}: {source}")]
    Socket { address: SocketAddr, source: io::Error },
    /// The TLS library does not accept our settings: a bug.
    #[error("the TLS settings are not accepted: {0}")]
    Tls(#[from] rustls::Error),
    /// The TLS library lacks the cipher that QUIC begins with: a bug.
    #[error("the TLS library lacks the initial cipher of QUIC")]
    NoInitialCipher,
}

impl TransportError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            TransportError::NoAddress => "name one with --listen or in the configuration",
            TransportError::AddressInUse { .. } => "stop the other program, or choose another port with --listen",
            TransportError::NotOurAddress { .. } => "choose an address that `ip address` shows, or [::]",
            TransportError::NotPermitted { .. } => "choose a port from 1024 on",
            TransportError::Socket { .. } => "choose another address with --listen",
            TransportError::Tls(_) | TransportError::NoInitialCipher => "report this as a bug",
        }
    }
}

/// Why a connection ended, as far as anybody here needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// We closed it ourselves.
    #[error("closed by this node")]
    Here,
    /// The other end closed it and said why.
    #[error("closed by the peer: {0}")]
    Peer(CloseCode),
    /// The other end refused the attempt before any cryptography.
    #[error("refused before the handshake")]
    Refused,
    /// The handshake failed, on either end: a TLS alert (RFC 8446, section 6).
    #[error("the TLS handshake failed (alert {0})")]
    Handshake(u8),
    /// The other end does not speak this protocol, or not this version of it.
    #[error("the other end speaks another protocol")]
    OtherProtocol,
    /// Nothing was heard for too long.
    #[error("nothing was heard for too long")]
    TimedOut,
    /// The other end does not know the connection any more: it was restarted.
    #[error("the other end does not know the connection any more")]
    Reset,
    /// One of the two broke QUIC: its error code (RFC 9000, section 20.1).
    #[error("QUIC error {0}")]
    Quic(u64),
}

/// Translates quinn's error.
pub fn close_reason(error: &ConnectionError) -> CloseReason {
    match error {
        ConnectionError::LocallyClosed => CloseReason::Here,
        ConnectionError::ApplicationClosed(close) => {
            CloseReason::Peer(CloseCode::from_code(close.error_code.into_inner()))
        }
        ConnectionError::ConnectionClosed(close) => of_quic_code(close.error_code.into()),
        ConnectionError::TransportError(error) => of_quic_code(error.code.into()),
        ConnectionError::VersionMismatch => CloseReason::OtherProtocol,
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::Reset => CloseReason::Reset,
        ConnectionError::CidsExhausted => CloseReason::Quic(TransportErrorCode::INTERNAL_ERROR.into()),
    }
}

fn of_quic_code(code: u64) -> CloseReason {
    match code {
        CRYPTO_ERROR_FIRST..=CRYPTO_ERROR_LAST => match (code - CRYPTO_ERROR_FIRST) as u8 {
            NO_APPLICATION_PROTOCOL => CloseReason::OtherProtocol,
            alert => CloseReason::Handshake(alert),
        },
        code if code == u64::from(TransportErrorCode::CONNECTION_REFUSED) => CloseReason::Refused,
        code => CloseReason::Quic(code),
    }
}

/// Why there is no connection to a peer at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The peer is this node.
    #[error("this is our own id")]
    Myself,
    /// Somebody else is at the address. Nothing of ours was sent. The key is what it claims; nobody waited for a proof.
    #[error("the node at this address is {found}, not the peer that was asked for")]
    WrongKey { found: PeerId },
    /// No answer, or no complete handshake, within the deadline.
    #[error("no answer within the deadline")]
    TimedOut,
    /// The other end has no room for new connections, or takes none from here.
    #[error("the other end refuses the connection")]
    Refused,
    /// None of our addresses can reach that one, or it is none that can be dialled.
    #[error("this address cannot be reached from the addresses that the node listens on")]
    Unreachable,
    /// This node is stopping, or has no room for another connection.
    #[error("this node does not dial any more")]
    Stopping,
    /// The handshake ended otherwise.
    #[error("{0}")]
    Ended(CloseReason),
    /// The TLS library does not accept our settings: a bug.
    #[error("the TLS settings are not accepted")]
    Tls,
}

impl DialError {
    pub(super) fn wrong_key(found: PeerId) -> DialError {
        DialError::WrongKey { found }
    }

    pub(super) fn of(error: &ConnectionError) -> DialError {
        match close_reason(error) {
            CloseReason::Refused => DialError::Refused,
            CloseReason::TimedOut => DialError::TimedOut,
            CloseReason::Here => DialError::Stopping,
            reason => DialError::Ended(reason),
        }
    }
}

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> DialError {
        match error {
            ConnectError::InvalidRemoteAddress(_) => DialError::Unreachable,
            ConnectError::EndpointStopping | ConnectError::CidsExhausted => DialError::Stopping,
            ConnectError::InvalidServerName(_)
            | ConnectError::NoDefaultClientConfig
            | ConnectError::UnsupportedVersion => DialError::Tls,
        }
    }
}

impl From<TransportError> for DialError {
    /// Only the TLS variants reach a dial.
    fn from(_: TransportError) -> DialError {
        DialError::Tls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_codes_have_their_meaning() {
        let check = |code: u64, expected| assert_eq!(of_quic_code(code), expected, "{code:#x}");
        check(0x100 + 120, CloseReason::OtherProtocol);
        check(0x100 + 49, CloseReason::Handshake(49));
        check(0x1ff, CloseReason::Handshake(255));
        check(2, CloseReason::Refused);
        check(0x200, CloseReason::Quic(0x200));
        check(0, CloseReason::Quic(0));
    }

    #[test]
    fn codes_of_the_peer_are_read_and_its_text_is_not() {
        let closed = |code: u32| {
            ConnectionError::ApplicationClosed(quinn::ApplicationClose {
                error_code: quinn::VarInt::from_u32(code),
                reason: b"text from a stranger".as_slice().into(),
            })
        };
        assert_eq!(close_reason(&closed(2)), CloseReason::Peer(CloseCode::Revoked));
        assert_eq!(close_reason(&closed(999)), CloseReason::Peer(CloseCode::Unspecified));
        assert!(!DialError::of(&closed(5)).to_string().contains("stranger"));
    }
}
