//! The layer around mock services: one call for all, and the next when its leader comes to nothing.

use crate::origin::{MINUTE, cache, get, poll, settle};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use std::pin::Pin;
use tower::{BoxError, Layer, ServiceExt};
use tower_floodgate::{Body, Cache, StampedeCacheLayer};
use tower_test::mock::{self, Handle, Mock, SendResponse};

type Page = Response<Full<Bytes>>;
type Asking = Pin<Box<dyn Future<Output = Result<Response<Body<Full<Bytes>>>, BoxError>> + Send>>;

/// 64 cold requests, and the mock that they all want to call.
fn stampede(cache: &Cache) -> (Vec<Asking>, Handle<Request<String>, Page>) {
    let (mock, handle): (Mock<Request<String>, Page>, _) = mock::pair();
    let app = StampedeCacheLayer::new(cache.scope("pages"), MINUTE).layer(mock);
    let all = (0..64).map(|_| Box::pin(app.clone().oneshot(get("/"))) as Asking).map(|mut asking| {
        assert!(poll(&mut asking).is_pending());
        asking
    });
    (all.collect(), handle)
}

async fn called(handle: &mut Handle<Request<String>, Page>) -> SendResponse<Page> {
    handle.next_request().await.expect("it is called").1
}

fn page() -> Page {
    Response::new(Full::from("page"))
}

async fn all_served(all: Vec<Asking>, handle: &mut Handle<Request<String>, Page>) {
    for one in all {
        assert_eq!(one.await.unwrap().status(), 200);
    }
    assert!(handle.next_request().await.is_none(), "nobody else calls");
}

#[tokio::test(start_paused = true)]
async fn sixty_four_are_one_call() {
    let (all, mut handle) = stampede(&cache());
    called(&mut handle).await.send_response(page());
    all_served(all, &mut handle).await;
}

#[tokio::test(start_paused = true)]
async fn one_more_call_serves_the_others_when_the_first_errs() {
    let (mut all, mut handle) = stampede(&cache());
    called(&mut handle).await.send_error("it errs");
    assert_eq!(all.remove(0).await.unwrap_err().to_string(), "it errs");
    settle().await;
    all.iter_mut().for_each(|one| assert!(poll(one).is_pending()));
    called(&mut handle).await.send_response(page());
    all_served(all, &mut handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_dropped_has_led_all_the_same() {
    let (mut all, mut handle) = stampede(&cache());
    let call = called(&mut handle).await;
    drop(all.remove(0));
    settle().await;
    call.send_response(page());
    all_served(all, &mut handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_service_panics_is_followed_by_another() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };
    let (cache, calls) = (cache(), Arc::<AtomicUsize>::default());
    let counted = calls.clone();
    let (mock, mut handle): (Mock<Request<String>, Page>, _) = mock::pair();
    let fragile = mock.map_response(move |page: Page| {
        assert!(counted.fetch_add(1, SeqCst) > 0, "the first panics");
        page
    });
    let app = StampedeCacheLayer::new(cache.scope("pages"), MINUTE).layer(fragile);
    let mut all: Vec<_> = (0..8).map(|_| tokio::spawn(app.clone().oneshot(get("/")))).collect();
    called(&mut handle).await.send_response(page());
    assert!(all.remove(0).await.unwrap_err().is_panic());
    called(&mut handle).await.send_response(page());
    for one in all {
        assert_eq!(one.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(calls.load(SeqCst), 2);
}
