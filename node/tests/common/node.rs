//! A running node: started, followed, signalled, ended.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use handfast::clock::MonotonicClock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Done, Home, PATIENCE, control, row_of, text};

/// How often a condition is looked at when no event comes. Not every fact has an event: that a peer has our statement
/// on its disk (`delivered`) changes without one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A node process. Dropping it kills it; if the test has failed, what it logged is printed.
pub(crate) struct Node {
    home: Home,
    child: Child,
    ready: Value,
    stderr: Arc<Mutex<String>>,
    stderr_ends: Receiver<()>,
    stdout: Receiver<String>,
    events: Arc<Events>,
}

/// The events of a node, as they come.
#[derive(Default)]
struct Events {
    rows: Mutex<Vec<Value>>,
    more: Condvar,
}

impl Node {
    /// Starts a node and waits until it says that it is ready.
    pub(crate) fn start(home: &Home, listen: &str) -> Node {
        Node::start_with(home, listen, &[])
    }

    /// Starts one with more arguments.
    pub(crate) fn start_with(home: &Home, listen: &str, arguments: &[&str]) -> Node {
        let mut command = home.command(["run", "--listen", listen]);
        let mut child = command.args(arguments).spawn().expect("the program starts");
        let stdout = lines(child.stdout.take().expect("piped"));
        let stderr = Arc::new(Mutex::new(String::new()));
        let stderr_ends = gather(child.stderr.take().expect("piped"), stderr.clone());
        let mut node =
            Node { home: home.clone(), child, ready: Value::Null, stderr, stderr_ends, stdout, events: Arc::default() };
        let line = node.stdout.recv_timeout(PATIENCE).expect("the node gets ready");
        node.ready = serde_json::from_str(&line).expect("the ready line is JSON");
        node.follow();
        node
    }

    fn follow(&self) {
        let events = self.events.clone();
        let mut stream = control::follow(self.home.path());
        std::thread::spawn(move || {
            while let Some(row) = stream.next_row() {
                events.rows.lock().unwrap().push(row);
                events.more.notify_all();
            }
        });
    }

    /// Its data directory.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// The line that it printed when it was ready.
    pub(crate) fn ready(&self) -> &Value {
        &self.ready
    }

    /// Its id.
    pub(crate) fn id(&self) -> String {
        text(&self.ready["peer_id"])
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> String {
        text(&self.ready["listen"][0])
    }

    /// `PEER@HOST:PORT`.
    pub(crate) fn at(&self) -> String {
        format!("{}@{}", self.id(), self.addr())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What `path` of its control API answers with 200.
    pub(crate) fn get(&self, path: &str) -> Value {
        let reply = control::get(self.home.path(), path).expect("the node answers");
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.json()
    }

    /// What it knows of `peer`; null if nothing.
    pub(crate) fn peer(&self, peer: &str) -> Value {
        row_of(&self.get("/v1/peers"), peer)
    }

    /// The state of `peer`; `unknown` without a record.
    pub(crate) fn state(&self, peer: &str) -> String {
        self.peer(peer)["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// Its sessions with `peer`, newest first.
    pub(crate) fn sessions(&self, peer: &str) -> Vec<Value> {
        let reply = self.get("/v1/sessions");
        let rows = reply["sessions"].as_array().expect("sessions is an array").iter();
        rows.filter(|row| row["peer_id"] == peer).cloned().collect()
    }

    /// How many of them are active.
    pub(crate) fn active(&self, peer: &str) -> usize {
        self.sessions(peer).iter().filter(|session| session["state"] == "active").count()
    }

    /// The events so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let reply = control::get(self.home.path(), "/v1/events").expect("the node answers");
        reply.body.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect()
    }

    /// How many events of a kind there were so far about `peer`.
    pub(crate) fn count(&self, kind: &str, peer: &str) -> usize {
        self.events().iter().filter(|row| row["kind"] == kind && row["peer_id"] == peer).count()
    }

    /// Waits for the `number`th event of a kind about `peer`, and checks that it is the last of them so far. A change
    /// can be seen a moment before its event.
    #[track_caller]
    pub(crate) fn until_events(&self, number: usize, kind: &str, peer: &str) {
        self.until(&format!("{number} times {kind}"), || (self.count(kind, peer) >= number).then_some(()));
        assert_eq!(self.count(kind, peer), number, "{kind}: {:#?}", self.events());
    }

    /// Waits until `probe` finds what it looks for: at every event of this node, and now and then.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let clock = MonotonicClock::start();
        let mut seen = 0;
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(
                clock.now().0 < PATIENCE,
                "waited in vain: {what}; events: {:#?}",
                *self.events.rows.lock().unwrap()
            );
            let rows = self.events.rows.lock().unwrap();
            let (rows, _) = self.events.more.wait_timeout_while(rows, LOOK_AGAIN, |rows| rows.len() <= seen).unwrap();
            seen = rows.len();
        }
    }

    /// Waits until `peer` is in `state`.
    #[track_caller]
    pub(crate) fn until_state(&self, peer: &str, state: &str) {
        let last = std::cell::RefCell::new(String::new());
        let probe = || {
            *last.borrow_mut() = self.state(peer);
            (*last.borrow() == state).then_some(())
        };
        self.until(&format!("{peer} is {state}"), probe);
    }

    /// Waits until there is exactly one active session with `peer`.
    #[track_caller]
    pub(crate) fn until_session(&self, peer: &str) -> Value {
        self.until(&format!("one active session with {peer}"), || {
            let mut active = self.sessions(peer);
            active.retain(|session| session["state"] == "active");
            if active.len() == 1 { active.pop() } else { None }
        })
    }

    /// Waits until there is no active session with `peer`.
    #[track_caller]
    pub(crate) fn until_no_session(&self, peer: &str) {
        self.until(&format!("no session with {peer}"), || (self.active(peer) == 0).then_some(()));
    }

    /// Waits until our statement about `peer` is on its disk, or known not to be.
    #[track_caller]
    pub(crate) fn until_delivered(&self, peer: &str) {
        self.until(&format!("delivered to {peer}"), || (self.peer(peer)["delivered"] == true).then_some(()));
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the node takes the signal");
    }

    /// What it has logged so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> Done {
        if self.stderr_ends.recv_timeout(PATIENCE).is_err() && self.child.try_wait().expect("its status").is_none() {
            drop(self.child.kill());
            panic!("the node does not end");
        }
        let status = self.child.wait().expect("its end");
        let stdout = self.stdout.try_iter().collect::<Vec<_>>().join("\n");
        Done { shown: "run".into(), code: status.code(), stdout, stderr: self.stderr() }
    }

    /// SIGTERM, and a clean end.
    pub(crate) fn stop(mut self) -> Done {
        self.signal(Signal::TERM);
        let done = self.ended();
        assert_eq!(done.code, Some(0), "{done:#?}");
        done
    }

    /// SIGKILL. Returns where it listened.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().expect("killed");
        self.child.wait().expect("its end");
        self.addr()
    }

    /// Clean end and start at the same place.
    pub(crate) fn restart(self) -> Node {
        let (home, at) = (self.home.clone(), self.addr());
        self.stop();
        Node::start(&home, &at)
    }

    /// SIGKILL and start at the same place.
    pub(crate) fn kill_and_restart(self) -> Node {
        let home = self.home.clone();
        let at = self.kill();
        Node::start(&home, &at)
    }
}

impl Drop for Node {
    #[expect(clippy::print_stderr, reason = "the test harness shows it with the failure")]
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
        if std::thread::panicking() {
            let id = self.ready["peer_id"].as_str().unwrap_or("a node that did not get ready");
            eprintln!("--- {id} in {} logged:\n{}---", self.home.path().display(), self.stderr());
        }
    }
}

/// The lines of a stream; the channel ends with it.
fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = sync_channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

/// Appends a stream to `into`; the channel ends with the stream.
fn gather(from: impl std::io::Read + Send + 'static, into: Arc<Mutex<String>>) -> Receiver<()> {
    let (send, receive) = sync_channel(1);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut text = into.lock().unwrap();
            text.push_str(&line);
            text.push('\n');
        }
        let _ = send.send(());
    });
    receive
}
