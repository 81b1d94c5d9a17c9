//! On which threads a connection is worked for: those of everybody, or those that stand back for everybody.
//!
//! Whoever is not known yet is worked for by a *crowd* of threads with a lower priority (nice(2)), so that many strangers
//! at once, whose TLS and statements are to be checked, take what the others leave: friends, the control thread, the
//! drainer. A connection that becomes a session goes over to the *calm* threads, with all its tasks, when each of them is
//! polled next.
//!
//! Invariant: a task runs on one of the two at a time, and is never lost on its way. Both runtimes end together: a
//! task that went over still has its timers where it began.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;

/// How far the crowd's threads stand back (nice(2)): a third of the others' share where all are busy.
pub const CROWD_NICENESS: i32 = 5;

tokio::task_local! {
    /// Whose connection is being made.
    static BERTH: Berth;
}

/// Where a connection is worked for now. Clones are one.
#[derive(Clone, Debug)]
pub struct Berth(Arc<AtomicBool>);

impl Berth {
    /// On the calm threads, from the beginning or not.
    pub fn new(is_calm: bool) -> Berth {
        Berth(Arc::new(AtomicBool::new(is_calm)))
    }

    /// Goes over to the calm threads, and stays there.
    pub fn calm(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_calm(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Begins a handshake whose connection is worked for as this says.
    pub fn accept(&self, incoming: quinn::Incoming) -> Result<quinn::Connecting, quinn::ConnectionError> {
        BERTH.sync_scope(self.clone(), || incoming.accept())
    }
}

/// The two kinds of threads.
#[derive(Clone, Debug)]
pub struct Berths {
    calm: Handle,
    /// Absent where all share their threads.
    crowd: Option<Handle>,
}

impl Berths {
    /// All on the threads of the runtime in which this is called.
    ///
    /// # Panics
    /// Outside of a runtime: a bug.
    pub fn shared() -> Berths {
        Berths { calm: Handle::current(), crowd: None }
    }

    /// On different threads.
    pub fn apart(calm: Handle, crowd: Handle) -> Berths {
        Berths { calm, crowd: Some(crowd) }
    }

    /// Runs a task where `berth` says, as long as it does.
    pub fn spawn(&self, berth: &Berth, task: impl Future<Output = ()> + Send + 'static) {
        match &self.crowd {
            Some(crowd) if !berth.is_calm() => {
                let (berth, calm) = (berth.clone(), self.calm.clone());
                drop(crowd.spawn(Moving { task: Some(Box::pin(task)), berth, calm }));
            }
            _ => drop(self.calm.spawn(task)),
        }
    }
}

/// A task among the crowd.
struct Moving {
    /// Gone once it has gone over.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    berth: Berth,
    calm: Handle,
}

impl Future for Moving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.berth.is_calm()
            && let Some(task) = self.task.take()
        {
            drop(self.calm.spawn(task));
        }
        match &mut self.task {
            Some(task) => task.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

/// Lowers the priority of the calling thread alone: on Linux, priority belongs to a thread.
pub fn stand_back(niceness: i32) {
    // Where it is not permitted, the crowd is as loud as everybody.
    let _ = rustix::process::nice(niceness);
}

/// quinn's tokio, with the driver of each connection where its berth is.
impl Runtime for Berths {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // Endpoints, and connections that are dialled here, have none.
        let berth = BERTH.try_with(Berth::clone).unwrap_or_else(|_| Berth::new(true));
        Berths::spawn(self, &berth, future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::mpsc;

    use super::*;

    fn runtime(name: &str) -> Runtime {
        Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build().unwrap()
    }

    fn here() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_task_goes_over_once_its_berth_is_calm_and_goes_on_there() {
        let (calm, crowd) = (runtime("calm"), runtime("crowd"));
        let berths = Berths::apart(calm.handle().clone(), crowd.handle().clone());
        let berth = Berth::new(false);
        let (asks, mut asked) = mpsc::channel(1);
        let (says, mut said) = mpsc::channel(1);
        berths.spawn(&berth, async move {
            while let Some(()) = asked.recv().await {
                says.send(here()).await.unwrap();
            }
        });
        let mut where_is_it = || {
            asks.blocking_send(()).unwrap();
            said.blocking_recv().unwrap()
        };
        assert_eq!((where_is_it(), where_is_it()), ("crowd".into(), "crowd".into()));
        berth.calm();
        // A poll that is going on goes on where it is; tokio ends it after some hundred of these.
        assert!((0..10_000).any(|_| where_is_it() == "calm"));
        assert_eq!((where_is_it(), where_is_it()), ("calm".into(), "calm".into()));
        drop(asks);
        assert_eq!(said.blocking_recv(), None, "it has ended");
    }

    #[test]
    fn who_is_calm_from_the_beginning_never_sees_the_crowd() {
        let (calm, crowd) = (runtime("calm"), runtime("crowd"));
        let berths = Berths::apart(calm.handle().clone(), crowd.handle().clone());
        let (says, mut said) = mpsc::channel(1);
        berths.spawn(&Berth::new(true), async move { says.send(here()).await.unwrap() });
        assert_eq!(said.blocking_recv(), Some("calm".into()));
    }

    #[test]
    fn a_thread_that_stands_back_is_the_only_one_that_does() {
        let niceness = || rustix::process::nice(0).unwrap();
        let before = niceness();
        let other = std::thread::spawn(move || {
            stand_back(CROWD_NICENESS);
            niceness()
        });
        assert_eq!(other.join().unwrap(), (before + CROWD_NICENESS).min(19));
        assert_eq!(niceness(), before);
    }
}
