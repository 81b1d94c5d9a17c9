//! The routes about networks, invites, joins, and what rules granted.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;

use super::super::api::{
    InviteRequest, InviteRevokeRequest, JoinRequest, NetworkCreateRequest, NetworkRequest, UndoRequest,
};
use super::{Api, Shared, asked, change, look_through, value};
use crate::operations::Operator;

/// A handler for a change: the request's type, and what the operator does.
macro_rules! changes {
    ($($name:ident: $request:ty, $operation:ident;)*) => {$(
        async fn $name(api: Shared, request: Request) -> Response {
            let id = |request: &$request| request.operation_id.clone();
            change(api, request, id, |operator, request| async move { value(operator.$operation(&request).await) }).await
        }
    )*};
}

changes! {
    create: NetworkCreateRequest, network_create;
    leave: NetworkRequest, network_leave;
    expel: NetworkRequest, network_expel;
    readmit: NetworkRequest, network_readmit;
    invite: InviteRequest, invite;
    revoke_invite: InviteRevokeRequest, invite_revoke;
    join: JoinRequest, join;
    undo: UndoRequest, undo;
}

pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/networks", get(|State(api): Shared| look_through(api, |operator| Ok(operator.network_list()))))
        .route("/v1/network/create", post(create))
        .route("/v1/network/leave", post(leave))
        .route("/v1/network/expel", post(expel))
        .route("/v1/network/readmit", post(readmit))
        .route("/v1/network/members", get(members))
        .route("/v1/invites", get(|State(api): Shared| look_through(api, |operator| Ok(operator.invite_list()))))
        .route("/v1/invite", post(invite))
        .route("/v1/invite/revoke", post(revoke_invite))
        .route("/v1/join", post(join).get(progress))
        .route("/v1/undo", post(undo))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkQuery {
    network: Option<String>,
}

async fn members(State(api): Shared, query: Result<Query<NetworkQuery>, QueryRejection>) -> Response {
    let look =
        move |operator: &Operator| asked(query).and_then(|query| operator.network_members(query.network.as_deref()));
    look_through(api, look).await
}

async fn progress(State(api): Shared, query: Result<Query<NetworkQuery>, QueryRejection>) -> Response {
    let look =
        move |operator: &Operator| asked(query).and_then(|query| operator.join_progress(query.network.as_deref()));
    look_through(api, look).await
}
