//! XFetch: when to compute a stored answer anew before it ends.
//!
//! With a fixed beta, as published in Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
//! PVLDB 8(8), 2015, doi 10.14778/2757807.2757813: a read with `remaining` left computes with a chance of
//! `exp(-remaining / (beta * cost))`.
//!
//! Tuned, the chance rises around the moment at which the computation has to begin rather than around the end. That is
//! `lead = cost + 2 * spread` before the end; from there on every read computes, and before it one with a chance of
//! `exp(-(remaining - lead) / scale)`. Reads that come at random, `rate` of them a second, are then thinned to a Poisson
//! process, and the chance that none is picked before `lead` is
//!
//! ```text
//! exp(-rate * scale * (1 - exp(-(life - lead) / scale)))
//! ```
//!
//! so that `scale = ln(1 / miss) / rate` makes it the `miss` that was asked for. At 950 reads a second, a cost of 0.2 s, a
//! life of 1 s and a chance of 1 %, answers are computed 0.21 s before their end; the published rule needs 0.36 s for the
//! same chance.

use crate::time::nanos;
use std::time::Duration;

/// What a computation costs: a decaying estimate with its mean deviation, as of round trips in RFC 6298 (section 2), in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) mean: u64,
    pub(crate) spread: u64,
}

impl Cost {
    /// The estimate after another computation.
    pub(crate) fn after(before: Option<Cost>, sample: u64) -> Cost {
        match before {
            None => Cost { mean: sample, spread: sample / 8 },
            Some(Cost { mean, spread }) => {
                Cost { mean: mean - mean / 4 + sample / 4, spread: spread - spread / 4 + mean.abs_diff(sample) / 4 }
            }
        }
    }
}

/// How eagerly answers are refreshed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Beta {
    Fixed(f64),
    /// By cost and reads, for this chance that a life ends before there is another answer.
    Tuned {
        miss: f64,
    },
}

/// The largest share of a life that counts as cost, and the largest scale: waiting at a barrier inflates costs.
const SCALE_MAX: f64 = 0.25;
/// The largest share of a life that is set aside for the computation.
const LEAD_MAX: f64 = 0.5;
/// An answer that is read more rarely within its life is not worth an early refresh: it might not be read any more.
const READS_MIN: f64 = 2.0;

/// Where a stored answer stands in its life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) remaining: Duration,
    pub(crate) life: Duration,
    pub(crate) cost: Cost,
}

/// Whether the reader who drew `draw`, uniform in [0, 1), computes an answer anew; `rate` is how many read it in a second.
pub(crate) fn refresh_early(standing: Standing, beta: Beta, rate: impl FnOnce() -> f64, draw: f64) -> bool {
    let Standing { remaining, life, cost } = standing;
    if remaining.is_zero() {
        return true;
    }
    match beta {
        Beta::Fixed(beta) => {
            // The bound is not multiplied by beta: a large beta is meant as it is.
            let cost = seconds(cost.mean).min(SCALE_MAX * life.as_secs_f64());
            is_picked(remaining.as_secs_f64(), beta * cost, draw)
        }
        Beta::Tuned { miss } => {
            let lead =
                cost.mean.saturating_add(cost.spread.saturating_mul(2)).min((nanos(life) as f64 * LEAD_MAX) as u64);
            let (lead, life, rate) = (seconds(lead), life.as_secs_f64(), rate());
            // A comparison with NaN is false.
            let is_worth_it = cost.mean > 0 && rate * life >= READS_MIN;
            let scale = ((1.0 / miss).ln() / rate).min(SCALE_MAX * (life - lead));
            is_worth_it && is_picked(remaining.as_secs_f64() - lead, scale, draw)
        }
    }
}

/// With a chance of `exp(-remaining / scale)`.
fn is_picked(remaining: f64, scale: f64, draw: f64) -> bool {
    // 1 - draw is uniform in (0, 1], so the logarithm is finite. A comparison with NaN is false.
    remaining <= 0.0 || -scale * (1.0 - draw).ln() >= remaining
}

fn seconds(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64()
}

#[cfg(test)]
mod tests;
