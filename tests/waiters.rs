//! Who waits for a turn in one process when another is killed or stopped, and what a reboot leaves of a budget.
//!
//! Where a test says which turn somebody got, the turns are so far apart that no machine is too slow for it.

use rustix::time::{ClockId, clock_gettime};
use std::{
    fs::{self, File},
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_floodgate::{
    Answer, Cache, Rejection, ThrottleLayer,
    answer::Admission,
    throttle::{Decision, Rate},
};

#[path = "support/bound.rs"]
mod bound;
#[path = "support/processes.rs"]
mod processes;
use bound::{Admitted, Random, overdrawn};
use processes::{Child, open, role, say, told, wait_to_be_killed};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The same clock in all processes, in ns.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A cache, and where its users write down what was admitted.
struct Place {
    directory: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("log")).unwrap();
        let cache = open(&directory.path().join("cache"));
        Place { directory, cache }
    }

    fn cache_path(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// Starts a process in a role, under a rate such as `10/1s burst 2`.
    fn start(&self, role: &str, rate: &str) -> Child {
        let mut child = Child::spawn(role, &self.cache_path());
        child.tell(rate);
        child.expect("ready");
        child
    }

    fn admitted(&self) -> Vec<Admitted> {
        bound::logged(&self.directory.path().join("log"))
    }
}

/// A request for a turn.
#[derive(Clone, Debug)]
struct Visit {
    cost: u32,
    /// What it will have cost.
    actual: u32,
    asked: u64,
    /// When its turn comes, between two moments.
    turn: (u64, u64),
}

impl Visit {
    fn new(cost: u32, actual: u32) -> Visit {
        Visit { cost, actual, asked: now(), turn: (0, 0) }
    }
}

/// Knows the turns before they come, and tells them if it is to.
#[derive(Clone, Copy)]
struct Turns {
    aloud: bool,
}

impl Answer<Visit, (), Rejection> for Turns {
    type Response = ();

    fn mark(&self, visit: &mut Visit, decision: &Decision) {
        let waits = decision.waited.as_nanos() as u64;
        visit.turn = (visit.asked + waits, now() + waits);
        if self.aloud {
            say(format_args!("turn {} {} {waits}", visit.turn.0, visit.turn.1));
        }
    }

    fn admit(&self, (): (), _: Admission) {}

    fn refuse(&self, _: &Visit, why: Rejection) -> ControlFlow<Result<(), Rejection>> {
        ControlFlow::Break(Err(why))
    }
}

/// A service that writes down whom it serves, with a throttle before it.
fn throttled(
    cache: &Cache,
    rate: Rate,
    patience: Duration,
    turns: Turns,
    log: &Arc<File>,
) -> impl Service<Visit, Response = (), Error = Rejection, Future: Send> + Clone + Send + use<> {
    let log = log.clone();
    let serve = move |visit: Visit| {
        let log = log.clone();
        async move {
            let (not_before, not_after) = visit.turn;
            let served = now();
            assert!(served >= not_before, "served {} ns before its turn", not_before - served);
            // Less than was taken if the rest is given back, but perhaps that is not possible any more.
            let units = visit.cost.min(visit.actual).into();
            Admitted { not_before, not_after: not_after.min(served), units }.log(&log);
            if turns.aloud {
                say("served");
            }
            Ok(())
        }
    };
    ThrottleLayer::of(cache.scope("line"), rate)
        .cost(|visit: &Visit| visit.cost)
        .settle(|visit: &Visit| visit.actual, |actual, (): &()| actual)
        .wait_at_most(patience)
        .answer(turns)
        .layer(service_fn(serve))
}

/// The turn that somebody was given.
#[derive(Clone, Copy, Debug)]
struct Turn {
    not_before: u64,
    not_after: u64,
    wait: u64,
}

impl Turn {
    fn parse(line: &str) -> Option<Turn> {
        let numbers: Vec<u64> = line.strip_prefix("turn ")?.split(' ').map(|number| number.parse().unwrap()).collect();
        let [not_before, not_after, wait] = numbers[..] else { panic!("{line}") };
        Some(Turn { not_before, not_after, wait })
    }

    /// The number of the turn, if turns are so long and the one of number 0 was at that time.
    fn number(&self, zero: u64, step: Duration) -> u64 {
        let step = step.as_nanos() as u64;
        let number = (self.not_before.saturating_sub(zero) + step / 2) / step;
        let (from, to) = (zero + number * step - step / 4, zero + number * step + step / 4);
        assert!(self.not_before >= from && self.not_after <= to, "{self:?} is no turn of {step} ns since {zero}");
        number
    }
}

fn until_served(child: &mut Child) {
    while child.line() != "served" {}
}

/// Has a child ask for a turn, and answers which it was given.
fn ask(child: &mut Child) -> Turn {
    child.tell("ask 1");
    loop {
        if let Some(turn) = Turn::parse(&child.line()) {
            return turn;
        }
    }
}

/// What was alive counts as alive for 25 ms.
fn until_a_death_shows() {
    std::thread::sleep(ms(30));
}

#[test]
fn a_killed_process_leaves_its_turns_to_those_who_come_next_and_a_stopped_one_does_not() {
    const EACH: u64 = 40;
    let place = Place::new();
    let step = Duration::from_secs(1_000);
    let mut crew = [place.start("ask", "1/1000s"), place.start("ask", "1/1000s")];
    let zero = ask(&mut crew[0]).not_before;
    let numbers: Vec<_> = (0..2 * EACH).map(|n| ask(&mut crew[n as usize % 2]).number(zero, step)).collect();
    assert_eq!(numbers, (1..=2 * EACH).collect::<Vec<_>>());
    let [first, mut second] = crew;
    let mut newcomer = || ask(&mut second).number(zero, step);

    first.stop();
    until_a_death_shows();
    assert_eq!(newcomer(), 2 * EACH + 1, "it may come back");
    first.kill();
    until_a_death_shows();
    // More turns than a cell keeps holes.
    let numbers: Vec<_> = (0..EACH).map(|_| newcomer()).collect();
    assert_eq!(numbers, (0..EACH).map(|n| 2 * n + 1).collect::<Vec<_>>(), "the earliest first");
    assert_eq!(newcomer(), 2 * EACH + 2);
    assert_eq!(place.admitted().len(), 1);
}

#[test]
fn a_turn_of_a_killed_process_that_has_passed_is_gone() {
    let place = Place::new();
    let step = ms(250);
    let mut crew = [place.start("ask", "1/250ms"), place.start("ask", "1/250ms")];
    let zero = ask(&mut crew[0]);
    for n in 0..40 {
        ask(&mut crew[n % 2]);
    }
    let [first, mut second] = crew;
    first.kill();
    until_served(&mut second);
    let before = now();
    let newcomer = ask(&mut second);
    let decided = (before, newcomer.not_after - newcomer.wait);
    // Whatever is not known to the nanosecond counts in favour.
    let at = |number: u64| {
        let since = number * step.as_nanos() as u64;
        (zero.not_before + since, zero.not_after + since)
    };
    let is_the_earliest = |number: u64| {
        let (from, to) = at(number);
        let is_given = from <= newcomer.not_after && to >= newcomer.not_before;
        is_given && to >= decided.0 && (number == 1 || at(number - 2).0 < decided.1)
    };
    assert!((1..40).step_by(2).any(is_the_earliest), "{newcomer:?}, {zero:?}, decided at {decided:?}");
}

#[test]
fn two_hundred_turns_of_a_killed_process_are_filled_one_by_one() {
    let place = Place::new();
    let step = ms(10).as_nanos() as u64;
    let [mut first, mut second] = [place.start("ask", "100/1s burst 10"), place.start("ask", "100/1s burst 10")];
    first.tell("ask 210");
    (0..20).for_each(|_| until_served(&mut first));
    first.kill();
    second.tell("ask 100");
    let (mut turns, mut served) = (Vec::new(), 0);
    while served < 100 {
        match second.line() {
            line if line == "served" => served += 1,
            line => turns.extend(Turn::parse(&line)),
        }
    }
    assert!(turns[0].wait <= step, "{} ns are not the earliest", turns[0].wait);
    for pair in turns.windows(2) {
        let [before, turn] = pair else { unreachable!() };
        let (least, most) = (turn.not_before.saturating_sub(before.not_after), turn.not_after - before.not_before);
        // Or that of the next place has passed, where the machine is slow.
        assert!((least..=most).contains(&step) || turn.wait <= step, "{before:?}, {turn:?}");
    }
    let admitted = place.admitted();
    println!("{} admitted, the last of them waited {} ns", admitted.len(), turns[99].wait);
    assert_eq!(overdrawn(&admitted, 10, step), None);
}

#[test]
fn the_death_of_a_process_behind_many_others_is_noticed() {
    let place = Place::new();
    let step = Duration::from_secs(1_000);
    let mut crew: Vec<Child> = (0..16).map(|_| place.start("ask", "1/1000s")).collect();
    let zero = ask(&mut crew[0]).not_before;
    let numbers: Vec<_> = crew.iter_mut().map(|child| ask(child).number(zero, step)).collect();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
    while crew.len() > 1 {
        let number = crew.len() as u64;
        crew.pop().unwrap().kill();
        until_a_death_shows();
        assert_eq!(ask(&mut crew[0]).number(zero, step), number);
    }
}

#[test]
fn killed_at_any_moment_four_processes_admit_no_more_than_the_rate() {
    const RATE: &str = "200/1s burst 20";
    let place = Place::new();
    let mut random = Random(7);
    let began = now();
    let mut crew: Vec<Child> = (0..4).map(|_| place.start("busy", RATE)).collect();
    let mut killed = 0;
    while now() < began + 5_000_000_000 {
        std::thread::sleep(ms(random.below(100)));
        let nth = random.below(4) as usize;
        std::mem::replace(&mut crew[nth], place.start("busy", RATE)).kill();
        killed += 1;
    }
    crew.into_iter().for_each(Child::kill);
    let took = now() - began;
    let step = 5_000_000;
    let mut admitted = place.admitted();
    let most = 20 + took / step;
    println!("{} of {most} units in {} admissions; {killed} killed", bound::units(&admitted), admitted.len());
    assert_eq!(overdrawn(&admitted, 20, step), None);
    assert!(bound::units(&admitted) >= 100, "too little happened to say anything");
    assert_eq!(place.cache.stats().damaged, 0);

    // What no rate like this one admits at a moment is found out.
    let moment = admitted[random.below(admitted.len() as u64) as usize].not_before;
    admitted.push(Admitted { not_before: moment, not_after: moment, units: 21 });
    assert!(overdrawn(&admitted, 20, step).is_some());
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    let rate: Rate = told().unwrap().parse().unwrap();
    let cache = open(&path);
    let logs = path.parent().unwrap().join("log");
    let log = File::options().append(true).create_new(true).open(logs.join(std::process::id().to_string())).unwrap();
    let log = Arc::new(log);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _context = runtime.enter();
    match role.as_str() {
        "ask" => {
            let service = throttled(&cache, rate, Duration::MAX, Turns { aloud: true }, &log);
            say("ready");
            while let Some(line) = told() {
                for _ in 0..line.strip_prefix("ask ").unwrap().parse().unwrap() {
                    let service = service.clone();
                    runtime.spawn(async move { service.oneshot(Visit::new(1, 1)).await });
                }
            }
        }
        "busy" => {
            let patient = throttled(&cache, rate, ms(100), Turns { aloud: false }, &log);
            let hasty = throttled(&cache, rate, ms(0), Turns { aloud: false }, &log);
            for task in 0..4 {
                let (patient, hasty) = (patient.clone(), hasty.clone());
                let mut random = Random(u64::from(std::process::id()) * 4 + task);
                runtime.spawn(async move {
                    loop {
                        let cost = 1 + random.below(4) as u32;
                        let actual = random.below(5) as u32;
                        let visit = Visit::new(cost, actual);
                        // One in four gives up before its turn.
                        let until = ms(if random.below(4) == 0 { random.below(40) } else { 10_000 });
                        let _ = match random.below(4) {
                            0 => tokio::time::timeout(until, hasty.clone().oneshot(visit)).await,
                            _ => tokio::time::timeout(until, patient.clone().oneshot(visit)).await,
                        };
                        tokio::time::sleep(ms(random.below(3))).await;
                    }
                });
            }
            say("ready");
            wait_to_be_killed();
        }
        role => panic!("{role}"),
    }
}
