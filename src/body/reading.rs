//! A body that is read into memory, up to a limit.

use http::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower::BoxError;

/// What a body turned out to be.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// Why a body was not recorded to its end.
#[derive(Debug)]
pub(crate) enum Cut {
    /// It has more than the limit.
    TooLong,
    /// It failed, or ended before its announced length.
    Broken(BoxError),
}

/// A body whose beginning has been read already: what was read, then the rest.
pub(crate) struct Resumed<B> {
    pub(crate) read: VecDeque<Frame<Bytes>>,
    /// Ended the reading.
    pub(crate) error: Option<BoxError>,
    pub(crate) rest: Pin<Box<B>>,
}

/// A body while it is read.
pub(crate) struct Reading<B> {
    pub(super) body: Pin<Box<B>>,
    pub(super) data: Vec<Bytes>,
    /// Frames so far, the empty ones included: those of next to nothing must not pile up either, each takes a hundred bytes.
    frames: usize,
    pub(super) length: u64,
    pub(super) trailers: Option<HeaderMap>,
    limit: usize,
    announced: Option<u64>,
}

pub(super) enum Step {
    More,
    End,
    Cut(Cut),
}

impl<B> Reading<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// `announced`: how long it is said to be, unless it knows that itself.
    pub(crate) fn new(body: B, limit: usize, announced: Option<u64>) -> Self {
        let announced = body.size_hint().exact().or(announced);
        let body = Box::pin(body);
        Reading { body, data: Vec::new(), frames: 0, length: 0, trailers: None, limit, announced }
    }

    pub(super) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
            None => return Poll::Ready(self.end()),
            Some(Err(error)) => return Poll::Ready(Step::Cut(Cut::Broken(error.into()))),
            Some(Ok(frame)) => frame,
        };
        self.frames += 1;
        match frame.into_data() {
            Ok(data) => {
                self.length = self.length.saturating_add(data.len() as u64);
                if !data.is_empty() {
                    self.data.push(data);
                }
            }
            Err(frame) => self.trailers = frame.into_trailers().ok().or(self.trailers.take()),
        }
        Poll::Ready(if self.length > self.limit as u64 || self.frames > (self.limit / 16).max(1024) {
            Step::Cut(Cut::TooLong)
        } else if self.body.is_end_stream() {
            self.end()
        } else {
            Step::More
        })
    }

    fn end(&self) -> Step {
        match self.announced {
            Some(announced) if announced != self.length => Step::Cut(Cut::Broken(
                BrokenOff(format!("a body of {announced} bytes has ended after {}", self.length)).into(),
            )),
            _ => Step::End,
        }
    }

    /// Reads what is there already. `None`: there may be more to come.
    pub(crate) async fn read_ready(&mut self) -> Option<Result<(), Cut>> {
        poll_fn(|cx| {
            Poll::Ready(loop {
                match self.poll_step(cx) {
                    Poll::Pending => break None,
                    Poll::Ready(Step::More) => {}
                    Poll::Ready(Step::End) => break Some(Ok(())),
                    Poll::Ready(Step::Cut(cut)) => break Some(Err(cut)),
                }
            })
        })
        .await
    }

    /// Reads it to its end, or to the limit.
    pub(crate) async fn read(&mut self) -> Result<(), Cut> {
        loop {
            match poll_fn(|cx| self.poll_step(cx)).await {
                Step::More => {}
                Step::End => return Ok(()),
                Step::Cut(cut) => return Err(cut),
            }
        }
    }

    /// Whether nothing but a failure can keep it from being recorded.
    pub(crate) fn is_known_to_fit(&self) -> bool {
        self.announced.is_some_and(|announced| announced <= self.limit as u64)
    }

    pub(crate) fn whole(self) -> Whole {
        Whole { data: joined(&self.data, self.length), trailers: self.trailers }
    }

    /// The body as it was, what has been read included.
    pub(crate) fn resume(self, cut: Cut) -> Resumed<B> {
        let data = self.data.into_iter().map(Frame::data);
        let read = data.chain(self.trailers.map(Frame::trailers)).collect();
        let error = match cut {
            Cut::TooLong => None,
            Cut::Broken(error) => Some(error),
        };
        Resumed { read, error, rest: self.body }
    }
}

fn joined(data: &[Bytes], length: u64) -> Bytes {
    match data {
        [] => Bytes::new(),
        [only] => only.clone(),
        _ => {
            let mut whole = Vec::with_capacity(length as usize);
            data.iter().for_each(|data| whole.extend_from_slice(data));
            whole.into()
        }
    }
}

/// A body that has ended before its time.
#[derive(Debug)]
pub(super) struct BrokenOff(pub(super) String);

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for BrokenOff {}
