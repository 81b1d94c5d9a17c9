//! The real program: a node that runs, commands, and its control socket.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use handfast::control::api::{FilesReply, PeersReply, StatusReply};
use handfast_protocol::SecretKey;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Longer than any answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to look for a thread.
const LOOKS_MAX: usize = 10_000;

/// The program under test. A copy, if one is named: builds that go on beside do not change it.
fn under_test() -> OsString {
    std::env::var_os("HANDFAST_ROOT_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_handfast").into())
}

/// A command line of handfast for this data directory, with nothing of this environment's settings.
pub(crate) fn handfast(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(under_test());
    under(&mut command, directory, arguments);
    command
}

/// The same, run by another program, which is told so by `before`.
pub(crate) fn handfast_under(program: &str, before: &[&str], directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(before).arg(under_test());
    under(&mut command, directory, arguments);
    command
}

fn under(command: &mut Command, directory: &Path, arguments: &[&str]) {
    let foreign = std::env::vars_os().map(|(name, _)| name);
    for name in foreign.filter(|name| name.to_string_lossy().starts_with("HANDFAST_")) {
        command.env_remove(name);
    }
    command.arg("--data-dir").arg(directory).args(["--json", "-q"]).args(arguments).stdin(Stdio::null());
}

/// Runs a command to its end.
pub(crate) fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

/// Runs a command that has to succeed; what it says.
pub(crate) fn reply<T: DeserializeOwned>(directory: &Path, arguments: &[&str]) -> T {
    let output = output(handfast(directory, arguments));
    assert!(output.status.success(), "{arguments:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Verifies the record files, which have to be sound.
pub(crate) fn check_files(directory: &Path) -> FilesReply {
    let files: FilesReply = reply(directory, &["store", "check"]);
    assert!(files.files.iter().all(|row| row.ok), "{files:?}");
    files
}

/// Peer number `n`: hexadecimal, as operators may give it.
pub(crate) fn peer(n: u64) -> String {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    SecretKey::from_seed(&seed).peer_id().to_string()
}

/// A node that runs. Dropping it kills it.
pub(crate) struct Node {
    child: Child,
    directory: PathBuf,
}

impl Node {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(directory: &Path) -> Self {
        let mut command = handfast(directory, &["run", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        if !ready.contains("\"ready\"") {
            let output = child.wait_with_output().unwrap();
            panic!("the node did not start: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Self { child, directory: directory.to_owned() }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.directory).unwrap()
    }

    /// The thread that writes record files. It names itself when it first runs, which may be after the node is ready.
    pub(crate) fn drainer(&self) -> u32 {
        let mut client = self.client();
        let looks = std::iter::repeat_with(|| {
            client.status();
            self.thread_named("drainer\n")
        });
        looks.take(LOOKS_MAX).flatten().next().unwrap()
    }

    fn thread_named(&self, wanted: &str) -> Option<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let named = |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == wanted);
        let task = tasks.map(|entry| entry.unwrap().path()).find(named)?;
        task.file_name()?.to_str()?.parse().ok()
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = self.pid();
        // It may have been killed a moment ago; then there is nobody to ask.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        // With -q the node says only what should never be.
        if !said.is_empty() {
            println!("a node said: {said}");
        }
    }
}

/// A connection to the control socket that stays open.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    fn connect(directory: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(directory.join("control.sock"))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// What the node answers, if it lives to do so.
    pub(crate) fn try_get<T: DeserializeOwned>(&mut self, path: &str) -> io::Result<T> {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: node\r\n\r\n"))
    }

    pub(crate) fn try_post<T: DeserializeOwned>(&mut self, path: &str, body: &Value) -> io::Result<T> {
        let body = body.to_string();
        let length = body.len();
        self.exchange(&format!("POST {path} HTTP/1.1\r\nhost: node\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    pub(crate) fn status(&mut self) -> StatusReply {
        self.try_get("/v1/status").unwrap()
    }

    pub(crate) fn peers(&mut self) -> PeersReply {
        self.try_get("/v1/peers").unwrap()
    }

    pub(crate) fn change<T: DeserializeOwned>(&mut self, what: &str, peer: &str, note: &str) -> io::Result<T> {
        self.try_post(&format!("/v1/{what}"), &json!({ "peer": peer, "note": note }))
    }

    fn exchange<T: DeserializeOwned>(&mut self, request: &str) -> io::Result<T> {
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().map_err(io::Error::other)?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if !status.contains(" 200 ") {
            return Err(io::Error::other(format!("{status}: {}", String::from_utf8_lossy(&body))));
        }
        serde_json::from_slice(&body).map_err(io::Error::other)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
