//! What a handshake costs beside its floor: `cargo bench -p handfast-benches --bench handshake -- [OPTIONS]`.
//!
//! Three contenders in turns within one run: bare quinn and rustls, tuned as a node is; the same with the defaults of
//! quinn, rustls and the system's allocator; and `handfast storm`, whose handshakes are signed, verified, stored, synced
//! and receipted on both ends. With `--iroh` two more: iroh's endpoints with the bare exchange, as iroh comes (with ring)
//! and with aws-lc-rs. Each has its load and its server in two processes on this machine. Figures are
//! `median (min..max)` over the rounds; timings are shown, never asserted.
#![allow(clippy::print_stdout, reason = "tables are what this program is for")]
#![allow(clippy::cast_precision_loss)]

mod bare;
mod conditions;
mod held;
mod keys;
mod narrow;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use handfast_benches::Table;
use serde_json::Value;

/// What the node's program has too; bare quinn with defaults runs in a program without it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const COLUMNS: &[&str] = &["", "handshakes/s", "CPU us, both ends", "p50 us", "p99 us", "of the tuned rate"];
const ROWS: [&str; 5] =
    ["bare quinn, tuned", "bare quinn, defaults", "handfast storm", "iroh, as it comes", "iroh, with aws-lc-rs"];
const USAGE: &str = "\
cargo bench -p handfast-benches --bench handshake -- [conditions [GROUP..] | held] [OPTIONS]

  conditions       storms beyond what the node can do, and beside slow disks, slow peers and floods; groups are
                   narrow (takes root), overload, spoofed, friends, slow, disk, vanish, cut: 15 to 60 s a round each
  held             memory of the node for each connection that hangs, by stage, and for each session
  --peers N        handshakes of one measurement [10000]
  --concurrency C  at once [64]
  --rounds N       how often each is made [5]
  --iroh PATH      iroh too: `iroh` of benches/peers, built with --release [not]
  --program PATH   the program handfast [beside this one; build it before: cargo build --release]
";

struct Options {
    peers: u64,
    concurrency: u64,
    rounds: usize,
    program: PathBuf,
    iroh: Option<PathBuf>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
        let here = std::env::current_exe()?;
        let beside = here.parent().and_then(Path::parent).context("this program is nowhere")?.join("handfast");
        let mut out = Options { peers: 10_000, concurrency: 64, rounds: 5, program: beside, iroh: None };
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value\n\n{USAGE}"))?;
            match option.as_str() {
                "--peers" => out.peers = value.parse()?,
                "--concurrency" => out.concurrency = value.parse()?,
                "--rounds" => out.rounds = value.parse()?,
                "--iroh" => out.iroh = Some(PathBuf::from(value)),
                "--program" => out.program = PathBuf::from(value),
                _ => bail!("unknown option {option}\n\n{USAGE}"),
            }
        }
        Ok(out)
    }
}

/// Rate, CPU of both ends, p50 and p99.
type Figures = [f64; 4];

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(done) = bare::process(&arguments) {
        return done;
    }
    // `cargo test --all-targets` runs this without it: there is nothing to test.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    arguments.retain(|argument| argument != "--bench");
    let [conditions, held] = ["conditions", "held"].map(|mode| arguments.first().is_some_and(|word| word == mode));
    let mut arguments: Vec<String> = arguments.into_iter().skip(usize::from(conditions || held)).collect();
    let words = arguments.iter().take_while(|word| conditions && !word.starts_with("--")).count();
    let groups: Vec<String> = arguments.drain(..words).collect();
    let options = Options::parse(arguments.into_iter())?;
    if held {
        return held::run(&options);
    }
    println!("{} handshakes, {} at once, {} rounds", options.peers, options.concurrency, options.rounds);
    if conditions {
        return conditions::run(&options, &groups);
    }
    let here = std::env::current_exe()?;
    let mut table = Table::new(COLUMNS);
    for _ in 0..options.rounds {
        let tuned = bare(&here, "tuned", &options)?;
        let default = bare(Path::new(env!("CARGO_BIN_EXE_bare-defaults")), "default", &options)?;
        let iroh = match options.iroh.as_deref() {
            Some(iroh) => vec![bare(iroh, "default", &options)?, bare(iroh, "tuned", &options)?],
            None => Vec::new(),
        };
        let storm = storm(&options)?;
        for (label, figures) in ROWS.into_iter().zip([tuned, default, storm].into_iter().chain(iroh)) {
            let [rate, cpu, p50, p99] = figures;
            table.add(label, &[rate, cpu, p50, p99, rate / tuned[0]]);
        }
    }
    println!("{}", table.show());
    Ok(())
}

fn bare(program: &Path, knobs: &str, options: &Options) -> Result<Figures> {
    let counts = [options.peers.to_string(), options.concurrency.to_string()];
    let said = output(Command::new(program).args([bare::CLIENT, knobs]).args(counts))?;
    let figures = said.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    figures.try_into().ok().context("the bare client said something else")
}

fn storm(options: &Options) -> Result<Figures> {
    let counts = [options.peers.to_string(), options.concurrency.to_string()];
    let [peers, concurrency] = &counts;
    let report = report(options, &["--peers", peers, "--concurrency", concurrency])?;
    if number(&report, "/failed")? > 0.0 {
        bail!("handshakes of the storm failed: {report}");
    }
    Ok([
        number(&report, "/rate_per_s")?,
        number(&report, "/cpu_us_per_handshake")?,
        number(&report, "/latency_us/p50")?,
        number(&report, "/latency_us/p99")?,
    ])
}

/// The report of a storm, also of one whose truth was not good.
fn report(options: &Options, arguments: &[&str]) -> Result<Value> {
    report_of(&mut Command::new(&options.program), arguments, |_| Ok(()))
}

/// As [`report`], of this program, with its process in the hands of `started`.
fn report_of(program: &mut Command, arguments: &[&str], started: impl FnOnce(u32) -> Result<()>) -> Result<Value> {
    let storm =
        program.args(["--json", "storm"]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let outcome = started(storm.id());
    let output = storm.wait_with_output()?;
    outcome?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn number(report: &Value, place: &str) -> Result<f64> {
    report.pointer(place).and_then(Value::as_f64).with_context(|| format!("the report lacks {place}"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
