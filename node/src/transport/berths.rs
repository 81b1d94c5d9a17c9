//! On which threads a connection is worked for: those of everybody, or those that stand back for everybody.
//!
//! Whoever stands back (`admission`) is worked for by a *crowd* of threads with a lower priority (nice(2)), so that many
//! strangers at once, whose TLS and statements are to be checked, take what the others leave: friends, the control thread,
//! the drainer. A connection that becomes a session goes over to the *calm* threads, with all its tasks, when each of them is
//! polled next.
//!
//! A connection that its peer has closed is worked for no more, once whoever serves it says so ([`Berth::leave`]). QUIC would
//! keep it for three probe timeouts, 22 KB each, only to stay silent (RFC 9000, section 10.2.2): on a node with too much to
//! do that is seconds, in which thousands of them come together. What comes late of such a peer is answered by a stateless
//! reset, which it does not mind.
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
use tokio::sync::Notify;

/// How far the threads that work for connections stand back (nice(2)) behind the drainer, for which many wait at a time, and
/// the control thread.
pub const DATA_NICENESS: i32 = 5;
/// How far the crowd's threads do: a third of the calm ones' share where all are busy.
pub const CROWD_NICENESS: i32 = 10;

tokio::task_local! {
    /// Whose connection is being made.
    static BERTH: Berth;
}

/// Where a connection is worked for now. Clones are one.
#[derive(Clone, Debug)]
pub struct Berth(Arc<Place>);

#[derive(Debug)]
struct Place {
    is_calm: AtomicBool,
    left: Notify,
}

impl Berth {
    /// On the calm threads, from the beginning or not.
    pub fn new(is_calm: bool) -> Berth {
        Berth(Arc::new(Place { is_calm: AtomicBool::new(is_calm), left: Notify::new() }))
    }

    /// Goes over to the calm threads, and stays there.
    pub fn calm(&self) {
        self.0.is_calm.store(true, Ordering::Release);
    }

    fn is_calm(&self) -> bool {
        self.0.is_calm.load(Ordering::Acquire)
    }

    /// Its peer has closed the connection: nothing is sent any more, and QUIC forgets it.
    pub fn leave(&self) {
        self.0.left.notify_one();
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
        match BERTH.try_with(Berth::clone) {
            Ok(berth) => {
                let place = berth.0.clone();
                let driven = async move {
                    tokio::select! {
                        () = future => {}
                        () = place.left.notified() => {}
                    }
                };
                Berths::spawn(self, &berth, driven);
            }
            // Endpoints, and connections that are dialled here, have none.
            Err(_) => Berths::spawn(self, &Berth::new(true), future),
        }
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
    fn what_drives_a_connection_ends_when_its_berth_is_left_wherever_it_is() {
        let (calm, crowd) = (runtime("calm"), runtime("crowd"));
        let berths = Berths::apart(calm.handle().clone(), crowd.handle().clone());
        for is_calm in [false, true] {
            let berth = Berth::new(is_calm);
            let (lives, mut lived) = mpsc::channel::<()>(1);
            let drives = Box::pin(async move {
                std::future::pending::<()>().await;
                drop(lives);
            });
            BERTH.sync_scope(berth.clone(), || quinn::Runtime::spawn(&berths, drives));
            assert_eq!(lived.try_recv(), Err(mpsc::error::TryRecvError::Empty));
            // Said before it is polled, or after.
            berth.leave();
            assert_eq!(lived.blocking_recv(), None, "it has ended");
        }
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
