//! Answers: filled, inserted, read and purged by lot, from 1 kB to 8 MB. What is read must be whole, and no purge may have
//! hit it.

use crate::{
    history::{Pen, Process, now},
    notes::{Cover, Note, Origin, Page, Why},
};
use rand::{RngExt, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time;
use tower_floodgate::{Cache, Error, Purge, Scope};

const SCOPES: [&str; 2] = ["news", "shop"];
const PAGES: usize = 60;
const SMALLEST: f64 = 1e3;
const LARGEST: f64 = 8e6;
/// A value is its header, then this many bytes that follow from it, again and again.
const BLOCK: usize = 64;

#[derive(Clone)]
pub(crate) struct Answers {
    cache: Cache,
    scopes: [Scope; 2],
    pen: Arc<Pen>,
    process: Process,
    numbers: Arc<AtomicU64>,
}

impl Answers {
    pub(crate) fn new(cache: &Cache, pen: &Arc<Pen>, process: Process) -> Answers {
        let scopes = SCOPES.map(|name| cache.scope(name));
        Answers { cache: cache.clone(), scopes, pen: pen.clone(), process, numbers: Arc::default() }
    }

    pub(crate) async fn step(&self, random: &mut StdRng) {
        let page = Page { scope: random.random_range(0..SCOPES.len()), number: random.random_range(0..PAGES) };
        let life = Duration::from_millis(random.random_range(1_000..20_000));
        match random.random_range(0..1_000) {
            0..450 => self.get(page),
            450..800 => self.fill(page, life, Duration::from_micros(random.random_range(0..50_000))).await,
            800..970 => self.insert(page, life).await,
            970..980 => self.remove(page).await,
            980..982 => self.purge(Cover::Scope(page.scope)).await,
            982..984 => self.purge(Cover::Tag(page.tag())).await,
            984..988 => self.purge(Cover::Tens { scope: page.scope, tens: page.number / 10 }).await,
            _ => self.purge(Cover::Name(page)).await,
        }
    }

    fn get(&self, page: Page) {
        let from = now();
        match self.scope(page).get::<String>(&page.name()) {
            Ok(Some(value)) => self.check(page, &value, from),
            Ok(None) => {}
            Err(error) => self.failed("get", &error, from),
        }
    }

    async fn fill(&self, page: Page, life: Duration, takes: Duration) {
        let (from, answers) = (now(), self.clone());
        let compute = move || async move {
            let origin = answers.origin(false);
            time::sleep(takes).await;
            Ok::<_, Error>(value(page, &origin))
        };
        let filling = self.scope(page).get_or_fill(&page.name(), life, compute).tag(&tag(page.tag()));
        match filling.await {
            Ok(value) => self.check(page, &value, from),
            Err(error) => self.failed("fill", &error, from),
        }
    }

    async fn insert(&self, page: Page, life: Duration) {
        let origin = self.origin(true);
        let inserting = self.scope(page).insert(&page.name(), &value(page, &origin)).expire(life);
        match inserting.tag(&tag(page.tag())).await {
            Ok(_) => self.pen.write(&Note::Inserted { number: origin.number, at: now() }),
            Err(error) => self.failed("insert", &error, origin.born),
        }
    }

    async fn remove(&self, page: Page) {
        let from = now();
        match self.scope(page).remove(&page.name()).await {
            // Here, a removal is the purge of a name, but for what is being computed.
            Ok(_) => {}
            Err(error) => self.failed("remove", &error, from),
        }
    }

    async fn purge(&self, cover: Cover) {
        let purge = match cover {
            Cover::Scope(scope) => Purge::scope(SCOPES[scope]),
            Cover::Tag(number) => Purge::tag(&tag(number)),
            Cover::Tens { scope, tens } => Purge::prefix(SCOPES[scope], &format!("page-{tens}")),
            Cover::Name(page) => Purge::name(SCOPES[page.scope], &page.name()),
        };
        let asked = now();
        match self.cache.purge(purge).await {
            Ok(()) => self.pen.write(&Note::Purged { cover, asked, done: now() }),
            Err(error) => self.failed("purge", &error, asked),
        }
    }

    /// Fills that find the cache failing say so in the statistics only.
    pub(crate) async fn watch_failures(self) {
        let (mut before, mut from) = (0, now());
        loop {
            time::sleep(Duration::from_millis(100)).await;
            let failures = self.cache.stats().failures;
            if failures > before {
                self.pen.write(&Note::failed("layer", Why::Unknown, from));
            }
            (before, from) = (failures, now());
        }
    }

    fn scope(&self, page: Page) -> &Scope {
        &self.scopes[page.scope]
    }

    fn origin(&self, is_inserted: bool) -> Origin {
        Origin { process: self.process, number: self.numbers.fetch_add(1, SeqCst), is_inserted, born: now() }
    }

    fn check(&self, page: Page, found: &str, from: u64) {
        self.pen.write(&match origin_of(page, found) {
            Some(origin) => Note::Read { page, origin, from },
            None => Note::Garbled { what: format!("{page:?}: {} bytes, {found:.80}", found.len()), at: now() },
        });
    }

    fn failed(&self, what: &str, error: &Error, from: u64) {
        self.pen.write(&Note::failed(what, error.into(), from));
    }
}

fn tag(number: usize) -> String {
    format!("tag-{number}")
}

/// As many of one size as of another that is twice as large.
fn size(page: Page) -> usize {
    (SMALLEST * (LARGEST / SMALLEST).powf(page.number as f64 / (PAGES - 1) as f64)) as usize
}

fn header(page: Page, origin: &Origin) -> String {
    let header = serde_json::to_string(&(page, origin)).expect("it is plain");
    format!("{header:<width$}\n", width = 4 * BLOCK - 1)
}

fn block(origin: &Origin) -> String {
    let Origin { process, number, born, .. } = origin;
    format!("{process:>10} {number:>20} {born:>31}\n")
}

fn value(page: Page, origin: &Origin) -> String {
    header(page, origin) + &block(origin).repeat(size(page) / BLOCK)
}

/// `None`: this was never stored under that name.
fn origin_of(page: Page, found: &str) -> Option<Origin> {
    let (header, blocks) = found.split_at_checked(4 * BLOCK)?;
    let (of, origin): (Page, Origin) = serde_json::from_str(header.trim()).ok()?;
    let block = block(&origin);
    let is_whole = of == page
        && blocks.len() == size(page) / BLOCK * BLOCK
        && blocks.as_bytes().chunks(BLOCK).all(|found| found == block.as_bytes());
    is_whole.then_some(origin)
}
