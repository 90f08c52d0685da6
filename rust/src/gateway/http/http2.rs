//! HTTP/2 without TLS and with prior knowledge (RFC 9113 3.3), by hyper: for proxies and command-line clients.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::parts::{FileParts, Piece};
use super::request::Request;
use super::response::{Block, Body, Response};
use crate::base::error::{Error, Result};
use crate::gateway::service::Worker;

/// Streams of one connection at the same time.
const MOST_STREAMS: u32 = 128;
/// Bytes of header lines of one request.
const LONGEST_HEADERS: u32 = 16 << 10;

/// Serves a connection until the client or the gateway's stop ends it.
pub async fn serve(stream: TcpStream, worker: Rc<Worker>) -> io::Result<()> {
    let stopping = worker.stopping();
    let service = service_fn(move |request| {
        let worker = worker.clone();
        async move { Ok::<_, Infallible>(answer(request, &worker).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_HEADERS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopping => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

async fn answer(request: http::Request<Incoming>, worker: &Worker) -> http::Response<H2Body> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let headers: Vec<httparse::Header<'_>> = request
        .headers()
        .iter()
        .map(|(name, value)| httparse::Header { name: name.as_str(), value: value.as_bytes() })
        .collect();
    let response = if request.body().is_end_stream() {
        worker.respond(&Request::new(request.method().as_str(), target, &headers)).await
    } else {
        Response::refusal(413, "request_body", "requests have no body here")
    };
    let mut out = http::Response::builder().status(response.status);
    for (name, value) in &response.headers {
        out = out.header(*name, value);
    }
    if let Some(length) = response.length {
        out = out.header("content-length", length);
    }
    let body = match response.body {
        Body::Empty => H2Body::Full(None),
        Body::Full(bytes) => H2Body::Full(Some(bytes)),
        Body::Blocks(blocks) => H2Body::Blocks(blocks),
        Body::Parts(mut parts) => match parts.next_piece().await {
            Ok(Some(Piece::Bytes(bytes))) if parts.is_through() => H2Body::Full(Some(bytes)),
            first => H2Body::Blocks(stream(first, *parts)),
        },
    };
    // A header value that is no valid one would be our mistake: the client gets a plain status.
    out.body(body).unwrap_or_else(|_| {
        let mut failed = http::Response::new(H2Body::Full(None));
        *failed.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        failed
    })
}

/// Sends the pieces of a file to a body, one ahead of the client.
fn stream(first: Result<Option<Piece>>, mut parts: FileParts) -> mpsc::Receiver<Block> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        let mut piece = first;
        loop {
            let block = match piece {
                Ok(Some(Piece::Bytes(bytes))) => Ok(bytes),
                // Only a body that may be sent from the file has such pieces.
                Ok(Some(Piece::InFile { .. }) | None) => return,
                Err(error) => Err(error),
            };
            let failed = block.is_err();
            if sender.send(block).await.is_err() || failed {
                return;
            }
            piece = parts.next_piece().await;
        }
    });
    receiver
}

/// A body as hyper takes it.
enum H2Body {
    Full(Option<Bytes>),
    Blocks(mpsc::Receiver<Block>),
}

impl http_body::Body for H2Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Blocks(blocks) => {
                blocks.poll_recv(context).map(|block| block.map(|block| block.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Blocks(_) => SizeHint::default(),
        }
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
