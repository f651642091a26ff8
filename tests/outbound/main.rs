//! Clients that learn from the answers of a foreign server.

mod answers;
#[path = "../support/paused.rs"]
mod paused;
#[path = "../support/processes.rs"]
mod processes;
mod simulation;
mod wire;

/// Not a test of its own: what the children of these tests do.
#[test]
fn child() {
    let Some(part) = processes::part() else { return };
    assert_eq!(part.role, "refused by the server");
    answers::refused_by_the_server(&part.cache);
}
