//! A node that is the narrow side: its process has a part of one processor, by a quota of the kernel (cgroup, versions 1
//! and 2), and whoever sends to it has the rest of the machine. Only so can a generator on the same machine really send
//! several times what the node can carry.
//!
//! It takes root. The group is removed when this drops.
#![allow(
    clippy::disallowed_methods,
    reason = "the kernel's files are no records, and tell nobody when a process is there"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The quota is given out anew this often: a node that has used its own waits for the rest of it.
const PERIOD_US: u64 = 10_000;
/// How long the storm may take to start its node.
const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Quota(PathBuf);

impl Quota {
    /// So much of one processor, in percent.
    pub(crate) fn of(percent: u64) -> Result<Quota> {
        let name = format!("handfast-bench-{}", std::process::id());
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let is_v1 = v1.join("cpu.cfs_quota_us").exists();
        let group = if is_v1 { v1 } else { v2 }.join(name);
        fs::create_dir(&group).with_context(|| format!("no group of processes can be made: {}", group.display()))?;
        let quota = Quota(group);
        let quota_us = PERIOD_US * percent / 100;
        if is_v1 {
            fs::write(quota.0.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
            fs::write(quota.0.join("cpu.cfs_quota_us"), quota_us.to_string())?;
        } else {
            fs::write(quota.0.join("cpu.max"), format!("{quota_us} {PERIOD_US}"))?;
        }
        Ok(quota)
    }

    /// Puts the node of this storm into it, as soon as there is one.
    pub(crate) fn take_node_of(&self, storm: u32) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(node) = child_of(storm) {
                return fs::write(self.0.join("cgroup.procs"), node.to_string())
                    .context("the node cannot be put there");
            }
            sleep(Duration::from_millis(1));
        }
        bail!("the storm has started no node")
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // The kernel takes a moment to forget a process that has ended; what stays is an empty group.
        let until = Instant::now() + Duration::from_secs(1);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            sleep(Duration::from_millis(10));
        }
    }
}

/// A process that any thread of `process` has started (proc(5), `children`).
fn child_of(process: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let children = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    children.filter_map(|children| children.split_ascii_whitespace().next()?.parse().ok()).next()
}
