//! What a join costs, and how that grows with the network: `cargo bench -p handfast-benches --bench join -- [OPTIONS]`.
//!
//! *One join*: a node on the disk joins a network of so many members with a ticket, until it and every member trust each
//! other. The founder is a whole node; the other members are simulated, as the peers of a storm are, or whole nodes too.
//! *Fleet*: so many whole nodes join an empty network one after another, and all at once, until every two trust each other. *Storm*: `handfast storm` in the same run, on the same machine: what a handshake costs that nobody
//! has to be found for. Figures are `median (min..max)` over the rounds; timings are shown, never asserted.
#![allow(clippy::print_stdout, reason = "tables are what this program is for")]
#![allow(clippy::cast_precision_loss)]

mod member;
mod simulated;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use handfast::control::api::JoinRequest;
use handfast::entropy;
use handfast::node::Node;
use handfast_benches::{Place, Stopwatch, Table, rate};
use handfast_protocol::SecretKey;
use nix::sys::resource::{UsageWho, getrusage};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::member::{Member, failed, trusts};
use crate::simulated::Simulated;

/// What the node's program has too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const JOINS: &[&str] = &["", "ms", "members/s", "CPU us a member, both ends", "of the storm's rate"];
const FLEETS: &[&str] = &["", "s", "pairs/s", "CPU us a pair", "of the storm's rate"];
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(150);
const USAGE: &str = "\
cargo bench -p handfast-benches --bench join -- [OPTIONS]

  --members N,N,..  sizes of networks that one node joins [10,100,1000]
  --fleet N         nodes that join an empty network; 0: none [0]
  --rounds N        how often each is made [3]
  --peers N         handshakes of the storm beside them; 0: none [4000]
  --whole yes       joins into networks of whole nodes as well, after one that is not counted
  --disk yes        whole nodes keep their stores on the disk, not in memory
  --program PATH    the program handfast [beside this one; build it before: cargo build --release]
";

struct Options {
    members: Vec<usize>,
    fleet: usize,
    rounds: usize,
    peers: u64,
    whole: bool,
    disk: bool,
    program: PathBuf,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
        let here = std::env::current_exe()?;
        let program = here.parent().and_then(Path::parent).context("this program is nowhere")?.join("handfast");
        let mut out = Options {
            members: vec![10, 100, 1000],
            fleet: 0,
            rounds: 3,
            peers: 4_000,
            whole: false,
            disk: false,
            program,
        };
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value\n\n{USAGE}"))?;
            match option.as_str() {
                "--members" => {
                    let sizes = value.split(',').filter(|size| !size.is_empty()).map(str::parse);
                    out.members = sizes.collect::<Result<_, _>>()?;
                }
                "--fleet" => out.fleet = value.parse()?,
                "--rounds" => out.rounds = value.parse()?,
                "--peers" => out.peers = value.parse()?,
                "--whole" => out.whole = value == "yes",
                "--disk" => out.disk = value == "yes",
                "--program" => out.program = PathBuf::from(value),
                _ => bail!("unknown option {option}\n\n{USAGE}"),
            }
        }
        Ok(out)
    }
}

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs this without it: there is nothing to test.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    arguments.retain(|argument| argument != "--bench");
    let options = Options::parse(arguments.into_iter())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut joins, mut fleets) = (Table::new(JOINS), Table::new(FLEETS));
    let most = options.members.iter().copied().max().unwrap_or_default();
    let place = place(&options, "members")?;
    let inside = runtime.enter();
    let whole = if options.whole { most } else { most.min(1) };
    let members = (0..whole).map(|number| Member::start(place.path(), number)).collect::<Result<Vec<_>>>()?;
    let simulated = (1..most).map(|_| Simulated::start()).collect::<Result<Vec<_>>>()?;
    drop(inside);
    if options.whole {
        // A thousand threads have touched their memory then.
        one_join(&runtime, &members, &[])?;
    }
    for _ in 0..options.rounds {
        let storm = if options.peers > 0 { storm(&options)? } else { [f64::NAN; 2] };
        joins.add("storm", &[f64::NAN, storm[0], storm[1], 1.0]);
        for size in &options.members {
            let mut one = |how: &str, members: &[Member], simulated: &[Simulated]| {
                let (time, cpu_us) = one_join(&runtime, members, simulated)?;
                let each = rate(*size as u64, time);
                let figures = [time.as_secs_f64() * 1_000.0, each, cpu_us / *size as f64, each / storm[0]];
                joins.add(&format!("one join into {size}{how}"), &figures);
                anyhow::Ok(())
            };
            one("", &members[..1], &simulated[..*size - 1])?;
            if options.whole {
                one(" whole nodes", &members[..*size], &[])?;
            }
        }
        let storm = storm[0];
        for (how, at_once) in [("one after another", false), ("all at once", true)] {
            if options.fleet < 2 {
                continue;
            }
            let (time, cpu_us) = fleet(&runtime, &options, at_once)?;
            let pairs = (options.fleet * (options.fleet - 1) / 2) as u64;
            let each = rate(pairs, time);
            let label = format!("{} nodes {how}, {pairs} pairs", options.fleet);
            fleets.add(&label, &[time.as_secs_f64(), each, cpu_us / pairs as f64, each / storm]);
        }
    }
    println!("{}\n{}", joins.show(), fleets.show());
    simulated.into_iter().for_each(Simulated::stop);
    members.into_iter().try_for_each(Member::stop)
}

fn place(options: &Options, name: &str) -> Result<Place> {
    if options.disk { Place::on_disk(name) } else { Place::in_memory(name) }
}

/// A new node joins a new network of these members.
fn one_join(runtime: &Runtime, members: &[Member], simulated: &[Simulated]) -> Result<(Duration, f64)> {
    let authority = SecretKey::from_seed(&entropy::bytes().map_err(failed)?);
    let founder = members.first().context("a network has members")?;
    let ticket = {
        let _inside = runtime.enter();
        founder.found(authority.clone())?;
        members[1..].iter().try_for_each(|member| member.is_member(founder, &authority))?;
        for member in simulated {
            founder.knows(&member.is_member(&authority)?, &member.address()?)?;
        }
        founder.invite(&authority, 1)?
    };
    let count = (members.len() + simulated.len()) as u64;
    let place = Place::on_disk("joiner")?;
    let (directory, lock) = member::directory(place.path(), "data")?;
    let node = Node::start_locked(&directory, member::config(), lock).map_err(failed)?;
    let request = JoinRequest { ticket: ticket.to_text().to_string(), operation_id: None };
    let (began, cpu) = (Stopwatch::start(), cpu_us()?);
    let joining = async {
        node.operator().join(&request).await.map_err(failed)?;
        let in_time = timeout(PATIENCE, trusts(node.engine(), count)).await;
        in_time.with_context(|| format!("not all trust: {:?}", node.operator().status().counts))?;
        anyhow::Ok(())
    };
    runtime.block_on(joining)?;
    let figures = (began.elapsed(), cpu_us()? - cpu);
    let _inside = runtime.enter();
    members.iter().try_for_each(|member| member.leave(&authority))?;
    node.stop().map_err(failed)?;
    Ok(figures)
}

/// New nodes join a new network, until every two trust each other.
fn fleet(runtime: &Runtime, options: &Options, at_once: bool) -> Result<(Duration, f64)> {
    let place = place(options, "fleet")?;
    let authority = SecretKey::from_seed(&entropy::bytes().map_err(failed)?);
    let inside = runtime.enter();
    let nodes = (0..options.fleet).map(|number| Member::start(place.path(), number)).collect::<Result<Vec<_>>>()?;
    nodes[0].found(authority.clone())?;
    let ticket = nodes[0].invite(&authority, options.fleet as u32)?;
    let others = options.fleet as u64 - 1;
    let (began, cpu) = (Stopwatch::start(), cpu_us()?);
    let joining = async {
        let mut joins = tokio::task::JoinSet::new();
        for (before, node) in (1..).zip(&nodes[1..]) {
            let (engine, ticket) = (node.engine.clone(), ticket.clone());
            let rng = StdRng::from_seed(entropy::bytes().map_err(failed)?);
            joins.spawn(async move { Box::pin(engine.join(&ticket, rng)).await });
            if !at_once {
                joins.join_next().await.context("it was begun")???;
                trusts(&node.engine, before).await;
            }
        }
        while let Some(joined) = joins.join_next().await {
            joined??;
        }
        for node in &nodes {
            trusts(&node.engine, others).await;
        }
        anyhow::Ok(())
    };
    runtime.block_on(async { timeout(PATIENCE, joining).await.context("not all trust")? })?;
    let figures = (began.elapsed(), cpu_us()? - cpu);
    drop(inside);
    nodes.into_iter().try_for_each(Member::stop)?;
    Ok(figures)
}

/// What this process has used.
fn cpu_us() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let us = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(us(usage.user_time()) + us(usage.system_time()))
}

/// Rate, and CPU of a handshake's both ends.
fn storm(options: &Options) -> Result<[f64; 2]> {
    let peers = options.peers.to_string();
    let output = Command::new(&options.program).args(["--json", "storm", "--peers", &peers]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}: {}", options.program.display(), String::from_utf8_lossy(&output.stderr)))?;
    let figure = |name: &str| report[name].as_f64().with_context(|| format!("the storm's report has no {name}"));
    Ok([figure("rate_per_s")?, figure("cpu_us_per_handshake")?])
}
