//! What a throttle logs. A process of its own, since it listens to all of it.

use http::Request;
use std::{
    fmt,
    sync::{Arc, Mutex},
};
use tokio::time::advance;
use tower_floodgate::{
    ThrottleLayer,
    name::Header,
    throttle::{Limit, Rate, SlidingWindow},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

#[path = "support/paused.rs"]
mod paused;
#[path = "limits/support.rs"]
mod support;
use support::{ask, cache, secs, text, with};

/// Notes the events of this crate, as text.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<(Level, Vec<(String, String)>)>>>);

struct Fields(Vec<(String, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name().to_owned(), format!("{value:?}")));
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_floodgate::throttle")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push((*event.metadata().level(), fields.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_event_with_scope_and_limit_and_without_any_secret() {
    let listener = Listener::default();
    // For the whole process: whether an event is wanted is asked once, on whatever thread it is met first.
    tracing::subscriber::set_global_default(listener.clone()).unwrap();
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1))
        .and(Limit::from(SlidingWindow::new(2, secs(60))).named("minute"))
        .name(Header::new("x-key"))
        .deny(|request: &Request<()>| text(request.headers(), "x-key") == Some("secret-denied"))
        .block_for(secs(60), 3);
    let request = || with([("x-key", "secret-key"), ("authorization", "Bearer secret-token")]);
    for wait in [0, 0, 1, 0, 1, 1] {
        advance(secs(wait)).await;
        ask(&layer, request()).await;
    }
    ask(&layer.clone().shadow(), request()).await;
    ask(&layer, with([("x-key", "secret-denied")])).await;

    let events = std::mem::take(&mut *listener.0.lock().unwrap());
    let field = |at: usize, name: &str| {
        let found = events[at].1.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let told: Vec<_> = (0..events.len()).map(|at| (field(at, "reason"), field(at, "limit"))).collect();
    let some = |text: &str| Some(text.to_owned());
    let expected = [
        (some("Throttled"), None),
        (some("Throttled"), some("minute")),
        (some("Throttled"), some("minute")),
        (some("Blocked"), None),
        (some("Blocked"), None),
        (some("Denied"), None),
    ];
    assert_eq!(told, expected);
    for (at, (level, fields)) in events.iter().enumerate() {
        assert_eq!((*level, field(at, "scope").as_deref()), (Level::DEBUG, Some("api")));
        assert!(fields.iter().all(|(_, value)| !value.contains("secret")), "{fields:?}");
    }
    let shadow: Vec<_> = (0..events.len()).map(|at| field(at, "shadow").as_deref() == Some("true")).collect();
    assert_eq!(shadow, [false, false, false, false, true, false]);
    // Of a limit without a name it is told what it is.
    assert_eq!((field(0, "most").as_deref(), field(0, "window").as_deref()), (Some("1"), Some("1s")));
}
