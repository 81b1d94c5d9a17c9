//! `run`: the node itself, after making what it needs.

use std::io::{Read, stdin};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::init::init_if_needed;
use super::{Context, Verdict};
use crate::cli::RunArgs;
use crate::config::{Flag, environment, unknown_variables};
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::DataDir;
use crate::node::{self, RunOptions};
use crate::storm::slow_medium::SlowDisk;

pub(super) fn run(context: &Context<'_>, arguments: &RunArgs) -> Result<Verdict, ApiError> {
    let data_dir = DataDir::create(&context.path()?)?;
    let mut flags = Vec::new();
    if !arguments.listen.is_empty() {
        flags.push(Flag { key: "listen", typed: "--listen", values: arguments.listen.clone() });
    }
    let config = context.configuration(Some(&data_dir), &flags)?;
    context.start_logging(config.log_filter.as_str());
    for variable in unknown_variables(&environment()) {
        tracing::warn!(variable, "there is no setting for this variable");
    }
    if let Some(made) = init_if_needed(&data_dir)? {
        tracing::info!(peer = made.peer_id, data_dir = made.data_dir, "made an identity");
    }
    if arguments.storm_stdin {
        end_with_stdin()?;
    }
    let delay = arguments.storm_fsync_delay.map(Duration::from_millis);
    let storm_disk = SlowDisk { delay: delay.unwrap_or_default(), gate: arguments.storm_fsync_gate.clone() };
    node::run(RunOptions { data_dir, config, json: context.global.json, storm_disk })?;
    Ok(Verdict::Done)
}

/// For a storm's own node: ends as it would have been ended, once nobody holds the other end of its stdin.
fn end_with_stdin() -> Result<(), ApiError> {
    let watch = || {
        let mut byte = [0; 1];
        while matches!(stdin().lock().read(&mut byte), Ok(1..)) {}
        // Nobody is there who could be told of a refusal.
        let _ = kill_process(getpid(), Signal::KILL);
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(watch);
    thread.map(drop).map_err(|error| {
        ApiError::new(ErrorCode::Failure, format!("The system gives no thread for watching stdin: {error}."))
    })
}
