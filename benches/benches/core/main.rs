//! What the record core costs: `cargo bench -p handfast-benches --bench core -- WHAT [OPTIONS]`.
//!
//! Figures of a row are `median (min..max)` over the rounds, which go through all rows in turns: what the machine does
//! besides hits them alike. See the README of this crate for what each figure is compared with.
#![allow(clippy::print_stdout, reason = "tables are what this program is for")]

mod authorise;
mod checkpoint;
mod durable;
mod holds;
mod memory;
mod opening;
mod options;
mod storm;
mod verified;

use anyhow::Result;

use crate::options::Options;

/// As the node has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "\
cargo bench -p handfast-benches --bench core -- WHAT [OPTIONS]

WHAT
  memory      changes in memory, by table size, medium and threads
  book        the same through the trust rules, statements already verified
  verified    the same with the strict check of every statement's signature
  authorise   who may pass, asked by two threads, with 0, 1 and 10 % changes; and by readers beside writers
  holds       how long the store's lock is held: fsync hung, checkpoint, growth
  durable     changes awaited one by one, in batches and by 256 waiters, beside a bare append and fdatasync
  storm       bytes written per durable change, in a storm and by checkpoints
  open        time and memory to open a store
  checkpoint  how long an acknowledgement takes while a checkpoint runs

OPTIONS
  --sizes N,N,..   records that exist already [0,10000,100000,1000000]
  --seconds S      length of one measurement [1]
  --rounds N       how often each is made [3]
  --threads N,N,.. threads that change [2,16]
  --percents N,..  changes among 100 operations of `authorise` [0,1,10]
  --only TEXT      of `holds` only the conditions that contain this
";

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [child, path] = arguments.as_slice()
        && child == opening::CHILD
    {
        return opening::child(path);
    }
    if let [child, path, count] = arguments.as_slice()
        && child == opening::PLAIN_CHILD
    {
        return opening::plain_child(path, count.parse()?);
    }
    // `cargo test --all-targets` runs this without it: there is nothing to test.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    arguments.retain(|argument| argument != "--bench");
    let mut arguments = arguments.into_iter();
    let what = arguments.next().unwrap_or_default();
    let Some(run) = chosen(&what) else {
        print!("{USAGE}");
        return Ok(());
    };
    let options = Options::parse(arguments)?;
    println!("{what}: {}", options.show());
    println!("load before: {}", options::load());
    run(&options)?;
    println!("load after: {}", options::load());
    Ok(())
}

fn chosen(what: &str) -> Option<fn(&Options) -> Result<()>> {
    Some(match what {
        "memory" => memory::run,
        "book" => verified::run_book,
        "verified" => verified::run,
        "authorise" => authorise::run,
        "holds" => holds::run,
        "durable" => durable::run,
        "storm" => storm::run,
        "open" => opening::run,
        "checkpoint" => checkpoint::run,
        _ => return None,
    })
}
