//! Bodies are passed on while they are recorded.

use crate::origin::*;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body as _, Bytes, Frame};
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};
use tokio::sync::mpsc;
use tower::{BoxError, ServiceExt};
use tower_floodgate::Body;

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

/// An origin whose bodies are the test's: each call's is sent here.
fn piecewise(lines: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Mutex<Vec<Frames>>>) {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let sent = bodies.clone();
    let origin = Origin::new(move |_, _| {
        let (sender, receiver) = mpsc::unbounded_channel();
        sent.lock().unwrap().push(sender);
        let body = StreamBody::new(tokio_stream::wrappers::UnboundedReceiverStream::new(receiver));
        respond(200, lines, body.boxed_unsync())
    });
    (origin, bodies)
}

fn send(bodies: &Mutex<Vec<Frames>>, call: usize, data: &'static str) {
    bodies.lock().unwrap()[call - 1].send(Ok(Frame::data(Bytes::from_static(data.as_bytes())))).unwrap();
}

fn end(bodies: &Mutex<Vec<Frames>>) {
    bodies.lock().unwrap().clear();
}

/// What can be read of a body now.
fn read(body: &mut Body<TestBody>) -> String {
    let (mut read, mut cx) = (Vec::new(), Context::from_waker(Waker::noop()));
    while let Poll::Ready(Some(frame)) = Pin::new(&mut *body).poll_frame(&mut cx) {
        read.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    String::from_utf8(read).unwrap()
}

const TEN: &[(&str, &str)] = &[("content-length", "10")];

#[tokio::test(start_paused = true)]
async fn what_is_known_to_fit_is_read_along_by_all() {
    let (cache, (origin, bodies)) = (cache(), piecewise(TEN));
    let app = app(&cache, &origin);
    let leader = app.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(leader.headers()["cache-status"], "floodgate; fwd=miss; stored; ttl=60");
    let follower = app.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(follower.headers()["cache-status"], "floodgate; fwd=miss; collapsed; ttl=60");
    assert_eq!((leader.headers()["content-length"].as_bytes(), origin.calls()), (&b"10"[..], 1));
    let (mut leader, mut follower) = (leader.into_body(), follower.into_body());
    assert_eq!(follower.size_hint().lower(), 0, "the body itself does not know");
    for data in ["abc", "def", "g"] {
        send(&bodies, 1, data);
        settle().await;
        assert_eq!((&*read(&mut leader), &*read(&mut follower)), (data, data));
    }
    let mut late = app.clone().oneshot(get("/")).await.unwrap().into_body();
    assert_eq!(read(&mut late), "abcdefg");
    send(&bodies, 1, "hij");
    end(&bodies);
    for body in [leader, follower, late] {
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hij");
    }
    let hit = ask(&app, get("/")).await;
    assert_eq!((hit.text(), hit.is_hit()), ("abcdefghij", true));
}

#[tokio::test(start_paused = true)]
async fn of_unknown_length_the_leader_reads_at_once_and_followers_the_whole() {
    let (cache, (origin, bodies)) = (cache(), piecewise(&[]));
    let app = app(&cache, &origin);
    let mut leader = app.clone().oneshot(get("/")).await.unwrap().into_body();
    let mut follower = waiting(&app, get("/"));
    send(&bodies, 1, "first ");
    settle().await;
    assert_eq!(read(&mut leader), "first ");
    assert!(poll(&mut follower).is_pending());
    send(&bodies, 1, "last");
    end(&bodies);
    assert_eq!(leader.collect().await.unwrap().to_bytes(), "last");
    let follower = follower.await.unwrap();
    assert_eq!((follower.text(), follower.is_collapsed()), ("first last", true));
    assert!(ask(&app, get("/")).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn what_a_reader_has_read_to_its_end_is_stored() {
    let (cache, (origin, bodies)) = (cache(), piecewise(&[]));
    let app = app(&cache, &origin);
    let leader = app.clone().oneshot(get("/")).await.unwrap().into_body();
    send(&bodies, 1, "all");
    end(&bodies);
    leader.collect().await.unwrap();
    assert_eq!((cache.stats().stored, cache.stats().entries), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_stalls_nobody() {
    for lines in [TEN, &[]] {
        let (cache, (origin, bodies)) = (cache(), piecewise(lines));
        let app = app(&cache, &origin);
        let _asleep = app.clone().oneshot(get("/")).await.unwrap();
        send(&bodies, 1, "0123456789");
        end(&bodies);
        assert_eq!(ask(&app, get("/")).await.text(), "0123456789");
        assert_eq!(origin.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_in_the_middle_stops_nothing() {
    let (cache, (origin, bodies)) = (cache(), piecewise(&[]));
    let app = app(&cache, &origin);
    let mut leader = app.clone().oneshot(get("/")).await.unwrap().into_body();
    send(&bodies, 1, "first ");
    settle().await;
    read(&mut leader);
    drop(leader);
    let follower = waiting(&app, get("/"));
    send(&bodies, 1, "last");
    end(&bodies);
    assert_eq!(follower.await.unwrap().text(), "first last");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_before_its_length_is_an_error_to_all_and_kept_for_none() {
    let (cache, (origin, bodies)) = (cache(), piecewise(TEN));
    let app = app(&cache, &origin);
    let leader = app.clone().oneshot(get("/")).await.unwrap();
    let follower = app.clone().oneshot(get("/")).await.unwrap();
    send(&bodies, 1, "short");
    settle().await;
    end(&bodies);
    for response in [leader, follower] {
        let reply = Reply::read(response).await;
        assert_eq!(reply.text(), "short");
        assert_eq!(reply.error.unwrap().to_string(), "a body of 10 bytes has ended after 5");
    }
    assert_eq!((cache.stats().entries, cache.stats().not_stored), (0, 1));
    let next = app.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(origin.calls(), 2, "the next is computed anew");
    drop(next);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_later_does_so_for_every_reader() {
    let (cache, (origin, bodies)) = (cache(), piecewise(TEN));
    let app = app(&cache, &origin);
    let responses = [app.clone().oneshot(get("/")).await.unwrap(), app.clone().oneshot(get("/")).await.unwrap()];
    send(&bodies, 1, "half");
    settle().await;
    bodies.lock().unwrap()[0].send(Err("cut off".into())).unwrap();
    for response in responses {
        let reply = Reply::read(response).await;
        assert_eq!((reply.text(), reply.error.as_ref().unwrap().to_string()), ("half", "cut off".to_owned()));
    }
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn trailers_come_last_for_all() {
    let (cache, (origin, bodies)) =
        (cache(), piecewise(&[("content-type", "application/grpc"), ("content-length", "2")]));
    let app = app(&cache, &origin);
    let responses = [app.clone().oneshot(get("/")).await.unwrap(), app.clone().oneshot(get("/")).await.unwrap()];
    send(&bodies, 1, "ok");
    settle().await;
    let trailers = headers(&[("grpc-status", "0")]);
    bodies.lock().unwrap()[0].send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    end(&bodies);
    for response in responses {
        let reply = Reply::read(response).await;
        assert_eq!((reply.text(), reply.trailers.as_ref()), ("ok", Some(&trailers)));
    }
    assert_eq!(ask(&app, get("/")).await.trailers, Some(trailers));
}

#[tokio::test(start_paused = true)]
async fn events_pass_one_by_one() {
    let (cache, (origin, bodies)) = (cache(), piecewise(&[("content-type", "text/event-stream")]));
    let app = app(&cache, &origin);
    let mut events = app.clone().oneshot(get("/")).await.unwrap().into_body();
    for byte in ["d", "a", "t", "a", ":", "\n", "\n"] {
        send(&bodies, 1, byte);
        assert_eq!(events.frame().await.unwrap().unwrap().into_data().unwrap(), byte);
    }
    let other = app.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(origin.calls(), 2, "nobody waits for the end of what has none");
    drop(other);
}

#[test]
fn without_an_executor_the_reader_of_the_body_records_it() {
    use crate::flights::{block_on, cache_without_runtime};
    let cache = cache_without_runtime(&Arc::default());
    let (origin, bodies) = piecewise(TEN);
    let app = app(&cache, &origin);
    let mut leader = block_on(app.clone().oneshot(get("/"))).unwrap().into_body();
    send(&bodies, 1, "01234");
    assert_eq!(read(&mut leader), "01234");
    let follower = block_on(app.clone().oneshot(get("/"))).unwrap().into_body();
    send(&bodies, 1, "56789");
    end(&bodies);
    assert_eq!(block_on(leader.collect()).unwrap().to_bytes(), "56789");
    assert_eq!(block_on(follower.collect()).unwrap().to_bytes(), "0123456789");
    assert!(block_on(ask(&app, get("/"))).is_hit());
    assert_eq!(origin.calls(), 1);
}

#[test]
fn without_an_executor_a_reader_that_goes_away_breaks_the_body_off_for_the_others() {
    use crate::flights::{block_on, cache_without_runtime};
    let cache = cache_without_runtime(&Arc::default());
    let (origin, bodies) = piecewise(TEN);
    let app = app(&cache, &origin);
    let leader = block_on(app.clone().oneshot(get("/"))).unwrap();
    let follower = block_on(app.clone().oneshot(get("/"))).unwrap();
    send(&bodies, 1, "01234");
    drop(leader);
    let reply = block_on(Reply::read(follower));
    assert!(reply.error.is_some(), "an error, not a short answer");
    assert_eq!(cache.stats().entries, 0);
}
