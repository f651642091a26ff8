//! A flood of names through a small `state/`; `benches/flood.rs` lets ten million through a large one.

#[path = "support/flood.rs"]
mod flood;

use flood::Flood;

#[test]
fn busy_names_keep_their_budgets_in_a_flood_of_others() {
    let mut flood = Flood::new(1 << 20, 10);
    flood.pour(200_000);
    let evicted = flood.cache.stats().cells_evicted;
    assert!((150_000..200_000).contains(&evicted), "{evicted} evicted");
    assert_eq!(flood.refused, 0, "a new name's first is always admitted");
    for kind in &flood.kinds {
        let told = kind.tally;
        assert!(0 < told.bound && told.bound < told.asked, "{} are not at their limit: {told:?}", kind.what);
        assert_eq!((told.wrongly_admitted, told.wrongly_refused), (0, 0), "{}: {told:?}", kind.what);
        assert_eq!(told.admitted, told.bound);
    }
    assert_eq!(flood.wrong(), 0);
}
