//! Refusals over HTTP: a status, headers, and a problem (RFC 9457) as the body.

use super::quota_headers::{Limits, quoted};
use crate::{
    body::Body,
    rejection::{Reason, Rejection},
};
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Bytes;
use std::fmt::Write as _;

pub(super) fn refuse<B>(status: StatusCode, why: &Rejection, x_ratelimit: bool) -> Response<Body<B>> {
    let limits = Limits::refused(why);
    let mut response = Response::new(Body::stored(Bytes::from(problem(status, why, limits)), None));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = why.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(limits) = limits {
        limits.write(headers);
        if x_ratelimit {
            limits.write_x(headers);
        }
    }
    response
}

fn problem(status: StatusCode, why: &Rejection, limits: Option<Limits<'_>>) -> String {
    let mut problem = String::with_capacity(256);
    // Where the type is left out, it is "about:blank", whose title is that of the status.
    let title = match problem_type(why) {
        Some((kind, title)) => {
            let _ = write!(problem, r#"{{"type":"https://iana.org/assignments/http-problem-types#{kind}","#);
            title
        }
        None => {
            problem.push('{');
            status.canonical_reason().unwrap_or_default()
        }
    };
    let detail = quoted(&why.to_string());
    let _ = write!(problem, r#""title":"{title}","status":{},"detail":{detail}"#, status.as_u16());
    if let Some(limits) = limits {
        let _ = write!(problem, r#","violated-policies":[{}]"#, limits.tightest_name());
    }
    problem.push('}');
    problem
}

/// The types that draft-ietf-httpapi-ratelimit-headers registers (section 10.2), with their titles.
fn problem_type(why: &Rejection) -> Option<(&'static str, &'static str)> {
    match why.reason {
        Reason::Blocked => Some(("abnormal-usage-detected", "Abnormal Usage Detected")),
        _ if why.status() == StatusCode::TOO_MANY_REQUESTS => Some(("quota-exceeded", "Quota Exceeded")),
        _ => None,
    }
}
