//! How long an acknowledgement takes while a checkpoint of the whole table runs, beside the same without.

use std::time::Duration;

use anyhow::Result;
use handfast_benches::{Place, Stand, Table, pause};

use crate::durable::{Ran, one_by_one, runtime, waiters};
use crate::options::Options;

const COLUMNS: &[&str] = &["records, who waits", "changes/s", "p50 us", "p99 us", "max us", "seconds"];

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let mut ratios = Table::new(&["p99 during a checkpoint / p99 without", "in a round"]);
    let runtime = runtime()?;
    for size in options.sizes.iter().copied().filter(|size| *size > 0) {
        let place = Place::on_disk(&format!("checkpoint-{size}"))?;
        Stand::filled(&place, size)?.stop()?;
        for _ in 0..options.rounds {
            for (who, at_once) in [("one writer", false), ("256 waiters", true)] {
                // The checkpoint begins with the first step of the drainer.
                let stand = Stand::open(&place, true)?;
                let go = |ran: &mut Ran, until: &(dyn Fn() -> bool + Sync)| {
                    if at_once {
                        let wait = || {
                            while !until() {
                                pause(Duration::from_millis(1));
                            }
                        };
                        waiters(&stand.store, size, &runtime, ran, wait)
                    } else {
                        one_by_one(&stand.store, size, 1, ran, until)
                    }
                };
                let mut during = Ran::default();
                go(&mut during, &|| stand.health().checkpoints > 0)?;
                stand.settle()?;
                let (mut without, watch) = (Ran::default(), handfast_benches::Stopwatch::start());
                go(&mut without, &|| watch.elapsed() > options.time)?;
                stand.stop()?;
                for (ran, when) in [(&during, "during a checkpoint"), (&without, "without")] {
                    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| ran.latencies.us(share));
                    let label = format!("{size}, {who}, {when}");
                    table.add(&label, &[ran.rate(), p50, p99, max, ran.time.as_secs_f64()]);
                }
                let ratio = during.latencies.us(0.99) / without.latencies.us(0.99);
                ratios.add(&format!("{size}, {who}"), &[ratio]);
            }
        }
    }
    println!("{}\n{}", table.show(), ratios.show());
    Ok(())
}
