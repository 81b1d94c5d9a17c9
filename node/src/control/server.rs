//! The control API's server: HTTP/1.1 over a Unix socket, for this user and root alone.
//!
//! Invariants: nothing is read from a peer of another user. Every reply names the data directory, is
//! `{"v":1,..}` or `{"v":1,"error":{..}}`, and every request is bounded: connections, heads, bodies, followers of
//! events, changes at work. Nothing that a client sends is opened or executed.
//!
//! Runtime: control. Stopping: no new connections, replies under way get [`STOP_GRACE`], then the rest is cut.
//!
//! Not here: what the requests do (`operations`), how a repeat is recognised (`once`).

mod networks;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::api::{ApiError, ErrorCode, ErrorReply, EventRow, PeerRequest, TrustRequest, Versioned};
use super::once::{Once, Outcome};
use super::socket::{DATA_DIR_HEADER, header_of};
use super::{heartbeat, metrics};
use crate::data_dir::DataDir;
use crate::events::{EventLog, Gone};
use crate::operations::Operator;

/// How many connections are open at a time; the rest waits in the socket's backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// How many of them may follow events: the others stay for those who ask.
pub const FOLLOWERS_MAX: usize = 32;
/// Requests that look through all records at a time; others wait.
const LOOKERS_MAX: usize = 2;
/// Longest body of a request.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long a client may take for the head of a request, or stay without one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long replies under way get when the node stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long to leave the socket alone when accepting fails: descriptors have to come back first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Lines that wait for a follower that reads slowly; more stay in the ring, where they may be dropped.
const FOLLOWER_LINES: usize = 64;
/// All that another user is told.
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Serves the control API until `stop` turns true (or its sender is gone), and returns when the last reply is out.
pub async fn serve(
    listener: UnixListener,
    operator: Arc<Operator>,
    events: Arc<EventLog>,
    data_dir: DataDir,
    stop: watch::Receiver<bool>,
) {
    let router = router(Api {
        operator,
        events,
        once: Once::default(),
        followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        lookers: Arc::new(Semaphore::new(LOOKERS_MAX)),
        walkers: Arc::new(Semaphore::new(LOOKERS_MAX)),
        stop: stop.clone(),
        data_dir: HeaderValue::try_from(header_of(data_dir.path())).unwrap_or(HeaderValue::from_static("")),
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Some((stream, place)) = accept(&listener, &places, stop.clone()).await {
        connections.spawn(connection(stream, place, router.clone(), stop.clone()));
        while connections.try_join_next().is_some() {}
    }
    // From here on connecting is refused, so that a command goes on to the directory's lock.
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE, all_ended).await.is_err() {
        tracing::warn!("replies of the control API were cut off");
        connections.shutdown().await;
    }
}

/// The next connection of somebody who may speak; `None` when it is time to stop.
async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) -> Option<(UnixStream, OwnedSemaphorePermit)> {
    let next = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_permitted(&stream) => return Some((stream, place)),
                Ok((mut stream, _)) => {
                    tracing::warn!("another user was refused at the control socket");
                    // 60 bytes fit into the socket's buffer; if not, the end of the connection says enough.
                    let _ = stream.try_write(FORBIDDEN);
                    let _ = stream.shutdown().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket does not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stopped(&mut stop) => None,
        accepted = next => accepted,
    }
}

/// Returns when it is time to stop, or when nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

/// SO_PEERCRED: the kernel's word on who connected.
fn is_permitted(stream: &UnixStream) -> bool {
    let me = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| may_speak(peer.uid(), me))
}

fn may_speak(peer: u32, me: u32) -> bool {
    peer == me || peer == 0
}

async fn connection(stream: UnixStream, place: OwnedSemaphorePermit, router: Router, mut stop: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BODY_BYTES_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection of the control API ended early");
    }
    drop(place);
}

struct Api {
    operator: Arc<Operator>,
    events: Arc<EventLog>,
    once: Once,
    followers: Arc<Semaphore>,
    lookers: Arc<Semaphore>,
    walkers: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    data_dir: HeaderValue,
}

type Shared = State<Arc<Api>>;

fn router(api: Api) -> Router {
    let data_dir = api.data_dir.clone();
    let name_directory = move |mut response: Response| {
        response.headers_mut().insert(DATA_DIR_HEADER, data_dir.clone());
        std::future::ready(response)
    };
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/heartbeat", get(heartbeats))
        .route("/v1/peers", get(peers))
        .route("/v1/pending", get(|State(api): Shared| look_through(api, |operator| Ok(operator.pending()))))
        .route("/v1/sessions", get(|State(api): Shared| look_through(api, |operator| Ok(operator.sessions()))))
        .route("/v1/explain", get(explain))
        .route("/v1/events", get(events))
        .route("/v1/trust", post(trust))
        .route("/v1/reject", post(reject))
        .route("/v1/revoke", post(revoke))
        .route("/v1/block", post(block))
        .route("/v1/unblock", post(unblock))
        .route("/v1/ping", post(ping))
        .route("/metrics", get(metrics_text))
        .merge(networks::routes())
        .fallback(|| std::future::ready(failed(StatusCode::NOT_FOUND, no_such("path"))))
        .method_not_allowed_fallback(|| std::future::ready(failed(StatusCode::METHOD_NOT_ALLOWED, no_such("method"))))
        .layer(axum::middleware::map_response(name_directory))
        .with_state(Arc::new(api))
}

fn no_such(what: &str) -> ApiError {
    let error = ApiError::new(ErrorCode::Usage, format!("The control API has no such {what}."));
    error.hint("this node may be older than the program that asks; see GET /v1/status")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeartbeatQuery {
    ticks: u32,
}

async fn heartbeats(query: Result<Query<HeartbeatQuery>, QueryRejection>) -> Response {
    match asked(query) {
        Ok(query) => reply(Ok(heartbeat::beat(query.ticks).await)),
        Err(error) => reply::<()>(Err(error)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeersQuery {
    state: Option<String>,
}

async fn peers(State(api): Shared, query: Result<Query<PeersQuery>, QueryRejection>) -> Response {
    look_through(api, move |operator| asked(query).and_then(|query| operator.peers(query.state.as_deref()))).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    peer: String,
}

async fn explain(State(api): Shared, query: Result<Query<ExplainQuery>, QueryRejection>) -> Response {
    look_through(api, move |operator| asked(query).and_then(|query| operator.explain(&query.peer))).await
}

/// Where there are networks it walks their rosters, off the control thread too, and waits for no list of records.
async fn status(State(api): Shared) -> Response {
    if !api.operator.is_in_a_network() {
        return reply(Ok(api.operator.status_at_once()));
    }
    let walkers = Arc::clone(&api.walkers);
    aside(api, walkers, |operator| Ok(operator.status())).await
}

/// What looks at every record, and writes a row for each, does so off the control thread, a few at once.
async fn look_through<T: Serialize + Send + 'static>(
    api: Arc<Api>,
    work: impl FnOnce(&Operator) -> Result<T, ApiError> + Send + 'static,
) -> Response {
    let lookers = Arc::clone(&api.lookers);
    aside(api, lookers, work).await
}

/// Off the control thread, with one of `places`. A panic in it is the error of this one request.
async fn aside<T: Serialize + Send + 'static>(
    api: Arc<Api>,
    places: Arc<Semaphore>,
    work: impl FnOnce(&Operator) -> Result<T, ApiError> + Send + 'static,
) -> Response {
    let broken =
        || failed(StatusCode::INTERNAL_SERVER_ERROR, ApiError::new(ErrorCode::Failure, "Looking failed; see the log."));
    // The permit lives as long as the work, also where nobody waits for it any more.
    let Ok(permit) = places.acquire_owned().await else {
        return broken();
    };
    let work = move || {
        let _permit = permit;
        reply(work(&api.operator))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| broken())
}

async fn trust(api: Shared, request: Request) -> Response {
    let id = |request: &TrustRequest| request.operation_id.clone();
    change(api, request, id, |operator, request| async move { value(operator.trust(&request).await) }).await
}

async fn reject(api: Shared, request: Request) -> Response {
    change_peer(api, request, |operator, request| async move { value(operator.reject(&request).await) }).await
}

async fn revoke(api: Shared, request: Request) -> Response {
    change_peer(api, request, |operator, request| async move { value(operator.revoke(&request).await) }).await
}

async fn block(api: Shared, request: Request) -> Response {
    change_peer(api, request, |operator, request| async move { value(operator.block(&request).await) }).await
}

async fn unblock(api: Shared, request: Request) -> Response {
    change_peer(api, request, |operator, request| async move { value(operator.unblock(&request).await) }).await
}

/// Not a change: a repeat measures again.
async fn ping(State(api): Shared, request: Request) -> Response {
    match body::<PeerRequest>(request).await {
        Ok(request) => reply(api.operator.ping(&request).await),
        Err(error) => reply::<()>(Err(error)),
    }
}

async fn change_peer<W, F>(api: Shared, request: Request, work: W) -> Response
where
    W: FnOnce(Arc<Operator>, PeerRequest) -> F,
    F: Future<Output = Outcome> + Send + 'static,
{
    change(api, request, |request: &PeerRequest| request.operation_id.clone(), work).await
}

/// Reads a request, and does what it asks for once.
async fn change<Q, W, F>(State(api): Shared, request: Request, id: fn(&Q) -> Option<String>, work: W) -> Response
where
    Q: DeserializeOwned + Serialize,
    W: FnOnce(Arc<Operator>, Q) -> F,
    F: Future<Output = Outcome> + Send + 'static,
{
    let path = request.uri().path().to_owned();
    let request = match body::<Q>(request).await {
        Ok(request) => request,
        Err(error) => return reply::<()>(Err(error)),
    };
    let id = id(&request);
    let whole = format!("{path} {}", serde_json::to_string(&request).unwrap_or_default());
    let work = work(Arc::clone(&api.operator), request);
    reply(api.once.run(id.as_deref(), &whole, work).await)
}

async fn metrics_text(State(api): Shared) -> Response {
    let text = metrics::openmetrics(&api.operator.status_at_once(), &api.operator.measured());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    since: Option<u64>,
    #[serde(default)]
    follow: bool,
}

async fn events(State(api): Shared, query: Result<Query<EventsQuery>, QueryRejection>) -> Response {
    let query = match asked(query) {
        Ok(query) => query,
        Err(error) => return reply::<()>(Err(error)),
    };
    let since = query.since.unwrap_or_else(|| api.events.before_oldest());
    let rows = match api.events.since(since) {
        Ok(rows) => rows,
        Err(gone) => return failed(StatusCode::GONE, events_gone(gone)),
    };
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    if !query.follow {
        let text: String = rows.iter().map(event_line).collect();
        return (headers, text).into_response();
    }
    let Ok(place) = Arc::clone(&api.followers).try_acquire_owned() else {
        let error = ApiError::new(ErrorCode::TryAgain, format!("{FOLLOWERS_MAX} clients follow the events already."));
        return reply::<()>(Err(error.hint("end one of them first")));
    };
    let (sender, lines) = mpsc::channel(FOLLOWER_LINES);
    tokio::spawn(follow(api, since, rows, sender, place));
    (headers, Body::new(Lines(lines))).into_response()
}

/// Sends events until the reader leaves, the node stops, or the reader is too slow for what is kept.
async fn follow(
    api: Arc<Api>,
    mut since: u64,
    mut rows: Vec<EventRow>,
    lines: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
) {
    let mut stop = api.stop.clone();
    loop {
        for row in rows {
            since = row.seq;
            if lines.send(Bytes::from(event_line(&row))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = lines.closed() => return,
            () = api.events.wait_past(since) => {}
        }
        rows = match api.events.since(since) {
            Ok(rows) => rows,
            Err(gone) => {
                let mut line = json_text(&Versioned::new(ErrorReply { error: events_gone(gone) }));
                line.push('\n');
                let _ = lines.send(Bytes::from(line)).await;
                return;
            }
        };
    }
}

fn events_gone(gone: Gone) -> ApiError {
    let hint = format!("begin again with --since {}; `handfast peers` shows the present", gone.oldest - 1);
    ApiError::new(ErrorCode::NotFound, format!("{gone}.")).hint(hint)
}

fn event_line(row: &EventRow) -> String {
    let mut line = json_text(&Versioned::new(row));
    line.push('\n');
    line
}

/// A body that is written line by line.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// Reads a bounded body as JSON.
async fn body<Q: DeserializeOwned>(request: Request) -> Result<Q, ApiError> {
    let read = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
    let bytes = match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let message = format!("The request is incomplete or longer than {BODY_BYTES_MAX} bytes.");
            return Err(ApiError::new(ErrorCode::Usage, message));
        }
        Err(_) => return Err(ApiError::new(ErrorCode::TimedOut, "The request did not come to its end.")),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = handfast_protocol::text::escaped(&format!("The request is not understood: {error}."));
        ApiError::new(ErrorCode::Usage, message).hint("see node/schemas for what is taken")
    })
}

fn asked<Q>(query: Result<Query<Q>, QueryRejection>) -> Result<Q, ApiError> {
    query.map(|Query(query)| query).map_err(|error| {
        let message = format!("{}.", handfast_protocol::text::escaped(&error.body_text()));
        ApiError::new(ErrorCode::Usage, message)
    })
}

fn value<T: Serialize>(outcome: Result<T, ApiError>) -> Outcome {
    outcome.and_then(|reply| {
        serde_json::to_value(reply)
            .map_err(|_| ApiError::new(ErrorCode::Failure, "The reply cannot be written as JSON."))
    })
}

fn reply<T: Serialize>(outcome: Result<T, ApiError>) -> Response {
    match outcome {
        Ok(body) => json_response(StatusCode::OK, &Versioned::new(body)),
        Err(error) => {
            let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            failed(status, error)
        }
    }
}

fn failed(status: StatusCode, error: ApiError) -> Response {
    json_response(status, &Versioned::new(ErrorReply { error }))
}

fn json_response(status: StatusCode, body: &impl Serialize) -> Response {
    let mut text = json_text(body);
    text.push('\n');
    (status, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], text).into_response()
}

/// Our own types always serialize; the constant is for what is no object.
fn json_text(body: &impl Serialize) -> String {
    const UNWRITABLE: &str = r#"{"v":1,"error":{"code":"failure","message":"The reply cannot be written as JSON."}}"#;
    serde_json::to_string(body).unwrap_or_else(|_| UNWRITABLE.to_owned())
}

#[cfg(test)]
mod tests;
