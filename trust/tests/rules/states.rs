//! The state follows from two edges, the local flag, the deny list and the clock.

use handfast_protocol::{Kind, Terms, UnixMillis};
use handfast_trust::{Edge, TrustRecord, View};

use crate::support::{Peer, terms};

/// Our edge, their edge, a flag; what follows. `-`: nothing; `G`: a grant; `E`: a grant that has ended by the clock;
/// `M`: one that is marked as ended, and the clock was set back; `N`: one by a network's rule, which counts only with a
/// membership; `R`: a revoke; `X`: a revoke with an end, which has passed: it counts all the same.
const TABLE: &str = "
    - - .   unknown        - - b   blocked       - - d   blocked
    G - .   requested      G - b   blocked       G - d   blocked
    - G .   pending        - G b   blocked       - G d   blocked
    G G .   trusted        G G b   blocked       G G d   blocked
    R - .   revoked        R - b   blocked       R - d   blocked
    R G .   revoked        R R .   revoked       R E .   revoked
    X G .   revoked        X - .   revoked       X R .   revoked
    - R .   refused        G R .   refused       E R .   refused
    - X .   refused        G X .   refused       M R .   refused
    - R b   blocked        G R b   blocked       G R d   blocked
    E - .   unknown        - E .   unknown       E E .   unknown
    M - .   unknown        - M .   unknown       M M .   unknown
    E G .   pending        M G .   pending       G E .   requested
    G M .   requested      N G .   pending       G N .   requested
    N N .   unknown        N - .   unknown       - N .   unknown
    R M .   revoked        R N .   revoked       N R .   refused
";

const NOW: UnixMillis = UnixMillis(1_000);

fn edge(letter: &str) -> Option<Edge> {
    let peer = Peer::new(1);
    let kind = if "RX".contains(letter) { Kind::Revoke } else { Kind::Grant };
    let plain = Terms { issued_at: UnixMillis(100), ..terms(kind, 5) };
    let ending = |expires_at| Terms { expires_at: Some(UnixMillis(expires_at)), ..plain.clone() };
    let (terms, expired) = match letter {
        "-" => return None,
        "G" => (ending(2_000), false),
        "E" | "X" => (ending(1_000), false),
        "M" => (ending(2_000), true),
        "N" => {
            let network = handfast_protocol::NetworkId::from_stored(*peer.id().as_bytes());
            (Terms { network: Some(network), ..plain.clone() }, false)
        }
        _ => (plain.clone(), false),
    };
    // Stored when it was issued: both sides' ends are at the same time.
    Some(Edge { expired, ..Edge::new(&peer.says(terms), UnixMillis(100)) })
}

#[test]
fn the_state_follows_from_the_table() {
    let words: Vec<&str> = TABLE.split_whitespace().collect();
    assert_eq!(words.len() % 4, 0);
    for row in words.chunks(4) {
        let record =
            TrustRecord { ours: edge(row[0]), theirs: edge(row[1]), blocked: row[2] == "b", ..TrustRecord::default() };
        assert_eq!(record.state(&View::outside(row[2] == "d", NOW)).as_str(), row[3], "{row:?}");
    }
}

#[test]
fn a_revoke_never_ends() {
    for side in [handfast_trust::Side::Ours, handfast_trust::Side::Theirs] {
        let revoke = edge("X").unwrap();
        assert_eq!(revoke.ends_at(side), None);
        assert!(!revoke.has_ended(side, UnixMillis(u64::MAX)));
    }
}
