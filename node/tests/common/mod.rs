//! What the suites that start the real program share: data directories, commands, running nodes, and waiting.
//!
//! Invariants: every wait is bounded by [`PATIENCE`] and says what it waited for; a test that fails prints what its
//! nodes logged; processes are ended by their own handles alone.
//!
//! Not here: what the program must do (each suite has its line of the specification).
#![allow(dead_code, reason = "each suite is a crate of its own and uses a part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

pub(crate) mod control;
pub(crate) mod disk;
pub(crate) mod node;
pub(crate) mod schema;

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use self::node::Node;

/// Longer than anything takes on a loaded machine: whoever waits so long would wait for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Well-formed ids of nobody who is there: the same ones for the same numbers.
pub(crate) fn stranger(number: u64) -> String {
    let mut seed = [0x5e; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    handfast_protocol::SecretKey::from_seed(&seed).peer_id().to_string()
}

/// A data directory, and a loopback address that no other directory of the tests has: a node that starts again finds
/// its port free.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    _outer: Arc<TempDir>,
    data: PathBuf,
    ip: String,
}

impl Home {
    /// A directory that is not there yet.
    pub(crate) fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let outer = TempDir::new().expect("a temporary directory");
        let data = outer.path().join("data");
        let number = std::process::id().wrapping_mul(251).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        // Linux has all of 127.0.0.0/8.
        let [a, b, c, _] = number.to_le_bytes();
        let ip = if cfg!(target_os = "linux") {
            format!("127.{}.{b}.{}", 1 + c % 250, 1 + a % 250)
        } else {
            "127.0.0.1".into()
        };
        Home { _outer: Arc::new(outer), data, ip }
    }

    /// A directory with an identity.
    pub(crate) fn initialised() -> Home {
        let home = Home::new();
        home.ok(["init"]);
        home
    }

    /// The same directory under another name.
    pub(crate) fn by_name(&self, name: &Path) -> Home {
        Home { data: name.to_path_buf(), ..self.clone() }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.data
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// A name beside it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.data.with_file_name(name)
    }

    /// The loopback address of this directory's nodes.
    pub(crate) fn ip(&self) -> &str {
        &self.ip
    }

    /// Its identity.
    pub(crate) fn id(&self) -> String {
        text(&self.ok(["id"])["peer_id"])
    }

    /// The program with this directory, and nothing of our own environment that it would listen to.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = bare();
        command.arg("--json").arg("--data-dir").arg(&self.data).args(arguments);
        command
    }

    /// Begins a command.
    pub(crate) fn begin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Running {
        Running::begin(self.command(arguments))
    }

    /// Runs a command to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Done {
        self.begin(arguments).done()
    }

    /// The one object that a command prints which ends well.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        self.run(arguments).ok()
    }

    /// The error that a command prints which ends with `code`.
    pub(crate) fn refused<S: AsRef<OsStr>>(&self, code: i32, arguments: impl IntoIterator<Item = S>) -> Refusal {
        self.run(arguments).refused(code)
    }

    /// Starts a node on a free port.
    pub(crate) fn start(&self) -> Node {
        Node::start(self, &format!("{}:0", self.ip))
    }

    /// The record of `peer` as `peers` shows it; null without one.
    pub(crate) fn peer(&self, peer: &str) -> Value {
        row_of(&self.ok(["peers"]), peer)
    }
}

/// The same program run by another user, which only root can ask for; `None` if we cannot.
pub(crate) fn as_another_user(command: &Command) -> Option<Command> {
    let setpriv = Command::new("setpriv").arg("--version").output();
    if !rustix::process::geteuid().is_root() || !setpriv.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut other = Command::new("setpriv");
    other.args(["--reuid", OTHER_USER, "--regid", OTHER_USER, "--clear-groups", "--"]);
    other.arg(command.get_program()).args(command.get_args());
    other.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(other)
}

/// `nobody`, whatever its name is here.
pub(crate) const OTHER_USER: &str = "65534";

/// Says that something was not tested here.
#[expect(clippy::print_stderr, reason = "the test harness shows it with --nocapture")]
pub(crate) fn skipped(what: &str) {
    eprintln!("skipped: {what}");
}

/// The program in an environment without settings.
pub(crate) fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handfast"));
    for (name, _) in std::env::vars_os() {
        let ours = name.to_string_lossy().starts_with("HANDFAST_");
        if ours || name == "STATE_DIRECTORY" || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A and B trust each other, A having asked, and have their session.
pub(crate) fn befriend(a: &Node, b: &Node) {
    a.home().ok(["trust", &b.at()]);
    b.until_state(&a.id(), "pending");
    b.home().ok(["trust", &a.id(), "--wait", "50s"]);
    a.until_state(&b.id(), "trusted");
    a.until_session(&b.id());
    b.until_session(&a.id());
}

/// Two new nodes that trust each other.
pub(crate) fn friends() -> (Node, Node) {
    let (a, b) = (Home::new().start(), Home::new().start());
    befriend(&a, &b);
    (a, b)
}

/// The row of `peer` in a reply of `peers`; null without one.
pub(crate) fn row_of(peers: &Value, peer: &str) -> Value {
    let mut rows = peers["peers"].as_array().expect("peers is an array").iter();
    rows.find(|row| row["peer_id"] == peer).cloned().unwrap_or_default()
}

/// How many rounds a test makes: the ordinary number, or what `HANDFAST_ROUNDS` asks for.
pub(crate) fn rounds(ordinary: u64) -> u64 {
    let asked = std::env::var("HANDFAST_ROUNDS").ok();
    asked.map_or(ordinary, |asked| asked.parse().expect("HANDFAST_ROUNDS is a number"))
}

/// Lets a seeded moment pass. Only for the moment of a crash, which no event of the program announces.
pub(crate) fn let_pass(moment: Duration) {
    let (_never_sends, never) = sync_channel::<()>(0);
    assert!(never.recv_timeout(moment).is_err());
}

/// A string of a reply.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// A command at work. Dropping it ends it.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

impl Running {
    /// Begins a command whose output is piped.
    pub(crate) fn begin(mut command: Command) -> Running {
        let shown = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        let stdout = whole(child.stdout.take().expect("piped"));
        let stderr = whole(child.stderr.take().expect("piped"));
        Running { child, shown, stdout, stderr }
    }

    /// Waits for its end.
    pub(crate) fn done(mut self) -> Done {
        let (stdout, stderr) = (self.stdout.recv_timeout(PATIENCE), self.stderr.recv_timeout(PATIENCE));
        let (Ok(stdout), Ok(stderr)) = (stdout, stderr) else {
            drop(self.child.kill());
            let stderr = self.stderr.recv_timeout(PATIENCE).unwrap_or_default();
            panic!("{} does not end; it says: {}", self.shown, String::from_utf8_lossy(&stderr));
        };
        let status = self.child.wait().expect("its end");
        let string = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done {
            shown: std::mem::take(&mut self.shown),
            code: status.code(),
            stdout: string(stdout),
            stderr: string(stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// Reads to the end, on a thread of its own so that no pipe fills.
fn whole(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has ended.
        drop(from.read_to_end(&mut bytes));
        drop(send.send(bytes));
    });
    receive
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    shown: String,
    /// `None`: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The one object on stdout of a command that did what it should.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.object()
    }

    /// The one object on stdout, however the command ended.
    pub(crate) fn object(&self) -> Value {
        let object: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        assert_eq!(object["v"], 1, "{self:#?}");
        object
    }

    /// The error of a command that ended with `code` and printed nothing else.
    pub(crate) fn refused(&self, code: i32) -> Refusal {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        let line = self.stderr.lines().last().unwrap_or_default();
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        schema::check("error", &object);
        let part = |name: &str| object["error"][name].as_str().unwrap_or_default().to_owned();
        Refusal { code: part("code"), message: part("message"), hint: part("hint"), log: self.stderr.clone() }
    }
}

/// An error as a script reads it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: String,
    /// All of stderr.
    pub(crate) log: String,
}

impl Refusal {
    /// Checks that message or hint hold these words.
    #[track_caller]
    pub(crate) fn says(&self, words: &str) -> &Refusal {
        let whole = format!("{} {}", self.message, self.hint);
        assert!(whole.contains(words), "it should say {words:?}: {self:#?}");
        self
    }
}
