//! The second listener: purge what is stored, read what has happened.

use crate::paths;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_floodgate::{Cache, LockStats, Purge};

/// Serves until the process ends.
pub(crate) fn start(listener: TcpListener, cache: Cache) {
    let admin = Router::new().route("/purge", post(purge)).route("/stats", get(stats)).with_state(cache);
    tokio::spawn(async move { axum::serve(listener, admin).await });
}

#[derive(serde::Deserialize)]
struct Wanted {
    tag: Option<String>,
    path: Option<String>,
    /// Marks it stale, to be served while it is fetched anew or cannot be, as `--stale` allows.
    #[serde(default)]
    soft: bool,
}

/// What is purged is gone for every gateway of the directory from the moment this answers.
async fn purge(State(cache): State<Cache>, Query(purge): Query<Wanted>) -> (StatusCode, String) {
    let tag = match (purge.tag, purge.path) {
        (Some(tag), None) => tag,
        (None, Some(path)) => paths::tag(&path),
        _ => {
            return (StatusCode::BAD_REQUEST, "POST /purge?tag=T or /purge?path=P, with &soft=true if wanted\n".into());
        }
    };
    let purged = match purge.soft {
        true => cache.purge(Purge::tag(&tag).soft()).await,
        false => cache.evict(&tag).await,
    };
    match purged {
        Ok(()) => (StatusCode::OK, "purged\n".into()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn stats(State(cache): State<Cache>) -> Json<Value> {
    let stats = cache.stats();
    Json(json!({
        "entries": stats.entries,
        "entry_bytes": stats.entry_bytes,
        "entries_evicted": stats.entries_evicted,
        "cells_evicted": stats.cells_evicted,
        "damaged": stats.damaged,
        "hits": stats.hits,
        "hits_in_memory": stats.hits_in_memory,
        "misses": stats.misses,
        "followed": stats.followed,
        "refreshed": stats.refreshed,
        "stale": stats.stale,
        "bridged": stats.bridged,
        "stored": stats.stored,
        "not_stored": stats.not_stored,
        "waiters_left_out": stats.waiters_left_out,
        "admitted": stats.admitted,
        "near_limit": stats.near_limit,
        "waited": stats.waited,
        "waiting": stats.waiting,
        "throttled": stats.throttled,
        "shadowed": stats.shadowed,
        "denied": stats.denied,
        "locked": stats.locked,
        "busy": stats.busy,
        "failures": stats.failures,
        "leases_lost": stats.leases_lost,
        "lock_waiters": stats.lock_waiters,
        "longest_wait": stats.longest_wait.as_secs_f64(),
        "locks": stats.locks.iter().map(lock).collect::<Vec<_>>(),
    }))
}

/// Who holds a lock since when, and who waits; times are seconds.
fn lock(lock: &LockStats) -> Value {
    let holders = lock.holders.iter().map(|holder| {
        json!({
            "fence": holder.fence,
            "process": holder.process,
            "held": holder.held.as_secs_f64(),
            "lease_left": holder.lease_left.as_secs_f64(),
            "offered": holder.offered,
        })
    });
    let waiters =
        lock.waiters.iter().map(|waiter| json!({ "process": waiter.process, "waited": waiter.waited.as_secs_f64() }));
    json!({
        "scope": lock.scope,
        "name": lock.name,
        "holding": lock.holding,
        "holders": holders.collect::<Vec<_>>(),
        "waiting": lock.waiting,
        "waiters": waiters.collect::<Vec<_>>(),
    })
}
