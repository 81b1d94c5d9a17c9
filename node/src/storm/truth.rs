//! Where the node's side of the truth comes from: the records of a node that was killed, or what somebody else's node
//! answers when it is asked again.

use std::sync::Arc;

use handfast_protocol::exchange::Disposition;
use handfast_protocol::{Held, Kind};
use handfast_trust::trust_record::{TrustState, View};
use tokio::task::JoinSet;

use super::ledger::{Memory, Stored, Truth, compare};
use super::own_node::OwnNode;
use super::peer::{Group, Peer, Target};
use super::plan::Plan;
use crate::clock::unix_now;
use crate::commands::{NODE_ROLE, Patience, acquire};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::stores;
use crate::transport::Callers;

/// How many identities somebody else's node is asked about.
const SAMPLE_MAX: usize = 200;
/// How many of them at once.
const ASKED_AT_ONCE: usize = 32;
/// Once so many in a row got no answer, nobody is there who could give one.
const SILENCES_MAX: usize = 32;

/// What recovery finds in the directory of the own node, which has been killed.
pub(super) async fn of_own_node(own: &OwnNode, memories: &[Memory]) -> Result<Truth, ApiError> {
    let directory = own.directory()?;
    let lock = acquire(&directory, NODE_ROLE, Patience::Command).await?;
    let opened = stores::open_all(&directory, lock)?;
    let now = unix_now();
    let stored = |peer: &handfast_protocol::PeerId| {
        let record = opened.stores.trust.read(|table| table.get(peer).cloned())?;
        Some(Stored::of(&record, record.state(&View::outside(false, now))))
    };
    let truth = compare(memories, stored);
    opened.stores.close()?;
    Ok(truth)
}

/// What somebody else's node says.
pub(super) struct Asked {
    pub(super) truth: Truth,
    /// Peers of the sample that got no answer.
    pub(super) unanswered: u64,
    /// In words.
    pub(super) checked: String,
}

/// What somebody else's node says that it holds, of a sample of the peers.
pub(super) async fn of_remote(plan: &Plan, target: Target, memories: &[Memory]) -> Result<Asked, ApiError> {
    let failed = |error: crate::transport::TransportError| ApiError::new(ErrorCode::Failure, format!("{error}."));
    let callers = Callers::bind(&plan.addresses(target.at), &Config::default().transport()).map_err(failed)?;
    let callers = Arc::new(callers);
    let promised: Vec<&Memory> =
        memories.iter().filter(|memory| memory.said.iter().any(|said| said.acknowledged)).collect();
    let step = promised.len().div_ceil(SAMPLE_MAX).max(1);
    let sample: Vec<Memory> = promised.iter().step_by(step).map(|memory| (*memory).clone()).collect();
    let (seed, count) = (plan.seed, sample.len());
    let answers = ask_all(sample, |memory| {
        let callers = callers.clone();
        async move {
            let group = if memory.may_be_forgotten { Group::Strangers } else { Group::Friends };
            let (holds, disposition) = Peer::new(seed, group, memory.number).ask(&callers, &target).await.ok()?;
            Some(told(&memory, holds, disposition))
        }
    });
    let answers = answers.await;
    let wrong = memories.iter().filter(|memory| memory.contradicted).count() as u64;
    let mut truth = Truth { wrong, ..Truth::default() };
    answers.iter().for_each(|answer| truth.add(*answer));
    let unanswered = (count - answers.len()) as u64;
    let quiet = if unanswered > 0 { format!(", {unanswered} without an answer") } else { String::new() };
    let checked = format!("{} of {} peers with a promise asked again{quiet}", answers.len(), promised.len());
    Ok(Asked { truth, unanswered, checked })
}

/// What an answer says of what was promised to one peer.
fn told(memory: &Memory, holds: Option<Held>, disposition: Disposition) -> Truth {
    let found = holds.and_then(|held| memory.said.iter().find(|said| said.held == held));
    let state = match disposition {
        Disposition::Granted => TrustState::Trusted,
        _ => TrustState::Unknown,
    };
    let theirs = holds.map(|held| (held, found.map_or(Kind::Grant, |said| said.kind)));
    let bare = Memory { granted: None, contradicted: false, ..memory.clone() };
    bare.compare(holds.map(|_| Stored { theirs, ours: None, state }).as_ref())
}

/// Asks all `questions`, some at once, and returns what was answered; gives up where nobody answers any more.
async fn ask_all<Q, A, F>(questions: Vec<Q>, ask: impl Fn(Q) -> F) -> Vec<A>
where
    A: Send + 'static,
    F: Future<Output = Option<A>> + Send + 'static,
{
    let (mut answers, mut silences) = (Vec::new(), 0);
    let mut questions = questions.into_iter();
    let mut asked: JoinSet<Option<A>> = questions.by_ref().take(ASKED_AT_ONCE).map(&ask).collect();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Some(answer)) => {
                silences = 0;
                answers.push(answer);
            }
            // A panic in it has been told.
            Ok(None) | Err(_) => silences += 1,
        }
        if silences == SILENCES_MAX {
            break;
        }
        if let Some(question) = questions.next() {
            asked.spawn(ask(question));
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    /// Asks as many as a sample has; who has no answer takes ten seconds for it. Returns how many were asked, how many
    /// answered, and after what time that was known.
    async fn ask(answers: fn(usize) -> bool) -> (usize, usize, Duration) {
        let (began, asked) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let found = ask_all((0..SAMPLE_MAX).collect(), |number| {
            asked.fetch_add(1, Ordering::Relaxed);
            async move {
                sleep(Duration::from_secs(if answers(number) { 1 } else { 10 })).await;
                answers(number).then_some(number)
            }
        });
        let found = found.await.len();
        (asked.load(Ordering::Relaxed), found, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_gone_is_not_waited_for_by_one_peer_after_the_other() {
        let (asked, found, took) = ask(|_| false).await;
        assert!(asked < 2 * ASKED_AT_ONCE && found == 0, "{asked}");
        assert!(took < Duration::from_secs(11), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_a_sample_are_asked_where_some_answer() {
        let (asked, found, _) = ask(|number| number % 2 == 0).await;
        assert_eq!((asked, found), (SAMPLE_MAX, SAMPLE_MAX / 2));
        let (asked, found, took) = ask(|_| true).await;
        assert_eq!((asked, found), (SAMPLE_MAX, SAMPLE_MAX));
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
}
