//! Statistics of series of numbers.
#![allow(dead_code)] // each benchmark uses a part of it

/// The median of the numbers; NaN of no numbers.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// The least value that so large a part of the numbers does not exceed; NaN of no numbers.
pub(crate) fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
