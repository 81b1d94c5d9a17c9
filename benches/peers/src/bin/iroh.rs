//! iroh with the exchange of the bare contenders of `--bench handshake`: mutual raw Ed25519 keys, 200 bytes there and
//! back on one stream, one client identity; direct addresses, no relay, no discovery. Load and server are two processes.
//!
//! `iroh bare-client default COUNT CONCURRENCY` prints what the bare contenders print: rate, CPU of both ends for each
//! exchange, p50 and p99 in microseconds. `--bench handshake -- --iroh PATH` takes turns with it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use handfast_benches::{Latencies, Stopwatch, rate, used_us};
use iroh::endpoint::{Incoming, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode};
use tokio::task::JoinSet;

const ALPN: &[u8] = b"bare/1";
const MESSAGE_BYTES: usize = 200;
const CLIENT_ENDPOINTS: usize = 4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["server"] => server(),
        ["bare-client", "default", count, concurrency] => client(count.parse()?, concurrency.parse()?),
        _ => bail!("iroh bare-client default COUNT CONCURRENCY"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn endpoint() -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).alpns(vec![ALPN.to_vec()]);
    let builder = builder.clear_ip_transports().bind_addr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(builder.bind().await?)
}

/// Says who and where it is, serves until its standard input ends, and says what it has used.
fn server() -> Result<()> {
    runtime()?.block_on(async {
        let endpoint = endpoint().await?;
        let at = *endpoint.bound_sockets().first().context("bound to nothing")?;
        println!("{} {at}", endpoint.id());
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

async fn answer(incoming: Incoming) -> Result<()> {
    let connection = incoming.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    let request = recv.read_to_end(MESSAGE_BYTES).await?;
    send.write_all(&request).await?;
    send.finish()?;
    connection.closed().await;
    Ok(())
}

fn client(count: u64, concurrency: u64) -> Result<()> {
    let mut server =
        Command::new(std::env::current_exe()?).arg("server").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(server.stdout.take().context("no output")?).lines();
    let hello = said.next().context("the server says nothing")??;
    let (id, at) = hello.split_once(' ').context("the server says something else")?;
    let target = EndpointAddr::new(id.parse::<EndpointId>()?).with_ip_addr(at.parse()?);
    let before = used_us()?;
    let (latencies, time) = runtime()?.block_on(load(target, count, concurrency))?;
    let own = used_us()? - before;
    drop(server.stdin.take());
    let servers: i64 = said.next().context("the server says nothing")??.parse()?;
    server.wait()?;
    let cpu = (own + servers) as f64 / count as f64;
    println!("{} {cpu} {} {}", rate(count, time), latencies.us(0.5), latencies.us(0.99));
    Ok(std::io::stdout().flush()?)
}

async fn load(target: EndpointAddr, count: u64, concurrency: u64) -> Result<(Latencies, Duration)> {
    let mut endpoints = Vec::new();
    for _ in 0..CLIENT_ENDPOINTS {
        endpoints.push(endpoint().await?);
    }
    let next = Arc::new(AtomicU64::new(0));
    let began = Stopwatch::start();
    let mut workers = JoinSet::new();
    for worker in 0..concurrency {
        let (target, next) = (target.clone(), next.clone());
        let endpoint = endpoints[usize::try_from(worker)? % CLIENT_ENDPOINTS].clone();
        workers.spawn(async move {
            let mut latencies = Latencies::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let began = Stopwatch::start();
                exchange(&endpoint, target.clone()).await?;
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

async fn exchange(endpoint: &Endpoint, target: EndpointAddr) -> Result<()> {
    let connection = endpoint.connect(target, ALPN).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&[7; MESSAGE_BYTES]).await?;
    send.finish()?;
    let back = recv.read_to_end(MESSAGE_BYTES).await?;
    connection.close(0_u32.into(), b"");
    if back.len() == MESSAGE_BYTES { Ok(()) } else { Err(anyhow!("{} bytes came back", back.len())) }
}
