use super::*;
use crate::{
    cache::{
        Cache, Purge as Asked, Scope,
        testing::{Child, Hand, LONG, builder, cache, hear, part, say, tamper},
    },
    store::{
        Key, Kind, Life, block_on,
        entries::{
            forgetting::{FLOORS_MAX, PURGES_MAX},
            table::FLOORS,
        },
    },
};
use hyper::body::Bytes;
use proptest::{prelude::*, test_runner::RngSeed};
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
const NAMES: [&str; 5] = ["a", "a/1", "a/2", "b", "b/1"];
const SCOPES: [&str; 2] = ["x", "y"];
const TAGS: [&str; 2] = ["s", "t"];

fn key(scope: &Scope, name: &str) -> Key {
    scope.key(Kind::Value, name.as_bytes())
}

/// A life that is fresh for 10 s, then of use for 20 s more while the answer is computed anew, for 30 s if that fails.
fn life(now: u64) -> Life {
    Life { stored: now, fresh: now + 10 * SECOND, revalidate: now + 30 * SECOND, if_error: now + 40 * SECOND }
}

fn store(scope: &Scope, name: &str, tag: &str, sequence: u64) -> Life {
    let life = life(scope.handle().now());
    let (tags, payload) = (vec![scope.tag(tag)], Bytes::from_static(b"\x01"));
    let entry =
        Entry { life, cost: 1, spread: 0, sequence, scope: scope.id(), tags, family: 0, payload, is_mark: false };
    scope.commit(key(scope, name), name.as_bytes(), entry).wait().unwrap();
    life
}

fn begin(scope: &Scope, name: &str) -> u64 {
    scope.purge_sequence(&key(scope, name)).unwrap()
}

/// The life of the entry that is there, read in both ways.
fn found(scope: &Scope, name: &str) -> Option<Life> {
    let (key, name) = (key(scope, name), name.as_bytes());
    let entry = scope.entry(&key, name).unwrap().ok().map(|(entry, _)| entry.life);
    for _ in 0..2 {
        let decoded = scope.read(&key, name, |entry| Some(entry.life)).unwrap().ok().map(|hot| *hot.value);
        assert_eq!(decoded, entry);
    }
    entry
}

fn tidy(cache: &Cache) {
    for shard in &cache.root().handle().shared.entries {
        loop {
            shard.tidy();
            // The queue is served in order, so the step is done when this is.
            let _ = shard.queue.delegate(Nothing, |done| done.map(drop)).wait();
            if !shard.is_untidy() {
                break;
            }
        }
    }
}

struct Nothing;

impl Operation for Nothing {
    fn run(&mut self, _: &mut Txn<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}

#[test]
fn a_soft_purge_ends_what_is_fresh_and_leaves_it_its_grace() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let scope = cache.scope("x");
    hand.advance(Duration::from_secs(100));
    let stored = store(&scope, "a", "t", begin(&scope, "a"));
    hand.advance(Duration::from_secs(4));
    let now = cache.handle().now();
    block_on(cache.purge(Asked::tag("t").soft())).unwrap();
    let ended = Life { fresh: now, revalidate: now + 20 * SECOND, if_error: now + 30 * SECOND, ..stored };
    assert_eq!(found(&scope, "a"), Some(ended));
    hand.advance(Duration::from_secs(1));
    block_on(cache.purge(Asked::all().soft())).unwrap();
    assert_eq!(found(&scope, "a"), Some(ended), "it had ended before");
    tidy(&cache);
    assert_eq!(found(&scope, "a"), Some(ended), "rewritten, it says so itself");
    block_on(cache.purge(Asked::tag("t"))).unwrap();
    assert_eq!(found(&scope, "a"), None);
}

#[test]
fn what_has_no_grace_is_gone_by_a_soft_purge() {
    let cache = cache();
    cache.insert("a", &1).tag("t").wait().unwrap();
    cache.purge_blocking(Asked::tag("t").soft()).unwrap();
    assert_eq!(cache.get::<i32>("a").unwrap(), None);
}

#[test]
fn a_computation_begun_before_a_soft_purge_is_stored_and_has_ended() {
    let cache = cache();
    let scope = cache.scope("x");
    for purge in [Asked::all(), Asked::tag("t"), Asked::scope("x"), Asked::prefix("x", "a"), Asked::name("x", "a/1")] {
        let begun = begin(&scope, "a/1");
        cache.purge_blocking(purge.clone().soft()).unwrap();
        let stored = store(&scope, "a/1", "t", begun);
        let found = found(&scope, "a/1").unwrap();
        assert!(found.fresh <= stored.stored, "{purge:?}");
        cache.purge_blocking(purge.clone()).unwrap();
        store(&scope, "a/1", "t", begun);
        assert!(self::found(&scope, "a/1").is_none(), "{purge:?}");
    }
}

#[test]
fn a_soft_and_a_hard_purge_of_one_subject_do_not_hide_each_other() {
    let cache = cache();
    let scope = cache.scope("x");
    let begun = begin(&scope, "a");
    cache.purge_blocking(Asked::tag("t")).unwrap();
    cache.purge_blocking(Asked::tag("t").soft()).unwrap();
    store(&scope, "a", "t", begun);
    assert_eq!(found(&scope, "a"), None);
}

#[test]
fn prefixes_are_those_of_names_in_one_scope() {
    let cache = cache();
    for scope in SCOPES {
        for name in NAMES {
            store(&cache.scope(scope), name, "t", begin(&cache.scope(scope), name));
        }
    }
    cache.purge_blocking(Asked::prefix("x", "a/")).unwrap();
    let left = |scope: &str| NAMES.map(|name| found(&cache.scope(scope), name).is_some());
    assert_eq!((left("x"), left("y")), ([true, false, false, true, true], [true; 5]));
    tidy(&cache);
    assert_eq!((left("x"), left("y")), ([true, false, false, true, true], [true; 5]));
    assert_eq!(cache.stats().entries, 8, "the walk has removed them");
    cache.purge_blocking(Asked::prefix("x", "")).unwrap();
    assert_eq!((left("x"), left("y")), ([false; 5], [true; 5]));
}

/// Reads and purges of prefixes cost the same however many there are.
#[test]
fn many_prefixes_are_told_apart() {
    let cache = cache();
    let scope = cache.scope("x");
    let names = ["kept", "p", "p7", "p70", "p700/x", "q"];
    let stored = names.map(|name| store(&scope, name, "t", begin(&scope, name)));
    for n in 0..1000 {
        cache.purge_blocking(Asked::prefix("x", &format!("p{n}/"))).unwrap();
        if n == 500 {
            cache.purge_blocking(Asked::prefix("x", "p7").soft()).unwrap();
        }
    }
    let now = cache.handle().now();
    let expected = |name: &str, life: Life| match name {
        "p700/x" => None,
        "p7" | "p70" => found(&scope, name).filter(|found| found.fresh <= now && found.fresh < life.fresh),
        _ => Some(life),
    };
    for _ in 0..2 {
        for (name, life) in names.into_iter().zip(stored) {
            assert_eq!(found(&scope, name), expected(name, life), "{name}");
        }
        assert!(found(&scope, "p70").is_some());
        tidy(&cache);
    }
}

/// What is purged in one scope costs the others nothing, whatever it is and however much.
#[test]
fn a_purge_never_widens() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let scope = cache.scope("x");
    for n in 0..1000 {
        store(&scope, &n.to_string(), "kept", begin(&scope, &n.to_string()));
    }
    let other = cache.scope("other");
    let begun = [&scope, &other].map(|scope| begin(scope, "late"));
    for n in 0..1000 {
        cache.purge_blocking(Asked::name("other", &n.to_string())).unwrap();
    }
    let kept = |scope: &Scope| (0..1000).filter(|n| found(scope, &n.to_string()).is_some()).count();
    assert_eq!(kept(&scope), 1000);
    let shard = &cache.root().handle().shared.entries[0];
    let now = cache.handle().now();
    let rows = || shard.queue.env.read(|reader| reader.len(PURGES)).unwrap();
    // More of each kind than are remembered, without the way through the queue.
    let subjects: [&dyn Fn(u64) -> Subject; 4] = [
        &|n| Subject::Name(other.key(Kind::Value, &n.to_le_bytes()).hash),
        &|n| Subject::Family(other.id(), n),
        &|n| Subject::Prefix(other.id(), n.to_string().into_bytes()),
        &|n| Subject::Tag(n),
    ];
    for (kind, subject) in subjects.iter().enumerate() {
        for bite in 0..5 {
            let again = tamper(&shard.queue, |txn| {
                let mut again = 0;
                for n in 0..2000 {
                    let subject = subject(bite * 2000 + n);
                    let mut purge = Purge { subject, soft: n % 2 == 0, now, purged: Purged::Again };
                    while purge.purged == Purged::Again {
                        purge.run(txn).unwrap();
                        again += u64::from(purge.purged == Purged::Again);
                    }
                }
                again
            });
            assert!(again <= if kind > 1 { 50 } else { 0 }, "{again} steps of the walk for 2,000 purges, kind {kind}");
        }
        assert!(rows() <= PURGES_MAX);
        assert_eq!(kept(&scope), 1000, "kind {kind}");
        // Only tags are of all scopes: the names of the others may still be computed and stored.
        let late = format!("late {kind}");
        store(&scope, &late, "kept", begun[0]);
        assert_eq!(found(&scope, &late).is_some(), kind < 3, "kind {kind}");
        cache.purge_blocking(Asked::name("other", "late")).unwrap();
        store(&other, "late", "kept", begun[1]);
        assert_eq!(found(&other, "late"), None, "its purge may be among those forgotten");
        store(&other, "late", "kept", begin(&other, "late"));
        assert!(found(&other, "late").is_some());
    }
    tidy(&cache);
    assert_eq!(kept(&scope), 1000);
}

#[test]
fn the_floors_of_many_scopes_become_one() {
    let cache = cache();
    let shard = &cache.root().handle().shared.entries[0];
    let now = cache.handle().now();
    let begun = begin(cache.root(), "a");
    tamper(&shard.queue, |txn| {
        for n in 0..PURGES_MAX + 3 * FLOORS_MAX {
            let scope = cache.handle().shared.secret.scope(&n.to_string());
            Purge { subject: Subject::Family(scope, n), soft: false, now, purged: Purged::Done }.run(txn).unwrap();
        }
    });
    let (floors, rows) = shard.queue.env.read(|reader| Ok((reader.len(FLOORS)?, reader.len(PURGES)?))).unwrap();
    assert!(floors <= FLOORS_MAX && rows <= PURGES_MAX, "{floors} {rows}");
    store(cache.root(), "a", "t", begun);
    assert_eq!(found(cache.root(), "a"), None);
}

#[test]
fn two_processes_walk_on_together() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Cache::builder(directory.path()).size(1 << 20).state_size(1 << 20).patience(LONG).open().unwrap();
    let cache = open();
    let doomed = cache.scope("doomed");
    for n in 0..1000 {
        store(&doomed, &n.to_string(), "t", begin(&doomed, &n.to_string()));
    }
    let shard = &cache.root().handle().shared.entries[0];
    let mut child = Child::start("store::entries::purges::tests::child", "walker", directory.path());
    assert_eq!(child.line(), "ready");
    block_on(doomed.clear()).unwrap();
    for _ in 0..4 {
        assert!(tamper(&shard.queue, walk_on).unwrap());
    }
    child.tell("walk");
    let steps: u64 = child.line().parse().unwrap();
    assert!(steps <= 4, "{steps} of eight steps were left");
    assert!(!shard.is_untidy());
    assert_eq!(cache.stats().entries, 0);
}

#[test]
#[ignore = "a part of another test"]
fn child() {
    let Some((_, path)) = part() else { return };
    let cache = Cache::builder(path).size(1 << 20).state_size(1 << 20).patience(LONG).open().unwrap();
    say("ready");
    hear();
    let mut steps = 0;
    while tamper(&cache.root().handle().shared.entries[0].queue, walk_on).unwrap() {
        steps += 1;
    }
    say(steps);
    hear();
}

#[test]
fn a_prefix_may_be_as_long_as_what_is_kept_of_names() {
    let cache = cache();
    let (scope, prefix) = (cache.scope("x"), "p".repeat(256));
    let names = [prefix.clone(), format!("{prefix}/1"), format!("{}q", &prefix[1..]), prefix[1..].to_owned()];
    for soft in [true, false] {
        let stored = names.each_ref().map(|name| store(&scope, name, "t", begin(&scope, name)));
        let purge = Asked::prefix("x", &prefix);
        cache.purge_blocking(if soft { purge.soft() } else { purge }).unwrap();
        let kept = [0, 1, 2, 3].map(|at| found(&scope, &names[at]) == Some(stored[at]));
        assert_eq!(kept, [false, false, true, true], "soft: {soft}");
    }
}

#[test]
#[should_panic(expected = "a prefix has 256 bytes at most")]
fn a_prefix_that_is_longer_than_what_is_kept_of_names_is_refused() {
    let _ = Asked::prefix("x", &"a".repeat(257));
}

#[derive(Clone, Debug)]
enum Step {
    Begin(usize, usize),
    Store(usize, usize, usize),
    Purge(Matches, bool),
    Advance(u64),
    Tidy,
}

#[derive(Clone, Debug)]
enum Matches {
    All,
    Scope(usize),
    Tag(usize),
    Prefix(usize, &'static str),
    Name(usize, usize),
}

impl Matches {
    fn asked(&self) -> Asked {
        match *self {
            Matches::All => Asked::all(),
            Matches::Scope(scope) => Asked::scope(SCOPES[scope]),
            Matches::Tag(tag) => Asked::tag(TAGS[tag]),
            Matches::Prefix(scope, prefix) => Asked::prefix(SCOPES[scope], prefix),
            Matches::Name(scope, name) => Asked::name(SCOPES[scope], NAMES[name]),
        }
    }

    fn has(&self, (scope, name, tag): (usize, usize, usize)) -> bool {
        match *self {
            Matches::All => true,
            Matches::Scope(purged) => purged == scope,
            Matches::Tag(purged) => purged == tag,
            Matches::Prefix(purged, prefix) => purged == scope && NAMES[name].starts_with(prefix),
            Matches::Name(purged, other) => (purged, other) == (scope, name),
        }
    }
}

fn matches() -> impl Strategy<Value = Matches> {
    prop_oneof![
        Just(Matches::All),
        (0..2_usize).prop_map(Matches::Scope),
        (0..2_usize).prop_map(Matches::Tag),
        (0..2_usize, prop::sample::select(vec!["a", "a/", "a/1", "a/11", "b", ""]))
            .prop_map(|(scope, prefix)| Matches::Prefix(scope, prefix)),
        (0..2_usize, 0..5_usize).prop_map(|(scope, name)| Matches::Name(scope, name)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..2_usize, 0..5_usize).prop_map(|(scope, name)| Step::Begin(scope, name)),
        4 => (0..2_usize, 0..5_usize, 0..2_usize).prop_map(|(scope, name, tag)| Step::Store(scope, name, tag)),
        3 => (matches(), any::<bool>()).prop_map(|(matches, soft)| Step::Purge(matches, soft)),
        2 => (1..15_u64).prop_map(Step::Advance),
        1 => Just(Step::Tidy),
    ]
}

/// Purges since a computation began: what each matches, whether it is soft, and when it was.
type Since = Vec<(Matches, bool, u64)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(12), failure_persistence: None, ..Default::default() })]
    #[test]
    fn what_is_left_is_what_no_purge_since_its_begin_has_taken(
        steps in prop::collection::vec(step(), 1..60),
        shards in 1..3_u32,
    ) {
        let hand = Hand::default();
        let cache = hand.on(builder().shards(shards));
        hand.advance(Duration::from_secs(100));
        let mut purges: Since = Vec::new();
        // For each name: the sequence and the number of purges when its computation began, and what was stored.
        let mut begun = [[None; 5]; 2];
        let mut stored = [[None; 5]; 2];
        for step in steps {
            match step {
                Step::Begin(scope, name) => {
                    begun[scope][name] = Some((begin(&cache.scope(SCOPES[scope]), NAMES[name]), purges.len()));
                }
                Step::Store(scope, name, tag) => {
                    let now = (begin(&cache.scope(SCOPES[scope]), NAMES[name]), purges.len());
                    let (sequence, at) = begun[scope][name].take().unwrap_or(now);
                    let life = store(&cache.scope(SCOPES[scope]), NAMES[name], TAGS[tag], sequence);
                    let is_dead = purges[at..].iter().any(|(matches, soft, _)| !soft && matches.has((scope, name, tag)));
                    if !is_dead {
                        // The entry was ended by one of the soft purges since its computation began: the earliest, or
                        // one after a walk.
                        let ends = purges[at..].iter().filter(|purge| purge.0.has((scope, name, tag))).map(|purge| purge.2);
                        let mut lives: Vec<_> = ends.map(|end| life.ended_at(end)).collect();
                        if lives.is_empty() {
                            lives.push(life);
                        }
                        let left = found(&cache.scope(SCOPES[scope]), NAMES[name]);
                        let left = left.unwrap_or(lives[0]);
                        prop_assert!(lives.contains(&left), "{:?}: {:?}", left, lives);
                        stored[scope][name] = Some((left, tag, purges.len()));
                    }
                }
                Step::Purge(matches, soft) => {
                    cache.purge_blocking(if soft { matches.asked().soft() } else { matches.asked() }).unwrap();
                    purges.push((matches, soft, cache.handle().now()));
                }
                Step::Advance(seconds) => hand.advance(Duration::from_secs(seconds)),
                Step::Tidy => tidy(&cache),
            }
            let now = cache.handle().now();
            for (scope, name) in (0..2).flat_map(|scope| (0..5).map(move |name| (scope, name))) {
                let expected = stored[scope][name].and_then(|(life, tag, at): (Life, usize, usize)| {
                    purges[at..].iter().filter(|purge| purge.0.has((scope, name, tag))).try_fold(life, |life, purge| {
                        purge.1.then(|| life.ended_at(purge.2))
                    })
                });
                let expected = expected.filter(|life| !life.is_over(now));
                prop_assert_eq!(found(&cache.scope(SCOPES[scope]), NAMES[name]), expected, "{} {}", scope, name);
            }
        }
    }
}
