#![allow(unsafe_code)] // a fork

use super::*;
use crate::{
    cache::{
        Cache,
        testing::{Child, LONG, cache, hear, home, part, say},
    },
    store::{Key, Kind, Watch},
};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};
use std::{
    fs::DirBuilder,
    sync::mpsc,
    task::{Context, Poll, Waker},
};

fn open(path: &Path) -> Cache {
    Cache::builder(path).size(1 << 20).state_size(1 << 20).patience(LONG).open().unwrap()
}

fn key(cache: &Cache) -> Key {
    cache.root().key(Kind::Lock, b"a")
}

fn run_of(cache: &Cache) -> PathBuf {
    home(cache).join("run")
}

/// Tells of each look.
struct Telling(Mutex<mpsc::Sender<Key>>);

impl Watch for Telling {
    fn look(self: Arc<Self>, key: Key) -> Duration {
        let _ = self.0.lock().unwrap().send(key);
        TICK
    }
}

fn watch() -> (Arc<dyn Watch>, mpsc::Receiver<Key>) {
    let (tell, told) = mpsc::channel();
    (Arc::new(Telling(Mutex::new(tell))), told)
}

/// Waits until the waiter is woken.
fn be_woken(registration: &crate::store::Registration) {
    crate::store::block_on(std::future::poll_fn(|cx: &mut Context<'_>| match registration.was_woken(cx.waker()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }));
}

fn files(run: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(run).into_iter().flatten().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns when the condition holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{what}");
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((part, path)) = part() else { return };
    let cache = open(&path);
    let scope = cache.root();
    let instance = scope.instance().unwrap();
    let (watch, looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 7, watch);
    match part.as_str() {
        "wait" => {
            say(instance);
            loop {
                be_woken(&registration);
                say("called");
            }
        }
        "fork" => {
            looks.recv_timeout(LONG).unwrap();
            // SAFETY: the child calls nothing that another thread may be in the middle of.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let quiet = scope.wake(instance ^ 1, 7) == Reached::No;
                    // The lock inside may be held by the listener thread, which the child does not have.
                    std::mem::forget(registration);
                    drop(cache);
                    // SAFETY: ends the process without running what belongs to the parent.
                    unsafe { libc::_exit(if quiet { 0 } else { 1 }) }
                }
                ForkResult::Parent { child } => {
                    assert!(matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0)));
                }
            }
            // The parent gets wake-ups as before.
            let socket = UnixDatagram::unbound().unwrap();
            socket.send_to(&7_u64.to_le_bytes(), run_of(&cache).join(instances::socket_name(instance))).unwrap();
            be_woken(&registration);
            say("fine");
        }
        part => panic!("{part}"),
    }
}

#[test]
fn who_waits_in_another_process_is_called_until_that_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (scope, run) = (cache.root(), run_of(&cache));
    let mut child = Child::start("store::peers::listener::tests::child", "wait", dir.path());
    let instance: u64 = child.line().parse().unwrap();
    for _ in 0..3 {
        assert_eq!(scope.wake(instance, 7), Reached::Yes);
        assert_eq!(child.line(), "called");
    }
    assert_eq!(scope.wake(instance ^ 1, 7), Reached::No, "nobody");
    child.stop();
    for _ in 0..100 {
        assert_eq!(scope.wake(instance, 7), Reached::Yes, "its queue is full, so it will look");
    }
    assert!(!scope.is_dead(instance));
    child.kill();
    assert!(scope.is_dead_now(instance), "whatever was known of it");
    assert_eq!(scope.wake(instance, 7), Reached::No);
    assert_eq!(files(&run), [format!("{instance:016x}"), instances::socket_name(instance)]);
    cache.handle().shared.instances.tidy();
    assert_eq!(files(&run), [format!("{instance:016x}.dead")]);
    assert_eq!(scope.wake(instance, 7), Reached::No);
}

#[test]
fn who_waits_here_is_called_without_a_socket_and_before_it_is_registered() {
    let cache = cache();
    let scope = cache.root();
    let instance = scope.instance().unwrap();
    assert_eq!(scope.wake(instance, 7), Reached::Yes);
    assert_eq!(files(&run_of(&cache)).len(), 1, "no socket yet");
    let (watch, looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 7, watch.clone());
    assert!(registration.was_woken(Waker::noop()));
    assert_eq!(scope.wake(instance, 7), Reached::Yes);
    be_woken(&registration);
    // Instance zero stands for one that could not be made.
    assert_eq!((scope.wake(0, 7), scope.wake(0, 8)), (Reached::Yes, Reached::No));
    be_woken(&registration);
    for _ in 0..3 {
        assert_eq!(looks.recv_timeout(LONG).unwrap(), key(&cache));
    }
    assert_eq!(files(&run_of(&cache)).len(), 2);
}

#[test]
fn what_is_no_number_is_ignored() {
    let cache = cache();
    let scope = cache.root();
    let (watch, looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 7, watch);
    looks.recv_timeout(LONG).unwrap();
    let path = run_of(&cache).join(instances::socket_name(scope.instance().unwrap()));
    let socket = UnixDatagram::unbound().unwrap();
    for garbage in [&b""[..], &[7, 0, 0, 0, 0, 0, 0], &[7, 0, 0, 0, 0, 0, 0, 0, 0], &[7; 8], &[0; 4096]] {
        socket.send_to(garbage, &path).unwrap();
    }
    (0..10_000_u64).for_each(|i| drop(socket.send_to(&(i + 8).to_le_bytes(), &path)));
    looks.recv_timeout(LONG).unwrap();
    assert!(!registration.was_woken(Waker::noop()));
    socket.send_to(&7_u64.to_le_bytes(), &path).unwrap();
    be_woken(&registration);
}

#[test]
fn a_queue_that_was_full_makes_for_a_look_at_everything() {
    let dir = tempfile::tempdir().unwrap();
    let instances = Arc::new(Instances::new(dir.path().to_owned()));
    let sockets = Sockets::new(dir.path().to_owned(), &instances);
    let wake_ups = WakeUps::new(Box::new(sockets.clone()));
    let (socket, made) = sockets.listen().unwrap();
    for _ in 0..QUEUE {
        made.waker.send(&[]).unwrap();
    }
    assert_eq!((drain(&wake_ups, &socket), drain(&wake_ups, &socket)), (QUEUE, 0));
    // Ten datagrams at once cause a look long before the tick is due.
    let (watch, looks) = watch();
    let registration = wake_ups.register(Key { hash: [1; 16], echo: 1 }, 7, watch);
    looks.recv_timeout(LONG).unwrap();
    drop(registration);
}

#[test]
fn a_path_that_is_too_long_for_an_address_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    DirBuilder::new().recursive(true).create(&deep).unwrap();
    let cache = open(&deep);
    let mut child = Child::start("store::peers::listener::tests::child", "wait", &deep);
    let instance: u64 = child.line().parse().unwrap();
    assert_eq!(cache.root().wake(instance, 7), Reached::Yes);
    assert_eq!(child.line(), "called");
    child.kill();
    assert_eq!(cache.root().wake(instance, 7), Reached::No);
}

#[test]
fn without_a_socket_looks_alone_do_and_another_is_tried_later() {
    let cache = cache();
    let scope = cache.root();
    let path = run_of(&cache).join(instances::socket_name(scope.instance().unwrap()));
    fs::create_dir(&path).unwrap();
    let (watch, looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 7, watch.clone());
    for _ in 0..3 {
        looks.recv_timeout(LONG).unwrap();
    }
    assert_eq!(scope.wake(scope.instance().unwrap(), 7), Reached::Yes);
    be_woken(&registration);
    drop(registration);
    fs::remove_dir(&path).unwrap();
    eventually("the thread ends instead of sleeping", || Arc::strong_count(scope.wake_ups()) == 1);
    drop(scope.wake_ups().register(key(&cache), 8, watch));
    assert!(path.exists());
}

#[test]
fn the_thread_and_the_socket_go_with_the_last_handle() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let cache = open(dir.path());
        let scope = cache.root();
        let run = run_of(&cache);
        let (watch, looks) = watch();
        let registration = scope.wake_ups().register(key(&cache), 7, watch);
        if round % 2 == 0 {
            looks.recv_timeout(LONG).unwrap();
        }
        assert_eq!(files(&run).len(), 2);
        let wake_ups = Arc::downgrade(scope.wake_ups());
        drop(registration);
        drop(cache);
        assert_eq!(files(&run), [""; 0]);
        eventually("the thread ends", || wake_ups.strong_count() == 0);
    }
}

/// A thread that hangs in the user's code must not keep the instance alive for a process that asks.
#[test]
fn the_instance_goes_with_the_last_handle_even_if_the_thread_hangs() {
    struct Hanging(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);
    impl Watch for Hanging {
        fn look(self: Arc<Self>, _: Key) -> Duration {
            let _ = self.0.send(());
            let _ = self.1.lock().unwrap().recv();
            TICK
        }
    }
    let cache = cache();
    let run = run_of(&cache);
    let ((look, looks), (go, gone)) = (mpsc::channel(), mpsc::channel());
    let registration = cache.root().wake_ups().register(key(&cache), 7, Arc::new(Hanging(look, Mutex::new(gone))));
    looks.recv_timeout(LONG).unwrap();
    assert_eq!(files(&run).len(), 2);
    drop(registration);
    drop(cache);
    assert!(files(&run).is_empty());
    drop(go);
}

#[test]
fn a_forked_child_leaves_the_socket_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Child::start("store::peers::listener::tests::child", "fork", dir.path());
    assert_eq!(child.line(), "fine");
}

/// How long it takes from a wake-up in one process to the waker in another; run by hand.
#[test]
#[ignore = "a measurement"]
fn latency() {
    if part().is_some() {
        return echo();
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let scope = cache.root();
    let mut child = Child::start("store::peers::listener::tests::latency", "echo", dir.path());
    let instance: u64 = child.line().parse().unwrap();
    let (watch, _looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 9, watch);
    child.tell(&scope.instance().unwrap().to_string());
    let mut there_and_back: Vec<_> = (0..20_000)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(scope.wake(instance, 7), Reached::Yes);
            be_woken(&registration);
            began.elapsed()
        })
        .collect();
    there_and_back.sort();
    let one_way = |at: usize| there_and_back[there_and_back.len() * at / 1000] / 2;
    eprintln!(
        "one way: p50 {:?}, p90 {:?}, p99 {:?}, p99.9 {:?}",
        one_way(500),
        one_way(900),
        one_way(990),
        one_way(999)
    );
    let began = Instant::now();
    (0..100_000).for_each(|_| assert_eq!(scope.wake(instance, 8), Reached::Yes));
    eprintln!("a call to a busy process: {:?}", began.elapsed() / 100_000);
}

fn echo() {
    let Some((_, path)) = part() else { return };
    let cache = open(&path);
    let scope = cache.root();
    let (watch, _looks) = watch();
    let registration = scope.wake_ups().register(key(&cache), 7, watch);
    say(scope.instance().unwrap());
    let parent: u64 = hear().parse().unwrap();
    loop {
        be_woken(&registration);
        scope.wake(parent, 9);
    }
}

/// The cost of waiting; run by hand.
#[test]
#[ignore = "a measurement"]
fn idle() {
    let spent = || {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    };
    let cache = cache();
    let scope = cache.root();
    let (watch, looks) = watch();
    let waiting: Vec<_> = (1..33).map(|number| scope.wake_ups().register(key(&cache), number, watch.clone())).collect();
    looks.recv_timeout(LONG).unwrap();
    let before = spent();
    std::thread::sleep(Duration::from_secs(10));
    eprintln!("32 waiters over 10 s: {:?} user and system, {} looks", spent() - before, looks.try_iter().count());
    drop(waiting);
    std::thread::sleep(Duration::from_secs(2));
    let before = spent();
    std::thread::sleep(Duration::from_secs(5));
    eprintln!("and none over 5 s: {:?}", spent() - before);
}
