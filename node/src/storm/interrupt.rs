//! The operator's signals: the first interrupt ends the load and goes on to the report, the second ends the storm at once.
//!
//! SIGINT, SIGTERM and SIGHUP are interrupts alike: whatever ends a storm, its own node ends with it and its directory
//! goes. A SIGHUP that whoever started the storm has it ignore (nohup(1)) stays ignored.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::output::Output;

/// See the module.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Interrupts {
    /// Listens from now on. Inside a runtime.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn listen() -> std::io::Result<Interrupts> {
        let hangup = if is_ignored(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    /// Returns at the second interrupt; tells `first` of the first.
    pub(super) async fn second(mut self, first: &Notify, output: Output) {
        self.next().await;
        output.aside("Interrupted: the load ends, and the report follows. Another interrupt ends the storm at once.");
        first.notify_one();
        self.next().await;
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether this process was started with `kind` ignored: a bit of `SigIgn` (proc(5)).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
