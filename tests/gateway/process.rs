//! A gateway as a process of its own, and a client for it. The tests and the benchmark of the gateway use it.
#![allow(dead_code)]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The example, which cargo puts beside the directory that tests and benchmarks run from.
pub(crate) fn binary() -> PathBuf {
    let from_env = std::env::var_os("FLOODGATE_GATEWAY").map(PathBuf::from);
    let path = from_env.unwrap_or_else(|| {
        let tests = std::env::current_exe().expect("the path of this test");
        tests.ancestors().nth(2).expect("target/<profile>/deps").join("examples/gateway")
    });
    assert!(path.exists(), "{} is missing: cargo build --example gateway", path.display());
    path
}

pub(crate) struct Gateway {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) demo: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
}

impl Gateway {
    /// Starts a gateway on a free port and waits until it listens.
    pub(crate) fn start(directory: &Path, flags: &[&str]) -> Gateway {
        let mut child = Command::new(binary())
            .args(["--listen", "127.0.0.1:0", "--cache-dir"])
            .arg(directory)
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (mut demo, mut admin) = (None, None);
        let address = loop {
            let line = lines.next().expect("the gateway listens").expect("text");
            let address = |text: &str| line.strip_prefix(text).map(|address| address.parse().expect("an address"));
            demo = demo.or(address("demo origin on http://"));
            admin = admin.or(address("admin on http://"));
            if let Some(address) = address("listening on http://") {
                break address;
            }
        };
        thread::spawn(move || lines.for_each(drop));
        Gateway { child, address, demo, admin }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Bytes of `RssAnon`.
    pub(crate) fn anonymous_memory(&self) -> u64 {
        anonymous_memory(&self.child.id().to_string())
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it still runs");
    }

    /// SIGKILL: it has no chance to clean up.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it still runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn exit(&mut self) -> ExitStatus {
        exit_of(&mut self.child)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of `RssAnon` of a process.
pub(crate) fn anonymous_memory(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it still runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux says so");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes << 10
}

fn exit_of(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return status;
        }
        if began.elapsed() > Duration::from_secs(30) {
            let _ = child.kill();
            panic!("the gateway does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a gateway that is to end by itself: its exit code, stdout and stderr.
pub(crate) fn run(flags: &[&str]) -> (Option<i32>, String, String) {
    let mut child = Command::new(binary())
        .args(flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the gateway starts");
    let status = exit_of(&mut child);
    let mut text = (String::new(), String::new());
    child.stdout.take().expect("a pipe").read_to_string(&mut text.0).expect("text");
    child.stderr.take().expect("a pipe").read_to_string(&mut text.1).expect("text");
    (status.code(), text.0, text.1)
}

/// A client that speaks one version of HTTP.
#[derive(Clone)]
pub(crate) struct Browser(Client<HttpConnector, Full<Bytes>>);

/// A response whose body has been read.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// All lines of a header, joined; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> String {
        let lines: Vec<&str> = self.headers.get_all(name).iter().map(|line| line.to_str().expect("ASCII")).collect();
        lines.join(", ")
    }
}

impl Browser {
    pub(crate) fn http1() -> Self {
        Browser(Client::builder(TokioExecutor::new()).build_http())
    }

    /// HTTP/2 without TLS, by prior knowledge.
    pub(crate) fn h2c() -> Self {
        Browser(Client::builder(TokioExecutor::new()).http2_only(true).build_http())
    }

    pub(crate) async fn get(&self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], "").await
    }

    pub(crate) async fn post(&self, url: &str) -> Answer {
        self.send(Method::POST, url, &[], "").await
    }

    pub(crate) async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().expect("a URL");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("the name of a header");
            request.headers_mut().append(name, value.parse().expect("a value"));
        }
        let (parts, body) = self.0.request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        Answer { status: parts.status, headers: parts.headers, body }
    }
}
