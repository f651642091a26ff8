//! This crate's throttle beside those that others have written, asked in the same run.

use super::{Clients, call, nothing, now, statistics::median};
use axum::body::Body;
use governor::{Quota, RateLimiter};
use http::{HeaderValue, Request, Response};
use std::{
    convert::Infallible,
    hint::black_box,
    num::NonZeroU32,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};
use throttlecrab::PeriodicStore;
use tower::{Layer, Service};
use tower_floodgate::{Cache, Scope, ThrottleLayer, name::Header, throttle::Rate};
use tower_governor::{GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor};

/// The limit that all throttles keep to: either a burst that never ends, so that a name that is admitted stays in debt
/// and is known the next time; or one request a day, so that a name is refused from the second time on.
#[derive(Clone, Copy)]
struct Terms {
    per: u32,
    burst: u32,
}

const ADMIT: Terms = Terms { per: 1, burst: 3_000_000_000 };
const REFUSE: Terms = Terms { per: 86_400, burst: 1 };

impl Terms {
    fn per(self) -> Duration {
        Duration::from_secs(self.per.into())
    }

    fn rate(self) -> Rate {
        Rate::new(1, self.per()).burst(self.burst)
    }
}

/// A throttle that is asked for its names in turn, and says whether it admits.
pub(super) struct Contestant {
    pub(super) what: &'static str,
    pub(super) ask: Box<dyn FnMut() -> bool>,
    /// Nanoseconds of an ask, one for each round.
    rounds: Vec<f64>,
}

/// All throttles, admitting and refusing, each knowing its names.
pub(super) fn contestants(names: usize) -> Vec<Contestant> {
    let keys: Rc<[String]> = (0..names).map(|i| format!("client-{i:06}")).collect();
    let mut all = Vec::new();
    for terms in [ADMIT, REFUSE] {
        let cache = Cache::temporary().unwrap();
        let admits = terms.burst > 1;
        let asks: [(_, _, Box<dyn FnMut() -> bool>); 5] = [
            ("check admitted", "check refused", Box::new(check(cache.scope("check"), &keys, terms))),
            ("layer admitted", "layer refused", Box::new(layer(cache.scope("layer"), names, terms))),
            ("governor admitted", "governor refused", Box::new(governor(&keys, terms))),
            ("tower_governor admitted", "tower_governor refused", Box::new(tower_governor(names, terms))),
            ("throttlecrab admitted", "throttlecrab refused", Box::new(throttlecrab(&keys, terms))),
        ];
        for (admitting, refusing, mut ask) in asks {
            let what = if admits { admitting } else { refusing };
            for _ in 0..names {
                ask();
            }
            assert_eq!(ask(), admits, "{what}");
            all.push(Contestant { what, ask, rounds: Vec::new() });
        }
    }
    all
}

fn in_turn(keys: &Rc<[String]>) -> impl FnMut() -> usize + 'static {
    let (mut at, count) = (0, keys.len());
    move || {
        at = (at + 1) % count;
        at
    }
}

fn check(scope: Scope, keys: &Rc<[String]>, terms: Terms) -> impl FnMut() -> bool + 'static {
    let (keys, mut next) = (keys.clone(), in_turn(keys));
    move || now(scope.throttle(&keys[next()], terms.rate()).check()).is_ok()
}

fn layer(scope: Scope, names: usize, terms: Terms) -> impl FnMut() -> bool + 'static {
    let layer = ThrottleLayer::of(scope, terms.rate()).name(Header::new("x-client"));
    through(layer.layer(nothing::<Body>()), names)
}

fn governor(keys: &Rc<[String]>, terms: Terms) -> impl FnMut() -> bool + 'static {
    let quota = Quota::with_period(terms.per()).unwrap().allow_burst(NonZeroU32::new(terms.burst).unwrap());
    let limiter = RateLimiter::<String, _, _>::keyed(quota);
    let (keys, mut next) = (keys.clone(), in_turn(keys));
    move || limiter.check_key(&keys[next()]).is_ok()
}

fn tower_governor(names: usize, terms: Terms) -> impl FnMut() -> bool + 'static {
    #[derive(Clone)]
    struct ByHeader;
    impl KeyExtractor for ByHeader {
        type Key = HeaderValue;
        fn extract<B>(&self, request: &Request<B>) -> Result<HeaderValue, GovernorError> {
            request.headers().get("x-client").cloned().ok_or(GovernorError::UnableToExtractKey)
        }
    }
    let mut config = GovernorConfigBuilder::default().key_extractor(ByHeader);
    let config = config.period(terms.per()).burst_size(terms.burst).finish().unwrap();
    through(GovernorLayer::new(config).layer(nothing::<Body>()), names)
}

fn throttlecrab(keys: &Rc<[String]>, terms: Terms) -> impl FnMut() -> bool + 'static {
    let mut limiter = throttlecrab::RateLimiter::new(PeriodicStore::builder().capacity(keys.len()).build());
    let (keys, mut next) = (keys.clone(), in_turn(keys));
    // To throttlecrab, a burst of 1 is none at all. So the burst is 2, and a request takes both.
    let (burst, cost) = if terms.burst == 1 { (2, 2) } else { (terms.burst, 1) };
    move || {
        let asked = limiter.rate_limit(&keys[next()], burst.into(), 1, terms.per.into(), cost, SystemTime::now());
        asked.unwrap().0
    }
}

fn through<S, B>(mut service: S, names: usize) -> impl FnMut() -> bool
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let clients = Clients::new(names);
    move || call(&mut service, clients.request()).status().is_success()
}

/// Asks all in turn, round by round, so that a disturbance of one disturbs the others too; and prints how they compare.
pub(super) fn print_ratios(many: usize) {
    const ROUNDS: usize = 41;
    const ASKS: u32 = 10_000;
    for names in [1, many] {
        let mut all = contestants(names);
        for round in 0..ROUNDS {
            let count = all.len();
            for at in 0..count {
                let contestant = &mut all[(at + round) % count];
                let began = Instant::now();
                for _ in 0..ASKS {
                    black_box((contestant.ask)());
                }
                contestant.rounds.push(began.elapsed().as_nanos() as f64 / f64::from(ASKS));
            }
        }
        println!("\na decision on a warm name, of {names}: medians of {ROUNDS} interleaved rounds");
        for contestant in &all {
            println!("{:<26} {:>8.0} ns", contestant.what, median(contestant.rounds.clone()));
        }
        for (ours, theirs) in [("check", "governor"), ("layer", "tower_governor"), ("check", "throttlecrab")] {
            for verdict in ["admitted", "refused"] {
                let [ours, theirs] = [ours, theirs].map(|who| {
                    all.iter().find(|contestant| contestant.what == format!("{who} {verdict}")).expect("one of them")
                });
                let ratios = ours.rounds.iter().zip(&theirs.rounds).map(|(ours, theirs)| ours / theirs);
                println!("{} / {}: {:.1}", ours.what, theirs.what, median(ratios.collect()));
            }
        }
    }
    println!("\naims with {many} names: check admitted < 1200 ns, refused < 400 ns; layer / tower_governor at most 5");
}
