//! HTTP/2 without TLS and with prior knowledge (RFC 9113 3.3), by hyper: for proxies and command-line clients.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::parts::{FileParts, Piece, Way};
use super::request::Request;
use super::response::{Block, Body, Response};
use super::sequence::FileSequence;
use crate::base::error::{Error, ErrorKind, Result};
use crate::gateway::http::budget::Tally;
use crate::gateway::service::Worker;

/// Streams of one connection at the same time.
const MOST_STREAMS: u32 = 128;
/// Bytes of header lines of one request.
const LONGEST_HEADERS: u32 = 16 << 10;

/// Bytes of one stream that wait for the socket.
const SEND_BUFFER: usize = 64 << 10;
/// Time in which a client must take some of what was made for it.
const STALL_TIME: Duration = Duration::from_secs(30);

/// Serves a connection until the client or the gateway's stop ends it.
pub async fn serve(stream: TcpStream, worker: Rc<Worker>) -> io::Result<()> {
    let stopping = worker.stopping();
    let tally = Arc::new(Tally::default());
    let way = Way::Kept(worker.shared.budget.clone(), tally.clone());
    let service = service_fn(move |request| {
        let (worker, way) = (worker.clone(), way.clone());
        async move { Ok::<_, Infallible>(answer(request, &worker, way).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(30));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopping => None,
        () = stalled(&tally) => return Err(io::ErrorKind::TimedOut.into()),
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

/// Waits until a client has taken nothing of what was made for it for [`STALL_TIME`].
async fn stalled(tally: &Tally) {
    let mut before = None;
    loop {
        tokio::time::sleep(STALL_TIME).await;
        let now = tally.waits_at();
        if now.is_some() && now == before {
            return;
        }
        before = now;
    }
}

async fn answer(request: http::Request<Incoming>, worker: &Worker, way: Way) -> http::Response<H2Body> {
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
    for (name, value) in response.headers {
        out = match value {
            Cow::Borrowed(value) => out.header(name, http::HeaderValue::from_static(value)),
            Cow::Owned(value) => out.header(name, value),
        };
    }
    if let Some(length) = response.length {
        out = out.header("content-length", length);
    }
    let body = match response.body {
        Body::Empty => H2Body::Full(None),
        Body::Full(bytes) => match keep(bytes, &way).await {
            Some(bytes) => H2Body::Full(Some(bytes)),
            None => return unavailable(),
        },
        Body::Blocks(blocks) => H2Body::Blocks(blocks),
        Body::Files(files) => H2Body::Blocks(stream(Source::Files(*files), way)),
        Body::Parts(mut parts) => match parts.next_piece(&way).await {
            Ok(Some(Piece::Bytes(bytes))) if parts.is_through() => H2Body::Full(Some(bytes)),
            Err(_) => return unavailable(),
            first => H2Body::Blocks(stream(Source::Parts(first, *parts), way)),
        },
    };
    // A header value that is no valid one would be our mistake: the client gets a plain status.
    out.body(body).unwrap_or_else(|_| plain(500))
}

/// Bytes that take a part of the budget until they are sent.
async fn keep(bytes: Bytes, way: &Way) -> Option<Bytes> {
    match way {
        Way::Kept(budget, tally) => {
            let share = budget.piece(bytes.len() as u64, Some(tally)).await.ok()?;
            Some(share.with(bytes))
        }
        Way::Socket => Some(bytes),
    }
}

fn unavailable() -> http::Response<H2Body> {
    let mut response = plain(503);
    response.headers_mut().insert("retry-after", http::HeaderValue::from_static("1"));
    response
}

fn plain(status: u16) -> http::Response<H2Body> {
    let mut response = http::Response::new(H2Body::Full(None));
    *response.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// What a body of several pieces is read from.
enum Source {
    Parts(Result<Option<Piece>>, FileParts),
    Files(FileSequence),
}

/// Sends the pieces of files to a body, one ahead of the client.
fn stream(source: Source, way: Way) -> mpsc::Receiver<Block> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        let sent = match source {
            Source::Parts(first, parts) => send_parts(first, parts, &way, &sender).await,
            Source::Files(files) => send_files(files, &way, &sender).await,
        };
        if let Err(error) = sent {
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver
}

async fn send_files(mut files: FileSequence, way: &Way, sender: &mpsc::Sender<Block>) -> Result<()> {
    while let Some(mut parts) = files.next_parts().await? {
        let first = parts.next_piece(way).await;
        send_parts(first, parts, way, sender).await?;
    }
    Ok(())
}

async fn send_parts(
    first: Result<Option<Piece>>,
    mut parts: FileParts,
    way: &Way,
    sender: &mpsc::Sender<Block>,
) -> Result<()> {
    let gone = |_| Error::new(ErrorKind::IoError, "the client is gone");
    let mut piece = first?;
    // Only a body that goes to a socket has pieces of another kind.
    while let Some(Piece::Bytes(bytes)) = piece {
        sender.send(Ok(bytes)).await.map_err(gone)?;
        piece = parts.next_piece(way).await?;
    }
    Ok(())
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
