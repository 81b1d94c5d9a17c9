//! `storm`: plans a storm, runs it, prints what it found; or compares two reports that were kept.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::ToSocketAddrs;
use std::path::Path;

use super::{Context, Verdict};
use crate::cli::{PeerAt, StormArgs};
use crate::config::text_of;
use crate::control::api::{ApiError, ErrorCode, Versioned};
use crate::entropy;
use crate::output::Output;
use crate::storm::peer::Target;
use crate::storm::plan::{FILE_BYTES_MAX, Plan, Wishes, scenario};
use crate::storm::report::{Report, comparison, text};
use crate::storm::watch::Progress;
use crate::storm::{self, page};

pub(super) fn storm(context: &Context<'_>, arguments: &StormArgs) -> Result<Verdict, ApiError> {
    if let [a, b] = arguments.compare.as_slice() {
        return compare(context.output, a, b);
    }
    let under = arguments.scenario.as_deref().map(scenario).transpose()?.unwrap_or_default();
    // A seed is typed again from what was printed: short, and a number that JSON readers keep.
    let random = u64::from(u32::from_le_bytes(entropy::bytes()?));
    let wishes = wishes(arguments).over(under);
    let plan = Plan::of(wishes, arguments.scenario.clone(), arguments.target.is_none(), random)?;
    let target = arguments.target.as_ref().map(target).transpose()?;
    // A storm is not run for a page that cannot be kept.
    let kept = arguments.report.as_deref().map(|path| page_at(path).map(|file| (path, file))).transpose()?;
    let hidden = context.global.json || context.global.quiet;
    let progress = if hidden { Progress::Hidden } else { Progress::Shown };
    let output = Output::new(hidden);
    let (report, detail) = storm::run(&plan, target, progress, output)?;
    if let Some((path, file)) = kept {
        write_page(path, file, &page::page(&report, &detail))?;
        output.aside(&format!("The report is in {}.", path.display()));
    }
    context.output.reply(&report, |report| text(report, &detail))?;
    Ok(if report.is_good() { Verdict::Done } else { Verdict::But(ErrorCode::Failure) })
}

fn wishes(arguments: &StormArgs) -> Wishes {
    Wishes {
        peers: arguments.peers,
        concurrency: arguments.concurrency,
        rate: arguments.rate,
        duration: arguments.duration.clone(),
        ramp: arguments.ramp.clone(),
        seed: arguments.seed,
        sources: arguments.sources,
        mix: arguments.mix.clone(),
        churn: arguments.churn.clone(),
        fsync_delay: arguments.fsync_delay.clone(),
        fsync_hang: arguments.fsync_hang.clone(),
        linger: arguments.linger.clone(),
        in_flight: arguments.in_flight,
        default_limits: arguments.default_limits.then_some(true),
    }
}

fn target(typed: &PeerAt) -> Result<Target, ApiError> {
    let usage = |message: String| {
        ApiError::new(ErrorCode::Usage, message).hint("a target is a whole id and its address: hf1...@192.0.2.7:4433")
    };
    let peer = typed.peer.parse().map_err(|_| usage(format!("`{}` is not the whole id of a peer.", typed.peer)))?;
    let Some(address) = &typed.address else {
        return Err(usage("The target's address is missing.".to_owned()));
    };
    let resolved = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    let at = resolved.ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("`{address}` does not resolve.")).hint("check the name of the host")
    })?;
    Ok(Target { peer, at })
}

fn not_written(path: &Path, error: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("Cannot write {}: {error}.", path.display()))
        .hint("name a file in a directory that you can write to")
}

/// The file that the page is to be in. What is in it stays until there is a page.
fn page_at(path: &Path) -> Result<File, ApiError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    file.map_err(|error| not_written(path, &error))
}

fn write_page(path: &Path, mut file: File, page: &str) -> Result<(), ApiError> {
    let mut write = || {
        // A pipe or a terminal has no length.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        file.write_all(page.as_bytes())
    };
    write().map_err(|error| not_written(path, &error))
}

fn compare(output: Output, a: &Path, b: &Path) -> Result<Verdict, ApiError> {
    let (a, b) = (kept(a)?, kept(b)?);
    output.reply(&serde_json::json!({ "a": a, "b": b }), |_| comparison(&a, &b))?;
    Ok(Verdict::Done)
}

fn kept(path: &Path) -> Result<Report, ApiError> {
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Failure, format!("{} is not a report: {error}.", path.display()))
            .hint("keep one with: handfast --json storm > FILE")
    };
    let text = text_of(path, FILE_BYTES_MAX).map_err(|error| failed(&error))?;
    let report: Versioned<Report> = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    Ok(report.body)
}
