//! Requests, responses and errors of one's own: no HTTP anywhere. Answers are memoized by their arguments, at most two are
//! computed at once, and who asks too much gets an error of the service's own kind.
//!
//! `cargo run --example plain`

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{BarrierLayer, Cache, Fail, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer};

#[derive(Clone, Debug, Serialize)]
struct Route {
    from: String,
    to: String,
    asked_by: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Distance {
    km: u32,
}

#[derive(Debug)]
enum Failure {
    Refused(Rejection),
    SamePlace,
}

impl From<Rejection> for Failure {
    fn from(why: Rejection) -> Self {
        Failure::Refused(why)
    }
}

async fn measure(route: Route) -> Result<Distance, Failure> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    match route.from == route.to {
        true => Err(Failure::SamePlace),
        false => Ok(Distance { km: 100 * (route.from.len() + route.to.len()) as u32 }),
    }
}

#[tokio::main]
async fn main() -> Result<(), tower_floodgate::Error> {
    let cache = Cache::temporary()?; // or `Cache::open("cache")`, shared by all processes of the machine
    let (scope, minute) = (cache.scope("distance"), Duration::from_secs(60));
    let mut service = ServiceBuilder::new()
        .layer(ThrottleLayer::new(scope.clone(), 3, minute).name(|route: &Route| route.asked_by.clone()).answer(Fail))
        .layer(StampedeCacheLayer::memoize(scope.clone(), minute).ignore(["asked_by"]))
        .layer(BarrierLayer::new(scope, Semaphore(2)).answer(Fail))
        .service(service_fn(measure));

    let began = Instant::now();
    for (asked_by, to) in [("ada", "Rome"), ("bob", "Rome"), ("ada", "Oslo"), ("ada", "Bern"), ("ada", "Rome")] {
        let route = Route { from: "Oslo".into(), to: to.into(), asked_by: asked_by.into() };
        let answer = async { service.ready().await?.call(route).await }.await;
        match answer {
            Ok(distance) => println!("{:3.1} s, {asked_by} to {to}: {} km", began.elapsed().as_secs_f64(), distance.km),
            Err(Failure::SamePlace) => println!("{asked_by} is in {to} already"),
            Err(Failure::Refused(why)) => println!("{asked_by} must wait for {:?}: {why}", why.retry_after),
        }
    }
    Ok(())
}
