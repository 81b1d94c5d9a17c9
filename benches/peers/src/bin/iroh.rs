//! iroh with the exchange of the bare contenders of `--bench handshake`: mutual raw Ed25519 keys, 200 bytes there and
//! back on one stream, one client identity; direct addresses, no relay, no discovery. Load and server are two processes.
//!
//! `iroh bare-client default|tuned COUNT CONCURRENCY` prints what the bare contenders print: rate, CPU of both ends for
//! each exchange, p50 and p99 in microseconds. *Default* is iroh as it comes, with ring; *tuned* has the cryptography
//! that handfast has, aws-lc-rs. `--bench handshake -- --iroh PATH` takes turns with both.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use handfast_benches::pair;
use iroh::endpoint::{Incoming, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode};

const ALPN: &[u8] = b"bare/1";
const MESSAGE_BYTES: usize = 200;
const CLIENT_ENDPOINTS: usize = 4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["server", knobs] => pair::serve(start(knobs == "tuned")),
        ["bare-client", knobs, count, concurrency] => client(knobs, [count.parse()?, concurrency.parse()?]),
        _ => bail!("iroh bare-client default|tuned COUNT CONCURRENCY"),
    }
}

async fn endpoint(tuned: bool) -> Result<Endpoint> {
    let mut builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).alpns(vec![ALPN.to_vec()]);
    if tuned {
        builder = builder.crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    }
    let builder = builder.clear_ip_transports().bind_addr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(builder.bind().await?)
}

async fn start(tuned: bool) -> Result<(String, impl Future<Output = ()> + Send + 'static)> {
    let endpoint = endpoint(tuned).await?;
    let at = *endpoint.bound_sockets().first().context("bound to nothing")?;
    let hello = format!("{} {at}", endpoint.id());
    let accepts = async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(answer(incoming));
        }
    };
    Ok((hello, accepts))
}

async fn answer(incoming: Incoming) -> Result<()> {
    let connection = incoming.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    let request = recv.read_to_end(MESSAGE_BYTES).await?;
    send.write_all(&request).await?;
    send.finish()?;
    connection.closed().await;
    Ok(())
}

fn client(knobs: &str, load: [u64; 2]) -> Result<()> {
    let mut server = Command::new(std::env::current_exe()?);
    let ends = async |hello: &str| {
        let (id, at) = hello.split_once(' ').context("the server says something else")?;
        let target = EndpointAddr::new(id.parse::<EndpointId>()?).with_ip_addr(at.parse()?);
        let mut ends = Vec::new();
        for _ in 0..CLIENT_ENDPOINTS {
            ends.push((endpoint(knobs == "tuned").await?, target.clone()));
        }
        Ok(ends)
    };
    pair::client(server.args(["server", knobs]), load, ends, exchange)
}

async fn exchange((endpoint, target): (Endpoint, EndpointAddr)) -> Result<()> {
    let connection = endpoint.connect(target, ALPN).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[7; MESSAGE_BYTES]).await?;
    send.finish()?;
    let back = recv.read_to_end(MESSAGE_BYTES).await?;
    connection.close(0_u32.into(), b"");
    if back.len() == MESSAGE_BYTES { Ok(()) } else { Err(anyhow!("{} bytes came back", back.len())) }
}
