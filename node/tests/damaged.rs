//! Files that cannot be believed: refused by name and with a remedy, every byte left, nobody trusted (line 8).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{chown, symlink};
use std::process::Command;

use common::disk::{Frame, allow, bytes_of, flip, frames, make, overwrite, put_back};
use common::{Home, OTHER_USER, Running, as_another_user, disk, friends, schema, skipped, stranger, text};

/// A closed directory with grants, revokes, a block, and a floor that reaches all of it.
fn filled() -> Home {
    let home = Home::initialised();
    home.ok(["revoke", &granted_then_revoked(&home, 1), "--note", "first"]);
    for number in 2..6 {
        home.ok(["trust", &stranger(number)]);
    }
    home.ok(["block", &stranger(6)]);
    home.ok(["revoke", &granted_then_revoked(&home, 7), "--note", "last"]);
    home
}

fn granted_then_revoked(home: &Home, number: u64) -> String {
    let peer = stranger(number);
    home.ok(["trust", &peer]);
    peer
}

fn trust_file(home: &Home) -> std::path::PathBuf {
    home.file("trust.hf")
}

/// A batch in the middle: the one that granted to stranger 3.
fn middle(home: &Home) -> Frame {
    let batches: Vec<Frame> = frames(&trust_file(home)).into_iter().filter(|frame| frame.kind == 3).collect();
    assert_eq!(batches.len(), 9, "one for each change");
    batches[3]
}

fn last(home: &Home) -> Frame {
    *frames(&trust_file(home)).last().unwrap()
}

fn set_len(home: &Home, name: &str, length: u64) {
    OpenOptions::new().write(true).open(home.file(name)).unwrap().set_len(length).unwrap();
}

/// A header that holds, of a version after ours.
fn make_newer(home: &Home) {
    let mut header = fs::read(trust_file(home)).unwrap()[..128].to_vec();
    header[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let checksum = blake3::hash(&header[..112]);
    header[112..].copy_from_slice(&checksum.as_bytes()[..16]);
    overwrite(&trust_file(home), 0, &header);
}

fn put_a_file_of_another_node(home: &Home) {
    let other = filled();
    make(&trust_file(home), &fs::read(trust_file(&other)).unwrap());
}

fn put_an_older_file(home: &Home) {
    let older = fs::read(trust_file(home)).unwrap();
    home.ok(["revoke", &stranger(2)]);
    make(&trust_file(home), &older);
}

/// Checks that nobody gets in, that the error says so and what to do, and that no byte changes.
fn check(home: &Home, code: i32, says: &[&str]) {
    let before = bytes_of(home);
    let (peer, listen) = (stranger(99), format!("{}:0", home.ip()));
    let commands: [&[&str]; 6] =
        [&["run", "--listen", &listen], &["trust", &peer], &["revoke", &peer], &["peers"], &["status"], &["sessions"]];
    for command in commands {
        let refused = home.refused(code, command);
        for words in says {
            refused.says(words);
        }
        assert!(!refused.hint.is_empty(), "{command:?}: {refused:#?}");
        assert!(bytes_of(home) == before, "{command:?} has changed a file");
    }
}

type Damage = fn(&Home);

#[test]
fn a_damaged_store_is_refused_by_name_with_a_remedy_and_keeps_every_byte() {
    let recover = "handfast store recover";
    let table: [(&str, Damage, &[&str]); 14] = [
        ("first byte", |home| flip(&trust_file(home), 0), &["trust.hf", "at byte 0", "does not begin", recover]),
        ("header", |home| flip(&trust_file(home), 20), &["trust.hf", "checksum of its header", recover]),
        ("short", |home| set_len(home, "trust.hf", 100), &["trust.hf", "shorter than its header", recover]),
        ("empty", |home| set_len(home, "trust.hf", 0), &["trust.hf", "shorter than its header", recover]),
        (
            "byte in a middle frame",
            |home| flip(&trust_file(home), middle(home).offset + 64 + 40),
            &["trust.hf", "digest of a frame", recover],
        ),
        (
            "length in a middle frame",
            |home| flip(&trust_file(home), middle(home).offset + 9),
            &["trust.hf", "header of a frame", recover],
        ),
        (
            "acknowledged frame cut short",
            |home| set_len(home, "trust.hf", last(home).end() - 10),
            &["trust.hf", "was durable", recover],
        ),
        (
            "acknowledged frame cut off",
            |home| set_len(home, "trust.hf", last(home).offset),
            &["trust.hf", "was durable", recover],
        ),
        ("older file", put_an_older_file, &["trust.hf", "was durable", recover]),
        ("another node's", put_a_file_of_another_node, &["trust.hf", "belongs to another node", "put back"]),
        ("newer version", make_newer, &["trust.hf", "format version 2", "run the version"]),
        ("missing", |home| fs::remove_file(trust_file(home)).unwrap(), &["trust.hf", "missing", recover]),
        ("floor missing", |home| fs::remove_file(home.file("floor")).unwrap(), &["floor", "missing", recover]),
        ("floor", |home| flip(&home.file("floor"), 40), &["floor", "checksum", recover]),
    ];
    for (name, damage, says) in table {
        let home = filled();
        damage(&home);
        check(&home, 8, says);
        let files = home.run(["store", "check"]);
        assert_eq!(files.code, Some(8), "{name}: {files:#?}");
        schema::check("files", &files.object());
        let rows = files.object()["files"].clone();
        let bad = rows.as_array().unwrap().iter().find(|row| row["ok"] == false).cloned();
        let bad = bad.unwrap_or_else(|| panic!("{name}: {rows:#}"));
        assert_eq!((text(&bad["file"]).as_str(), bad["error"].is_string()), (says[0], true), "{name}");
        check(&home, 8, says);
    }
}

#[test]
fn an_offset_tells_where_the_damage_is() {
    let home = filled();
    let frame = middle(&home);
    flip(&trust_file(&home), frame.offset + 64);
    home.refused(8, ["peers"]).says(&format!("at byte {}", frame.offset));
}

#[test]
fn permissions_that_let_others_in_are_refused() {
    let home = filled();
    allow(&home.file("identity.pem"), 0o644);
    check(&home, 1, &["identity.pem", "0644", "chmod 600"]);
    allow(&home.file("identity.pem"), 0o600);
    allow(home.path(), 0o750);
    check(&home, 1, &["0750", "chmod 700"]);
    allow(home.path(), 0o700);
    allow(&trust_file(&home), 0o640);
    check(&home, 8, &["trust.hf", "other users have permissions", "chmod 600"]);
    allow(&trust_file(&home), 0o600);
    assert_eq!(home.ok(["peers"])["peers"].as_array().unwrap().len(), 7);
}

#[test]
fn a_symlink_in_place_of_the_directory_or_of_a_file_is_refused() {
    let home = filled();
    let link = home.beside("link");
    symlink(home.path(), &link).unwrap();
    check(&home.by_name(&link), 1, &["is a symlink", "name the directory"]);

    let elsewhere = home.beside("trust.hf");
    make(&elsewhere, &fs::read(trust_file(&home)).unwrap());
    fs::remove_file(trust_file(&home)).unwrap();
    symlink(&elsewhere, trust_file(&home)).unwrap();
    check(&home, 8, &["trust.hf", "not a regular file"]);
}

#[test]
fn a_file_that_may_not_be_read_is_closed_and_not_absent() {
    let home = filled();
    allow(&trust_file(&home), 0o000);
    if fs::File::open(trust_file(&home)).is_err() {
        return check(&home, 8, &["trust.hf", "permission denied"]);
    }
    // Root may read everything: another user has to try.
    let Some(mut peers) = as_another_user(&home.command(["peers"])) else {
        return skipped("EACCES: we are root, and cannot be another user");
    };
    let owner = Some(OTHER_USER.parse().unwrap());
    chown(home.path().parent().unwrap(), owner, owner).unwrap();
    chown(home.path(), owner, owner).unwrap();
    for name in bytes_of(&home).into_keys().chain(["lock".into()]) {
        chown(home.file(&name), owner, owner).unwrap();
    }
    if peers.output().is_ok_and(|output| output.status.code() == Some(126)) {
        return skipped("EACCES: another user cannot run the program here");
    }
    let before = bytes_of(&home);
    for command in [&["peers"][..], &["trust", &stranger(99)], &["run"]] {
        let command: Command = as_another_user(&home.command(command)).unwrap();
        let refused = Running::begin(command).done().refused(8);
        refused.says("trust.hf").says("permission denied").says("run as the owner");
    }
    assert!(bytes_of(&home) == before);
}

#[test]
fn half_an_append_that_was_never_acknowledged_is_cut_off_with_a_warning() {
    let cuts: [fn(Frame) -> u64; 4] = [
        |frame| frame.offset + 1,
        |frame| frame.offset + 64,
        |frame| frame.offset + 64 + frame.payload / 2,
        |frame| frame.end() - 1,
    ];
    for (number, cut) in cuts.into_iter().enumerate() {
        let home = filled();
        let floor = fs::read(home.file("floor")).unwrap();
        let before = home.ok(["peers"]);
        home.ok(["trust", &stranger(50)]);
        // As a power cut would leave it: the floor of before, and a part of the append.
        make(&home.file("floor"), &floor);
        set_len(&home, "trust.hf", cut(last(&home)));
        let checked = home.ok(["store", "check"]);
        let torn = checked["files"].as_array().unwrap().iter().find(|row| row["file"] == "trust.hf").unwrap();
        assert!(torn["torn_bytes"].as_u64().unwrap() > 0, "cut {number}: {checked:#}");
        let node = home.start();
        assert!(node.stderr().contains("torn append found"), "cut {number}: {}", node.stderr());
        assert_eq!(node.get("/v1/peers")["peers"], before["peers"], "cut {number}");
        node.home().ok(["trust", &stranger(51)]);
        node.stop();
        let checked = home.ok(["store", "check"]);
        assert!(checked["files"].as_array().unwrap().iter().all(|row| row["torn_bytes"] == 0), "cut {number}");
        assert_eq!(home.peer(&stranger(51))["state"], "requested");
    }
}

#[test]
fn damaged_peers_and_sessions_are_set_aside_and_the_node_runs() {
    let (a, b) = friends();
    let (home, addr, b_id) = (a.home().clone(), a.addr(), b.id());
    a.stop();
    b.stop();
    for file in ["peers.hf", "sessions.hf"] {
        flip(&home.file(file), 3);
        let damaged = fs::read(home.file(file)).unwrap();
        let node = common::Node::start(&home, &addr);
        let log = node.stderr();
        assert!(log.contains("damaged file set aside") && log.contains(file), "{log}");
        assert_eq!(node.state(&b_id), "trusted");
        node.home().ok(["trust", &stranger(1)]);
        node.stop();
        let aside = bytes_of(&home).into_iter().find(|(name, _)| name.starts_with(&format!("{file}.damaged-")));
        assert!(aside.is_some_and(|(_, bytes)| bytes == damaged), "the evidence of {file} is kept");
    }
    let checked = home.ok(["store", "check"]);
    let mut files: Vec<String> = checked["files"].as_array().unwrap().iter().map(|row| text(&row["file"])).collect();
    files.sort();
    assert_eq!(files, ["floor", "invites.hf", "peers.hf", "sessions.hf", "trust.hf"]);
}

#[test]
fn recover_brings_a_closed_node_back_with_every_readable_revoke() {
    let home = filled();
    flip(&trust_file(&home), middle(&home).offset + 64 + 40);
    let damaged = fs::read(trust_file(&home)).unwrap();
    home.refused(8, ["peers"]);
    let reply = home.ok(["store", "recover"]);
    schema::check("recover", &reply);
    assert_eq!(
        (&reply["recovered"], &reply["kept"]["revokes"], &reply["kept"]["blocks"]),
        (&true.into(), &2.into(), &1.into())
    );
    assert_eq!(reply["kept"]["grants"], 0);
    let aside = text(&reply["set_aside"][0]);
    assert_eq!(fs::read(home.file(&aside)).unwrap(), damaged);

    let node = home.start();
    for (number, state) in [(1, "revoked"), (7, "revoked"), (6, "blocked"), (2, "unknown"), (3, "unknown")] {
        assert_eq!(node.state(&stranger(number)), state, "stranger {number}");
    }
    assert_eq!(node.peer(&stranger(1))["ours"]["note"], "first");
    assert_eq!(node.peer(&stranger(7))["ours"]["note"], "last");
    node.home().ok(["trust", &stranger(2)]);
    node.kill();
    assert_eq!(home.peer(&stranger(2))["state"], "requested");
    assert_eq!(home.peer(&stranger(1))["state"], "revoked");
}

#[test]
fn recover_keeps_grants_only_when_told_to() {
    let home = filled();
    flip(&trust_file(&home), middle(&home).offset + 64 + 40);
    let reply = home.ok(["store", "recover", "--keep-grants"]);
    assert_eq!((&reply["kept"]["grants"], &reply["kept"]["revokes"]), (&3.into(), &2.into()));
    let states = [2, 4, 5].map(|number| text(&home.peer(&stranger(number))["state"]));
    assert_eq!(states, ["requested", "requested", "requested"]);
    assert_eq!(home.peer(&stranger(7))["state"], "revoked");
}

#[test]
fn recover_mends_a_missing_floor_and_a_missing_file() {
    let home = filled();
    fs::remove_file(home.file("floor")).unwrap();
    assert_eq!(home.ok(["store", "recover"])["kept"]["revokes"], 2);
    assert_eq!(home.peer(&stranger(7))["state"], "revoked");

    fs::remove_file(trust_file(&home)).unwrap();
    let reply = home.ok(["store", "recover"]);
    assert_eq!((&reply["recovered"], &reply["kept"]["records"]), (&true.into(), &0.into()));
    assert_eq!(home.ok(["peers"])["peers"].as_array().unwrap().len(), 0);
}

#[test]
fn recover_leaves_alone_what_is_sound_or_in_use_or_of_another_node() {
    let home = filled();
    let before = bytes_of(&home);
    let reply = home.ok(["store", "recover"]);
    assert_eq!(reply["recovered"], false);
    assert!(bytes_of(&home) == before);

    let node = home.start();
    home.refused(7, ["store", "recover"]).says(&node.pid().to_string());
    node.stop();

    put_a_file_of_another_node(&home);
    let before = bytes_of(&home);
    home.refused(8, ["store", "recover"]).says("another node");
    assert!(bytes_of(&home) == before);
}

#[test]
fn a_node_is_closed_after_an_older_file_is_put_back_although_it_is_sound() {
    let home = filled();
    let old = home.beside("old");
    disk::copy(&home, &old);
    home.ok(["revoke", &stranger(2), "--note", "must not be forgotten"]);
    // The whole directory is another matter: only peers can know better.
    let floor = fs::read(home.file("floor")).unwrap();
    put_back(&home, &old);
    make(&home.file("floor"), &floor);
    check(&home, 8, &["trust.hf", "was durable"]);
}
