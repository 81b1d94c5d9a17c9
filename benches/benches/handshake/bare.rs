//! The floor: bare quinn and rustls with mutual raw Ed25519 keys, a request and an answer of 200 bytes on one stream,
//! and nothing else. The server is a process of its own, as a storm's node is.
//!
//! *Tuned* has the provider, the cipher order and the transport settings of a node; *default* has what quinn, rustls
//! and the system have without being asked. One client identity serves all connections, which is less work than a
//! storm has: a peer of a storm has its own.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use handfast_benches::pair;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rustix::net::sockopt;

use crate::keys;

/// First words of the command lines of the two processes.
pub(crate) const CLIENT: &str = "bare-client";
const SERVER: &str = "bare-server";
const MESSAGE_BYTES: usize = 200;
/// As many as a storm has.
const CLIENT_ENDPOINTS: usize = 4;
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Carries out the command line of either process. `None`: it is neither.
pub(crate) fn process(arguments: &[String]) -> Option<Result<()>> {
    let done = match arguments {
        [word, knobs] if word == SERVER => pair::serve(async { start(knobs == "tuned") }),
        [word, knobs, count, concurrency] if word == CLIENT => client(knobs, count, concurrency),
        _ => return None,
    };
    Some(done)
}

fn transport(tuned: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    if tuned {
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(8))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(64 * 1024))
            .receive_window(VarInt::from_u32(1024 * 1024))
            .send_window(1024 * 1024)
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .mtu_discovery_config(None)
            .keep_alive_interval(Some(Duration::from_secs(10)))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    }
    Arc::new(config)
}

fn endpoint(tuned: bool, server: Option<quinn::ServerConfig>) -> Result<Endpoint> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    if tuned {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    Ok(Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime))?)
}

fn start(tuned: bool) -> Result<(String, impl Future<Output = ()> + Send + 'static)> {
    let mut config = quinn::ServerConfig::with_crypto(keys::server(tuned)?);
    config.transport_config(transport(tuned));
    if tuned {
        let mut tokens = quinn::ValidationTokenConfig::default();
        tokens.sent(0).log(Arc::new(quinn::NoneTokenLog));
        config.validation_token_config(tokens);
    }
    let endpoint = endpoint(tuned, Some(config))?;
    let at = endpoint.local_addr()?.to_string();
    let accepts = async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(answer(incoming));
        }
    };
    Ok((at, accepts))
}

async fn answer(incoming: quinn::Incoming) -> Result<()> {
    let connection = incoming.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    let request = recv.read_to_end(MESSAGE_BYTES).await?;
    send.write_all(&request).await?;
    send.finish()?;
    connection.closed().await;
    Ok(())
}

fn client(knobs: &str, count: &str, concurrency: &str) -> Result<()> {
    let tuned = knobs == "tuned";
    let mut server = Command::new(std::env::current_exe()?);
    let ends = async |at: &str| {
        let mut config = quinn::ClientConfig::new(keys::client(tuned)?);
        config.transport_config(transport(tuned));
        let at: SocketAddr = at.parse()?;
        (0..CLIENT_ENDPOINTS).map(|_| Ok((endpoint(tuned, None)?, config.clone(), at))).collect()
    };
    pair::client(server.args([SERVER, knobs]), [count.parse()?, concurrency.parse()?], ends, exchange)
}

async fn exchange((endpoint, config, at): (Endpoint, quinn::ClientConfig, SocketAddr)) -> Result<()> {
    let connection = endpoint.connect_with(config, at, "node")?.await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[7; MESSAGE_BYTES]).await?;
    send.finish()?;
    let back = recv.read_to_end(MESSAGE_BYTES).await?;
    connection.close(VarInt::from_u32(0), b"");
    if back.len() == MESSAGE_BYTES { Ok(()) } else { Err(anyhow!("{} bytes came back", back.len())) }
}
