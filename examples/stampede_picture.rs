//! Draws what a stampede is and what becomes of it: `docs/stampede.svg`, for the README.
//!
//! ```sh
//! cargo run --release --example stampede_picture
//! ```
//!
//! Ten workers ask for a page that takes 200 ms and lives for a second, and pause for 10 ms: the case study of python-diskcache,
//! on tokio's paused time, so that ten seconds take none.

use rand::RngExt;
use std::{
    fmt::Write,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_floodgate::{BarrierLayer, Cache, Fail, Lock, StampedeCacheLayer, time::Steady};

const WORK: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);
const LIFE: Duration = Duration::from_secs(1);
const SPAN: Duration = Duration::from_secs(10);
const WORKERS: usize = 10;

type Page = BoxCloneService<(), String, BoxError>;
/// When computations began and ended.
type Log = Arc<Mutex<Vec<(Instant, Instant)>>>;

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), BoxError> {
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(Steady::new()).open()?;
    let barrier = BarrierLayer::new(cache.scope("page"), Lock).answer(Fail);
    let ours = StampedeCacheLayer::memoize(cache.scope("page"), LIFE).tuned(0.01).stale_while_revalidate(LIFE);
    let strategies: [(&str, &dyn Fn(Page) -> Page); 5] = [
        ("no cache", &|work| work),
        ("a plain cache", &plain),
        ("a plain cache behind a lock", &|work| plain(BoxCloneService::new(barrier.layer(plain(work))))),
        ("XFetch alone, beta 1", &xfetch),
        ("StampedeCacheLayer, tuned, with grace", &|work| BoxCloneService::new(ours.layer(work))),
    ];
    let mut strips = Vec::new();
    for (name, strategy) in strategies {
        strips.push(run(name, strategy).await?);
    }
    fs::create_dir_all("docs")?;
    fs::write("docs/stampede.svg", draw(&strips))?;
    for strip in &strips {
        println!("{:<40} {}", strip.name, strip.summary());
    }
    Ok(())
}

/// Answers until its life ends; then everybody computes.
fn plain(work: Page) -> Page {
    let stored: Arc<Mutex<Option<(Instant, String)>>> = Arc::default();
    BoxCloneService::new(service_fn(move |(): ()| {
        let (stored, work) = (stored.clone(), work.clone());
        async move {
            let found = stored.lock().unwrap().clone();
            if let Some((_, page)) = found.filter(|(until, _)| Instant::now() < *until) {
                return Ok::<_, BoxError>(page);
            }
            let page = work.oneshot(()).await?;
            *stored.lock().unwrap() = Some((Instant::now() + LIFE, page.clone()));
            Ok(page)
        }
    }))
}

/// As python-diskcache does it: early refreshes in the background, guarded for as long as the last one took, and a miss is
/// everybody's own.
fn xfetch(work: Page) -> Page {
    #[derive(Default)]
    struct State {
        stored: Option<(Instant, String)>,
        guarded: Option<Instant>,
    }
    let state: Arc<Mutex<State>> = Arc::default();
    BoxCloneService::new(service_fn(move |(): ()| {
        let (state, work) = (state.clone(), work.clone());
        async move {
            let now = Instant::now();
            let compute = |state: Arc<Mutex<State>>| async move {
                let page = work.oneshot(()).await?;
                state.lock().unwrap().stored = Some((Instant::now() + LIFE, page.clone()));
                Ok::<_, BoxError>(page)
            };
            let found = state.lock().unwrap().stored.clone().filter(|(until, _)| now < *until);
            let Some((until, page)) = found else { return compute(state).await };
            let draw: f64 = rand::rng().random();
            let early = WORK.as_secs_f64() * -(1.0 - draw).ln() >= (until - now).as_secs_f64();
            let is_free = |state: &State| state.guarded.is_none_or(|guarded| guarded <= now);
            if early && is_free(&state.lock().unwrap()) {
                state.lock().unwrap().guarded = Some(now + WORK);
                tokio::spawn(compute(state));
            }
            Ok(page)
        }
    }))
}

/// What came of a strategy.
struct Strip {
    name: &'static str,
    /// Seconds from the start at which each computation began and ended.
    runs: Vec<(f64, f64)>,
    slowest: Duration,
}

impl Strip {
    /// How many computations were under way, from each time on at which that changed.
    fn steps(&self) -> Vec<(f64, usize)> {
        let ends = self.runs.iter().flat_map(|&(from, to)| [(from, 1), (to, -1)]);
        let mut changes: Vec<(f64, i32)> = ends.collect();
        changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut level = 0;
        changes
            .into_iter()
            .map(|(at, change)| {
                level += change;
                (at, usize::try_from(level).unwrap_or(0))
            })
            .collect()
    }

    fn summary(&self) -> String {
        let peak = self.steps().iter().map(|step| step.1).max().unwrap_or(0);
        let (count, slowest) = (self.runs.len(), self.slowest.as_millis());
        format!("{count} computations, {peak} at once, slowest answer {slowest} ms")
    }
}

async fn run(name: &'static str, strategy: &dyn Fn(Page) -> Page) -> Result<Strip, BoxError> {
    let log = Log::default();
    let logged = log.clone();
    let page = strategy(BoxCloneService::new(service_fn(move |(): ()| {
        let logged = logged.clone();
        async move {
            let began = Instant::now();
            tokio::time::sleep(WORK).await;
            logged.lock().unwrap().push((began, Instant::now()));
            Ok::<_, BoxError>("the landing page".to_owned())
        }
    })));
    // One call to begin with: what is drawn is how it goes on.
    let zero = Instant::now();
    page.clone().oneshot(()).await?;
    let began = Instant::now();
    let slowest = Arc::new(Mutex::new(Duration::ZERO));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (mut page, slowest) = (page.clone(), slowest.clone());
        workers.spawn(async move {
            while began.elapsed() < SPAN {
                let asked = Instant::now();
                page.ready().await?.call(()).await?;
                {
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = asked.elapsed().max(*slowest);
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, BoxError>(())
        });
    }
    workers.join_all().await.into_iter().collect::<Result<(), _>>()?;
    // Refreshes that are still under way.
    tokio::time::sleep(2 * WORK).await;
    let seconds = |at: Instant| at.duration_since(zero).as_secs_f64();
    let runs = log.lock().unwrap().iter().map(|&(from, to)| (seconds(from), seconds(to))).collect();
    let slowest = *slowest.lock().unwrap();
    Ok(Strip { name, runs, slowest })
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 34.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 58.0;
/// Of a strip, and from one to the next.
const HEIGHT: f64 = 56.0;
const PITCH: f64 = 96.0;
/// Seconds drawn.
const SECONDS: f64 = 10.6;

fn draw(strips: &[Strip]) -> String {
    let height = TOP + PITCH * strips.len() as f64 + 22.0;
    let x = |seconds: f64| LEFT + seconds / SECONDS * (WIDTH - LEFT - RIGHT);
    let mut svg = String::new();
    let mut line = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    line(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="Computations under way over time, for five ways to cache a page">"##
    ));
    line(format!(r##"<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfaf7"/>"##));
    line(format!(
        r##"<text x="{LEFT}" y="27" font-size="15" font-weight="600" fill="#1f2328">Computations under way</text>"##
    ));
    line(format!(
        r##"<text x="{LEFT}" y="45" fill="#59636e">ten clients, a page that takes 200 ms and lives for a second; slowest answers are those after the first call</text>"##
    ));
    for (at, strip) in strips.iter().enumerate() {
        let is_ours = at + 1 == strips.len();
        let (color, top) = (if is_ours { "#1a7f5a" } else { "#c2410c" }, TOP + PITCH * at as f64 + 26.0);
        let bottom = top + HEIGHT;
        let y = |level: f64| bottom - level / WORKERS as f64 * HEIGHT;
        line(format!(
            r##"<text x="{LEFT}" y="{:.1}" fill="#1f2328"><tspan font-weight="600">{}</tspan><tspan fill="#59636e" dx="10">{}</tspan></text>"##,
            top - 9.0,
            strip.name,
            strip.summary()
        ));
        for level in [0, WORKERS] {
            let y = y(level as f64);
            line(format!(
                r##"<line x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" stroke="#d1d9e0" stroke-width="1"/>"##,
                WIDTH - RIGHT
            ));
            line(format!(
                r##"<text x="{:.1}" y="{:.1}" text-anchor="end" font-size="11" fill="#59636e">{level}</text>"##,
                LEFT - 6.0,
                y + 4.0
            ));
        }
        let mut path = format!("M{:.1} {bottom:.1}", x(0.0));
        let mut level = 0.0;
        for (seconds, next) in strip.steps().into_iter().filter(|step| step.0 <= SECONDS) {
            let _ = write!(path, "L{0:.1} {1:.1}L{0:.1} {2:.1}", x(seconds), y(level), y(next as f64));
            level = next as f64;
        }
        let _ = write!(path, "L{:.1} {:.1}L{0:.1} {bottom:.1}Z", x(SECONDS), y(level));
        line(format!(r##"<path d="{path}" fill="{color}" fill-opacity="0.85"/>"##));
    }
    for second in (0..=10).step_by(2) {
        line(format!(
            r##"<text x="{:.1}" y="{:.1}" text-anchor="middle" font-size="11" fill="#59636e">{second} s</text>"##,
            x(f64::from(second)),
            height - 14.0
        ));
    }
    svg + "</svg>\n"
}
