//! No user is served another's answer.

#[path = "../support/leaks.rs"]
mod table;

use crate::{origin::serve, stampede::Group};

#[tokio::test]
async fn nobody_is_served_anothers_answer() {
    let upstream = serve(table::router()).await;
    for flags in [&[][..], &["--stale", "60", "--beta", "1000"]] {
        let group = Group::start(1, &upstream, flags);
        // A gateway upgrades nothing, so that such a request is like any other to the upstream.
        table::check(&group.url(0, ""), &["an upgrade"]).await;
    }
}
