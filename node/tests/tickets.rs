//! Tickets from the command line: the last use, where the secret may be seen, and what a terminal shows.
#![allow(clippy::disallowed_methods, reason = "tests put files there as an operator would")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{Home, Node, control, schema, skipped, text};
use handfast_protocol::{Ticket, codec};
use qrcode::{Color, QrCode};
use serde_json::{Value, json};

fn founder() -> Node {
    let node = Home::new().start();
    node.home().ok(["network", "create", "lab"]);
    node
}

fn ticket(of: &Node) -> String {
    text(&of.home().ok(["invite", "--network", "lab", "--uses", "1"])["ticket"])
}

/// As a command does, without starting one.
fn posted(home: &Home, path: &str, body: &Value) -> Result<Value, String> {
    let reply = control::post(home.path(), path, body).expect("the node answers");
    if reply.status == 200 { Ok(reply.json()) } else { Err(text(&reply.json()["error"]["message"])) }
}

#[test]
fn of_two_processes_that_redeem_the_last_use_at_the_same_moment_exactly_one_wins() {
    let (a, b, c) = (founder(), Home::new().start(), Home::new().start());
    let mut won_by = [0, 0];
    for round in 0..100 {
        let invite = json!({"uses": 1, "for_ms": 3_600_000});
        let ticket = text(&posted(a.home(), "/v1/invite", &invite).unwrap()["ticket"]);
        let request = &json!({"ticket": ticket});
        let both: Vec<Result<Value, String>> = std::thread::scope(|scope| {
            let join = |home| scope.spawn(move || posted(home, "/v1/join", request));
            let joins = [b.home(), c.home()].map(join);
            joins.map(|join| join.join().unwrap()).into()
        });
        let losers: Vec<&String> = both.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(losers.len() == 1 && losers[0].ends_with("invite exhausted."), "round {round}: {both:?}");
        won_by[usize::from(both[0].is_err())] += 1;
        let invites = a.get("/v1/invites");
        assert_eq!((&invites["invites"][0]["used"], &invites["invites"][0]["state"]), (&1.into(), &"exhausted".into()));
    }
    assert_eq!(won_by.iter().sum::<u32>(), 100, "{won_by:?}");
}

/// The arguments of a process, as `ps` shows them to everybody. There are none until the program has begun.
fn shown_by_ps(pid: u32) -> String {
    loop {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        if !bytes.is_empty() {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        std::thread::yield_now();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_ticket_on_standard_input_or_in_a_file_is_not_among_the_arguments() {
    let (a, b) = (founder(), Home::new().start());
    let invited = ticket(&a);
    let file = b.home().beside("ticket");
    // A pipe with a name: the command waits in the middle of reading it.
    assert!(Command::new("mkfifo").arg("-m").arg("600").arg(&file).status().unwrap().success());
    for given in ["-", file.to_str().unwrap()] {
        let mut command = b.home().command(["join", given]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // Nothing has been written yet, so that it is still there.
        let before = shown_by_ps(child.id());
        let mut pipe: Box<dyn std::io::Write> = match given {
            "-" => Box::new(child.stdin.take().unwrap()),
            file => Box::new(std::fs::File::options().write(true).open(file).unwrap()),
        };
        pipe.write_all(invited.as_bytes()).unwrap();
        let during = shown_by_ps(child.id());
        drop(pipe);
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let ticket = &invited[6..];
        for shown in [before, during] {
            assert!(shown.contains("join") && shown.contains(given) && !shown.contains(ticket), "{shown:?}");
        }
        let secret = codec::encode(&invited.parse::<Ticket>().unwrap().secret);
        let outputs = [done.stdout, done.stderr, a.stderr().into_bytes(), b.stderr().into_bytes()].concat();
        assert!(!String::from_utf8_lossy(&outputs).contains(ticket));
        assert!(!outputs.windows(secret.len()).any(|window| window == secret.as_slice()));
    }
}

/// What the program writes to a terminal of its own. `None` where there is no `script`.
fn on_a_terminal(home: &Home, arguments: &[&str]) -> Option<String> {
    let mut line = vec![env!("CARGO_BIN_EXE_handfast").to_owned()];
    line.extend(["--data-dir".to_owned(), home.path().display().to_string()]);
    line.extend(arguments.iter().map(|word| (*word).to_owned()));
    let mut command = Command::new("script");
    command.args(["-qefc", &line.join(" "), "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HANDFAST_")) {
        command.env_remove(name);
    }
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => panic!("{arguments:?}: {output:?}"),
        Err(_) => {
            skipped("a terminal: there is no `script` here");
            None
        }
    }
}

#[test]
fn a_terminal_shows_the_progress_of_a_join() {
    let (a, b) = (founder(), Home::new().start());
    // Members that are switched off: they are tried until it is known that they do not answer.
    for _ in 0..3 {
        let member = Home::new().start();
        member.home().ok(["join", &ticket(&a)]);
        member.stop();
    }
    let Some(shown) = on_a_terminal(b.home(), &["join", &ticket(&a)]) else {
        return;
    };
    let bars: Vec<&str> = shown.split(['\r', '\n']).filter(|part| part.contains("left")).collect();
    assert!(bars.iter().any(|bar| bar.contains("/4") && bar.contains("/s") && bar.contains("trusted")), "{shown:?}");
    assert!(shown.contains("Joined lab: 1 of 4 members trusted. 3 not yet."), "{shown}");
    assert!(shown.contains("not reached"), "{shown}");
    // What is still owed is what status shows.
    let status = b.home().ok(["status"]);
    schema::check("status", &status);
    let network = &status["networks"][0];
    assert_eq!((&network["members"], &network["trusted"], &network["joining"]), (&4.into(), &1.into(), &false.into()));
    assert_eq!(status["counts"]["undelivered"], 3);
}

/// The modules of a QR code that is drawn with half blocks, light where a character is: `true` for dark ones.
fn modules(drawn: &[&str]) -> Vec<Vec<bool>> {
    let halves = |line: &&str| {
        let of = |half: fn(char) -> bool| line.chars().map(|drawn| !half(drawn)).collect::<Vec<bool>>();
        [of(|drawn| matches!(drawn, '█' | '▀')), of(|drawn| matches!(drawn, '█' | '▄'))]
    };
    drawn.iter().flat_map(halves).collect()
}

#[test]
fn a_terminal_shows_a_ticket_as_a_qr_code() {
    let a = founder();
    let Some(shown) = on_a_terminal(a.home(), &["invite", "--network", "lab", "--qr"]) else {
        return;
    };
    let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let ticket = lines.iter().find(|line| line.starts_with("hfinv1")).unwrap();
    let is_drawn = |line: &&&str| !line.is_empty() && line.chars().all(|drawn| "█▀▄ ".contains(drawn));
    let drawn: Vec<&str> = lines.iter().filter(is_drawn).copied().collect();
    let found = modules(&drawn);
    let code = QrCode::new(ticket.to_ascii_uppercase()).unwrap();
    let (width, colors) = (code.width(), code.to_colors());
    let quiet = (found[0].len() - width) / 2;
    assert_eq!(quiet, 4, "{width} modules and a quiet zone: {shown}");
    for (at, color) in colors.iter().enumerate() {
        let (row, column) = (at / width + quiet, at % width + quiet);
        assert_eq!(found[row][column], *color == Color::Dark, "row {row}, column {column}: {shown}");
    }
    assert!(found[..quiet].iter().flatten().all(|dark| !dark), "the quiet zone is light");
}

#[test]
fn a_damaged_file_of_networks_is_recovered_and_what_rests_on_no_network_stays() {
    let (a, b) = (founder(), Home::new().start());
    common::befriend(&a, &b);
    let c = Home::new().start();
    c.home().ok(["join", &ticket(&a)]);
    a.until_state(&c.id(), "trusted");
    let (b_id, c_id) = (b.id(), c.id());
    let (home, at) = (a.home().clone(), a.addr());
    a.stop();
    let file = home.file("invites.hf");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    home.refused(8, ["run", "--listen", &at]).says("invites.hf").says("handfast store recover");
    home.refused(8, ["network", "list"]).says("invites.hf");
    let files = home.run(["store", "check"]);
    assert_eq!(files.code, Some(8), "{files:#?}");
    schema::check("recover", &home.ok(["store", "recover", "--keep-grants"]));
    assert!(std::fs::read_dir(home.path()).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().starts_with("invites.hf.damaged")
    }));
    let a = Node::start(&home, &at);
    assert!(a.home().ok(["network", "list"])["networks"].as_array().unwrap().is_empty());
    assert_eq!((a.state(&b_id).as_str(), a.state(&c_id) == "trusted"), ("trusted", false));
}
