//! A redis server of this benchmark's own, where one is installed, and as much of its protocol as locks need.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::{TempDir, tempdir};

/// A server that listens on a socket in a directory of its own, writes nothing to disk, and ends when it is dropped.
pub(super) struct Server {
    process: Child,
    directory: TempDir,
}

impl Server {
    /// `None`: it is not installed.
    pub(super) fn start() -> Option<Server> {
        let directory = tempdir().expect("a temporary directory");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(socket(directory.path()))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server { process, directory };
        let began = Instant::now();
        while UnixStream::connect(server.socket()).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "redis-server does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    pub(super) fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("redis")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that asks one thing at a time and waits for the answer.
pub(super) struct Client(BufReader<UnixStream>);

impl Client {
    pub(super) fn connect(socket: &Path) -> Client {
        Client(BufReader::new(UnixStream::connect(socket).expect("redis listens")))
    }

    /// The server's answer, in text: the last element of a list, and nothing for nil.
    pub(super) fn ask(&mut self, command: &[&str]) -> String {
        let mut text = format!("*{}\r\n", command.len());
        for part in command {
            text += &format!("${}\r\n{part}\r\n", part.len());
        }
        self.0.get_mut().write_all(text.as_bytes()).and_then(|()| self.answer()).expect("redis answers")
    }

    fn answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        let count = || rest.parse::<i64>().map_err(io::Error::other);
        match kind {
            "$" => {
                let Ok(length) = usize::try_from(count()?) else { return Ok(String::new()) };
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(length);
                String::from_utf8(bytes).map_err(io::Error::other)
            }
            "*" => (0..count()?).try_fold(String::new(), |_, _| self.answer()),
            "-" => Err(io::Error::other(rest.to_owned())),
            _ => Ok(rest.to_owned()),
        }
    }
}
