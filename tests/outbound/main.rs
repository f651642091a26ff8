//! Clients that learn from the answers of a foreign server.

mod answers;
#[path = "../support/paused.rs"]
mod paused;
#[path = "../support/processes.rs"]
mod processes;
mod simulation;
mod wire;

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    assert_eq!(role, "refused by the server");
    answers::refused_by_the_server(&path);
}
