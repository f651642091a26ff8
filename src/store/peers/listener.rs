//! The listening thread, and datagrams between processes.
//!
//! An instance that waits has a Unix datagram socket beside its file under `run/`. Who offers it something sends it the
//! number of the waiter: eight bytes, little-endian. The thread calls who waits with it and, since datagrams may be lost
//! and processes may die, looks at the keys now and then. It is started when somebody waits for the first time, tied to no
//! runtime, and gone with the last handle of its cache.

use super::{
    instances::{self, Instances},
    wake_ups::{Listener, Next, TICK, WakeUps},
};
use crate::store::os::fork;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

/// The longest path that surely fits into a socket's address.
const PATH_MAX: usize = 100;
/// Datagrams that a socket of Linux holds unless told otherwise. Who finds as many has perhaps missed others.
const QUEUE: usize = 10;
/// Datagrams between two ticks at most.
const DRAINED: usize = 64;
/// How long after a full queue another one makes for no further looks.
const CALM: Duration = Duration::from_millis(5);

/// Whether somebody could be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It was told, or will look soon.
    Yes,
    /// Nobody listens there; perhaps it is dead.
    No,
}

/// The sockets of one opening.
#[derive(Debug)]
pub(crate) struct Sockets {
    run: PathBuf,
    /// `run/` itself, where its path is too long for an address.
    directory: OnceLock<File>,
    sender: OnceLock<UnixDatagram>,
    /// Not held: the instance ends with the last handle, and not with the thread.
    instances: Weak<Instances>,
    listening: Mutex<Option<Listening>>,
    /// See [`fork::forks`].
    forks: u32,
}

#[derive(Debug)]
struct Listening {
    path: PathBuf,
    /// Connected to the listening socket, whatever becomes of its name.
    waker: UnixDatagram,
}

impl Sockets {
    pub(crate) fn new(run: PathBuf, instances: &Arc<Instances>) -> Arc<Sockets> {
        let forks = fork::forks();
        let (directory, sender, instances) = (OnceLock::new(), OnceLock::new(), Arc::downgrade(instances));
        Arc::new(Sockets { run, directory, sender, instances, listening: Mutex::default(), forks })
    }

    /// WakeUps a waiter of another process. Never blocks.
    pub(crate) fn send(&self, instance: u64, number: u64) -> Reached {
        match self.try_send(instance, number) {
            Ok(()) => Reached::Yes,
            // It has that many to read that it will look at everything.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Reached::Yes,
            Err(_) => Reached::No,
        }
    }

    fn try_send(&self, instance: u64, number: u64) -> io::Result<()> {
        if self.forks != fork::forks() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let sender = match self.sender.get() {
            Some(sender) => sender,
            None => {
                let sender = unbound()?;
                self.sender.get_or_init(|| sender)
            }
        };
        sender.send_to_addr(&number.to_le_bytes(), &self.address(instance)?).map(drop)
    }

    fn address(&self, instance: u64) -> io::Result<SocketAddr> {
        let name = instances::socket_name(instance);
        let path = self.run.join(&name);
        if path.as_os_str().len() <= PATH_MAX {
            return SocketAddr::from_pathname(path);
        }
        let directory = match self.directory.get() {
            Some(directory) => directory,
            None => {
                let directory = File::open(&self.run)?;
                self.directory.get_or_init(|| directory)
            }
        };
        SocketAddr::from_pathname(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
    }

    /// The socket on which this instance is called, and what wakes it.
    fn listen(&self) -> io::Result<(UnixDatagram, Listening)> {
        let instance =
            self.instances.upgrade().and_then(|instances| instances.instance()).ok_or(io::ErrorKind::NotFound)?;
        let (path, address) = (self.run.join(instances::socket_name(instance)), self.address(instance)?);
        let socket = UnixDatagram::bind_addr(&address)?;
        let waker = unbound().and_then(|waker| waker.connect_addr(&address).map(|()| waker));
        let made = socket.set_nonblocking(true).and(waker);
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
        Ok((socket, Listening { path, waker: made? }))
    }
}

fn unbound() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Listener for Arc<Sockets> {
    fn wake(&self, wake_ups: &Arc<WakeUps>) -> bool {
        if self.forks != fork::forks() {
            return false;
        }
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Listening { waker, .. }) = &*listening {
            // If its queue is full it is awake.
            let _ = waker.send(&[]);
            return true;
        }
        let (socket, made) = match self.listen() {
            Ok((socket, made)) => (Some(socket), Some(made)),
            Err(error) => {
                tracing::warn!(%error, run = %self.run.display(), "other processes cannot call this one: it looks by itself");
                (None, None)
            }
        };
        let wake_ups = wake_ups.clone();
        let listen = move || match socket {
            Some(socket) => listen(&wake_ups, &socket),
            None => look_only(&wake_ups),
        };
        let started = std::thread::Builder::new().name("floodgate-listener".into()).spawn(listen).is_ok();
        match made {
            Some(made) if started => *listening = Some(made),
            Some(made) => drop(fs::remove_file(made.path)),
            None => {}
        }
        started
    }

    fn close(&self) {
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Listening { path, waker }) = listening {
            let _ = fs::remove_file(path);
            let _ = waker.send(&[]);
        }
    }
}

fn listen(wake_ups: &WakeUps, socket: &UnixDatagram) {
    let (mut hurry, mut hurried) = (false, Instant::now());
    loop {
        let now = Instant::now();
        let hurries = hurry && now.duration_since(hurried) >= CALM;
        if hurries {
            (hurry, hurried) = (false, now);
        }
        let pause = match wake_ups.tick(now, hurries) {
            Next::TickAt(next) if hurry => Some(until(next).min(CALM)),
            Next::TickAt(next) => Some(until(next)),
            Next::Sleep => None,
            Next::End => return,
        };
        hurry |= is_called(socket, pause) && drain(wake_ups, socket) >= QUEUE;
    }
}

/// WakeUps whom the datagrams name; how many there were. What is no number of eight bytes is nobody's.
fn drain(wake_ups: &WakeUps, socket: &UnixDatagram) -> usize {
    let mut bytes = [0; 9];
    for drained in 0..DRAINED {
        match socket.recv(&mut bytes) {
            Ok(8) => {
                let [number @ .., _] = bytes;
                wake_ups.wake(u64::from_le_bytes(number));
            }
            Ok(_) => {}
            Err(_) => return drained,
        }
    }
    DRAINED
}

/// Whether there was a datagram before the pause was over.
fn is_called(socket: &UnixDatagram, pause: Option<Duration>) -> bool {
    let pause = pause.map(|pause| Timespec {
        tv_sec: pause.as_secs().try_into().unwrap_or(1),
        tv_nsec: pause.subsec_nanos().into(),
    });
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], pause.as_ref()) {
        Ok(ready) => ready > 0,
        Err(Errno::INTR) => false,
        // What cannot be waited for is asked now and then.
        Err(_) => {
            std::thread::sleep(TICK);
            true
        }
    }
}

/// Without a socket: the thread ends instead of sleeping, so that the next one to wait tries again to make one.
fn look_only(wake_ups: &WakeUps) {
    while let Next::TickAt(next) = wake_ups.tick(Instant::now(), false) {
        std::thread::sleep(until(next));
    }
}

fn until(next: Instant) -> Duration {
    next.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests;
