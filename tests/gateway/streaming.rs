//! Bodies are passed on while they are recorded.

use crate::{
    origin::*,
    process::Browser,
    stampede::{Group, SOON},
};
use axum::{Router, body::Body, response::IntoResponse};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Reads until `wanted` has come.
pub(crate) async fn read_until(socket: &mut TcpStream, text: &mut String, wanted: &str) {
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read =
            timeout(SOON, socket.read(&mut buffer)).await.unwrap_or_else(|_| panic!("no {wanted:?} in {text:?}"));
        text.push_str(std::str::from_utf8(&buffer[..read.unwrap()]).unwrap());
    }
}

#[tokio::test]
async fn events_pass_one_by_one_and_so_do_the_pieces_of_any_body() {
    for headers in [&[("content-type", "text/event-stream")][..], &[("content-type", "text/plain")], &[]] {
        let (upstream, mut visits) = piecewise(Box::leak(headers.to_vec().into_boxed_slice())).await;
        let group = Group::start(1, &upstream, &[]);
        let mut client = TcpStream::connect(group.gateways[0].address).await.unwrap();
        client.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let pieces = timeout(SOON, visits.recv()).await.unwrap().unwrap();
        let mut text = String::new();
        for piece in ["<1>", "<2>", "<3>", "<4>"] {
            // The next is sent when this has been read.
            pieces.send(Ok(piece)).await.unwrap();
            read_until(&mut client, &mut text, piece).await;
        }
        drop(pieces);
        read_until(&mut client, &mut text, "\r\n0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_stalls_nobody() {
    const LENGTH: usize = 900_000;
    let whole = || async { Body::from(vec![b'x'; LENGTH]) };
    let upstream = serve(Router::new().fallback(whole)).await;
    let group = Group::start(1, &upstream, &[]);
    let mut asleep = TcpStream::connect(group.gateways[0].address).await.unwrap();
    asleep.write_all(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let (browser, url) = (Browser::http1(), group.url(0, "/page"));
    let answer = browser.send(http::Method::GET, &url, &[("host", "x")], "");
    assert_eq!(timeout(SOON, answer).await.unwrap().body.len(), LENGTH);
}

#[tokio::test]
async fn a_body_far_beyond_the_cap_passes_whole_and_takes_no_memory() {
    const PIECES: usize = 1024;
    const PIECE: usize = 64 << 10;
    let endless = || async {
        let pieces = (0..PIECES).map(|n| Ok::<_, std::io::Error>(Bytes::from(vec![n as u8; PIECE])));
        Body::from_stream(tokio_stream::iter(pieces)).into_response()
    };
    let upstream = serve(Router::new().fallback(endless)).await;
    let group = Group::start(1, &upstream, &[]);
    group.stat(0, "hits").await;
    let before = group.gateways[0].anonymous_memory();
    let mut client = TcpStream::connect(group.gateways[0].address).await.unwrap();
    client.write_all(b"GET /large HTTP/1.0\r\nHost: x\r\n\r\n").await.unwrap();
    let (mut buffer, mut read, mut most) = (vec![0; 1 << 20], 0, before);
    loop {
        match timeout(SOON, client.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            more => read += more,
        }
        most = most.max(group.gateways[0].anonymous_memory());
    }
    assert!((PIECES * PIECE..PIECES * PIECE + 1000).contains(&read), "{read}");
    assert!(most - before < 16 << 20, "{} KiB more", (most - before) >> 10);
}
