use super::*;
use crate::body::Body;
use http_body_util::StreamBody;
use proptest::{prelude::*, test_runner::RngSeed};
use std::task::Waker;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Sent = Result<Frame<Bytes>, BoxError>;
type Source = StreamBody<UnboundedReceiverStream<Sent>>;

fn source() -> (mpsc::UnboundedSender<Sent>, Source) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(UnboundedReceiverStream::new(receiver)))
}

fn data(text: &'static str) -> Sent {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// What can be read now, and how that ends: `None` if it does not.
fn read(body: &mut Body<Source>) -> (String, Option<Result<(), String>>) {
    let (mut text, mut cx) = (String::new(), Context::from_waker(Waker::noop()));
    loop {
        match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Pending => return (text, None),
            Poll::Ready(None) => return (text, Some(Ok(()))),
            Poll::Ready(Some(Err(error))) => return (text, Some(Err(error.to_string()))),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                Err(_) => text.push('!'),
            },
        }
    }
}

/// A recording of what is sent, and its first two readers.
#[allow(clippy::type_complexity)]
fn tape(
    limit: usize,
) -> (
    mpsc::UnboundedSender<Sent>,
    Pin<Box<dyn Future<Output = Result<(Whole, End<Source>), &'static str>>>>,
    [Body<Source>; 2],
) {
    let (sender, source) = source();
    let (recorder, reader) = Reading::new(source, limit, None).tape();
    let another = reader.another().unwrap();
    (sender, Box::pin(recorder.record()), [Body::taped(reader), Body::taped(another)])
}

#[test]
fn readers_follow_the_recorder_and_see_the_end_when_it_is_let() {
    let (sender, mut recording, [mut one, mut two]) = tape(100);
    assert_eq!(read(&mut one), (String::new(), None));
    sender.send(data("a")).unwrap();
    sender.send(data("b")).unwrap();
    assert!(poll(recording.as_mut()).is_pending());
    assert_eq!((read(&mut one), read(&mut two)), (("ab".into(), None), ("ab".into(), None)));
    sender.send(data("c")).unwrap();
    sender.send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
    drop(sender);
    let Poll::Ready(Ok((whole, end))) = poll(recording.as_mut()) else { panic!("it has ended") };
    assert_eq!((&whole.data[..], whole.trailers.is_some()), (&b"abc"[..], true));
    assert_eq!(read(&mut one), ("c".into(), None));
    assert!(!one.is_end_stream());
    drop(end);
    assert_eq!((read(&mut one), read(&mut two)), (("!".into(), Some(Ok(()))), ("c!".into(), Some(Ok(())))));
    assert!(one.is_end_stream() && two.is_end_stream());
}

#[test]
fn what_is_too_long_is_for_the_first_reader_alone() {
    let (sender, mut recording, [mut one, mut two]) = tape(4);
    sender.send(data("abc")).unwrap();
    sender.send(data("def")).unwrap();
    sender.send(data("ghi")).unwrap();
    assert!(matches!(poll(recording.as_mut()), Poll::Ready(Err("too-large"))));
    assert_eq!(read(&mut one), ("abcdefghi".into(), None));
    let (text, end) = read(&mut two);
    assert!(!text.contains("ghi") && matches!(end, Some(Err(_))), "an error, not a short answer: {text} {end:?}");
    sender.send(data("j")).unwrap();
    drop(sender);
    assert_eq!(read(&mut one), ("j".into(), Some(Ok(()))));
}

#[test]
fn frames_of_next_to_nothing_are_bounded_too() {
    let (sender, source) = source();
    for _ in 0..3000 {
        sender.send(data("")).unwrap();
    }
    let mut reading = Reading::new(source, 1000, None);
    assert!(matches!(poll(std::pin::pin!(reading.read())), Poll::Ready(Err(Cut::TooLong))));
    assert!(reading.data.is_empty());
}

#[test]
fn failures_reach_every_reader_and_a_recorder_that_is_stopped_is_one() {
    let (sender, mut recording, [mut one, mut two]) = tape(100);
    sender.send(data("a")).unwrap();
    sender.send(Err("broken".into())).unwrap();
    assert!(matches!(poll(recording.as_mut()), Poll::Ready(Err("body-failed"))));
    for body in [&mut one, &mut two] {
        assert_eq!(read(body), ("a".into(), Some(Err("broken".into()))));
        assert_eq!(read(body), (String::new(), Some(Ok(()))), "said once");
    }

    let (sender, mut recording, [mut one, mut two]) = tape(100);
    sender.send(data("a")).unwrap();
    assert!(poll(recording.as_mut()).is_pending());
    drop(recording);
    for body in [&mut one, &mut two] {
        assert_eq!(read(body), ("a".into(), Some(Err("who read the body was stopped".into()))));
    }
}

#[test]
fn a_length_that_was_announced_is_kept_or_it_has_broken_off() {
    for (announced, is_whole) in [(None, true), (Some(2), true), (Some(3), false), (Some(1), false)] {
        let (sender, source) = source();
        sender.send(data("ab")).unwrap();
        drop(sender);
        let mut reading = Reading::new(source, 100, announced);
        let read = poll(std::pin::pin!(reading.read()));
        assert_eq!(matches!(read, Poll::Ready(Ok(()))), is_whole, "{announced:?}");
        assert_eq!(reading.is_known_to_fit(), announced.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(16), failure_persistence: None, ..Default::default() })]

    /// However sending, recording and reading take turns, every reader gets the same, whole.
    #[test]
    fn all_readers_read_all(turns in prop::collection::vec(0..4_u8, 1..60), limit in 1..40_usize) {
        const PIECES: [&str; 5] = ["a", "bc", "def", "ghij", "klmno"];
        let (sender, mut recording, [mut one, mut two]) = tape(limit);
        let (mut sent, mut read_one, mut read_two, mut over) = (String::new(), String::new(), String::new(), None);
        let mut sender = Some(sender);
        for (at, turn) in turns.iter().chain(&[1, 2, 3]).enumerate() {
            if at == turns.len() {
                sender = None;
            }
            match turn {
                0 => {
                    let piece = PIECES[at % PIECES.len()];
                    sent.push_str(piece);
                    sender.as_ref().unwrap().send(data(piece)).unwrap();
                }
                1 if over.is_none() => {
                    if let Poll::Ready(ended) = poll(recording.as_mut()) {
                        over = Some(ended.map(|(whole, _)| whole.data));
                    }
                }
                1 => {}
                2 => read_one.push_str(&read(&mut one).0),
                _ => read_two.push_str(&read(&mut two).0),
            }
        }
        match over.expect("it ends") {
            Ok(whole) => {
                prop_assert_eq!((&whole[..], &read_two), (sent.as_bytes(), &sent));
                prop_assert!(sent.len() <= limit);
            }
            Err(_) => prop_assert!(sent.len() > limit),
        }
        prop_assert_eq!(read_one, sent);
    }
}
