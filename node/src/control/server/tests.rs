//! The server and its client over a real socket, with a real operator that is alone.

use handfast_trust::{DirectoryLock, LockOwner};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Config;
use crate::control::api::{PeersReply, PendingReply, RevokeReply, StatusReply, TrustReply};
use crate::control::client::{CallError, Client, ConnectError, REPLY_TIMEOUT};
use crate::control::socket;
use crate::initialise::initialise;

struct Rig {
    _outer: tempfile::TempDir,
    directory: DataDir,
    socket: std::path::PathBuf,
    events: Arc<EventLog>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

fn rig() -> Rig {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::create(&outer.path().join("data")).unwrap();
    let owner = LockOwner { pid: 1, role: "test".into(), socket: None };
    let lock = DirectoryLock::try_acquire(directory.path(), &owner).unwrap();
    initialise(&directory, None, &lock).unwrap();
    let operator = Arc::new(Operator::open_alone(&directory, &Config::default(), lock).unwrap());
    let socket = directory.control_socket(|_| None).unwrap();
    let listener = socket::bind(&socket).unwrap();
    let events = Arc::new(EventLog::new());
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(serve(listener, operator, events.clone(), directory.clone(), stopped));
    Rig { _outer: outer, directory, socket, events, stop, serving }
}

impl Rig {
    async fn client(&self) -> Client {
        Client::connect(&self.socket, self.directory.path()).await.unwrap()
    }

    /// One request as bytes, and the status and body of the reply.
    async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("handfast-data-dir: "), "{head}");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn post(&self, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.serving.await.unwrap();
    }
}

fn peer(seed: u8) -> String {
    handfast_protocol::SecretKey::from_seed(&[seed; 32]).peer_id().to_string()
}

fn request(seed: u8, operation_id: &str) -> TrustRequest {
    TrustRequest { peer: peer(seed), operation_id: Some(operation_id.into()), ..TrustRequest::default() }
}

#[tokio::test]
async fn a_client_reads_and_changes() {
    let rig = rig();
    let status: StatusReply = rig.client().await.get("/v1/status").await.unwrap();
    assert_eq!(status.data_dir, rig.directory.path().display().to_string());
    let trust = request(1, "a");
    let granted: TrustReply = rig.client().await.post("/v1/trust", &trust, REPLY_TIMEOUT).await.unwrap();
    assert_eq!((granted.state.as_str(), granted.durable), ("requested", true));
    let peers: PeersReply = rig.client().await.get("/v1/peers?state=requested").await.unwrap();
    assert_eq!(peers.peers.len(), 1);
    let pending: PendingReply = rig.client().await.get("/v1/pending").await.unwrap();
    assert!(pending.pending.is_empty());
    let refused: Result<TrustReply, _> = rig.client().await.get("/v1/peers?state=friend").await;
    assert!(matches!(refused, Err(CallError::Failed(error)) if error.code == ErrorCode::Usage));
    rig.stop().await;
}

#[tokio::test]
async fn a_repeat_is_applied_once() {
    let rig = rig();
    let revoke = PeerRequest { peer: peer(1), note: None, wait_ms: None, operation_id: Some("r".into()) };
    let trust = request(1, "t");
    let _: TrustReply = rig.client().await.post("/v1/trust", &trust, REPLY_TIMEOUT).await.unwrap();
    let first: RevokeReply = rig.client().await.post("/v1/revoke", &revoke, REPLY_TIMEOUT).await.unwrap();
    let repeat: RevokeReply = rig.client().await.post("/v1/revoke", &revoke, REPLY_TIMEOUT).await.unwrap();
    assert_eq!(first, repeat);
    let again: TrustReply = rig.client().await.post("/v1/trust", &trust, REPLY_TIMEOUT).await.unwrap();
    assert_eq!(again.state, "requested", "the reply of the first time: it does not grant again");
    let peers: PeersReply = rig.client().await.get("/v1/peers?state=revoked").await.unwrap();
    assert_eq!(peers.peers.len(), 1);
    let other = PeerRequest { peer: peer(2), ..revoke };
    let misused: Result<RevokeReply, _> = rig.client().await.post("/v1/revoke", &other, REPLY_TIMEOUT).await;
    assert!(matches!(misused, Err(CallError::Failed(error)) if error.code == ErrorCode::Usage));
    rig.stop().await;
}

#[tokio::test]
async fn requests_are_bounded_and_strict() {
    let rig = rig();
    let check = |(status, body): (u16, String), expected: u16, says: &str| {
        assert_eq!(status, expected, "{body}");
        assert!(body.starts_with("{\"v\":1,\"error\":{\"code\":\"") && body.contains(says), "{body}");
    };
    check(rig.post("/v1/trust", "{").await, 400, "not understood");
    check(rig.post("/v1/trust", r#"{"peer":"x","colour":"red"}"#).await, 400, "unknown field `colour`");
    check(rig.post("/v1/revoke", r#"{"note":"x"}"#).await, 400, "missing field `peer`");
    check(rig.post("/v1/trust", &" ".repeat(BODY_BYTES_MAX + 1)).await, 400, "longer than");
    check(rig.get("/v1/peers?stat=x").await, 400, "stat");
    check(rig.get("/v1/explain").await, 400, "peer");
    check(rig.get("/v1/events?since=-1").await, 400, "since");
    check(rig.get("/v2/status").await, 404, "no such path");
    check(rig.get("/v1/trust").await, 405, "no such method");
    let (status, text) = rig.get("/metrics").await;
    assert!(status == 200 && text.ends_with("# EOF\n"), "{text}");
    rig.stop().await;
}

#[tokio::test]
async fn events_are_followed_until_the_node_stops() {
    let rig = rig();
    rig.events.push("trusted", None, "first");
    let mut events = rig.client().await.events(None, true).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().seq, 1);
    rig.events.push("refused", None, "second");
    assert_eq!(events.next().await.unwrap().unwrap().cause, "second");
    let mut kept = rig.client().await.events(Some(1), false).await.unwrap();
    assert_eq!(kept.next().await.unwrap().unwrap().seq, 2);
    assert_eq!(kept.next().await, Ok(None));
    let gone = rig.client().await.events(Some(9), true).await.unwrap_err();
    assert!(matches!(gone, CallError::Failed(error) if error.code == ErrorCode::NotFound));
    assert_eq!(rig.get("/v1/events?since=9").await.0, 410);
    rig.stop().await;
    assert_eq!(events.next().await, Ok(None));
}

#[tokio::test]
async fn followers_leave_room_for_those_who_ask() {
    let rig = rig();
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS_MAX {
        followers.push(rig.client().await.events(None, true).await.unwrap());
    }
    let refused = rig.client().await.events(None, true).await.unwrap_err();
    assert!(matches!(refused, CallError::Failed(error) if error.code == ErrorCode::TryAgain));
    let _: StatusReply = rig.client().await.get("/v1/status").await.unwrap();
    rig.stop().await;
}

#[tokio::test]
async fn who_answers_must_be_the_node_of_the_directory() {
    let rig = rig();
    let other = Client::connect(&rig.socket, std::path::Path::new("/other")).await.unwrap();
    let refused: Result<StatusReply, _> = other.get("/v1/status").await;
    assert!(matches!(refused, Err(CallError::Failed(error)) if error.message.contains("another data directory")));
    let (socket, path) = (rig.socket.clone(), rig.directory.path().to_path_buf());
    let waiting = rig.client().await;
    rig.stop().await;
    assert!(matches!(waiting.get::<StatusReply>("/v1/status").await, Err(CallError::Lost)));
    // The dead socket's file, and none at all, both mean that there is no node.
    assert_eq!(Client::connect(&socket, &path).await.unwrap_err(), ConnectError::NoNode);
    socket::remove(&socket);
    assert_eq!(Client::connect(&socket, &path).await.unwrap_err(), ConnectError::NoNode);
}

#[test]
fn only_this_user_and_root_may_speak() {
    let check = |peer, me, expected| assert_eq!(may_speak(peer, me), expected);
    check(1_000, 1_000, true);
    check(0, 1_000, true);
    check(1_001, 1_000, false);
    check(1_000, 0, false);
}
