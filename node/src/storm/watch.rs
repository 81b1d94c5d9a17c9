//! Looks at a storm while it goes on, from a thread of its own: progress for the operator, and the node's own word on
//! itself through its control socket.
//!
//! A *beat* asks the node for its status every [`BEAT_EVERY`]; its lag is how long after the intended moment the answer
//! was there, however often it was asked for until then. That is what an operator would have waited. Beats that cost more
//! come more seldom, so that watching stays under a tenth of the control thread's time. Beats and ticks that the node let
//! nobody ask for count as late as they would have been ([`super::lateness`]).
//!
//! Invariants (BOUND): [`BEATS_MAX`] beats are kept; older ones stay in the histogram.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::lateness::{Answers, micros, record_late};
use super::load::{Load, locked};
use super::measure::{Percentiles, histogram};
use super::own_node::resident_bytes;
use crate::control::api::{ApiError, ErrorCode, HeartbeatReply, StatusReply};
use crate::control::client::{Client, REPLY_TIMEOUT};
use crate::control::heartbeat::TICK;

/// How often the node is asked how it is.
const BEAT_EVERY: Duration = Duration::from_millis(50);
/// Ticks of the node's control thread that are asked for at once: a quarter of a second of them.
const TICKS_AT_ONCE: u32 = 25;
/// Beats that are kept for the course.
const BEATS_MAX: usize = 20_000;
/// After what time a beat is asked for anew.
const BEAT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// One answer of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    pub at_ms: u64,
    pub lag_us: u64,
    /// Changes of trust that are in memory and not on the disk yet.
    pub waiting: u64,
    /// The last change of trust that is.
    pub durable: u64,
    pub half_open: u64,
    pub under_way: u64,
    pub sessions: u64,
    /// Resident bytes of the node's process.
    pub memory: u64,
}

/// What was seen.
pub struct Seen {
    lag: Answers,
    /// How late each tick of the node's control thread was.
    drift: Histogram<u64>,
    pub beats: Vec<Beat>,
    /// Questions of a beat without an answer.
    pub missed: u64,
    /// The beat that is being waited for, from its intended moment.
    beat: Option<Instant>,
    /// When the ticks that are being waited for were asked for.
    ticks: Option<Instant>,
    /// Resident bytes of the node: at the first beat, and at most.
    pub memory: Option<(u64, u64)>,
    /// When the disk had hung, in milliseconds from the start of the load.
    pub hang_ended: Option<u64>,
}

impl Seen {
    fn new() -> Result<Seen, ApiError> {
        let (lag, drift) = (Answers::new(histogram()?, BEAT_EVERY), histogram()?);
        let (beats, missed, memory, hang_ended) = (Vec::new(), 0, None, None);
        Ok(Seen { lag, drift, beats, missed, beat: None, ticks: None, memory, hang_ended })
    }

    /// How late the node answered.
    pub fn lag(&self) -> Option<Percentiles> {
        Percentiles::of(&self.lag.late)
    }

    /// How late the ticks of its control thread were.
    pub fn drift(&self) -> Option<Percentiles> {
        Percentiles::of(&self.drift)
    }

    /// The ticks that were asked for do not come, or nobody waits for them any more.
    fn no_ticks(&mut self) {
        let Some(asked) = self.ticks.take() else { return };
        let late = asked.elapsed().saturating_sub(TICK * TICKS_AT_ONCE);
        if late > TICK {
            record_late(&mut self.drift, late, TICK);
        }
    }

    /// Nobody looks any more.
    fn end(&mut self) {
        self.no_ticks();
        if let Some(intended) = self.beat.take() {
            self.lag.given_up(intended.elapsed());
        }
    }

    /// How long after the disk had hung everything was on it that had waited for it.
    pub fn caught_up_ms(&self) -> Option<u64> {
        let ended = self.hang_ended?;
        let place = self.beats.partition_point(|beat| beat.at_ms < ended);
        let (before, after) = self.beats.split_at(place);
        let waited_for = before.last().map_or(0, |beat| beat.durable + beat.waiting);
        after.iter().find(|beat| beat.durable >= waited_for).map(|beat| beat.at_ms - ended)
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A bar on a terminal, a line a second otherwise.
    Shown,
    Hidden,
}

/// The watching thread.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    thread: Thread,
}

/// Ends when this drops.
struct Thread {
    thread: Option<JoinHandle<()>>,
    end: Arc<tokio::sync::Notify>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end.notify_one();
        // A thread that died has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What one node says of itself.
#[derive(Debug, Clone)]
pub struct Socket {
    pub control: PathBuf,
    pub data_dir: PathBuf,
    pub process: Arc<AtomicU32>,
}

impl Socket {
    /// What its process holds of memory now.
    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(self.process.load(Ordering::Relaxed))
    }

    /// Its status; `None` when it does not answer.
    pub async fn status(&self) -> Option<StatusReply> {
        tokio::time::timeout(BEAT_PATIENCE, self.get("/v1/status")).await.ok().flatten()
    }

    /// Asks for a change; `None` when it is refused or not answered.
    pub async fn post<Q: Serialize, T: DeserializeOwned>(&self, path: &str, request: &Q) -> Option<T> {
        let client = Client::connect(&self.control, &self.data_dir).await.ok()?;
        client.post(path, request, REPLY_TIMEOUT).await.ok()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        let client = Client::connect(&self.control, &self.data_dir).await.ok()?;
        client.get(path).await.ok()
    }
}

impl Watch {
    /// Begins to watch. Without a socket there is progress only.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn begin(load: Arc<Load>, socket: Option<Socket>, progress: Progress) -> Result<Watch, ApiError> {
        let no_thread = |error: std::io::Error| {
            ApiError::new(ErrorCode::Failure, format!("The system gives no thread for watching: {error}."))
        };
        let seen = Arc::new(Mutex::new(Seen::new()?));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let end = Arc::new(tokio::sync::Notify::new());
        let (kept, ended) = (seen.clone(), end.clone());
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            runtime.block_on(async {
                let mut shown = Shown::new(&load, progress);
                let beats = async {
                    match &socket {
                        Some(socket) => {
                            tokio::join!(
                                beat_again_and_again(&load, socket, &kept),
                                listen_again_and_again(socket, &kept)
                            );
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = beats => {}
                    () = shown.go_on(&load) => {}
                    () = ended.notified() => {}
                }
                shown.end();
            });
        });
        Ok(Watch { seen, thread: Thread { thread: Some(thread.map_err(no_thread)?), end } })
    }

    /// Ends watching, and tells what was seen.
    pub fn end(self) -> Option<Seen> {
        let Watch { seen, thread } = self;
        drop(thread);
        let mut seen = Arc::into_inner(seen)?.into_inner().unwrap_or_else(PoisonError::into_inner);
        seen.end();
        Some(seen)
    }
}

/// Has the node's control thread tick, some at a time.
async fn listen_again_and_again(socket: &Socket, seen: &Mutex<Seen>) {
    loop {
        locked(seen).ticks = Some(Instant::now());
        match socket.get::<HeartbeatReply>(&format!("/v1/heartbeat?ticks={TICKS_AT_ONCE}")).await {
            Some(heartbeat) => {
                let mut seen = locked(seen);
                seen.ticks = None;
                for late_us in heartbeat.late_us {
                    record_late(&mut seen.drift, Duration::from_micros(late_us), TICK);
                }
            }
            // Counted where its status is asked for.
            None => {
                locked(seen).no_ticks();
                tokio::time::sleep(BEAT_EVERY).await;
            }
        }
    }
}

async fn beat_again_and_again(load: &Load, socket: &Socket, seen: &Mutex<Seen>) {
    let mut intended = Instant::now();
    loop {
        sleep_until(intended).await;
        locked(seen).beat = Some(intended);
        let status = loop {
            match socket.status().await {
                Some(status) => break status,
                None => locked(seen).missed += 1,
            }
            tokio::time::sleep(BEAT_EVERY).await;
        };
        let (lag, resident) = (intended.elapsed(), socket.resident_bytes());
        let mut seen = locked(seen);
        seen.beat = None;
        if let Some(now) = resident {
            seen.memory = Some(seen.memory.map_or((now, now), |(first, most)| (first, most.max(now))));
        }
        let rest = seen.lag.answered(lag);
        if seen.beats.len() < BEATS_MAX {
            seen.beats.push(Beat {
                at_ms: u64::try_from(load.elapsed().as_millis()).unwrap_or(u64::MAX),
                lag_us: micros(lag),
                durable: status.durable_revision,
                waiting: status.revision.saturating_sub(status.durable_revision),
                half_open: status.counts.half_open,
                under_way: status.counts.under_way,
                memory: resident.unwrap_or_default(),
                sessions: status.counts.sessions,
            });
        }
        intended = (intended + BEAT_EVERY).max(Instant::now() + rest);
    }
}

/// Progress, in one of its forms.
enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Shown {
    fn new(load: &Load, progress: Progress) -> Shown {
        match progress {
            Progress::Hidden => Shown::Nothing,
            Progress::Shown if !std::io::stderr().is_terminal() => Shown::Lines,
            Progress::Shown => {
                let bar = ProgressBar::with_draw_target(load.operations(), ProgressDrawTarget::stderr());
                let form = "{bar:30} {pos}/{len}  {elapsed}  {msg}";
                bar.set_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()));
                Shown::Bar(bar)
            }
        }
    }

    async fn go_on(&mut self, load: &Load) {
        let mut ticks = tokio::time::interval_at(Instant::now() + LINE_EVERY, LINE_EVERY);
        let mut before = 0;
        loop {
            ticks.tick().await;
            let (totals, recent) = {
                let mut tally = locked(&load.tally);
                let recent = Percentiles::of(&tally.recent);
                tally.recent.reset();
                (tally.totals(), recent)
            };
            let recent = recent.map_or_else(String::new, |recent| {
                format!("p50 {}  p99 {}  ", milliseconds(recent.p50), milliseconds(recent.p99))
            });
            let line = format!(
                "{}/s  {recent}in flight {}  errors {}",
                totals.completed - before,
                load.in_flight(),
                totals.failed
            );
            before = totals.completed;
            match self {
                Shown::Bar(bar) => {
                    bar.set_position(totals.completed + totals.failed);
                    bar.set_message(line);
                }
                Shown::Lines => {
                    let at = load.elapsed().as_secs();
                    // Nobody may be reading; the storm goes on.
                    let _ = writeln!(std::io::stderr().lock(), "{at:>4} s  {:>7} done  {line}", totals.completed);
                }
                Shown::Nothing => {}
            }
        }
    }

    fn end(&self) {
        if let Shown::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Microseconds as milliseconds, for people.
pub fn milliseconds(us: u64) -> String {
    let ms = us as f64 / 1_000.0;
    match us {
        0..100_000 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(milliseconds(1_234), "1.2 ms");
        assert_eq!(milliseconds(1_234_567), "1235 ms");
    }
}
