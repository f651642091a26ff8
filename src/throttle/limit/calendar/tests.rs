use super::*;
use std::time::UNIX_EPOCH;

mod random;

const DAY: u64 = 24 * HOUR;
const MINUTE: u64 = HOUR / 60;
const YEAR: u64 = 365 * DAY;
/// Machine time, nowhere near the calendar's.
const START: u64 = 77 * DAY + 12_345;

/// Two clocks, of which the wall's may step.
struct Clocks {
    now: u64,
    wall: u64,
}

impl Clocks {
    /// The wall clock shows the HTTP date.
    fn at(date: &str) -> Clocks {
        let wall = httpdate::parse_http_date(date).unwrap().duration_since(UNIX_EPOCH).unwrap();
        Clocks { now: START, wall: wall.as_nanos() as u64 }
    }

    fn pass(&mut self, time: u64) {
        self.now += time;
        self.wall += time;
    }

    fn step_to(&mut self, date: &str) {
        self.wall = Clocks::at(date).wall;
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, wall: self.wall }
    }
}

/// A budget and its clocks.
struct Scene {
    rule: CalendarWindow,
    book: Book,
    clocks: Clocks,
}

impl Scene {
    fn new(rule: CalendarWindow, date: &str) -> Scene {
        let clocks = Clocks::at(date);
        Scene { rule, book: rule.fresh(clocks.moment()), clocks }
    }

    fn advance(&mut self, rebooted: bool) {
        self.rule.advance(&mut self.book, self.clocks.moment(), rebooted);
    }

    fn left(&mut self) -> u32 {
        self.advance(false);
        self.rule.quota(&self.book, self.clocks.now).remaining
    }

    fn reset(&self) -> Duration {
        self.rule.quota(&self.book, self.clocks.now).reset
    }

    fn spend_all(&mut self) {
        let left = self.left();
        assert_eq!(left, self.rule.count, "it is not fresh");
        self.rule.take(&mut self.book, self.clocks.now, left);
    }

    /// How long it stays spent from now on, to the minute, if the clocks run on.
    fn spent_for(&mut self) -> u64 {
        assert_eq!(self.left(), 0);
        let mut minutes = 0;
        while self.left() == 0 {
            self.clocks.pass(MINUTE);
            minutes += 1;
        }
        minutes * MINUTE
    }
}

fn scene(rule: CalendarWindow, date: &str) -> Scene {
    let mut scene = Scene::new(rule, date);
    scene.spend_all();
    scene
}

#[test]
fn all_of_it_comes_back_with_the_next_window() {
    let mut scene = Scene::new(CalendarWindow::per_utc_day(10), "Thu, 29 Feb 2024 22:00:00 GMT");
    assert_eq!((scene.left(), scene.reset()), (10, Duration::ZERO));
    scene.rule.take(&mut scene.book, scene.clocks.now, 4);
    let quota = scene.rule.quota(&scene.book, scene.clocks.now);
    assert_eq!((quota.limit, quota.remaining), (10, 6));
    assert_eq!((quota.reset, quota.window), (Duration::from_secs(7_200), Duration::from_secs(86_400)));
    let midnight = scene.clocks.now + 2 * HOUR;
    let earliest = |cost| scene.rule.earliest(&scene.book, scene.clocks.now + 1, cost);
    assert_eq!(earliest(6), Some(scene.clocks.now + 1));
    assert_eq!(earliest(7), Some(midnight));
    assert_eq!((earliest(11), earliest(0)), (None, Some(scene.clocks.now + 1)));
    scene.clocks.pass(2 * HOUR - 1);
    assert_eq!(scene.left(), 6);
    scene.clocks.pass(1);
    assert_eq!(scene.left(), 10);
}

#[test]
fn months_have_their_lengths() {
    for (date, days) in [
        ("Sun, 01 Jan 2023 00:00:00 GMT", 31),
        ("Wed, 01 Feb 2023 00:00:00 GMT", 28),
        ("Thu, 01 Feb 2024 00:00:00 GMT", 29),
        ("Mon, 01 Feb 2100 00:00:00 GMT", 28),
        ("Sat, 01 Apr 2023 00:00:00 GMT", 30),
    ] {
        let mut scene = scene(CalendarWindow::per_utc_month(3), date);
        assert_eq!(scene.rule.quota(&scene.book, START).window, Duration::from_secs(days * 86_400));
        assert_eq!(scene.spent_for(), days * DAY, "{date}");
        scene.spend_all();
    }
}

#[test]
fn waiters_get_the_next_windows_in_turn() {
    let rule = CalendarWindow::per_utc_month(2);
    let mut scene = scene(rule, "Wed, 31 Jan 2024 12:00:00 GMT");
    let february = START + DAY / 2;
    let (march, april) = (february + 29 * DAY, february + 60 * DAY);
    let ask = |scene: &mut Scene, cost| {
        let turn = scene.rule.earliest(&scene.book, scene.clocks.now, cost).unwrap();
        (turn, scene.rule.take(&mut scene.book, turn, cost))
    };
    let (first, _) = ask(&mut scene, 1);
    let (second, slot) = ask(&mut scene, 2);
    let (third, _) = ask(&mut scene, 1);
    assert_eq!((first, second, third), (february, march, february), "a cost never straddles two windows");
    assert_eq!(ask(&mut scene, 1).0, april);
    assert_eq!(scene.reset(), Duration::from_nanos(april + 30 * DAY - START));
    scene.rule.free(&mut scene.book, slot, 2, scene.clocks.now);
    assert_eq!(ask(&mut scene, 1).0, march, "what a waiter leaves is used again");
    scene.clocks.pass(DAY / 2);
    assert_eq!(scene.left(), 0);
    scene.clocks.pass(29 * DAY);
    assert_eq!(scene.left(), 1);
    scene.clocks.pass(31 * DAY);
    assert_eq!(scene.left(), 1);
    scene.clocks.pass(30 * DAY);
    assert_eq!(scene.left(), 2);
}

#[test]
fn a_slot_is_freed_in_its_own_window_only() {
    let rule = CalendarWindow::per_utc_hour(5);
    let mut scene = Scene::new(rule, "Wed, 31 Jan 2024 12:59:00 GMT");
    let slot = rule.take(&mut scene.book, START, 5);
    rule.free(&mut scene.book, slot, 2, START);
    assert_eq!(scene.left(), 2);
    scene.clocks.pass(MINUTE);
    scene.spend_all();
    rule.free(&mut scene.book, slot, 3, scene.clocks.now);
    assert_eq!(scene.left(), 0);
    // Nor in another budget that took the place of this one.
    let spent = CalendarWindow::spent(&scene.book, scene.clocks.moment());
    let slot = rule.take(&mut scene.book, scene.clocks.now, 0);
    let other = CalendarWindow::per_utc_day(100);
    scene.clocks.pass(1);
    let mut changed = other.with_spent(spent, scene.clocks.moment());
    other.free(&mut changed, Slot { end: 5, ..slot }, 5, scene.clocks.now);
    assert_eq!(other.quota(&changed, scene.clocks.now).remaining, 0);
}

#[test]
fn a_debt_is_carried_into_the_next_windows_up_to_a_thousand() {
    let mut scene = Scene::new(CalendarWindow::per_utc_hour(10), "Wed, 31 Jan 2024 12:00:00 GMT");
    let rule = scene.rule;
    rule.charge(&mut scene.book, 4, START);
    assert_eq!(scene.left(), 6);
    rule.charge(&mut scene.book, 29, START);
    assert_eq!(rule.earliest(&scene.book, START, 7), Some(START + 3 * HOUR));
    assert_eq!(rule.earliest(&scene.book, START, 8), Some(START + 4 * HOUR));
    scene.clocks.pass(3 * HOUR);
    assert_eq!(scene.left(), 7);
    for _ in 0..3 {
        rule.charge(&mut scene.book, u32::MAX, scene.clocks.now);
    }
    assert_eq!(scene.spent_for(), 1_000 * HOUR);
}

#[test]
fn back_an_hour_just_after_midnight() {
    let mut scene = scene(CalendarWindow::per_utc_day(10), "Fri, 01 Mar 2024 00:05:00 GMT");
    scene.clocks.step_to("Thu, 29 Feb 2024 23:05:00 GMT");
    assert_eq!(scene.spent_for(), 24 * HOUR + 55 * MINUTE);
    assert_eq!(scene.clocks.wall, Clocks::at("Sat, 02 Mar 2024 00:00:00 GMT").wall);
}

#[test]
fn back_an_hour_in_an_hourly_window() {
    let mut scene = scene(CalendarWindow::per_utc_hour(10), "Fri, 01 Mar 2024 12:05:00 GMT");
    // A moment more than an hour: its own length is over just before the wall clock shows the same window again.
    scene.clocks.wall -= HOUR + 1;
    assert_eq!(scene.spent_for(), 55 * MINUTE);
    scene.spend_all();
    assert_eq!(scene.spent_for(), HOUR + MINUTE, "not only for the rest of the hour, which is a moment");
}

#[test]
fn back_two_days() {
    let mut scene = scene(CalendarWindow::per_utc_day(10), "Sun, 10 Mar 2024 12:00:00 GMT");
    scene.clocks.step_to("Fri, 08 Mar 2024 12:00:00 GMT");
    assert_eq!(scene.spent_for(), 12 * HOUR, "its own length");
    scene.spend_all();
    assert_eq!(scene.spent_for(), 24 * HOUR);
}

#[test]
fn back_two_days_in_a_month() {
    let mut scene = scene(CalendarWindow::per_utc_month(10), "Mon, 01 Jul 2024 12:00:00 GMT");
    scene.clocks.step_to("Sat, 29 Jun 2024 12:00:00 GMT");
    assert_eq!(scene.spent_for(), 32 * DAY + 12 * HOUR);
    assert_eq!(scene.clocks.wall, Clocks::at("Thu, 01 Aug 2024 00:00:00 GMT").wall);
}

#[test]
fn forward_an_hour_over_midnight() {
    let mut scene = scene(CalendarWindow::per_utc_day(10), "Sun, 10 Mar 2024 23:30:00 GMT");
    scene.clocks.step_to("Mon, 11 Mar 2024 00:30:00 GMT");
    assert_eq!(scene.spent_for(), 30 * MINUTE);
    scene.spend_all();
    assert_eq!(scene.spent_for(), 23 * HOUR);
}

#[test]
fn forward_nearly_to_midnight() {
    let mut scene = scene(CalendarWindow::per_utc_day(10), "Sun, 10 Mar 2024 00:00:00 GMT");
    scene.clocks.step_to("Sun, 10 Mar 2024 23:59:00 GMT");
    assert_eq!(scene.spent_for(), 24 * HOUR);
    scene.spend_all();
    assert_eq!(scene.spent_for(), 24 * HOUR + MINUTE, "the rest of the day is a minute");
}

#[test]
fn forward_a_year_and_back() {
    for wait in [0, MINUTE, 3 * HOUR] {
        let mut scene = scene(CalendarWindow::per_utc_day(10), "Sun, 10 Mar 2024 06:00:00 GMT");
        scene.clocks.wall += YEAR;
        scene.clocks.pass(wait);
        assert_eq!(scene.left(), 0);
        scene.clocks.wall -= YEAR;
        assert_eq!(scene.spent_for() + wait, 18 * HOUR);
    }
}

#[test]
fn opened_under_a_clock_that_is_a_year_ahead() {
    let mut scene = scene(CalendarWindow::per_utc_month(10), "Tue, 10 Mar 2026 00:00:00 GMT");
    scene.clocks.step_to("Mon, 10 Mar 2025 00:00:00 GMT");
    assert_eq!(scene.spent_for(), 22 * DAY);
    scene.spend_all();
    assert_eq!(scene.spent_for(), 30 * DAY);
}

#[test]
fn a_sleeping_machine_counts_on() {
    // Machine time counts through suspend, so this is as if nobody had come.
    let mut scene = scene(CalendarWindow::per_utc_day(10), "Sun, 10 Mar 2024 06:00:00 GMT");
    scene.clocks.pass(18 * HOUR - 1);
    assert_eq!(scene.left(), 0);
    scene.clocks.pass(9 * DAY);
    assert_eq!(scene.left(), 10);
}

#[test]
fn after_a_reboot_the_calendar_counts() {
    let rule = CalendarWindow::per_utc_month(10);
    let date = "Sun, 10 Mar 2024 00:00:00 GMT";
    // Off for eight days, which machine time has not noticed.
    let mut still = scene(rule, date);
    still.clocks.wall += 8 * DAY;
    still.advance(true);
    assert_eq!(still.spent_for(), 14 * DAY);
    // Off for two months.
    let mut over = scene(rule, date);
    over.clocks.step_to("Fri, 10 May 2024 00:00:00 GMT");
    over.advance(true);
    assert_eq!(over.left(), 10);
    over.spend_all();
    assert_eq!(over.spent_for(), 22 * DAY);
    // As long as nothing is written, the same question is asked again.
    let mut again = scene(rule, date);
    again.clocks.wall += 8 * DAY;
    for _ in 0..13 {
        again.clocks.pass(DAY);
        let mut copy = again.book.clone();
        rule.advance(&mut copy, again.clocks.moment(), true);
        assert_eq!(rule.quota(&copy, again.clocks.now).remaining, 0);
    }
    again.clocks.pass(DAY);
    again.advance(true);
    assert_eq!(again.left(), 10);
}

#[test]
fn after_a_reboot_in_1970() {
    let rule = CalendarWindow::per_utc_month(10);
    let begun = || {
        let mut scene = scene(rule, "Sun, 10 Mar 2024 00:00:00 GMT");
        scene.clocks.step_to("Thu, 01 Jan 1970 00:00:00 GMT");
        scene.advance(true);
        scene.clocks.pass(10 * MINUTE);
        assert_eq!(scene.left(), 0);
        scene
    };
    let mut same = begun();
    same.clocks.step_to("Wed, 20 Mar 2024 00:00:00 GMT");
    assert_eq!(same.spent_for(), 12 * DAY);
    let mut later = begun();
    later.clocks.step_to("Sat, 20 Apr 2024 00:00:00 GMT");
    assert_eq!(later.left(), 10);
    let mut never = begun();
    assert_eq!(never.spent_for(), 22 * DAY - 10 * MINUTE);
    // A machine time that has gone back does not make it longer than a month.
    let mut back = scene(rule, "Sun, 10 Mar 2024 00:00:00 GMT");
    back.clocks = Clocks { now: 5, wall: 0 };
    back.advance(true);
    assert_eq!(back.spent_for(), 31 * DAY);
}

#[test]
fn after_a_reboot_nobody_waits() {
    let rule = CalendarWindow::per_utc_day(2);
    let wait = |scene: &mut Scene| {
        (0..6).for_each(|_| {
            let turn = rule.earliest(&scene.book, scene.clocks.now, 1).unwrap();
            rule.take(&mut scene.book, turn, 1);
        });
    };
    let mut soon = scene(rule, "Sun, 10 Mar 2024 12:00:00 GMT");
    wait(&mut soon);
    soon.advance(true);
    assert_eq!(soon.spent_for(), 12 * HOUR);
    // Those whose turn came before the reboot were served, though nobody has written that.
    let mut late = scene(rule, "Sun, 10 Mar 2024 12:00:00 GMT");
    wait(&mut late);
    late.clocks.pass(36 * HOUR + 1);
    late.advance(true);
    assert_eq!(late.spent_for(), DAY);
}

#[test]
fn a_spent_window_is_kept_longer_than_time_zones_err() {
    let scene = scene(CalendarWindow::per_utc_hour(2), "Sun, 10 Mar 2024 12:00:00 GMT");
    assert_eq!(scene.rule.ends(&scene.book), START + HOUR + 26 * HOUR);
    assert_eq!(scene.rule.ends(&scene.rule.fresh(scene.clocks.moment())), 0);
}

#[test]
fn another_limit_takes_over_what_is_spent() {
    let (old, new) = (CalendarWindow::per_utc_hour(10), CalendarWindow::per_utc_day(1_000));
    let mut scene = Scene::new(old, "Sun, 10 Mar 2024 12:00:00 GMT");
    old.take(&mut scene.book, START, 7);
    let moment = scene.clocks.moment();
    let spent = CalendarWindow::spent(&scene.book, moment);
    assert_eq!(spent.last_turn, 0);
    let changed = new.with_spent(spent, moment);
    assert!(new.made(&changed) && !old.made(&changed) && !CalendarWindow::per_utc_hour(9).made(&scene.book));
    assert_eq!(new.quota(&changed, START).remaining, 299, "rounded against the caller");
    let tomorrow = Spent { last_turn: START + 13 * HOUR, ..spent };
    let changed = new.with_spent(tomorrow, moment);
    assert_eq!(new.earliest(&changed, START, 1), Some(START + 12 * HOUR), "behind all who wait");
    assert_eq!(new.earliest(&changed, START, 300), Some(START + 36 * HOUR));
    scene.clocks.pass(HOUR);
    assert_eq!(CalendarWindow::spent(&scene.book, scene.clocks.moment()).share, 0);
}

#[test]
fn it_is_written_as_it_is_read() {
    for (rule, text) in [
        (CalendarWindow::per_utc_hour(50), "50/utc-hour"),
        (CalendarWindow::per_utc_day(1_000), "1000/utc-day"),
        (CalendarWindow::per_utc_month(u32::MAX), "4294967295/utc-month"),
    ] {
        assert_eq!((rule.to_string().as_str(), text.parse()), (text, Ok(rule)));
    }
    assert_eq!(" 7 / utc-day ".parse(), Ok(CalendarWindow::per_utc_day(7)));
    assert_eq!(CalendarWindow::per_utc_day(7).count(), 7);
    let says = |text: &str, what: &str| {
        let message = text.parse::<CalendarWindow>().unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("`1000/utc-day`"), "{message}");
    };
    says("", "\"\" is no limit: it is not a count");
    says("1000", "it is not");
    says("0/utc-day", "the count");
    says("4294967296/utc-day", "the count");
    says("-1/utc-day", "the count");
    says("1/utc-week", "the unit");
    says("1/60s", "it is not");
}

#[test]
fn bad_windows_panic_and_name_the_value() {
    for make in [CalendarWindow::per_utc_hour, CalendarWindow::per_utc_day, CalendarWindow::per_utc_month] {
        let message = std::panic::catch_unwind(|| make(0)).unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("not 0 per "), "{message}");
    }
}
