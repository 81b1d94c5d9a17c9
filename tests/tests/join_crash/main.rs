//! SIGKILL to either side at every named step of a redemption, and the same ticket again.
//!
//! Both sides are processes. One of them stands still at the step when one of them is killed. Whatever was there then:
//! the same key gets one certificate, the use is taken once, and another key finds the invite exhausted. Who has its
//! certificate on the disk goes on by itself, without a command.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails in a suite is to be seen")]

mod held;
mod part;

use std::net::SocketAddr;

use self::part::Part;
use tempfile::TempDir;

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Whose step it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Joiner,
    Host,
}
use Side::{Host, Joiner};

/// What is on the joiner's disk, or perhaps not yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Has {
    Nothing,
    /// A certificate, not all that it needs: it goes on by itself.
    Certificate,
}
use Has::{Certificate, Nothing};

/// Every step of a redemption, in the order of a join: who stands still, at which of its steps, how often it has passed
/// that before, and what the joiner has then.
const STEPS: [(&str, Side, &str, usize, Has); 24] = [
    ("connected, nothing asked", Joiner, "connected", 0, Nothing),
    ("asked", Joiner, "asked", 0, Nothing),
    ("the request was read", Host, "host: read", 0, Nothing),
    ("redemption written, not synced", Host, "before invites.hf", 0, Nothing),
    ("redemption synced", Host, "after invites.hf", 0, Nothing),
    ("redemption decided, in memory", Host, "host: decided", 0, Nothing),
    ("redemption durable, to be decided again", Host, "host: durable", 0, Nothing),
    ("decided again, not answered", Host, "host: decided", 1, Nothing),
    ("answered with the certificate", Host, "host: answered", 0, Nothing),
    ("the certificate was read", Joiner, "read", 0, Nothing),
    ("certificate written, not synced", Joiner, "before invites.hf", 0, Nothing),
    ("certificate synced", Joiner, "after invites.hf", 0, Certificate),
    ("certificate kept in memory", Joiner, "kept", 0, Nothing),
    ("asked for the expulsions", Joiner, "asked", 1, Nothing),
    ("asked for the expulsions, read", Host, "host: read", 1, Nothing),
    ("answered with the expulsions", Host, "host: answered", 1, Nothing),
    ("the expulsions were read", Joiner, "read", 1, Nothing),
    ("the expulsions are kept", Joiner, "kept", 1, Nothing),
    ("asked for the roster", Joiner, "asked", 2, Nothing),
    ("answered with the roster", Host, "host: answered", 2, Nothing),
    ("the roster was read", Joiner, "read", 2, Nothing),
    ("certificate durable", Joiner, "durable", 0, Certificate),
    ("the roster is kept", Joiner, "kept", 2, Certificate),
    ("all of it is durable", Joiner, "durable", 1, Certificate),
];

struct Running {
    home: TempDir,
    part: Option<Part>,
}

impl Running {
    fn new() -> Running {
        let home = tempfile::tempdir().unwrap();
        let part = Some(Part::start(&home.path().join("data"), ANYWHERE));
        Running { home, part }
    }

    fn part(&mut self) -> &mut Part {
        self.part.as_mut().unwrap()
    }

    fn kill_and_restart(&mut self) {
        let at = self.part.take().unwrap().kill();
        self.part = Some(Part::start(&self.home.path().join("data"), at));
    }
}

/// A host with a network, and somebody who comes too late.
struct World {
    host: Running,
    stranger: Running,
}

impl World {
    fn new() -> World {
        let mut host = Running::new();
        assert_eq!(host.part().ask("found"), "found");
        World { host, stranger: Running::new() }
    }

    fn is_killed(&mut self, killed: Side, (name, held, step, pass, has): (&str, Side, &str, usize, Has)) {
        let case = format!("{name}, {killed:?} killed");
        let (host, mut joiner) = (&mut self.host, Running::new());
        let ticket = host.part().ask("invite");
        let (host_id, joiner_id) = (host.part().id, joiner.part().id);
        let side = if held == Host { host.part() } else { joiner.part() };
        assert_eq!(side.ask(&format!("arm {pass} {step}")), "armed", "{case}");
        joiner.part().tell(&format!("join {ticket}"));
        let side = if held == Host { host.part() } else { joiner.part() };
        assert_eq!(side.ask("held"), "held", "{case}");

        let before = joiner.part().ask("certificate");
        if killed == Host {
            host.kill_and_restart();
            joiner.part().tell("go");
            // The join that was under way comes to its end by itself.
            assert_eq!(joiner.part().hear(), "joined", "{case}");
        } else {
            joiner.kill_and_restart();
            host.part().tell("go");
            if has == Certificate {
                let trusted = joiner.part().ask(&format!("until trusted {host_id}"));
                assert_eq!(trusted, "trusted", "{case}: without a command");
            }
        }
        assert_eq!(joiner.part().ask(&format!("join {ticket}")), "joined", "{case}: again");
        assert_eq!(joiner.part().ask(&format!("until trusted {host_id}")), "trusted", "{case}");
        assert_eq!(host.part().ask(&format!("until trusted {joiner_id}")), "trusted", "{case}");

        let certificate = joiner.part().ask("certificate");
        assert!(has == Nothing || before == certificate, "{case}: it had {before}, and has {certificate}");
        assert_eq!(host.part().ask("redemption"), format!("1 of 1 by 1: {certificate}"), "{case}");
        let late = self.stranger.part().ask(&format!("join {ticket}"));
        assert!(late.starts_with("refused") && late.contains("invite exhausted"), "{case}: {late}");
    }
}

fn every_step_with(killed: Side) {
    let mut world = World::new();
    for step in STEPS {
        world.is_killed(killed, step);
    }
}

#[test]
fn the_joiner_is_killed_at_every_step_and_the_same_ticket_gives_the_same_certificate() {
    every_step_with(Joiner);
}

#[test]
fn the_host_is_killed_at_every_step_and_the_same_ticket_gives_the_same_certificate() {
    every_step_with(Host);
}
