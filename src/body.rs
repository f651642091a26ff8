//! The body of every HTTP response that leaves a layer of this crate.

mod reading;
mod tape;

pub(crate) use reading::{Cut, Reading, Resumed, Whole};
pub(crate) use tape::Reader;

use crate::{
    cache::Task,
    lock::{Guard, Lost},
    rejection::Rejection,
};
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll, ready},
};
use tower::BoxError;

/// The inner service's body, perhaps with a lock that is held until it ends; or stored bytes and trailers.
///
/// Its error is a [`BoxError`], since more can fail than the inner body. The default is an empty body.
#[pin_project]
pub struct Body<B> {
    #[pin]
    kind: Kind<B>,
}

#[pin_project(project = KindProj)]
enum Kind<B> {
    Inner {
        #[pin]
        body: B,
        held: Option<Held>,
    },
    Resumed(Resumed<B>),
    Taped {
        reader: Reader<B>,
        /// Records the body, where nothing else runs it. A mutex only so that it can be shared.
        recording: Option<Mutex<Task>>,
    },
    Stored {
        data: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
}

/// A lock that is held until the body ends.
struct Held {
    _guard: Guard,
    if_lost: Option<Box<(Lost, Rejection)>>,
}

impl Held {
    /// Why the body fails, if the lock is lost and the barrier cancels on loss.
    fn forfeit(&mut self, cx: &mut Context<'_>) -> Option<Rejection> {
        let (lost, why) = self.if_lost.as_deref_mut()?;
        Pin::new(lost).poll(cx).is_ready().then(|| why.clone())
    }
}

impl<B> Body<B> {
    pub(crate) fn inner(body: B) -> Self {
        Body { kind: Kind::Inner { body, held: None } }
    }

    /// Fails as `if_lost` when the lock is lost.
    pub(crate) fn guarded(body: B, guard: Guard, if_lost: Option<Rejection>) -> Self {
        let if_lost = if_lost.map(|why| Box::new((guard.lost(), why)));
        Body { kind: Kind::Inner { body, held: Some(Held { _guard: guard, if_lost }) } }
    }

    pub(crate) fn resumed(resumed: Resumed<B>) -> Self {
        Body { kind: Kind::Resumed(resumed) }
    }

    pub(crate) fn taped(reader: Reader<B>) -> Self {
        Body { kind: Kind::Taped { reader, recording: None } }
    }

    /// Runs what records the body whenever it is read.
    pub(crate) fn driving(mut self, task: Task) -> Self {
        if let Kind::Taped { recording, .. } = &mut self.kind {
            *recording = Some(Mutex::new(task));
        }
        self
    }

    pub(crate) fn stored(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Body { kind: Kind::Stored { data: Some(data).filter(|data| !data.is_empty()), trailers } }
    }
}

impl<B> Default for Body<B> {
    fn default() -> Self {
        Body::stored(Bytes::new(), None)
    }
}

impl<B> fmt::Debug for Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Inner { held: Some(_), .. } => "Body(inner, guarded)",
            Kind::Inner { .. } => "Body(inner)",
            Kind::Resumed(_) => "Body(resumed)",
            Kind::Taped { .. } => "Body(taped)",
            Kind::Stored { .. } => "Body(stored)",
        })
    }
}

impl<B> HttpBody for Body<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut kind = self.project().kind;
        Poll::Ready(match kind.as_mut().project() {
            KindProj::Inner { body, held } => {
                if let Some(why) = held.as_mut().and_then(|held| held.forfeit(cx)) {
                    kind.set(Kind::Stored { data: None, trailers: None });
                    return Poll::Ready(Some(Err(why.into())));
                }
                let frame = ready!(body.poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) {
                    held.take();
                }
                frame.map(|frame| frame.map_err(Into::into))
            }
            KindProj::Resumed(Resumed { read, error, rest }) => match read.pop_front() {
                Some(frame) => Some(Ok(frame)),
                None => match error.take() {
                    Some(error) => Some(Err(error)),
                    None => ready!(rest.as_mut().poll_frame(cx)).map(|frame| frame.map_err(Into::into)),
                },
            },
            KindProj::Taped { reader, recording } => {
                if let Some(Ok(task)) = recording.as_mut().map(Mutex::get_mut)
                    && task.as_mut().poll(cx).is_ready()
                {
                    *recording = None;
                }
                ready!(reader.poll_frame(cx))
            }
            KindProj::Stored { data, trailers } => {
                data.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers)).map(Ok)
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body, .. } => body.is_end_stream(),
            Kind::Resumed(Resumed { read, error, rest }) => read.is_empty() && error.is_none() && rest.is_end_stream(),
            Kind::Taped { reader, .. } => reader.is_end_stream(),
            Kind::Stored { data, trailers } => data.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body, .. } => body.size_hint(),
            Kind::Resumed(Resumed { read, rest, .. }) => {
                let ahead: u64 = read.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(ahead));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ahead)) {
                    hint.set_upper(upper);
                }
                hint
            }
            Kind::Taped { reader, .. } => reader.size_hint(),
            Kind::Stored { data, trailers } => {
                let length = data.as_ref().map_or(0, |data| data.len() as u64);
                let mut hint = SizeHint::new();
                hint.set_lower(length);
                // An exact hint would become a `Content-Length`, behind which trailers are cut.
                if trailers.is_none() {
                    hint.set_upper(length);
                }
                hint
            }
        }
    }
}
