//! `remora demo`, as a person runs it in a pipe.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::{Command, Output};

fn remora(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_remora")).args(args).output().unwrap()
}

fn out(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_demo_ends_by_itself_and_every_check_holds() {
    let output = remora(&["demo", "--for", "6s", "--rate", "60"]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for expected in
        ["no request of a visitor failed", "split 90/10", "split 50/50", "5 of 5 running", "every check held"]
    {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no escapes in a pipe");
}

#[test]
fn a_time_that_is_no_time_is_refused() {
    let output = remora(&["demo", "--for", "soon"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(out(&output).contains("20s"), "{}", out(&output));
}
