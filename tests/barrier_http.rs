//! The barrier over HTTP: what handlers are given, what is answered, and when the lock is let go.

#[path = "support/probe.rs"]
mod probe;
#[path = "support/processes.rs"]
mod processes;
#[allow(dead_code)]
#[path = "../examples/websocket.rs"]
mod websocket;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use probe::{SECOND, cache, soon};
use processes::Child;
use std::{
    convert::Infallible,
    future::ready,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Fail, Http, Lock, RLock, Reason, Rejection, Scope, Semaphore,
    lock::{Fence, Guard, Hold, Holder, Owner, Watermark},
    time::{Clock, System, clock_fn},
};

async fn is_free(scope: &Scope) -> bool {
    scope.lock("").try_acquire().await.is_ok()
}

type Seen = Arc<Mutex<Vec<Request<()>>>>;

/// Notes its requests.
fn noting(
    seen: &Seen,
) -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone + use<> {
    let seen = seen.clone();
    service_fn(move |request: Request<()>| {
        seen.lock().unwrap().push(request);
        ready(Ok(Response::new(Full::default())))
    })
}

fn last(seen: &Seen) -> Request<()> {
    seen.lock().unwrap().pop().expect("a request came")
}

#[tokio::test]
async fn the_status_of_a_busy_lock_can_be_chosen() {
    let cache = cache();
    let scope = cache.scope("db");
    let _held = scope.lock("").await.unwrap();
    let table = [
        (Http::new(), 503, "14"),
        (Http::new().busy(StatusCode::SERVICE_UNAVAILABLE), 503, "14"),
        (Http::new().busy(StatusCode::TOO_MANY_REQUESTS), 429, "8"),
        (Http::new().busy(StatusCode::CONFLICT), 409, "10"),
    ];
    for (answer, status, code) in table {
        for (layer, reason) in [
            (BarrierLayer::new(scope.clone(), Lock).try_only(), Reason::Busy),
            (BarrierLayer::new(scope.clone(), Lock).queue_at_most(0), Reason::QueueFull),
        ] {
            let service = layer.answer(answer.clone()).layer(noting(&Seen::default()));
            let refused = service.clone().oneshot(Request::new(())).await.unwrap();
            assert_eq!(refused.status(), status);
            assert!(refused.headers().contains_key("retry-after"));
            assert_eq!(refused.extensions().get::<Rejection>().unwrap().reason, reason);
            let problem: serde_json::Value =
                serde_json::from_slice(&refused.into_body().collect().await.unwrap().to_bytes()).unwrap();
            let title = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap();
            assert_eq!((&problem["status"], &problem["title"]), (&status.into(), &title.into()));
            assert!(problem.get("type").is_none(), "no quota was exceeded");

            let call = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
            let refused = service.oneshot(call).await.unwrap();
            assert_eq!((refused.status().as_u16(), refused.headers()["grpc-status"].to_str().unwrap()), (200, code));
            assert!(refused.headers().contains_key("grpc-retry-pushback-ms"));
        }
    }
    // What is not for want of the lock stays 503.
    let broken = |_: &Request<()>| |_: &[Holder], _: &Owner| -> bool { panic!("as it is meant to") };
    let failing = BarrierLayer::new(cache.scope("other"), broken).answer(Http::new().busy(StatusCode::CONFLICT));
    let refused = failing.layer(noting(&Seen::default())).oneshot(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), 503);
}

#[test]
#[should_panic(expected = "a busy barrier answers 503, 429 or 409, not 500")]
fn a_busy_lock_is_no_failure() {
    let _ = Http::new().busy(StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn handlers_find_their_hold_and_may_take_the_guard() {
    let cache = cache();
    let scope = cache.scope("db");
    let seen = Seen::default();
    let service = BarrierLayer::new(scope.clone(), Lock).layer(noting(&seen));
    let ask = async || service.clone().oneshot(Request::new(())).await.unwrap();

    let response = ask().await;
    let first = last(&seen);
    let hold: &Hold = first.extensions().get().unwrap();
    assert!(!hold.is_lost() && !is_free(&scope).await);
    drop(response);
    assert!(is_free(&scope).await, "a hold alone holds nothing");
    assert!(hold.take().is_none(), "it is over");

    let response = ask().await;
    let second = last(&seen);
    let again: &Hold = second.extensions().get().unwrap();
    assert!(again.fence() > hold.fence() && again.owner() != hold.owner());
    let guard: Guard = again.take().unwrap();
    assert!(again.take().is_none(), "only once");
    drop(response);
    assert!(!is_free(&scope).await, "whoever took the guard holds the lock");
    assert_eq!(guard.fence(), again.fence());
    guard.release().await.unwrap();
    assert!(is_free(&scope).await);
}

fn request(name: &'static str, values: &[&HeaderValue]) -> Request<()> {
    let mut request = Request::new(());
    for value in values {
        request.headers_mut().append(name, (*value).clone());
    }
    request
}

#[tokio::test]
async fn the_fence_goes_on_in_a_header_and_nobody_else_can_send_one() {
    let cache = cache();
    let seen = Seen::default();
    let forged = HeaderValue::from_static("18446744073709551615");
    let asking = || request("x-fence", &[&forged, &forged]);
    let fence = |seen: &Seen| Fence::from_headers(last(seen).headers(), &"x-fence".parse().unwrap());

    let service = BarrierLayer::new(cache.scope("db"), Lock).fence_header("X-Fence").layer(noting(&seen));
    let store = Watermark::new();
    for _ in 0..3 {
        service.clone().oneshot(asking()).await.unwrap();
        store.admit(fence(&seen).unwrap()).unwrap();
    }
    let hold = service.oneshot(Request::new(())).await.map(|_| last(&seen)).unwrap();
    let told: Fence = hold.headers()["x-fence"].to_str().unwrap().parse().unwrap();
    assert_eq!(told, hold.extensions().get::<Hold>().unwrap().fence());

    // Without a lock there is none: it has no name, or the cache fails.
    let unnamed =
        BarrierLayer::new(cache.scope("db"), Lock).fence_header("x-fence").name(|_: &Request<()>| None::<u32>);
    unnamed.layer(noting(&seen)).oneshot(asking()).await.unwrap();
    assert!(!last(&seen).headers().contains_key("x-fence"));
    let broken = |_: &Request<()>| |_: &[Holder], _: &Owner| -> bool { panic!("as it is meant to") };
    let open = BarrierLayer::new(cache.scope("db"), broken).fence_header("x-fence").fail_open();
    open.layer(noting(&seen)).oneshot(asking()).await.unwrap();
    assert!(!last(&seen).headers().contains_key("x-fence"));
}

#[test]
#[should_panic(expected = "not the name of a header: \"x fence\"")]
fn a_bad_header_name_panics() {
    let _ = BarrierLayer::new(cache().scope("db"), Lock).fence_header("x fence");
}

#[tokio::test]
async fn an_owner_comes_in_again_from_another_process() {
    let cache = cache();
    let scope = cache.scope("db");
    let seen = Seen::default();
    // An outbound client, and the service that it reaches: they share nothing but the cache.
    let barrier = || BarrierLayer::new(scope.clone(), RLock::new()).try_only();
    let client = barrier().forward_owner("x-owner").layer(noting(&seen));
    let server = barrier().owner_header("x-owner").layer(noting(&seen));

    let holding = client.clone().oneshot(Request::new(())).await.unwrap();
    let sent = last(&seen);
    let owner = sent.extensions().get::<Owner>().unwrap().clone();
    let value = sent.headers()["x-owner"].clone();
    assert!(value.is_sensitive());
    assert_eq!(server.clone().oneshot(Request::new(())).await.unwrap().status(), 503, "a stranger");

    let nested = server.clone().oneshot(request("x-owner", &[&value])).await.unwrap();
    assert_eq!(nested.status(), 200);
    let arrived = last(&seen);
    assert_eq!(arrived.extensions().get::<Owner>(), Some(&owner));
    assert!(!arrived.headers().contains_key("x-owner"), "it is for nobody behind the barrier");
    drop(holding);
    assert!(!is_free(&scope).await, "the nested one is still inside");
    drop(nested);
    assert!(is_free(&scope).await);

    // By hand.
    let _held = scope.lock("").owner(owner.clone()).await.unwrap();
    let by_hand = server.clone().oneshot(request("x-owner", &[&owner.to_header(&scope)])).await.unwrap();
    assert_eq!((by_hand.status().as_u16(), last(&seen).headers().len()), (200, 0));
    drop(by_hand);

    // Whatever else is sent is nobody, and is taken off all the same.
    let genuine = owner.to_header(&scope);
    let mut altered = genuine.as_bytes().to_vec();
    altered[40] ^= 1;
    let (altered, plain) = (HeaderValue::from_bytes(&altered).unwrap(), HeaderValue::from_static("1"));
    let elsewhere = [owner.to_header(&cache.scope("other")), owner.to_header(&probe::cache().scope("db"))];
    for values in [vec![&altered], vec![&plain], vec![&genuine, &genuine], vec![&elsewhere[0]], vec![&elsewhere[1]]] {
        let refused = server.clone().oneshot(request("x-owner", &values)).await.unwrap();
        assert_eq!(refused.status(), 503);
        let passing = barrier().owner_header("x-owner").name(|_: &Request<()>| None::<u32>).layer(noting(&seen));
        passing.oneshot(request("x-owner", &values)).await.unwrap();
        let passed = last(&seen);
        assert!(passed.headers().is_empty() && passed.extensions().get::<Owner>().is_none());
    }
    // The two kinds of headers go together, in any order.
    let both = barrier().forward_owner("x-owner").fence_header("x-fence");
    let passed = both.layer(noting(&seen)).oneshot(request("x-owner", &[&genuine])).await.unwrap();
    assert_eq!(passed.status(), 200);
    let passed = last(&seen);
    assert!(passed.headers().contains_key("x-fence") && passed.headers().contains_key("x-owner"));
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, BoxError>>;

/// A service whose one response is what is sent here.
fn streaming() -> (
    Frames,
    impl Service<
        Request<()>,
        Response = Response<StreamBody<ReceiverStream<Result<Frame<Bytes>, BoxError>>>>,
        Error = Infallible,
        Future: Send,
    > + Clone,
) {
    let (frames, body) = mpsc::channel(1);
    let body = Arc::new(Mutex::new(Some(body)));
    let service = service_fn(move |_: Request<()>| {
        let body = body.lock().unwrap().take().expect("one request");
        ready(Ok(Response::new(StreamBody::new(ReceiverStream::new(body)))))
    });
    (frames, service)
}

#[tokio::test]
async fn trailers_and_errors_end_the_hold_with_the_body() {
    let cache = cache();
    let scope = cache.scope("db");
    let trailers = Frame::trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("7"))]));
    for (ending, ends) in [(Ok(trailers), false), (Err("broken".into()), true)] {
        let (frames, service) = streaming();
        let mut response =
            BarrierLayer::new(scope.clone(), Lock).layer(service).oneshot(Request::new(())).await.unwrap();
        frames.send(Ok(Frame::data("chunk".into()))).await.unwrap();
        assert!(soon(response.frame()).await.unwrap().unwrap().is_data());
        frames.send(ending).await.unwrap();
        drop(frames);
        match soon(response.frame()).await.unwrap() {
            Ok(frame) => assert_eq!(frame.trailers_ref().unwrap()["x-sum"], "7"),
            Err(error) => assert_eq!(error.to_string(), "broken"),
        }
        assert_eq!(is_free(&scope).await, ends, "after the trailers the end is still to come");
        if !ends {
            assert!(soon(response.frame()).await.is_none());
        }
        assert!(is_free(&scope).await, "though the response still exists");
    }
}

/// A cache in real time that other processes can open.
fn shared() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
    (dir, cache)
}

const LEASE: Duration = Duration::from_millis(300);

fn value(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}

/// Another process takes the lock of the scope `db`: by its clock every lease is over.
fn steal(dir: &Path) {
    assert_eq!(Child::spawn("steal", dir).line(), "stolen");
}

#[tokio::test]
async fn when_the_lock_is_lost_the_request_may_be_cancelled() {
    let (dir, cache) = shared();
    let dropped = Arc::new(AtomicUsize::new(0));
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let (calls, mut called) = mpsc::unbounded_channel();
    let counter = dropped.clone();
    let endless = service_fn(move |request: Request<()>| {
        let dropped = Dropped(counter.clone());
        calls.send(request.extensions().get::<Hold>().cloned()).unwrap();
        async move {
            let _dropped = dropped;
            std::future::pending::<Result<Response<Full<Bytes>>, BoxError>>().await
        }
    });
    let layer = BarrierLayer::new(cache.scope("db"), Lock).expire(LEASE).cancel_on_loss();

    for content_type in ["text/plain", "application/grpc"] {
        let request = Request::builder().header("content-type", content_type).body(()).unwrap();
        let asked = tokio::spawn(layer.layer(endless.clone()).oneshot(request));
        let hold = soon(called.recv()).await.unwrap().unwrap();
        steal(dir.path());
        let refused = soon(asked).await.unwrap().unwrap();
        assert!(hold.is_lost() && hold.take().is_none());
        assert_eq!(refused.extensions().get::<Rejection>().unwrap().reason, Reason::Lost);
        // Half of it may be done: nothing invites the client's library to repeat it.
        match refused.headers().get("grpc-status") {
            Some(code) => {
                assert_eq!((code, &refused.headers()["grpc-retry-pushback-ms"]), (&value("10"), &value("-1")));
                assert!(!refused.headers().contains_key("grpc-status-details-bin"));
            }
            None => assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after")), (503, None)),
        }
    }
    assert_eq!((dropped.load(SeqCst), cache.stats().leases_lost), (2, 2));

    let asked = tokio::spawn(layer.answer(Fail).layer(endless.clone()).oneshot(Request::new(())));
    soon(called.recv()).await.unwrap();
    steal(dir.path());
    let error = soon(asked).await.unwrap().unwrap_err();
    assert_eq!(error.downcast::<Rejection>().unwrap().reason, Reason::Lost);
    assert_eq!(dropped.load(SeqCst), 3);
}

#[tokio::test]
async fn without_being_told_so_nothing_is_cancelled() {
    let (dir, cache) = shared();
    let (calls, mut called) = mpsc::unbounded_channel();
    let patient = service_fn(move |request: Request<()>| {
        let hold = request.extensions().get::<Hold>().unwrap().clone();
        calls.send(()).unwrap();
        async move {
            hold.lost().await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))
        }
    });
    let asked =
        tokio::spawn(BarrierLayer::new(cache.scope("db"), Lock).expire(LEASE).layer(patient).oneshot(Request::new(())));
    soon(called.recv()).await.unwrap();
    steal(dir.path());
    let response = soon(asked).await.unwrap().unwrap();
    assert_eq!(probe::text(response.into_body()).await, "done");
}

#[tokio::test]
async fn a_body_that_has_begun_fails_when_the_lock_is_lost() {
    let (dir, cache) = shared();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).expire(LEASE);
    let (frames, service) = streaming();
    let mut response = layer.cancel_on_loss().layer(service).oneshot(Request::new(())).await.unwrap();
    frames.send(Ok(Frame::data("chunk".into()))).await.unwrap();
    assert!(soon(response.frame()).await.unwrap().unwrap().is_data());
    let (failed, ()) = tokio::join!(soon(response.frame()), async { steal(dir.path()) });
    let why = failed.unwrap().unwrap_err().downcast::<Rejection>().unwrap();
    assert_eq!((why.reason, &*why.scope), (Reason::Lost, "db"));
    assert!(frames.is_closed(), "the inner body is gone");
    assert!(soon(response.frame()).await.is_none());
}

/// Serves on a port of its own.
async fn serve(app: axum::Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, app).await });
    address
}

/// Asks for a websocket; the status of the answer.
async fn upgrade(server: SocketAddr) -> (TcpStream, String) {
    let mut socket = TcpStream::connect(server).await.unwrap();
    let ask = "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
               Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(socket.read_u8()).await.unwrap());
    }
    (socket, String::from_utf8(head[9..12].to_vec()).unwrap())
}

/// Sends a text and reads it again: RFC 6455, section 5.7, masked with zeros.
async fn echoes(socket: &mut TcpStream) -> bool {
    socket.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
    let mut answer = [0; 4];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    answer == *b"\x81\x02hi"
}

#[tokio::test]
async fn a_websocket_holds_its_place_until_it_is_closed() {
    let cache = cache();
    let place = cache.scope("sockets").lock("").rule(Semaphore(1));
    let server = serve(websocket::app(&cache, 1)).await;
    let (mut socket, status) = upgrade(server).await;
    assert_eq!(status, "101");
    assert!(echoes(&mut socket).await);
    assert_eq!(upgrade(server).await.1, "503");
    assert!(place.clone().try_acquire().await.is_err());
    drop(socket);
    drop(place.acquire_timeout(10 * SECOND).await.expect("it is closed"));
}

#[tokio::test]
async fn an_upgrade_that_does_not_take_the_guard_is_free_with_its_response() {
    async fn echo(request: axum::extract::ws::WebSocketUpgrade) -> axum::response::Response {
        request.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                socket.send(message).await.unwrap();
            }
        })
    }
    let cache = cache();
    let scope = cache.scope("sockets");
    let barrier = BarrierLayer::new(scope.clone(), Lock);
    let server = serve(axum::Router::new().route("/echo", axum::routing::any(echo)).layer(barrier)).await;
    let (mut socket, status) = upgrade(server).await;
    assert_eq!(status, "101");
    drop(scope.lock("").acquire_timeout(10 * SECOND).await.expect("free, though the socket is open"));
    assert!(echoes(&mut socket).await);
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    assert_eq!(role, "steal");
    let clock = System(hyper_util::rt::TokioTimer::new());
    let late = clock_fn(move || clock.now() + 3_600 * SECOND, |_| std::future::pending());
    let cache = Cache::builder(path).clock(late).open().unwrap();
    let guard = cache.scope("db").lock("").try_acquire_blocking().unwrap();
    drop(guard);
    processes::say("stolen");
}
