//! HTTP/2 without TLS and with prior knowledge (RFC 9113 3.3), by hyper: for proxies and command-line clients.

use std::borrow::Cow;
use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
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
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::buffered::Buffered;
use super::parts::{FileParts, Piece, Way};
use super::request::{Method, Request};
use super::response::{Block, Body, Response};
use super::sequence::FileSequence;
use crate::base::error::{Error, ErrorKind, Result};
use crate::gateway::http::budget::{Budget, Tally};
use crate::gateway::service::Worker;

/// Streams of one connection at the same time.
const MOST_STREAMS: u32 = 128;
/// Bytes of header lines of one request.
const LONGEST_HEADERS: u32 = 16 << 10;

/// Bytes of one stream that wait for the socket.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes of request bodies that are taken in: they are refused, and a client may send them before it knows.
const WINDOW: u32 = 65_535;
/// Time in which a client must take some of what was made for it.
const STALL_TIME: Duration = Duration::from_secs(30);
/// The same while others wait for the memory that it holds: shorter than they do.
const SHORT_STALL_TIME: Duration = Duration::from_secs(3);
/// Time for a client to agree to the end of an idle connection.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves a connection until the client, a time limit or the gateway's stop ends it.
pub async fn serve(stream: TcpStream, worker: Rc<Worker>) -> io::Result<()> {
    let budget = worker.shared.budget.clone();
    let (tally, open) = (Arc::new(Tally::default()), Rc::new(Open::default()));
    let way = Way::Kept(budget.clone(), tally.clone());
    let service = service_fn({
        let (worker, open) = (worker.clone(), open.clone());
        move |request| {
            let (worker, way, stream) = (worker.clone(), way.clone(), OpenStream::new(&open));
            // Boxed: hyper and tokio move it several times.
            Box::pin(async move { Ok::<_, Infallible>(answer(request, &worker, way, stream).await) })
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
    builder
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let socket = Buffered::new(stream);
    let mut connection = pin!(builder.serve_connection(socket.clone(), service));
    let is_idle = tokio::select! {
        biased;
        ended = drive(connection.as_mut(), &socket) => return ended,
        () = worker.stopping() => false,
        () = idle(&open, worker.idle_time()) => true,
        () = stalled(&tally, &budget) => return Err(io::ErrorKind::TimedOut.into()),
    };
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        ended = drive(connection, &socket) => ended,
        () = idle(&open, GOODBYE), if is_idle => Ok(()),
        () = stalled(&tally, &budget) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Polls a connection, and sends what it wrote meanwhile.
async fn drive(
    mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    socket: &Buffered,
) -> io::Result<()> {
    poll_fn(|context| {
        let ended = connection.as_mut().poll(context);
        match (ended, socket.poll_send(context)) {
            (Poll::Ready(ended), _) => Poll::Ready(ended.map_err(io::Error::other)),
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

/// Waits until no stream was open for some time, at most twice as long.
async fn idle(open: &Open, time: Duration) {
    let mut before = open.begun.get();
    loop {
        sleep(time).await;
        if open.now.get() == 0 && open.begun.get() == before {
            return;
        }
        before = open.begun.get();
    }
}

/// Waits until a client has taken nothing of what was made for it for [`STALL_TIME`], or a shorter time where memory
/// is short.
async fn stalled(tally: &Tally, budget: &Budget) {
    let (mut before, mut stall) = (None, Duration::ZERO);
    loop {
        sleep(SHORT_STALL_TIME).await;
        let now = tally.waits_at();
        stall = if now.is_some() && now == before { stall + SHORT_STALL_TIME } else { Duration::ZERO };
        if stall >= (if budget.is_short() { SHORT_STALL_TIME } else { STALL_TIME }) {
            return;
        }
        before = now;
    }
}

/// Streams of a connection: those that are open, and all that were.
#[derive(Default)]
struct Open {
    now: Cell<u64>,
    begun: Cell<u64>,
}

/// A stream that is open as long as this lives: until its body is with hyper.
struct OpenStream(Rc<Open>);

impl OpenStream {
    fn new(open: &Rc<Open>) -> Self {
        open.now.set(open.now.get() + 1);
        open.begun.set(open.begun.get() + 1);
        Self(open.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.now.set(self.0.now.get() - 1);
    }
}

/// Whether a request has no body: some proxies say so by an empty frame behind the headers.
async fn is_empty(body: &mut Incoming) -> bool {
    while !body.is_end_stream() {
        match timeout(SHORT_STALL_TIME, poll_fn(|context| Pin::new(&mut *body).poll_frame(context))).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) if frame.data_ref().is_none_or(Bytes::is_empty) => {}
            _ => return false,
        }
    }
    true
}

async fn answer(
    request: http::Request<Incoming>,
    worker: &Worker,
    way: Way,
    stream: OpenStream,
) -> http::Response<H2Body> {
    let (request, mut body) = request.into_parts();
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let headers: Vec<httparse::Header<'_>> = request
        .headers
        .iter()
        .map(|(name, value)| httparse::Header { name: name.as_str(), value: value.as_bytes() })
        .collect();
    let asked = Request::new(request.method.as_str(), target, &headers);
    // Of a method that is not served the body does not matter.
    let response = if asked.method == Method::Other || is_empty(&mut body).await {
        worker.respond(&asked).await
    } else {
        Response::refusal(413, "request_body", "requests have no body here")
    };
    let content = match response.body {
        Body::Empty => Content::Full(None),
        Body::Full(bytes) => match keep(bytes, &way).await {
            Some(bytes) => Content::Full(Some(bytes)),
            None => return plain(503, stream),
        },
        Body::Blocks(blocks) => Content::Blocks(blocks),
        Body::Files(files) => Content::Blocks(send_on(Source::Files(*files), way)),
        Body::Parts(mut parts) => match parts.next_piece(&way).await {
            Ok(Some(Piece::Bytes(bytes))) if parts.is_through() => Content::Full(Some(bytes)),
            Err(_) => return plain(503, stream),
            first => Content::Blocks(send_on(Source::Parts(first, *parts), way)),
        },
    };
    let mut answer = http::Response::new(H2Body { content, stream });
    *answer.status_mut() = status(response.status);
    let lines = answer.headers_mut();
    for (name, value) in response.headers {
        let value = match value {
            Cow::Borrowed(value) => http::HeaderValue::from_static(value),
            Cow::Owned(value) => match http::HeaderValue::try_from(value) {
                Ok(mut value) => {
                    // Of this answer alone: in HPACK's table it would take the place of what comes again.
                    value.set_sensitive(true);
                    value
                }
                // One that is no valid value would be our mistake.
                Err(_) => return plain(500, answer.into_body().stream),
            },
        };
        lines.append(header_name(name), value);
    }
    if let Some(length) = response.length {
        lines.insert(http::header::CONTENT_LENGTH, length.into());
    }
    answer
}

/// The name of a header line. To look those of a frame up by their letters would take longer than to send them.
fn header_name(name: &'static str) -> http::HeaderName {
    use http::header;
    match name {
        "Content-Type" => header::CONTENT_TYPE,
        "ETag" => header::ETAG,
        "Cache-Control" => header::CACHE_CONTROL,
        "Vary" => header::VARY,
        "Accept-Ranges" => header::ACCEPT_RANGES,
        "X-Content-Type-Options" => header::X_CONTENT_TYPE_OPTIONS,
        other => http::HeaderName::from_bytes(other.as_bytes()).unwrap_or(header::WARNING),
    }
}

fn status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
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

fn plain(code: u16, stream: OpenStream) -> http::Response<H2Body> {
    let mut response = http::Response::new(H2Body { content: Content::Full(None), stream });
    *response.status_mut() = status(code);
    if code == 503 {
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    response
}

/// What a body of several pieces is read from.
enum Source {
    Parts(Result<Option<Piece>>, FileParts),
    Files(FileSequence),
}

/// Sends the pieces of files to a body, one ahead of the client.
fn send_on(source: Source, way: Way) -> mpsc::Receiver<Block> {
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
struct H2Body {
    content: Content,
    stream: OpenStream,
}

enum Content {
    Full(Option<Bytes>),
    Blocks(mpsc::Receiver<Block>),
}

impl http_body::Body for H2Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut self.get_mut().content {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Blocks(blocks) => {
                blocks.poll_recv(context).map(|block| block.map(|block| block.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Content::Blocks(_) => SizeHint::default(),
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
