//! A body that is passed on while it is recorded.
//!
//! The recorder reads at the service's pace, up to a limit, so that a slow reader does not stall the others. Readers
//! follow behind. A body that is longer than the limit is recorded no further: the first reader gets the rest from the
//! service itself.

use super::reading::{BrokenOff, Cut, Reading, Step, Whole};
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};
use tower::BoxError;

impl<B> Reading<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Goes on reading in a recorder, beside which readers read along.
    pub(crate) fn tape(self) -> (Recorder<B>, Reader<B>) {
        let hint = self.body.size_hint();
        let (lower, upper) = (hint.lower().saturating_add(self.length), hint.upper());
        let upper = upper.and_then(|upper| upper.checked_add(self.length));
        let tape = Arc::new(Tape {
            state: Mutex::new(State { data: self.data.clone(), progress: Progress::Recording, wakers: Vec::new() }),
        });
        let reader = Reader::new(tape.clone(), (lower, upper));
        (Recorder { reading: Some(self), tape }, reader)
    }
}

struct Tape<B> {
    state: Mutex<State<B>>,
}

struct State<B> {
    data: Vec<Bytes>,
    progress: Progress<B>,
    /// By reader.
    wakers: Vec<Option<Waker>>,
}

enum Progress<B> {
    Recording,
    Whole(Option<HeaderMap>),
    /// The error itself is for the first reader, and its text for the others.
    Broken(Option<BoxError>, String),
    /// The rest is for the first reader.
    TooLong(Option<Pin<Box<B>>>),
}

impl<B> Tape<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State<B>)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers: Vec<_> = state.wakers.iter_mut().filter_map(Option::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn break_off(&self, error: BoxError) {
        self.change(|state| {
            let text = error.to_string();
            state.progress = Progress::Broken(Some(error), text);
        });
    }
}

/// Records a body to its end, or to the limit. Dropped before, the readers see it break off.
pub(crate) struct Recorder<B> {
    reading: Option<Reading<B>>,
    tape: Arc<Tape<B>>,
}

impl<B> Recorder<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// The whole body, whose end the readers see when [`End`] is dropped; or why there is none.
    pub(crate) async fn record(mut self) -> Result<(Whole, End<B>), &'static str> {
        let Some(reading) = &mut self.reading else { return Err("body-failed") };
        loop {
            let before = reading.data.len();
            let step = poll_fn(|cx| reading.poll_step(cx)).await;
            let new = reading.data.get(before..).unwrap_or_default().to_vec();
            match step {
                Step::More => self.tape.change(|state| state.data.extend(new)),
                Step::End => {
                    let Some(reading) = self.reading.take() else { return Err("body-failed") };
                    let end = End { tape: self.tape.clone(), data: new, trailers: reading.trailers.clone() };
                    return Ok((reading.whole(), end));
                }
                Step::Cut(Cut::TooLong) => {
                    let Some(reading) = self.reading.take() else { return Err("body-failed") };
                    self.tape.change(|state| {
                        state.data.extend(new);
                        state.progress = Progress::TooLong(Some(reading.body));
                    });
                    return Err("too-large");
                }
                Step::Cut(Cut::Broken(error)) => {
                    self.reading = None;
                    self.tape.change(|state| state.data.extend(new));
                    self.tape.break_off(error);
                    return Err("body-failed");
                }
            }
        }
    }
}

impl<B> Drop for Recorder<B> {
    fn drop(&mut self) {
        if self.reading.is_some() {
            self.tape.break_off(BrokenOff("who read the body was stopped".into()).into());
        }
    }
}

/// The end of a body, which readers see when this is dropped.
pub(crate) struct End<B> {
    tape: Arc<Tape<B>>,
    data: Vec<Bytes>,
    trailers: Option<HeaderMap>,
}

impl<B> Drop for End<B> {
    fn drop(&mut self) {
        let (data, trailers) = (mem::take(&mut self.data), self.trailers.take());
        self.tape.change(|state| {
            state.data.extend(data);
            state.progress = Progress::Whole(trailers);
        });
    }
}

/// Reads along.
pub(crate) struct Reader<B> {
    source: Source<B>,
    /// Bytes to come, at least and at most.
    left: (u64, Option<u64>),
}

/// The reader that gets what is not recorded.
const FIRST: usize = 0;

enum Source<B> {
    Tape { tape: Arc<Tape<B>>, number: usize, at: usize },
    Rest(Pin<Box<B>>),
    Over,
}

impl<B> Reader<B> {
    fn new(tape: Arc<Tape<B>>, left: (u64, Option<u64>)) -> Self {
        let number = {
            let mut state = tape.lock();
            state.wakers.push(None);
            state.wakers.len() - 1
        };
        Reader { source: Source::Tape { tape, number, at: 0 }, left }
    }

    /// Another reader, from the beginning, of a body that is known to fit.
    pub(crate) fn another(&self) -> Option<Reader<B>> {
        match &self.source {
            Source::Tape { tape, at: 0, .. } => Some(Reader::new(tape.clone(), self.left)),
            _ => None,
        }
    }
}

impl<B> Reader<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.poll_any_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let read = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.left.0 = self.left.0.saturating_sub(read);
                self.left.1 = self.left.1.map(|upper| upper.saturating_sub(read));
            }
            Some(Err(_)) | None => (self.source, self.left) = (Source::Over, (0, Some(0))),
        }
        Poll::Ready(frame)
    }

    fn poll_any_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (tape, number, at) = match &mut self.source {
            Source::Tape { tape, number, at } => (tape, *number, at),
            Source::Rest(rest) => {
                return rest.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)));
            }
            Source::Over => return Poll::Ready(None),
        };
        let rest = {
            let mut state = tape.lock();
            let State { data, progress, wakers } = &mut *state;
            if matches!(progress, Progress::TooLong(_)) && number != FIRST {
                let error = BrokenOff("the body is longer than was announced".into());
                return Poll::Ready(Some(Err(error.into())));
            }
            if let Some(data) = data.get_mut(*at) {
                *at += 1;
                // What is not kept is let go as it is read.
                let data = if let Progress::TooLong(_) = progress { mem::take(data) } else { data.clone() };
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            match progress {
                Progress::Recording => {
                    wakers[number] = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Progress::Whole(trailers) => {
                    let trailers = trailers.clone().filter(|_| *at == data.len());
                    *at = usize::MAX;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Progress::Broken(error, text) => {
                    let error = error.take().unwrap_or_else(|| BrokenOff(text.clone()).into());
                    return Poll::Ready(Some(Err(error)));
                }
                Progress::TooLong(rest) => rest.take(),
            }
        };
        match rest {
            Some(mut rest) => {
                let frame = rest.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)));
                self.source = Source::Rest(rest);
                frame
            }
            None => Poll::Ready(None),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Tape { tape, at, .. } => {
                let state = tape.lock();
                let is_read = *at >= state.data.len();
                is_read
                    && matches!(&state.progress, Progress::Whole(trailers) if trailers.is_none() || *at == usize::MAX)
            }
            Source::Rest(rest) => rest.is_end_stream(),
            Source::Over => true,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.left.0);
        if let Some(upper) = self.left.1.filter(|upper| *upper >= self.left.0) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests;
