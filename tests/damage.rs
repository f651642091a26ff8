//! `state/` is damaged while a lock is held: whatever becomes of the files, nobody else is let in while the holder lives,
//! and nobody hangs; once the last user of the damaged files is gone, the next one starts afresh.

use nix::sys::{
    signal::{Signal, kill},
    wait::{WaitStatus, waitpid},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tower_floodgate::{Cache, lock::AcquireError};

mod support;
use support::{Child, files, role, say, starting, told};

const LEASE: Duration = Duration::from_millis(600);
/// Longer than the lease, so that a renewal that fails shows.
const PATIENCE: Duration = Duration::from_millis(900);
const PAGE: usize = 4096;
const STATE_SIZE: usize = 2 << 20;
/// Nothing that a child is asked takes longer, on the slowest machine.
const BOUND: Duration = Duration::from_secs(20);

/// What became of an attempt.
fn attempt(cache: &Cache, patience: Duration) -> String {
    match cache.lock("l").expire(LEASE).wait_at_most(patience).acquire_blocking() {
        Ok(guard) => {
            std::mem::forget(guard);
            "GOT IT".to_owned()
        }
        Err(AcquireError::Busy { .. }) => "busy".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    // Damaged files may hang whoever trusts them; the parent wants to know.
    std::thread::spawn(|| {
        std::thread::sleep(3 * BOUND);
        say("HUNG");
        std::process::exit(7);
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let opened = Cache::builder(&path).state_size(STATE_SIZE as u64).open();
    match (role.as_str(), opened) {
        ("hold", Ok(cache)) => {
            let guard = cache.lock("l").expire(LEASE).acquire_blocking().unwrap();
            say("held");
            while told().is_some() {
                say(if guard.is_lost() { "lost" } else { "alive" });
            }
            std::process::exit(0);
        }
        ("names", Ok(cache)) => {
            say("open");
            while let Some(name) = told() {
                say(match cache.lock(&name).expire(LEASE).try_acquire_blocking() {
                    Ok(guard) => format!("fence {}", guard.fence()),
                    Err(AcquireError::Busy { .. }) => "busy".to_owned(),
                    Err(error) => format!("refused: {error}"),
                });
            }
            std::process::exit(0);
        }
        ("try", Ok(cache)) => {
            say("open");
            while let Some(line) = told() {
                let patience = if line == "patiently" { 3 * PATIENCE } else { PATIENCE };
                if line == "patiently" {
                    say("waiting");
                }
                say(attempt(&cache, patience));
            }
            std::process::exit(0);
        }
        (_, Err(error)) => say(format!("not opened: {error}")),
        (role, _) => panic!("{role}"),
    }
}

struct Place {
    root: tempfile::TempDir,
    /// `data.mdb` as it was before the lock was acquired.
    before: Vec<u8>,
}

impl Place {
    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn state(&self) -> PathBuf {
        self.home_entry("state")
    }

    fn home(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.cache()).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|entry| entry.is_dir()).unwrap()
    }

    fn home_entry(&self, start: &str) -> PathBuf {
        let entries = fs::read_dir(self.home()).unwrap().flatten();
        entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start))
            .unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        files(&self.cache(), name).into_iter().find(|path| path.starts_with(self.state())).unwrap()
    }

    /// Writes over a part of a file of `state/`, in place.
    fn write(&self, name: &str, at: usize, bytes: &[u8]) {
        let mut file = fs::File::options().write(true).open(self.file(name)).unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(bytes).unwrap();
    }

    fn truncate(&self, name: &str, length: usize) {
        fs::File::options().write(true).open(self.file(name)).unwrap().set_len(length as u64).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// Puts another file of the same bytes in its place.
    fn replace(&self, name: &str, bytes: &[u8]) {
        let new = self.state().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, self.file(name)).unwrap();
    }

    fn instances(&self) -> usize {
        let files = fs::read_dir(self.home().join("run")).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().len() == 16).count()
    }

    fn edit_layout(&self, from: &str, to: &str) {
        let path = self.home_entry("layout");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace(from, to)).unwrap();
    }

    fn data(&self) -> Vec<u8> {
        fs::read(self.file("data.mdb")).unwrap()
    }

    /// The pages in which rows of locks may be: those that are leaves.
    fn leaves(&self) -> Vec<usize> {
        let data = self.data();
        (2..data.len() / PAGE).filter(|page| data[page * PAGE + 10] == 2).collect()
    }

    fn fill_leaves(&self, mut bytes: impl FnMut() -> u8) {
        for page in self.leaves() {
            let page_of: Vec<u8> = std::iter::repeat_with(&mut bytes).take(PAGE).collect();
            self.write("data.mdb", page * PAGE, &page_of);
        }
    }

    /// Those of them that hold rows of locks: here, all rows are.
    fn leaves_of_rows(&self) -> Vec<usize> {
        let data = self.data();
        let first_node = |page: usize| {
            let node = u16::from_le_bytes([data[page * PAGE + 16], data[page * PAGE + 17]]) as usize;
            data[page * PAGE + 12] > 16 && data[page * PAGE + node + 6] == 16
        };
        self.leaves().into_iter().filter(|page| first_node(*page)).collect()
    }

    /// Changes a byte of each row of a lock, as a bad disk may.
    fn flip_locks(&self) {
        self.flip(|key| key != [0; 16]);
    }

    /// The same, also of the counter of the fences.
    fn flip_rows(&self) {
        self.flip(|_| true);
    }

    fn flip(&self, wanted: impl Fn(&[u8]) -> bool) {
        let data = self.data();
        for page in self.leaves() {
            for node in (16..usize::from(data[page * PAGE + 12])).step_by(2) {
                let at = page * PAGE;
                let node = u16::from_le_bytes([data[at + node], data[at + node + 1]]) as usize;
                let key_size = usize::from(data[at + node + 6]);
                // Keys stay: of 16 bytes, they are those of rows.
                if key_size == 16 && wanted(&data[at + node + 8..at + node + 24]) {
                    let value = at + node + 8 + key_size + 20;
                    self.write("data.mdb", value, &[!data[value]]);
                }
            }
        }
    }
}

/// The page of the meta data that is in use, or the other.
fn meta(place: &Place, in_use: bool) -> usize {
    let data = place.data();
    let id = |page: usize| u64::from_le_bytes(data[page * PAGE + 144..page * PAGE + 152].try_into().unwrap());
    if (id(0) > id(1)) == in_use { 0 } else { 1 }
}

type Damage = fn(&Place);

fn random_bytes(seed: u64) -> impl FnMut() -> u8 {
    let mut random = StdRng::seed_from_u64(seed);
    move || random.random()
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy_all(&entry.path(), &to),
            kind if kind.is_file() => drop(fs::copy(entry.path(), to).unwrap()),
            _ => {}
        }
    }
}

fn remove_all(path: &Path) {
    fs::remove_dir_all(path).unwrap();
}

const CASES: &[(&str, Damage)] = &[
    ("nothing", |_| ()),
    ("data: header zeroed", |place| place.write("data.mdb", 0, &[0; 2 * PAGE])),
    ("data: header garbage", |place| place.write("data.mdb", 0, &[0xa5; 2 * PAGE])),
    ("data: magic garbage", |place| [0, PAGE].iter().for_each(|at| place.write("data.mdb", at + 16, &[7; 4]))),
    ("data: meta in use zeroed", |place| place.write("data.mdb", meta(place, true) * PAGE, &[0; PAGE])),
    ("data: meta in use torn", |place| place.write("data.mdb", meta(place, true) * PAGE + 100, &[0xff; 60])),
    ("data: other meta torn", |place| place.write("data.mdb", meta(place, false) * PAGE + 100, &[0; 60])),
    ("data: other meta garbage", |place| place.write("data.mdb", meta(place, false) * PAGE, &[0xff; PAGE])),
    ("data: leaves zeroed", |place| place.fill_leaves(|| 0)),
    ("data: leaves 0xff", |place| place.fill_leaves(|| 0xff)),
    ("data: leaves random 1", |place| place.fill_leaves(random_bytes(1))),
    ("data: leaves random 2", |place| place.fill_leaves(random_bytes(2))),
    ("data: leaves random 3", |place| place.fill_leaves(random_bytes(3))),
    ("data: leaves random 4", |place| place.fill_leaves(random_bytes(4))),
    ("data: leaves emptied", |place| {
        // Sound pages without rows.
        for page in place.leaves() {
            place.write("data.mdb", page * PAGE + 12, &[16, 0, 0, 16]);
        }
    }),
    ("data: leaf of the lock emptied", |place| {
        for page in place.leaves_of_rows() {
            place.write("data.mdb", page * PAGE + 12, &[16, 0, 0, 16]);
        }
    }),
    ("data: leaf of the lock garbled", |place| {
        for page in place.leaves_of_rows() {
            let bytes: Vec<u8> = std::iter::repeat_with(random_bytes(page as u64)).take(PAGE - 16).collect();
            place.write("data.mdb", page * PAGE + 16, &bytes);
        }
    }),
    ("data: rows flipped", Place::flip_rows),
    ("data: all but the metas zeroed", |place| {
        place.write("data.mdb", 2 * PAGE, &vec![0; STATE_SIZE - 2 * PAGE]);
    }),
    ("data: all zeroed", |place| place.write("data.mdb", 0, &vec![0; STATE_SIZE])),
    ("data: old copy over it", |place| place.write("data.mdb", 0, &place.before)),
    ("data: old copy over all but the metas", |place| {
        place.write("data.mdb", 2 * PAGE, &place.before[2 * PAGE..]);
    }),
    ("data: truncated to 0", |place| place.truncate("data.mdb", 0)),
    ("data: truncated to a page", |place| place.truncate("data.mdb", PAGE)),
    ("data: truncated to half", |place| place.truncate("data.mdb", STATE_SIZE / 2)),
    ("data: truncated and written again", |place| fs::write(place.file("data.mdb"), &place.before).unwrap()),
    ("data: removed", |place| place.remove("data.mdb")),
    ("data: replaced by a copy", |place| place.replace("data.mdb", &place.data())),
    ("data: replaced by an old copy", |place| place.replace("data.mdb", &place.before)),
    ("data: replaced by garbage", |place| place.replace("data.mdb", &[1; 3 * PAGE])),
    ("data: made unreadable", |place| {
        let data = place.file("data.mdb");
        fs::remove_file(&data).unwrap();
        fs::create_dir(data).unwrap();
    }),
    ("lock.mdb: removed", |place| place.remove("lock.mdb")),
    ("lock.mdb: replaced by nothing", |place| place.replace("lock.mdb", &[])),
    ("lock.mdb: truncated", |place| place.truncate("lock.mdb", 0)),
    ("lock.mdb: garbage", |place| place.write("lock.mdb", 0, &[0xa5; 300])),
    ("lock.mdb: zeroed", |place| place.write("lock.mdb", 0, &[0; 300])),
    ("gate: removed", |place| place.remove("gate")),
    ("gate: replaced by nothing", |place| place.replace("gate", &[])),
    ("gate: truncated", |place| place.truncate("gate", 0)),
    ("gate: garbage", |place| place.write("gate", 0, &[0xa5; 48])),
    ("gate: zeroed", |place| place.write("gate", 0, &[0; 48])),
    ("data and lock.mdb: removed", |place| ["data.mdb", "lock.mdb"].iter().for_each(|name| place.remove(name))),
    ("data, lock.mdb and gate: removed", |place| {
        ["data.mdb", "lock.mdb", "gate"].iter().for_each(|name| place.remove(name));
    }),
    ("state: removed", |place| remove_all(&place.state())),
    ("state: renamed away", |place| fs::rename(place.state(), place.home().join("away")).unwrap()),
    ("state: replaced by a copy", |place| {
        let (state, copy) = (place.state(), place.home().join("copy"));
        copy_all(&state, &copy);
        fs::rename(&state, place.home().join("away")).unwrap();
        fs::rename(copy, state).unwrap();
    }),
    ("layout: garbage", |place| fs::write(place.home_entry("layout"), [0xff; 300]).unwrap()),
    ("layout: removed", |place| fs::remove_file(place.home_entry("layout")).unwrap()),
    ("layout: of another generation", |place| place.edit_layout("state=", "state=7")),
    ("layout: of a smaller state", |place| place.edit_layout(&STATE_SIZE.to_string(), &(STATE_SIZE / 2).to_string())),
    ("layout: of a larger state", |place| place.edit_layout(&STATE_SIZE.to_string(), &(STATE_SIZE * 2).to_string())),
    ("users: removed", |place| fs::remove_file(place.home_entry("users")).unwrap()),
    ("open.lock: removed", |place| fs::remove_file(place.home_entry("open.lock")).unwrap()),
    ("users and data: removed", |place| {
        fs::remove_file(place.home_entry("users")).unwrap();
        place.remove("data.mdb");
    }),
    ("users and layout: removed", |place| {
        fs::remove_file(place.home_entry("users")).unwrap();
        fs::remove_file(place.home_entry("layout")).unwrap();
    }),
    ("users: removed, data: header garbage", |place| {
        fs::remove_file(place.home_entry("users")).unwrap();
        place.write("data.mdb", 0, &[0xa5; 2 * PAGE]);
    }),
    ("all that is no directory: removed", |place| {
        for name in ["users", "layout", "open.lock"] {
            fs::remove_file(place.home_entry(name)).unwrap();
        }
    }),
    ("run: removed", |place| {
        let _ = fs::remove_dir_all(place.home().join("run"));
    }),
    ("run: replaced by a copy", |place| {
        let (run, copy) = (place.home().join("run"), place.home().join("copy"));
        copy_all(&run, &copy);
        fs::rename(&run, place.home().join("away")).unwrap();
        fs::rename(copy, run).unwrap();
    }),
    ("inner directory: replaced by a copy", |place| {
        let (home, copy) = (place.home(), place.root.path().join("copy"));
        copy_all(&home, &copy);
        fs::rename(&home, place.root.path().join("away")).unwrap();
        fs::rename(copy, home).unwrap();
    }),
    ("inner directory: removed", |place| remove_all(&place.home())),
    ("inner directory: renamed away", |place| fs::rename(place.home(), place.root.path().join("away")).unwrap()),
    ("cache: removed", |place| remove_all(&place.cache())),
    ("cache: replaced by a copy", |place| {
        let copy = place.root.path().join("copy");
        copy_all(&place.cache(), &copy);
        fs::rename(place.cache(), place.root.path().join("away")).unwrap();
        fs::rename(copy, place.cache()).unwrap();
    }),
    ("cache: renamed away", |place| fs::rename(place.cache(), place.root.path().join("away")).unwrap()),
];

/// What happened after one damage.
#[derive(Debug)]
struct Report {
    case: &'static str,
    /// What others heard, in order, and whether the holder lived when they did.
    heard: Vec<(&'static str, String, bool)>,
    /// What those heard who came after everybody was gone.
    after: Vec<String>,
    took: Duration,
}

impl Report {
    fn is_sound(&self) -> bool {
        let refusals = self.heard.iter().all(|(_, heard, alive)| {
            // A process that was killed by its damaged files has not been let in.
            let let_in = *alive && heard.contains("GOT IT");
            !let_in && !heard.contains("HUNG") && says_what_to_do(heard)
        });
        // Who waited is told as well.
        let told = |who| self.heard.iter().find(|heard| heard.0 == who).map_or("", |heard| &heard.1);
        let left_waiting = told("B, at once").contains("refused") && told("who waited") == "busy";
        refusals && !left_waiting && self.after.last().is_some_and(|last| last == "GOT IT")
    }
}

fn says_what_to_do(heard: &str) -> bool {
    let is_refused = heard.contains("refused") || heard.contains("not opened");
    !is_refused || heard.contains("stop") || heard.contains("try again")
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.is_sound() { "ok " } else { "BAD" };
        writeln!(f, "{verdict} {} ({:.1} s)", self.case, self.took.as_secs_f32())?;
        for (who, heard, alive) in &self.heard {
            writeln!(f, "      {who}: {heard}{}", if *alive { "" } else { "   (the holder was dead)" })?;
        }
        writeln!(f, "      after: {:?}", self.after)
    }
}

/// What a child says next, or what it died of.
fn hear(child: &mut Child) -> String {
    child.heard().unwrap_or_else(|| match waitpid(child.pid(), None) {
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("died of {signal}"),
        other => format!("ended: {other:?}"),
    })
}

/// Asks a child that may be dead.
fn ask(child: &mut Child) -> String {
    child.try_tell("?");
    hear(child)
}

fn newcomer(place: &Place) -> String {
    let mut child = Child::spawn("try", &place.cache());
    match hear(&mut child) {
        open if open == "open" => ask(&mut child),
        not_open => not_open,
    }
}

fn run((case, damage): &(&'static str, Damage)) -> Report {
    let began = Instant::now();
    let mut place = Place { root: tempfile::tempdir().unwrap(), before: Vec::new() };
    let mut b = Child::spawn("try", &place.cache());
    b.expect("open");
    place.before = place.data();
    let mut a = Child::spawn("hold", &place.cache());
    a.expect("held");
    let mut waiter = Child::spawn("try", &place.cache());
    waiter.expect("open");
    waiter.tell("patiently");
    waiter.expect("waiting");
    // Its row shows that it waits; its file that it is there.
    while place.instances() < 2 {
        std::thread::yield_now();
    }
    let mut report = Report { case, heard: Vec::new(), after: Vec::new(), took: Duration::ZERO };
    {
        // Reading their directory does not disturb them.
        let _starting = starting();
        damage(&place);
    }
    for round in ["B, at once", "C", "who waited", "B, after C", "another C"] {
        let heard = match round {
            "who waited" => hear(&mut waiter),
            round if round.starts_with('B') => ask(&mut b),
            _ => newcomer(&place),
        };
        let alive = ask(&mut a) == "alive";
        report.heard.push((round, heard, alive));
    }
    for child in [a, b, waiter] {
        let _ = kill(child.pid(), Signal::SIGKILL);
        drop(child);
    }
    // Who finds the damage only in use leaves it to the next one to start afresh. A lock whose record is damaged is
    // refused until its lease must have ended.
    let deadline = Instant::now() + BOUND;
    while report.after.len() < 5 {
        let heard = newcomer(&place);
        let (done, waits) = (heard == "GOT IT", heard.contains("try again") && Instant::now() < deadline);
        if !waits {
            report.after.push(heard);
        }
        if done {
            break;
        }
    }
    report.took = began.elapsed();
    report
}

/// One damaged row is one lock's trouble.
#[test]
fn a_damaged_lock_is_refused_until_its_lease_has_ended_while_others_go_on() {
    let place = Place { root: tempfile::tempdir().unwrap(), before: Vec::new() };
    let mut other = Child::spawn("names", &place.cache());
    other.expect("open");
    let mut holder = Child::spawn("hold", &place.cache());
    holder.expect("held");
    let mut say = |name: &str| {
        other.tell(name);
        other.line()
    };
    let fence = |said: String| said.strip_prefix("fence ").map(|fence| fence.parse::<u64>().unwrap());
    let before = fence(say("another")).expect("it is free");
    assert_eq!(say("l"), "busy");
    let deadline = Instant::now() + BOUND;
    // A renewal may have just copied the row to another page.
    let refused = loop {
        place.flip_locks();
        match say("l") {
            busy if busy == "busy" => assert!(Instant::now() < deadline, "not found damaged"),
            other => break other,
        }
    };
    assert!(refused.contains("the record of this lock is damaged"), "{refused}");
    let mut newcomer = Child::spawn("names", &place.cache());
    newcomer.expect("open");
    newcomer.tell("yet another");
    assert!(fence(newcomer.line()).is_some(), "others go on, and others may come");
    // Nobody is let in while the holder may believe that it holds the lock.
    let after = loop {
        let (lost, heard) = (ask(&mut holder) == "lost", say("l"));
        assert!(Instant::now() < deadline, "refused for ever");
        if let Some(after) = fence(heard) {
            assert!(lost, "let in beside the holder");
            break after;
        }
    };
    assert!(after > before);
}

#[test]
fn nobody_else_is_let_in_whatever_becomes_of_the_files() {
    let only = std::env::var("DAMAGE").unwrap_or_default();
    let cases: Vec<_> = CASES.iter().filter(|case| case.0.contains(&only)).collect();
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, SeqCst)) {
                    let report = run(case);
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap();
    let unsound: Vec<_> = reports.iter().filter(|report| !report.is_sound()).collect();
    if !only.is_empty() || std::env::var_os("TABLE").is_some() {
        for case in &cases {
            print!("{}", reports.iter().find(|report| report.case == case.0).unwrap());
        }
    }
    let text: String = unsound.iter().map(|report| report.to_string()).collect();
    assert!(unsound.is_empty(), "{} of {} are unsound:\n{text}", unsound.len(), reports.len());
}
