//! How much is measured.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// What a run was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) sizes: Vec<usize>,
    pub(crate) time: Duration,
    pub(crate) rounds: usize,
    pub(crate) threads: Vec<usize>,
    pub(crate) percents: Vec<usize>,
    only: String,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut out = Self {
            sizes: vec![0, 10_000, 100_000, 1_000_000],
            time: Duration::from_secs(1),
            rounds: 3,
            threads: vec![2, 16],
            percents: vec![0, 1, 10],
            only: String::new(),
        };
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--sizes" => out.sizes = numbers(&value)?,
                "--seconds" => out.time = Duration::try_from_secs_f64(value.parse()?)?,
                "--rounds" => out.rounds = value.parse()?,
                "--threads" => out.threads = numbers(&value)?,
                "--only" => out.only = value,
                "--percents" => out.percents = numbers(&value)?,
                _ => bail!("unknown option {option}"),
            }
        }
        Ok(out)
    }

    /// Whether the row with this label was asked for.
    pub(crate) fn wants(&self, label: &str) -> bool {
        label.contains(&self.only)
    }

    pub(crate) fn show(&self) -> String {
        format!("{} rounds, {:?} each, sizes {:?}, threads {:?}", self.rounds, self.time, self.sizes, self.threads)
    }
}

fn numbers(list: &str) -> Result<Vec<usize>> {
    list.split(',').map(|number| number.parse().with_context(|| format!("{number} is not a number"))).collect()
}

/// How busy the machine is: the figures below are read with it.
pub(crate) fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let stolen = fs::read_to_string("/proc/stat").ok().and_then(|stat| stat.split_whitespace().nth(8)?.parse().ok());
    format!("{} (stolen by the host so far: {} ticks)", load.trim(), stolen.unwrap_or(0_u64))
}
