//! Two ends over loopback: who is proven, who is refused, and what each side gets to know.

use std::net::Ipv4Addr;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{Connection, ConnectionError, ConnectionIdGenerator as _, Incoming};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::tls::spki_of;
use super::*;
use crate::config::Config;

/// Far more than loopback needs: only a hang gets here.
const PATIENCE: Duration = Duration::from_secs(20);
const ACCESS_DENIED: u8 = 49;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn settings(key_exchange: KeyExchange) -> TransportSettings {
    TransportSettings { key_exchange, socket_buffer_bytes: 256 * 1024, ..Config::default().transport() }
}

fn node_with(key: &SecretKey, key_exchange: KeyExchange) -> Transport {
    Transport::bind(&[(Ipv4Addr::LOCALHOST, 0).into()], key, &settings(key_exchange)).unwrap()
}

fn node(key: &SecretKey) -> Transport {
    node_with(key, KeyExchange::X25519)
}

fn address(transport: &Transport) -> SocketAddr {
    transport.local_addrs()[0]
}

async fn accepted(transport: &Transport) -> Accepted {
    let incoming: Incoming = transport.accept().await.unwrap();
    incoming.accept()?.await
}

/// Dials and accepts at once.
async fn meet(client: &Transport, server: &Transport, expected: &PeerId) -> (Dialled, Accepted) {
    tokio::join!(client.dial(expected, address(server), PATIENCE), accepted(server))
}

type Dialled = Result<Connection, DialError>;
type Accepted = Result<Connection, ConnectionError>;

#[tokio::test]
async fn both_ends_learn_the_others_key_and_no_name_goes_over_the_wire() {
    for (ours, theirs) in [
        (KeyExchange::X25519, KeyExchange::X25519),
        (KeyExchange::X25519MlKem768, KeyExchange::X25519MlKem768),
        (KeyExchange::X25519MlKem768, KeyExchange::X25519),
        (KeyExchange::X25519, KeyExchange::X25519MlKem768),
    ] {
        let (client, server) = (node_with(&key(1), ours), node_with(&key(2), theirs));
        let (dialled, accepted) = meet(&client, &server, &key(2).peer_id()).await;
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!(peer_of(&dialled), Some(key(2).peer_id()));
        assert_eq!(peer_of(&accepted), Some(key(1).peer_id()));
        let handshake = accepted.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
        assert_eq!(handshake.server_name, None);
        assert_eq!(handshake.protocol.as_deref(), Some(handfast_protocol::limits::ALPN));
    }
}

#[tokio::test]
async fn a_connection_of_a_run_that_died_ends_with_the_first_packet_to_the_next_run() {
    let client = node(&key(1));
    // Its runtime dies with everything in it, and says nothing.
    let (first, at) = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async { node(&key(2)) });
        let at = address(&server);
        runtime.spawn(async move {
            let _connection = accepted(&server).await;
            std::future::pending::<()>().await;
        });
        (runtime, at)
    })
    .await
    .unwrap();
    let connection = client.dial(&key(2).peer_id(), at, PATIENCE).await.unwrap();
    tokio::task::spawn_blocking(|| first.shutdown_timeout(PATIENCE)).await.unwrap();
    let _second = Transport::bind(&[at], &key(2), &settings(KeyExchange::X25519)).unwrap();
    let (mut send, _) = connection.open_bi().await.unwrap();
    send.write_all(&[0; 100]).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await;
    assert_eq!(close_reason(&end.expect("long before it is idle")), CloseReason::Reset);
}

#[tokio::test]
async fn another_key_at_the_address_gets_nothing_of_ours() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let (dialled, accepted) = meet(&client, &server, &key(3).peer_id()).await;
    assert_eq!(dialled.unwrap_err(), DialError::WrongKey { found: key(2).peer_id() });
    let refused = accepted.unwrap_err();
    assert_eq!(close_reason(&refused), CloseReason::Handshake(ACCESS_DENIED));
    let wire = format!("{refused:?}");
    for secret in [key(1), key(2), key(3)].map(|key| key.peer_id()) {
        assert!(!wire.contains(&secret.to_string()) && !wire.contains(&secret.to_hex()), "{wire}");
    }
    // The server's side of the handshake never got as far as a client key or a stream: there is no connection.
    let (dialled, accepted) = meet(&client, &server, &key(2).peer_id()).await;
    assert!(dialled.is_ok() && accepted.is_ok());
}

/// Bytes over a stream and back: what either end sent on its own before them has arrived.
async fn echo(opener: &Connection, other: &Connection) {
    let serve = async {
        let (mut send, mut receive) = other.accept_bi().await.unwrap();
        send.write_all(&receive.read_to_end(16).await.unwrap()).await.unwrap();
        send.finish().unwrap();
    };
    let ask = async {
        let (mut send, mut receive) = opener.open_bi().await.unwrap();
        send.write_all(b"there").await.unwrap();
        send.finish().unwrap();
        receive.read_to_end(16).await.unwrap()
    };
    assert_eq!(tokio::join!(serve, ask).1, b"there");
}

#[tokio::test]
async fn a_second_dial_finds_nothing_to_resume() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let (dialled, accepted) = meet(&client, &server, &key(2).peer_id()).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    echo(&dialled, &accepted).await;
    let again = client.connect(&key(2).peer_id(), address(&server), &Found::default()).unwrap();
    assert!(again.into_0rtt().is_err());
}

#[tokio::test]
async fn a_client_that_would_resume_gets_no_ticket() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let mut config = client.tls.client_settings(&key(2).peer_id(), &Found::default()).unwrap();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connect = || client.endpoints[0].endpoint.connect_with(config.clone(), address(&server), "name").unwrap();
    let (dialled, accepted) = tokio::join!(connect(), accepted(&server));
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    echo(&dialled, &accepted).await;
    assert!(connect().into_0rtt().is_err());
}

#[tokio::test]
async fn an_id_of_another_connection_begins_nothing_and_is_left_out_when_it_comes_again() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let settings = client.tls.client_settings(&key(2).peer_id(), &Found::default()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(settings).unwrap()));
    // As anybody can read it in what the node answers.
    let id = resets::Keys::of(&key(2), address(&server)).ids().generate_cid();
    let mut with_it = config.clone();
    with_it.initial_dst_cid_provider(Arc::new(move || id));
    let connect = |config: &quinn::ClientConfig| {
        client.endpoints[0].endpoint.connect_with(config.clone(), address(&server), "name").unwrap()
    };
    let _first = connect(&with_it);
    let incoming = server.accept().await.unwrap();
    assert!(server.is_misdirected(&incoming));
    incoming.ignore();
    // Its sender repeats it, and another one uses it: of all that comes now, only what is new is to be seen.
    let _again = connect(&with_it);
    for _ in 0..3 {
        let _other = connect(&config);
        let incoming = server.accept().await.unwrap();
        assert_ne!(incoming.orig_dst_cid(), id);
        assert!(!server.is_misdirected(&incoming));
        incoming.ignore();
    }
}

#[tokio::test]
async fn streams_are_as_many_as_the_protocol_allows_and_go_both_ways_only() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let (dialled, accepted) = meet(&client, &server, &key(2).peer_id()).await;
    let (dialled, _accepted) = (dialled.unwrap(), accepted.unwrap());
    let mut open = Vec::new();
    for _ in 0..STREAMS_MAX {
        open.push(dialled.open_bi().await.unwrap());
    }
    let is_blocked = |future: &mut std::pin::Pin<Box<dyn Future<Output = bool> + '_>>| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_pending()
    };
    assert!(is_blocked(&mut (Box::pin(async { dialled.open_bi().await.is_ok() }) as _)));
    assert!(is_blocked(&mut (Box::pin(async { dialled.open_uni().await.is_ok() }) as _)));
    assert_eq!(dialled.max_datagram_size(), None);
}

#[tokio::test]
async fn dials_that_cannot_succeed_say_why() {
    let client = node(&key(1));
    let at = address(&client);
    let check = async |peer: u8, at: SocketAddr, deadline, expected| {
        assert_eq!(client.dial(&key(peer).peer_id(), at, deadline).await.unwrap_err(), expected);
    };
    check(1, at, PATIENCE, DialError::Myself).await;
    check(2, "[::1]:9".parse().unwrap(), PATIENCE, DialError::Unreachable).await;
    check(2, "192.0.2.1:9".parse().unwrap(), PATIENCE, DialError::Unreachable).await;
    check(2, "127.0.0.1:0".parse().unwrap(), PATIENCE, DialError::Unreachable).await;
    // A socket that nobody reads.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    check(2, silent.local_addr().unwrap(), Duration::from_millis(50), DialError::TimedOut).await;
    client.close(CloseCode::Stopping);
    check(2, silent.local_addr().unwrap(), PATIENCE, DialError::Stopping).await;
}

#[tokio::test]
async fn a_refusal_and_a_close_arrive_as_what_they_are() {
    let (client, server) = (node(&key(1)), node(&key(2)));
    let refuse = async { server.accept().await.unwrap().refuse() };
    let at = address(&server);
    let peer = key(2).peer_id();
    let (dialled, ()) = tokio::join!(client.dial(&peer, at, PATIENCE), refuse);
    assert_eq!(dialled.unwrap_err(), DialError::Refused);

    let (dialled, accepted) = meet(&client, &server, &peer).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    server.close(CloseCode::Revoked);
    assert_eq!(close_reason(&dialled.closed().await), CloseReason::Peer(CloseCode::Revoked));
    assert_eq!(close_reason(&accepted.closed().await), CloseReason::Here);
    assert!(server.accept().await.is_none());
    server.wait_idle().await;
}

#[tokio::test]
async fn one_transport_listens_on_several_addresses() {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Transport::bind(&[loopback, loopback], &key(2), &settings(KeyExchange::X25519)).unwrap();
    let client = node(&key(1));
    for at in server.local_addrs() {
        let peer = key(2).peer_id();
        let (dialled, accepted) = tokio::join!(client.dial(&peer, at, PATIENCE), accepted(&server));
        assert_eq!(dialled.unwrap().remote_address(), at);
        assert_eq!(canonical(accepted.unwrap().remote_address()), address(&client));
    }
}

#[tokio::test]
async fn the_unspecified_address_is_reached_over_ipv4() {
    let unspecified = "[::]:0".parse().unwrap();
    let server = Transport::bind(&[unspecified], &key(2), &settings(KeyExchange::X25519)).unwrap();
    let client = Transport::bind(&[unspecified], &key(1), &settings(KeyExchange::X25519)).unwrap();
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, address(&server).port()));
    let peer = key(2).peer_id();
    let (dialled, accepted) = tokio::join!(client.dial(&peer, at, PATIENCE), accepted(&server));
    assert_eq!(canonical(dialled.unwrap().remote_address()), at);
    assert_eq!(canonical(accepted.unwrap().remote_address()).ip(), Ipv4Addr::LOCALHOST);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = node(&key(1));
    let refused = Transport::bind(&[address(&first)], &key(2), &settings(KeyExchange::X25519)).unwrap_err();
    assert!(matches!(refused, TransportError::AddressInUse { address: found } if found == address(&first)));
}

/// A key that shows `spki` and signs with whatever it has.
#[derive(Debug, Clone)]
struct Impostor {
    spki: Vec<u8>,
    scheme: SignatureScheme,
    signs_with: Option<Arc<SecretKey>>,
}

impl SigningKey for Impostor {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki.as_slice()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Impostor {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(self.signs_with.as_ref().map_or_else(|| vec![0; 64], |key| key.sign(message).to_vec()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// P-256 with its generator as the public point (RFC 5480).
fn p256_spki() -> Vec<u8> {
    let hex = "3059301306072a8648ce3d020106082a8648ce3d030107034200046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0\
               f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
}

/// What a server says to a client whose TLS settings `change` spoils.
async fn refusal_of(change: impl FnOnce(&mut rustls::ClientConfig)) -> ConnectionError {
    let server = node(&key(2));
    let client = node(&key(1));
    let mut config = client.tls.client_settings(&key(2).peer_id(), &Found::default()).unwrap();
    change(&mut config);
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let connecting = client.endpoints[0].endpoint.connect_with(config, address(&server), "name").unwrap();
    // TLS 1.3 lets the client finish first: what counts is that the server does not, and that the client hears of it.
    let dialled = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let (dialled, accepted) = tokio::join!(dialled, accepted(&server));
    assert!(accepted.is_err());
    dialled
}

#[tokio::test]
async fn a_client_that_proves_no_key_of_ours_is_refused() {
    let none = refusal_of(|config| {
        config.client_auth_cert_resolver = Arc::new(NoKey);
    });
    assert!(matches!(close_reason(&none.await), CloseReason::Handshake(_)));

    let small_order = [[1].as_slice(), &[0; 31]].concat();
    let mut small_order_spki = spki_of(&key(1).peer_id());
    small_order_spki[12..].copy_from_slice(&small_order);
    let mut longer = spki_of(&key(1).peer_id());
    longer.push(0);
    let own = Some(Arc::new(key(1)));
    let ed25519 = SignatureScheme::ED25519;
    let impostors = [
        ("P-256", p256_spki(), ed25519, own.clone()),
        ("P-256 with its scheme", p256_spki(), SignatureScheme::ECDSA_NISTP256_SHA256, own.clone()),
        ("our key with another scheme", spki_of(&key(1).peer_id()), SignatureScheme::ED448, own.clone()),
        ("small order", small_order_spki, ed25519, own.clone()),
        ("trailing byte", longer, ed25519, own.clone()),
        ("another's key", spki_of(&key(3).peer_id()), ed25519, own),
        ("no signature", spki_of(&key(1).peer_id()), ed25519, None),
    ];
    let mut texts = std::collections::BTreeSet::new();
    for (what, spki, scheme, signs_with) in impostors {
        let certificate = CertificateDer::from(spki.clone());
        let identity = CertifiedKey::new(vec![certificate], Arc::new(Impostor { spki, scheme, signs_with }));
        let refusal = refusal_of(|config| {
            let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::new(identity));
            config.client_auth_cert_resolver = Arc::new(resolver);
        })
        .await;
        assert_eq!(close_reason(&refusal), CloseReason::Handshake(ACCESS_DENIED), "{what}: {refusal}");
        texts.insert(refusal.to_string());
    }
    assert_eq!(texts.len(), 1, "the wire says what was wrong: {texts:?}");
}

#[derive(Debug)]
struct NoKey;

impl rustls::client::ResolvesClientCert for NoKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused() {
    for protocols in [vec![], vec![b"h3".to_vec()], vec![b"handfast/2".to_vec()]] {
        let refusal = refusal_of(|config| config.alpn_protocols = protocols).await;
        assert_eq!(close_reason(&refusal), CloseReason::OtherProtocol, "{refusal}");
    }
}

#[tokio::test]
async fn a_client_that_expects_certificates_is_refused() {
    let refusal = refusal_of(|config| {
        config.client_auth_cert_resolver = Arc::new(CertificatesOnly);
    })
    .await;
    assert!(matches!(close_reason(&refusal), CloseReason::Handshake(_)), "{refusal}");
}

#[derive(Debug)]
struct CertificatesOnly;

impl rustls::client::ResolvesClientCert for CertificatesOnly {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
