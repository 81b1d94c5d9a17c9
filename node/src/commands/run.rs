//! `run`: the node itself, after making what it needs.

use std::time::Duration;

use super::init::init_if_needed;
use super::{Context, Verdict};
use crate::cli::RunArgs;
use crate::config::{Flag, environment, unknown_variables};
use crate::control::api::ApiError;
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
    let delay = arguments.storm_fsync_delay.map(Duration::from_millis);
    let storm_disk = SlowDisk { delay: delay.unwrap_or_default(), gate: arguments.storm_fsync_gate.clone() };
    node::run(RunOptions { data_dir, config, json: context.global.json, storm_disk })?;
    Ok(Verdict::Done)
}
