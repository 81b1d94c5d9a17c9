//! A node of the storm's own: the same program as another process, on a directory of its own that is removed at the end.
//!
//! Invariants: the process is killed and the directory removed whatever ends the storm; where the storm itself is killed,
//! the process ends with it and the directory stays. No signal from a terminal reaches the process: what Ctrl-C is to do
//! to it the storm decides. The directory is on a disk that keeps what is synced, as far as the system tells.
//!
//! Not here: what is done to the node (`load`), what it holds afterwards (`ledger`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use handfast_protocol::PeerId;

use super::peer::{Group, Target, key_of};
use super::plan::Plan;
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode, ReadyReply, Versioned};
use crate::data_dir::{Access, DataDir};
use crate::entropy;

/// How long a node may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// f_type of file systems that live in memory (statfs(2)).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
/// Settings of a run that measures what the node can do, where this program has them: all peers come from a few
/// addresses, which a node would otherwise take for one machine.
const CAPACITY: [(&str, &str); 5] = [
    ("limits.handshakes_per_address", "1000000"),
    ("limits.handshakes_per_prefix", "1000000"),
    ("limits.pending_total", "1000000"),
    ("limits.pending_per_source", "1000000"),
    ("limits.pending_new_per_second", "100000"),
];

/// While this file is there, no sync ends.
const GATE: &str = "hang";

/// See the module.
pub struct OwnNode {
    place: Place,
    plan: Plan,
    child: Option<Child>,
    /// What processes that ended had used.
    spent_cpu_us: u64,
    pub target: Target,
    pub control: PathBuf,
    pub starts: u64,
    /// The process that runs now; for whoever looks at its memory.
    pub process: Arc<AtomicU32>,
}

/// A directory that is removed when this drops.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing can be done about what does not go away.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("{what}: {error}.")).hint("check the directory and its disk: $TMPDIR")
}

impl OwnNode {
    /// Makes a directory and starts a node in it.
    ///
    /// # Errors
    /// If the directory cannot be made or the node does not get ready; what it said goes with the error.
    pub fn start(plan: &Plan) -> Result<OwnNode, ApiError> {
        let place = make_place()?;
        let data = place.0.join("data");
        DirBuilder::new()
            .mode(0o700)
            .create(&data)
            .map_err(|error| failed("The data directory cannot be made", &error))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(data.join("handfast.toml"))
            .map_err(|error| failed("The configuration cannot be written", &error))?;
        file.write_all(configuration(plan).as_bytes())
            .map_err(|error| failed("The configuration cannot be written", &error))?;
        let (child, ready) = spawn(&place, plan, "127.0.0.1:0")?;
        let target = target_of(&ready)?;
        let control = PathBuf::from(&ready.control);
        let process = Arc::new(AtomicU32::new(child.id()));
        let (plan, child) = (plan.clone(), Some(child));
        Ok(OwnNode { place, plan, child, spent_cpu_us: 0, target, control, starts: 1, process })
    }

    /// Where it keeps its records.
    pub fn data_dir(&self) -> PathBuf {
        self.place.0.join("data")
    }

    /// Kills it as a power cut would, as far as the process is concerned.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.spent_cpu_us += cpu_us(&child.id().to_string()).unwrap_or_default();
            // It has ended already where this is refused.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at the same address.
    ///
    /// # Errors
    /// As [`OwnNode::start`].
    pub fn restart(&mut self) -> Result<(), ApiError> {
        self.kill();
        let (child, _) = spawn(&self.place, &self.plan, &self.target.at.to_string())?;
        self.process.store(child.id(), Ordering::Relaxed);
        self.child = Some(child);
        self.starts += 1;
        Ok(())
    }

    /// False once it has ended by itself.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it has used of the processors so far, over all its runs.
    pub fn cpu_us(&self) -> u64 {
        let now = self.child.as_ref().and_then(|child| cpu_us(&child.id().to_string()));
        self.spent_cpu_us + now.unwrap_or_default()
    }

    /// The file that makes its disk hang while it is there.
    pub fn gate(&self) -> PathBuf {
        self.place.0.join(GATE)
    }

    /// The last lines that it logged.
    pub fn log_tail(&self) -> String {
        log_tail(&self.place.0)
    }

    /// Its data directory, for reading it after its end.
    ///
    /// # Errors
    /// If it is not there any more.
    pub fn directory(&self) -> Result<DataDir, ApiError> {
        Ok(DataDir::open(&self.data_dir(), Access::Own)?)
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// User and system time of a process in microseconds: fields 14 and 15 of `/proc/PID/stat` (proc(5)).
pub fn cpu_us(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program may hold blanks and brackets.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks.saturating_mul(1_000_000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// Resident memory of a process: the second field of `/proc/PID/statm` (proc(5)), which counts pages.
pub fn resident_bytes(process: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let pages = statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

fn is_in_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|statfs| IN_MEMORY.contains(&statfs.f_type))
}

/// In $TMPDIR if that is set and on a disk, else in the working directory.
fn make_place() -> Result<Place, ApiError> {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_dir() && !is_in_memory(path));
    let base = named.unwrap_or_else(|| PathBuf::from("."));
    let base = std::fs::canonicalize(&base).map_err(|error| failed("The working directory cannot be found", &error))?;
    let random = u64::from_le_bytes(entropy::bytes()?);
    let path = base.join(format!(".handfast-storm-{random:016x}"));
    let made = DirBuilder::new().mode(0o700).create(&path);
    made.map_err(|error| failed(&format!("No directory can be made in {}", base.display()), &error))?;
    Ok(Place(path))
}

impl OwnNode {
    /// Where the node's directory is, for the operator to know on which disk.
    pub fn base(&self) -> PathBuf {
        self.place.0.parent().map(Path::to_path_buf).unwrap_or_default()
    }

    /// Whether what it syncs is on a disk.
    pub fn is_on_disk(&self) -> bool {
        !is_in_memory(&self.place.0)
    }
}

/// The node's configuration: whom it trusts, and limits that let the storm through where it is to measure capacity.
fn configuration(plan: &Plan) -> String {
    let known: Vec<String> = Config::default().shown().iter().map(|shown| shown.key.to_owned()).collect();
    let mut lines = vec![("log.filter", "\"warn\"".to_owned())];
    lines.push(("policy.grants_per_hour", "1000000".to_owned()));
    lines.push(("policy.grants_total", "10000000".to_owned()));
    if let Some(friends) = plan.friends() {
        let ids = (0..friends).map(|number| format!("\"{}\"", key_of(plan.seed, Group::Friends, number).peer_id()));
        lines.push(("policy.allow", format!("[{}]", ids.collect::<Vec<_>>().join(","))));
    } else {
        lines.push(("policy.accept_all", "true".to_owned()));
    }
    if !plan.default_limits {
        lines.extend(CAPACITY.iter().map(|(key, value)| (*key, (*value).to_owned())));
    }
    let known_only = lines.iter().filter(|(key, _)| known.iter().any(|known| known == key));
    known_only.map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn spawn(place: &Place, plan: &Plan, listen: &str) -> Result<(Child, ReadyReply), ApiError> {
    let program = std::env::current_exe().map_err(|error| failed("The program cannot find itself", &error))?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(place.0.join("log"));
    let log: File = log.map_err(|error| failed("The node's log cannot be made", &error))?;
    let mut command = Command::new(program);
    command.args(["--json", "--data-dir"]).arg(place.0.join("data")).args(["run", "--listen", listen, "--storm-stdin"]);
    if plan.fsync_delay_ms > 0 {
        command.args(["--storm-fsync-delay", &format!("{}ms", plan.fsync_delay_ms)]);
    }
    if plan.fsync_hang_ms > 0 {
        command.arg("--storm-fsync-gate").arg(place.0.join(GATE));
    }
    // What the operator has set for another node is not for this one.
    for (name, _) in crate::config::environment() {
        command.env_remove(name);
    }
    // Its stdin ends with this process, however that ends.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
    let mut child = command.spawn().map_err(|error| failed("The node cannot be started", &error))?;
    let stdout = child.stdout.take();
    let (send, receive) = sync_channel(1);
    let reader = std::thread::Builder::new().name("ready".to_owned()).spawn(move || {
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        // Nobody waits any more where the start took too long.
        let _ = send.send(matches!(read, Some(Ok(_))).then_some(line));
    });
    reader.map_err(|error| failed("The node cannot be listened to", &error))?;
    let line = receive.recv_timeout(START_PATIENCE).ok().flatten().unwrap_or_default();
    match serde_json::from_str::<Versioned<ReadyReply>>(&line) {
        Ok(ready) => Ok((child, ready.body)),
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            let said = log_tail(&place.0);
            Err(ApiError::new(ErrorCode::Failure, format!("The node did not get ready. It said: {said}"))
                .hint("try `handfast run` by itself"))
        }
    }
}

fn log_tail(place: &Path) -> String {
    let text = std::fs::read_to_string(place.join("log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

fn target_of(ready: &ReadyReply) -> Result<Target, ApiError> {
    let peer = ready.peer_id.parse::<PeerId>().ok();
    let at = ready.listen.first().and_then(|at| at.parse().ok());
    match (peer, at) {
        (Some(peer), Some(at)) => Ok(Target { peer, at }),
        _ => Err(ApiError::new(ErrorCode::Failure, "The node's first line cannot be read.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::plan::Wishes;

    #[test]
    fn the_nodes_configuration_is_one_that_a_node_takes() {
        let check = |wishes: Wishes, allowed: usize, accept_all: bool| {
            let plan = Plan::of(wishes, None, true, 1).unwrap();
            let outer = tempfile::tempdir().unwrap();
            let path = outer.path().join("handfast.toml");
            File::create(&path).unwrap().write_all(configuration(&plan).as_bytes()).unwrap();
            let config = Config::load(&crate::config::ConfigFile::Named(path), &[], &[]).unwrap();
            assert_eq!((config.policy_allow.len(), config.policy_accept_all), (allowed, accept_all));
            assert_eq!(config.pending_per_source == Config::default().pending_per_source, plan.default_limits);
        };
        check(Wishes::default(), 0, true);
        let strangers = Wishes {
            peers: Some(10),
            mix: Some("new=1,pending=1".into()),
            default_limits: Some(true),
            ..Wishes::default()
        };
        check(strangers, 10, false);
    }

    #[test]
    fn this_process_has_used_some_time() {
        assert!(cpu_us("self").is_some());
        assert_eq!(cpu_us("none"), None);
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }
}
