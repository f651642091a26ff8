use super::*;
use std::time::{Duration, UNIX_EPOCH};

/// The day of the month and the month's name, as HTTP writes them: "Sun, 06 Nov 1994 08:49:37 GMT".
fn date(wall: u64) -> (String, String) {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_nanos(wall));
    (text[5..7].into(), text[8..16].into())
}

#[test]
fn months_are_those_that_http_dates_have() {
    let (mut month, mut name) = (0, "Jan 1970".to_owned());
    for day in 0..=u64::MAX / DAY {
        let (number, now) = date(day * DAY);
        if now != name {
            (month, name) = (month + 1, now);
            assert_eq!((number.as_str(), Unit::Month.start(month)), ("01", day * DAY));
        }
        assert_eq!(Unit::Month.window_at(day * DAY), month, "{name}");
        assert_eq!(Unit::Month.window_at((day * DAY).saturating_add(DAY - 1)), month, "{name}");
    }
    assert_eq!(name, "Jul 2554");
}

#[test]
fn windows_begin_where_the_former_ends() {
    for (unit, _) in Unit::ALL {
        let last = unit.window_at(u64::MAX);
        for window in [0, 1, 2, 671, 672, last / 2, last - 1, last] {
            let start = unit.start(window);
            assert_eq!(unit.window_at(start), window);
            assert_eq!(unit.window_at(start + unit.length(window) - 1), window);
        }
        assert_eq!(unit.start(last + 1), u64::MAX);
        assert!(unit.start(u32::MAX) == u64::MAX && unit.length(u32::MAX) == 0);
        assert!((0..last).all(|window| unit.length(window) >= 2 * unit.half()));
    }
    let days = |month| Unit::Month.length(month) / DAY;
    // 2023 to 2025, and the centuries 2100 and 2400.
    let february = |year: u32| days((year - 1970) * 12 + 1);
    assert_eq!([2023, 2024, 2025, 2100, 2400].map(february), [28, 29, 28, 28, 29]);
}
