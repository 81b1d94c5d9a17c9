//! Two processes that exchange: a server that says where it is, and a client that starts it, keeps so many exchanges
//! under way as it was told, and prints what they took. Who exchanges what is the caller's.

use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use crate::{Latencies, Stopwatch, rate, used_us};

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The server's process: prints the first word of `start`, serves until its standard input ends, and prints how many
/// microseconds of processor it has used.
///
/// # Errors
/// Those of `start`.
#[allow(clippy::print_stdout, reason = "the other process reads it")]
pub fn serve<A>(start: impl Future<Output = Result<(String, A)>>) -> Result<()>
where
    A: Future<Output = ()> + Send + 'static,
{
    runtime()?.block_on(async {
        let (hello, accepts) = start.await?;
        println!("{hello}");
        tokio::spawn(accepts);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        println!("{}", used_us()?);
        Ok(())
    })
}

/// The client's process: starts `server`, has `ends` made from what that says, lets `exchange` run `count` times over
/// them in turns, `concurrency` at once, and prints rate, processor of both ends for each in microseconds, p50 and p99.
///
/// # Errors
/// The first that anything of this has.
#[allow(clippy::print_stdout, reason = "the benchmark reads it")]
#[allow(clippy::cast_precision_loss)]
pub fn client<E, M, X, F>(server: &mut Command, [count, concurrency]: [u64; 2], ends: M, exchange: X) -> Result<()>
where
    E: Clone + Send + 'static,
    M: AsyncFnOnce(&str) -> Result<Vec<E>>,
    X: Fn(E) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let mut server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(server.stdout.take().context("no output")?).lines();
    let hello = said.next().context("the server says nothing")??;
    let before = used_us()?;
    let (latencies, time) =
        runtime()?.block_on(async { closed_loop(&ends(&hello).await?, count, concurrency, exchange).await })?;
    let own = used_us()? - before;
    drop(server.stdin.take());
    let servers: i64 = said.next().context("the server says nothing")??.parse()?;
    server.wait()?;
    let cpu = (own + servers) as f64 / count as f64;
    println!("{} {cpu} {} {}", rate(count, time), latencies.us(0.5), latencies.us(0.99));
    Ok(())
}

async fn closed_loop<E, X, F>(ends: &[E], count: u64, concurrency: u64, exchange: X) -> Result<(Latencies, Duration)>
where
    E: Clone + Send + 'static,
    X: Fn(E) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let began = Stopwatch::start();
    let mut workers = JoinSet::new();
    for end in ends.iter().cycle().take(usize::try_from(concurrency)?) {
        let (end, next, exchange) = (end.clone(), Arc::clone(&next), exchange.clone());
        workers.spawn(async move {
            let mut latencies = Latencies::new();
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let began = Stopwatch::start();
                exchange(end.clone()).await?;
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
