//! The floor: bare quinn and rustls with mutual raw Ed25519 keys, a request and an answer of 200 bytes on one stream,
//! and nothing else. The server is a process of its own, as a storm's node is.
//!
//! *Tuned* has the provider, the cipher order and the transport settings of a node; *default* has what quinn, rustls
//! and the system have without being asked. One client identity serves all connections, which is less work than a
//! storm has: a peer of a storm has its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use handfast_benches::{Latencies, Stopwatch, rate, used_us};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rustix::net::sockopt;
use tokio::task::JoinSet;

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
        [word, knobs] if word == SERVER => server(knobs == "tuned"),
        [word, knobs, count, concurrency] if word == CLIENT => client(knobs, count, concurrency),
        _ => return None,
    };
    Some(done)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
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

/// Says where it listens, serves until its standard input ends, and says what it has used.
fn server(tuned: bool) -> Result<()> {
    runtime()?.block_on(async {
        let mut config = quinn::ServerConfig::with_crypto(keys::server(tuned)?);
        config.transport_config(transport(tuned));
        if tuned {
            let mut tokens = quinn::ValidationTokenConfig::default();
            tokens.sent(0).log(Arc::new(quinn::NoneTokenLog));
            config.validation_token_config(tokens);
        }
        let endpoint = endpoint(tuned, Some(config))?;
        println!("{}", endpoint.local_addr()?);
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(answer(incoming));
            }
        });
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        println!("{}", used_us()?);
        Ok(())
    })
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

/// Starts a server, exchanges, and prints rate, CPU of both ends for each, p50 and p99 in microseconds.
fn client(knobs: &str, count: &str, concurrency: &str) -> Result<()> {
    let (tuned, count, concurrency) = (knobs == "tuned", count.parse::<u64>()?, concurrency.parse::<u64>()?);
    let mut server = Command::new(std::env::current_exe()?)
        .args([SERVER, knobs])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(server.stdout.take().context("no output")?).lines();
    let at: SocketAddr = said.next().context("the server says nothing")??.parse()?;
    let before = used_us()?;
    let (latencies, time) = runtime()?.block_on(load(tuned, at, count, concurrency))?;
    let own = used_us()? - before;
    drop(server.stdin.take());
    let servers: i64 = said.next().context("the server says nothing")??.parse()?;
    server.wait()?;
    let cpu = (own + servers) as f64 / count as f64;
    println!("{} {cpu} {} {}", rate(count, time), latencies.us(0.5), latencies.us(0.99));
    Ok(std::io::stdout().flush()?)
}

async fn load(tuned: bool, at: SocketAddr, count: u64, concurrency: u64) -> Result<(Latencies, Duration)> {
    let mut config = quinn::ClientConfig::new(keys::client(tuned)?);
    config.transport_config(transport(tuned));
    let endpoints = (0..CLIENT_ENDPOINTS).map(|_| endpoint(tuned, None)).collect::<Result<Vec<_>>>()?;
    let next = Arc::new(AtomicU64::new(0));
    let began = Stopwatch::start();
    let mut workers = JoinSet::new();
    for worker in 0..concurrency {
        let (config, next) = (config.clone(), next.clone());
        let endpoint = endpoints[usize::try_from(worker)? % CLIENT_ENDPOINTS].clone();
        workers.spawn(async move {
            let mut latencies = Latencies::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let began = Stopwatch::start();
                exchange(&endpoint, config.clone(), at).await?;
                latencies.add(began.elapsed());
            }
            Ok::<_, anyhow::Error>(latencies)
        });
    }
    let mut all = Latencies::new();
    while let Some(latencies) = workers.join_next().await {
        all.merge(&latencies??);
    }
    Ok((all, began.elapsed()))
}

async fn exchange(endpoint: &Endpoint, config: quinn::ClientConfig, at: SocketAddr) -> Result<()> {
    let connection = endpoint.connect_with(config, at, "node")?.await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[7; MESSAGE_BYTES]).await?;
    send.finish()?;
    let back = recv.read_to_end(MESSAGE_BYTES).await?;
    connection.close(VarInt::from_u32(0), b"");
    if back.len() == MESSAGE_BYTES { Ok(()) } else { Err(anyhow!("{} bytes came back", back.len())) }
}
