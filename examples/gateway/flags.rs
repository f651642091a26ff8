//! The command line.

use crate::proxy::Upstream;
use clap::{Parser, error::ErrorKind};
use http::{HeaderName, Request};
use std::{
    fmt::Write as _, io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration,
};
use tower_floodgate::name::{self, ClientIp, Header, Name, NameBuf, Named};

/// A reverse proxy that guards an HTTP upstream: throttle, then cache, then barrier.
///
/// Gateways with one --cache-dir share budgets, locks and answers, and a restart forgets nothing. Times are in seconds,
/// and may have a fraction.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, max_term_width = 110)]
pub(crate) struct Flags {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,

    /// Where requests go, such as http://localhost:3000; a demo origin in this process if left out
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<Upstream>,

    /// Directory of the shared state and answers, on a local disk; 64 MiB of it are taken at once
    #[arg(long, value_name = "DIR", default_value = "./floodgate-cache")]
    pub(crate) cache_dir: PathBuf,

    /// Life of a cacheable response that names none itself; 0: only what the response allows
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds, allow_hyphen_values = true)]
    pub(crate) expire: Duration,

    /// How eagerly answers are refreshed before they expire (XFetch); 0: not at all
    #[arg(long, value_name = "F", default_value = "1", value_parser = beta, allow_hyphen_values = true)]
    pub(crate) beta: f64,

    /// How long past its life an answer may bridge a slow or failing upstream
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, allow_hyphen_values = true)]
    pub(crate) stale: Duration,

    /// Leave the cache layer out
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Let so many requests pass in so many seconds, refuse the rest (429)
    #[arg(long, value_name = "COUNT/SECONDS", value_parser = rate, allow_hyphen_values = true)]
    pub(crate) throttle: Option<(u32, Duration)>,

    /// What the throttle counts together: all, ip, path or header:NAME
    #[arg(long, value_name = "WHAT", default_value = "ip", value_parser = throttle_by)]
    pub(crate) throttle_by: By,

    /// How long a request that --throttle refuses may wait for its turn; 0 refuses at once
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, allow_hyphen_values = true)]
    pub(crate) throttle_wait: Duration,

    /// Tell clients their budget in every answer, not only in refusals, and in X-RateLimit-* beside RateLimit
    #[arg(long)]
    pub(crate) quota_headers: bool,

    /// At most so many requests of one name at the upstream at once
    #[arg(long, value_name = "N", value_parser = places, allow_hyphen_values = true)]
    pub(crate) barrier: Option<u32>,

    /// What shares the barrier's places: all, path or header:NAME
    #[arg(long, value_name = "WHAT", default_value = "path", value_parser = barrier_by)]
    pub(crate) barrier_by: By,

    /// How long a request waits for a place before it is refused (503)
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, allow_hyphen_values = true)]
    pub(crate) barrier_wait: Duration,

    /// How long a place stays taken once its gateway hangs; one that dies gives it back at once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = lease, allow_hyphen_values = true)]
    pub(crate) lease: Duration,

    /// Address of a second listener: POST /purge?tag=T, POST /purge?path=P, GET /stats
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
}

impl Flags {
    /// The flags of this process, or what to exit with: 0 after `--help`, 2 after one line about what is wrong.
    pub(crate) fn read() -> Result<Flags, ExitCode> {
        Flags::try_parse().map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _ = error.print();
                ExitCode::SUCCESS
            }
            _ => {
                // The first paragraph says what is wrong, the others how the command is used.
                let text = error.render().to_string();
                let problem = text.split("\n\n").next().unwrap_or_default();
                fail(problem.strip_prefix("error: ").unwrap_or(problem))
            }
        })
    }

    /// Lines to try, for this gateway as it is.
    pub(crate) fn hints(&self, gateway: SocketAddr) -> String {
        let mut lines = String::from("try:");
        let mut line = |command: &str, what: &str| {
            let _ = write!(lines, "\n  {command}  # {what}");
        };
        if self.upstream.is_some() {
            line(&format!("curl -i http://{gateway}/"), "the upstream's answer, through the gateway");
            return lines;
        }
        let throttled = self.throttle.is_some() && self.throttle_wait.is_zero();
        if !self.no_cache {
            line(&format!("curl -i http://{gateway}/slow/1000"), "takes a second; at once when asked again");
        }
        if !self.no_cache && self.throttle.is_none() {
            // A target of its own: what an earlier gateway stored would be no stampede.
            let url = format!("http://{gateway}/slow/2000?{}", std::process::id());
            line(
                &format!("seq 64 | xargs -P 64 -I@ curl -s -o /dev/null '{url}'; curl http://{gateway}/count"),
                "64 at once, and the count of /slow is up by one",
            );
        }
        if self.no_cache && self.barrier.is_some() && self.throttle.is_none() {
            let url = format!("http://{gateway}/slow/500");
            line(&format!("time (seq 8 | xargs -P 8 -I@ curl -s {url})"), "8 at once, in turns");
        }
        if let (Some((count, _)), true) = (self.throttle, throttled) {
            let url = format!("http://{gateway}/hello");
            line(
                &format!("seq {} | xargs -I@ curl -s -o /dev/null -w '%{{http_code}}\\n' {url}", u64::from(count) + 3),
                "200 until the budget is spent, then 429",
            );
        }
        line(&format!("curl -i http://{gateway}/hello"), "the origin's answer, through the gateway");
        lines
    }
}

/// Says in one line what is wrong; the exit code to go with it.
pub(crate) fn fail(problem: &str) -> ExitCode {
    let line: Vec<&str> = problem.split_whitespace().collect();
    let line: String = line.join(" ").chars().map(|symbol| if symbol.is_control() { '?' } else { symbol }).collect();
    // Not `eprintln!`, which would panic where nobody reads.
    let _ = std::io::stderr().write_all(format!("error: {line}\n").as_bytes());
    ExitCode::from(2)
}

/// What a layer takes for one.
#[derive(Clone, Debug)]
pub(crate) enum By {
    All,
    Ip,
    Path,
    Header(HeaderName),
}

impl By {
    /// The name of a request by this rule.
    pub(crate) fn name<B: 'static>(&self) -> Arc<dyn Name<Request<B>> + Send + Sync> {
        match self {
            By::All => Arc::new("all"),
            By::Ip => Arc::new(ClientIp::new()),
            By::Path => Arc::new(name::from_fn(|request: &Request<B>, name: &mut NameBuf| {
                name.push_str(request.uri().path());
                Named::Yes
            })),
            By::Header(header) => Arc::new(Header::new(header)),
        }
    }
}

fn throttle_by(text: &str) -> Result<By, String> {
    match text {
        "ip" => Ok(By::Ip),
        _ => by(text).ok_or_else(|| "it is one of all, ip, path, header:NAME".into()),
    }
}

fn barrier_by(text: &str) -> Result<By, String> {
    by(text).ok_or_else(|| "it is one of all, path, header:NAME".into())
}

fn by(text: &str) -> Option<By> {
    match text {
        "all" => Some(By::All),
        "path" => Some(By::Path),
        _ => text.strip_prefix("header:")?.parse().ok().map(By::Header),
    }
}

/// Some 30 years. Longer is a slip of the finger.
const LONGEST: f64 = 1e9;

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("it must be {least} to {most}")) }
}

fn span(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(text, least, most)?).map_err(|error| error.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    span(text, 0.0, LONGEST)
}

fn lease(text: &str) -> Result<Duration, String> {
    span(text, 0.01, 31_536_000.0)
}

fn beta(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1000.0)
}

fn places(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|places| (1..=10_000).contains(places)).ok_or_else(|| "it must be 1 to 10000".into())
}

fn rate(text: &str) -> Result<(u32, Duration), String> {
    let (count, per) = text.split_once('/').ok_or("it reads COUNT/SECONDS, such as 100/60")?;
    let count: u32 = count.parse().ok().filter(|&count| count > 0).ok_or("the count must be 1 to 4294967295")?;
    let per = span(per, 1e-9, LONGEST)
        .map_err(|error| format!("of the seconds: {error}; write COUNT/SECONDS, such as 100/60"))?;
    if per.as_nanos() < u128::from(count) {
        return Err("it is more than one a nanosecond".into());
    }
    Ok((count, per))
}
