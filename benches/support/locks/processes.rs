//! Processes of this benchmark: the same binary, with a part to play.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
};

/// The first argument of a child.
const PART: &str = "part";

/// The part that this process is to play, and its place; `None`: it is no child.
pub(super) fn part() -> Option<(Vec<String>, PathBuf)> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != OsStr::new(PART) {
        return None;
    }
    let place = PathBuf::from(arguments.next()?);
    Some((arguments.filter_map(|argument| argument.into_string().ok()).collect(), place))
}

/// A child that plays a part, and speaks through its stdin and stdout. Killed when dropped.
pub(super) struct Child {
    process: std::process::Child,
    lines: BufReader<ChildStdout>,
}

impl Child {
    pub(super) fn start(part: &[&str], place: &Path) -> Child {
        let mut process = Command::new(std::env::current_exe().expect("the path of this benchmark"))
            .args([OsString::from(PART), place.into()])
            .args(part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(process.stdout.take().expect("a pipe"));
        Child { process, lines }
    }

    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().expect("a pipe"), "{line}").expect("it listens");
    }

    /// All lines that the child still prints; it has ended well by then.
    pub(super) fn rest(mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).expect("text");
        assert!(self.process.wait().is_ok_and(|status| status.success()), "a child failed");
        text
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
