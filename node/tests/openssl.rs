//! Keys go both ways between openssl and a data directory (line 15).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

use common::disk::{allow, bytes_of};
use common::{Home, skipped, text};

/// What openssl prints; `None` if there is none here.
fn openssl(arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("openssl").args(arguments).output().ok()?;
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// The public key of a key file, as openssl sees it: the last 32 bytes of its encoding.
fn public_key_of(file: &Path) -> Option<String> {
    let der = openssl(&["pkey", "-in", file.to_str().unwrap(), "-pubout", "-outform", "DER"])?;
    Some(der[der.len() - 32..].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn made_by_openssl(home: &Home) -> Option<std::path::PathBuf> {
    let file = home.beside("made.pem");
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", file.to_str().unwrap()])?;
    allow(&file, 0o600);
    Some(file)
}

#[test]
fn a_key_made_by_openssl_is_adopted_and_runs_a_node() {
    let home = Home::new();
    let Some(file) = made_by_openssl(&home) else {
        return skipped("there is no openssl here");
    };
    let made = home.ok(["init", "--identity", file.to_str().unwrap()]);
    assert_eq!(made["created"], true);
    assert_eq!(home.ok(["id"])["hex"], public_key_of(&file).unwrap());
    // The same key again is no error; one that others could have read is.
    assert_eq!(home.ok(["init", "--identity", file.to_str().unwrap()])["created"], false);
    allow(&file, 0o644);
    home.refused(1, ["init", "--identity", file.to_str().unwrap()]).says("chmod 600");
    let node = home.start();
    assert_eq!(node.id(), text(&made["peer_id"]));
}

#[test]
fn another_key_never_replaces_an_identity() {
    let home = Home::initialised();
    let Some(file) = made_by_openssl(&home) else {
        return skipped("there is no openssl here");
    };
    let before = bytes_of(&home);
    home.refused(4, ["init", "--identity", file.to_str().unwrap()]).says("never overwritten");
    assert!(bytes_of(&home) == before);
}

#[test]
fn our_identity_is_read_by_openssl() {
    let home = Home::initialised();
    let Some(found) = public_key_of(&home.file("identity.pem")) else {
        return skipped("there is no openssl here");
    };
    assert_eq!(home.ok(["id"])["hex"], found);
}
