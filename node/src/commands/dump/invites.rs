//! Rows of `invites.hf`. What a kind of record does not have is null.

use handfast_protocol::{NoticeKind, Role, VerifiedMembership};
use handfast_trust::NetRecord;
use handfast_trust::networks::{InviteRecord, MemberRecord, NetKey, NetworkRecord, RedemptionRecord};
use serde_json::{Value, json};

use crate::clock::rfc3339;

pub(super) fn row(key: &NetKey, record: &NetRecord) -> Value {
    let mut row = json!({
        "kind": null, "network": null, "peer_id": null, "invite": null, "name": null, "authority": null, "left": null,
        "rule": null, "joining": null, "certificates": [], "notice": null, "number": null, "uses": null, "used": null,
        "revoked": null, "expires_at": null, "at": null,
    });
    row["kind"] = json!(match key {
        NetKey::Network(_) => "network",
        NetKey::Member(..) => "member",
        NetKey::Notice(..) => "notice",
        NetKey::Invite(_) => "invite",
        NetKey::Redemption(..) => "redemption",
    });
    match key {
        NetKey::Network(network) => row["network"] = json!(network.to_string()),
        NetKey::Member(network, peer) | NetKey::Notice(network, peer) => {
            row["network"] = json!(network.to_string());
            row["peer_id"] = json!(peer.to_string());
        }
        NetKey::Invite(invite) => row["invite"] = json!(invite.to_string()),
        NetKey::Redemption(invite, peer) => {
            row["invite"] = json!(invite.to_string());
            row["peer_id"] = json!(peer.to_string());
        }
    }
    match record {
        NetRecord::Network(NetworkRecord { name, authority, left, rule, joined_at, joining }) => {
            row["name"] = json!(name.as_str());
            row["authority"] = json!(authority);
            row["left"] = json!(left);
            row["rule"] = json!(rule);
            row["joining"] = json!(joining.is_some());
            row["at"] = json!(rfc3339(*joined_at));
        }
        NetRecord::Member(MemberRecord { kept }) => {
            let rows = kept.iter().map(|kept| certificate(&kept.membership, kept.expired));
            row["certificates"] = rows.collect();
        }
        NetRecord::Notice(notice) => {
            let said = notice.notice();
            row["notice"] = json!(match said.kind {
                NoticeKind::Expel => "expel",
                NoticeKind::Readmit => "readmit",
            });
            row["number"] = json!(said.number);
            row["at"] = json!(rfc3339(said.issued_at));
        }
        NetRecord::Invite(record) => {
            let InviteRecord { uses, used, expires_at, revoked, made_at, .. } = record;
            row["network"] = json!(record.network().to_string());
            row["uses"] = json!(uses);
            row["used"] = json!(used);
            row["revoked"] = json!(revoked);
            row["expires_at"] = json!(rfc3339(*expires_at));
            row["at"] = json!(rfc3339(*made_at));
        }
        NetRecord::Redemption(RedemptionRecord { at, membership }) => {
            row["network"] = json!(membership.network().to_string());
            row["certificates"] = json!([certificate(membership, false)]);
            row["at"] = json!(rfc3339(*at));
        }
    }
    row
}

fn certificate(membership: &VerifiedMembership, expired: bool) -> Value {
    let chain = membership.membership();
    let certificate = &chain.certificate.certificate;
    json!({
        "sponsor": chain.sponsor().map(|sponsor| sponsor.to_string()),
        "role": match certificate.role { Role::Member => "member", Role::Sponsor => "sponsor" },
        "epoch": certificate.epoch,
        "issued_at": rfc3339(certificate.issued_at),
        "expires_at": rfc3339(chain.ends_at()),
        "expired": expired,
    })
}

/// One of each kind.
#[cfg(test)]
pub(super) fn samples() -> Vec<Value> {
    use handfast_protocol::{Certificate, InviteId, NetworkName, Notice, SecretKey, UnixMillis};
    use handfast_trust::networks::Kept;

    let now = UnixMillis(1_700_000_000_000);
    let (authority, peer) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]).peer_id());
    let network = authority.network_id();
    let certificate =
        Certificate { network, member: peer, epoch: 1, issued_at: now, expires_at: now.plus(1), role: Role::Member };
    let membership = certificate.by_authority(&authority).unwrap();
    let notice = Notice { network, member: peer, number: 1, kind: NoticeKind::Expel, issued_at: now };
    let name = NetworkName::new("lab").unwrap();
    let here = NetworkRecord { name, authority: true, left: false, rule: true, joined_at: now, joining: None };
    let kept = vec![Kept { membership: membership.clone(), expired: false }];
    let invite = InviteId([3; 32]);
    vec![
        row(&NetKey::Network(network), &NetRecord::Network(here)),
        row(&NetKey::Member(network, peer), &NetRecord::Member(MemberRecord { kept })),
        row(&NetKey::Notice(network, peer), &NetRecord::Notice(notice.sign(&authority).unwrap())),
        row(&NetKey::Redemption(invite, peer), &NetRecord::Redemption(RedemptionRecord { at: now, membership })),
    ]
}
