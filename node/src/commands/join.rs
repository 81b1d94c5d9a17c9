//! `join`: redeems a ticket through the running node, or through one that runs for the time of the join.
//!
//! Invariant: the ticket goes into the request alone, never into a log or an error.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use handfast_protocol::limits::TICKET_BYTES_MAX;
use handfast_protocol::text::escaped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior};
use zeroize::Zeroizing;

use super::backend::{Backend, Call, Reached, operation_id, query_value};
use super::init::init_if_needed;
use super::{Context, Verdict, block_on};
use crate::cli::JoinArgs;
use crate::control::api::{ApiError, ErrorCode, JoinReply, JoinRequest};
use crate::data_dir::DataDir;
use crate::node::Node;
use crate::output::counted;

/// Longest file that is read for a ticket: its text, twice over, and a line end.
const TICKET_FILE_BYTES_MAX: u64 = 4 * TICKET_BYTES_MAX as u64;
/// How long the first part, until the roster is here, may take.
const REDEEM_PATIENCE: Duration = Duration::from_secs(180);
/// How often it is looked how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Members that the last lines name.
const NAMED_MAX: usize = 10;

pub(super) fn join(context: &Context<'_>, arguments: &JoinArgs) -> Result<Verdict, ApiError> {
    let ticket = ticket_of(&arguments.ticket)?;
    let directory = DataDir::create(&context.path()?)?;
    if let Some(made) = init_if_needed(&directory)? {
        context.output.aside(&format!("Made the identity {}.", made.peer_id));
    }
    let reached = block_on(async { Backend::new(context, "join")?.reach().await.map(Some) })?;
    let own = match reached {
        Some(Reached::Alone(lock)) => {
            let config = context.configuration(Some(&directory), &[])?;
            context.output.aside("No node is running here: one runs for the time of this join.");
            Some(Node::start_locked(&directory, config, lock)?)
        }
        _ => None,
    };
    let outcome = block_on(async {
        let mut backend = Backend::new(context, "join")?;
        follow(context, &mut backend, &ticket, Duration::from_millis(arguments.wait)).await
    });
    let runs_on = own.is_none();
    // What was kept is on the disk when this returns; an error here is greater than a reply.
    let stopped = own.map_or(Ok(()), Node::stop);
    let reply = outcome.and_then(|reply| stopped.map(|()| reply))?;
    context.output.reply(&reply, |reply| joined_text(reply, runs_on))?;
    if !runs_on {
        context.output.aside("The node has stopped. Keep it running: handfast run");
    }
    Ok(Verdict::Done)
}

/// The ticket that is typed, or in a file, or on standard input.
fn ticket_of(typed: &str) -> Result<Zeroizing<String>, ApiError> {
    if typed.get(..6).is_some_and(|head| head.eq_ignore_ascii_case("hfinv1")) {
        return Ok(Zeroizing::new(typed.to_owned()));
    }
    let unreadable = |error: std::io::Error| {
        let what = if typed == "-" { "standard input".to_owned() } else { escaped(typed) };
        let code = if error.kind() == std::io::ErrorKind::NotFound { ErrorCode::NotFound } else { ErrorCode::Failure };
        ApiError::new(code, format!("Cannot read a ticket from {what}: {error}."))
            .hint("give the ticket (hfinv1...), a file that holds it, or - for standard input")
    };
    let mut text = Zeroizing::new(String::with_capacity(TICKET_FILE_BYTES_MAX as usize));
    let read = if typed == "-" {
        std::io::stdin().lock().take(TICKET_FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(typed).and_then(|file| file.take(TICKET_FILE_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(unreadable)?;
    // Whatever was printed beside it: a ticket is one word.
    let found = text.split_whitespace().find(|word| word.get(..6).is_some_and(|h| h.eq_ignore_ascii_case("hfinv1")));
    found.map(|ticket| Zeroizing::new(ticket.to_owned())).ok_or_else(|| {
        let error = ApiError::new(ErrorCode::Usage, "There is no ticket in what was given.");
        error.hint("a ticket is the line with hfinv1... that `handfast invite` printed")
    })
}

/// Redeems, and follows the exchanges with the members until all were tried.
async fn follow(
    context: &Context<'_>,
    backend: &mut Backend,
    ticket: &str,
    patience: Duration,
) -> Result<JoinReply, ApiError> {
    let request = JoinRequest { ticket: ticket.to_owned(), operation_id: Some(operation_id()) };
    let call = Call::Post { path: "/v1/join", request: &request, timeout: REDEEM_PATIENCE };
    let why = "a join needs one that talks to the inviter";
    let mut reply: JoinReply = backend.ask_node(call, why).await?;
    let bar = (!context.output.is_json() && std::io::stderr().is_terminal()).then(|| bar(reply.members));
    let end = Instant::now() + patience;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while reply.under_way > 0 && Instant::now() < end {
        ticks.tick().await;
        let path = format!("/v1/join?network={}", query_value(&reply.network));
        reply = backend.ask_node(Call::get(path), why).await?;
        if let Some(bar) = &bar {
            bar.set_length(reply.members);
            bar.set_position(reply.members - reply.under_way);
            bar.set_message(format!("{} trusted, {} left", reply.trusted, reply.under_way));
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(reply)
}

fn bar(members: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(members), ProgressDrawTarget::stderr());
    let form = "{bar:30} {pos}/{len}  {per_sec}  {eta} left  {msg}";
    bar.set_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn joined_text(reply: &JoinReply, runs_on: bool) -> String {
    let mut text = String::new();
    for failure in reply.failed.iter().take(NAMED_MAX) {
        text.push_str(&format!("{}: {}.\n", escaped(&failure.peer_id), escaped(&failure.why)));
    }
    let missing = reply.members - reply.trusted;
    let rest = missing.saturating_sub(NAMED_MAX as u64);
    if rest > 0 && !reply.failed.is_empty() {
        text.push_str(&format!("And {rest} more: handfast network members {}\n", escaped(&reply.name)));
    }
    let members = counted(reply.members, "member", "members");
    text.push_str(&format!("Joined {}: {} of {members} trusted.", escaped(&reply.name), reply.trusted));
    if missing > 0 {
        let who = if runs_on { "The node" } else { "A node, once it runs," };
        text.push_str(&format!(" {missing} not yet. {who} goes on by itself: handfast status"));
    }
    text
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests put files there as an operator would")]
mod tests {
    use super::*;
    use crate::control::api::JoinFailure;

    #[test]
    fn the_last_line_says_who_is_trusted_and_who_is_not() {
        let mut reply = JoinReply {
            network: "hfnet1x".into(),
            name: "lab".into(),
            members: 3,
            trusted: 3,
            under_way: 0,
            failed: Vec::new(),
        };
        assert_eq!(joined_text(&reply, true), "Joined lab: 3 of 3 members trusted.");
        reply.trusted = 2;
        let why = "not reached: 192.0.2.1:1: nothing came back in time".to_owned();
        reply.failed = vec![JoinFailure { peer_id: "hf1a".into(), short: "hf1a".into(), why }];
        let text = joined_text(&reply, false);
        assert!(text.starts_with("hf1a: not reached: 192.0.2.1:1"), "{text}");
        assert!(text.ends_with("1 not yet. A node, once it runs, goes on by itself: handfast status"), "{text}");
    }

    #[test]
    fn a_ticket_is_found_in_a_file() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("ticket");
        std::fs::write(&path, "Your ticket:\n  HFINV1ABC\n").unwrap();
        let typed = path.to_str().unwrap();
        assert_eq!(ticket_of(typed).unwrap().as_str(), "HFINV1ABC");
        std::fs::write(&path, "nothing").unwrap();
        assert_eq!(ticket_of(typed).unwrap_err().code, ErrorCode::Usage);
        assert_eq!(ticket_of("/nowhere/ticket").unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(ticket_of("hfinv1abc").unwrap().as_str(), "hfinv1abc");
    }
}
