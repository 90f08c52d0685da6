//! Workers: threads that accept connections on one address, and their end.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::JoinSet;

use super::http::{http1, http2};
use super::service::{Gauge, Shared, Worker};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Threads of a worker that may wait for a disk.
const BLOCKING_THREADS: usize = 32;
/// Time in which a client must say which version of HTTP it speaks.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// Time for what is still under way when all connections are closed.
const LAST_TIME: Duration = Duration::from_secs(1);
/// How HTTP/2 begins (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A running gateway.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    drain: Arc<AtomicU64>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Binds an address (port 0: any free one) and starts its workers.
    ///
    /// # Errors
    /// The address cannot be bound, or a thread cannot be started.
    pub fn start(address: SocketAddr, workers: usize, shared: Arc<Shared>) -> io::Result<Self> {
        check_free(address)?;
        let first = listen(address)?;
        let bound = first.local_addr()?;
        let mut listeners = vec![first];
        for _ in 1..workers {
            listeners.push(another(&listeners, bound)?);
        }
        let drain = Arc::new(AtomicU64::new(0));
        let server = Self { shared, address: bound, drain, workers: Mutex::default() };
        for (number, listener) in listeners.into_iter().enumerate() {
            let (shared, drain) = (server.shared.clone(), server.drain.clone());
            let started = thread::Builder::new()
                .name(format!("voxtier-http-{number}"))
                .spawn(move || run(listener, &shared, &drain));
            match started {
                Ok(thread) => server.threads().push(thread),
                Err(error) => {
                    server.begin_stop(Duration::ZERO);
                    server.finish();
                    return Err(error);
                }
            }
        }
        Ok(server)
    }

    /// The address that is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more and gives open requests some time; another call may shorten it.
    pub fn begin_stop(&self, drain: Duration) {
        self.drain.store(u64::try_from(drain.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.shared.stop();
    }

    /// Whether no worker runs any more.
    pub fn has_ended(&self) -> bool {
        self.threads().iter().all(JoinHandle::is_finished)
    }

    /// Waits for the workers to end.
    pub fn finish(&self) {
        let threads = std::mem::take(&mut *self.threads());
        if threads.is_empty() {
            return; // another call waits for them
        }
        for thread in threads {
            let _ = thread.join();
        }
        self.shared.jobs.close();
        if let Some(log) = &self.shared.log {
            log.close();
        }
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails where another gateway listens on an address: the kernel would let both share it, and spread the
/// connections of clients over them.
fn check_free(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // connections that ended a moment ago are no listeners
    socket.bind(&address.into())
}

/// A listener for another worker: one of its own, as the kernel of Linux spreads connections over those of one
/// address; elsewhere the first one, from which whoever wakes first takes a connection.
fn another(listeners: &[StdListener], address: SocketAddr) -> io::Result<StdListener> {
    match listeners.first() {
        Some(first) if cfg!(not(target_os = "linux")) => first.try_clone(),
        _ => listen(address),
    }
}

/// A listener that shares its address with those of the other workers.
fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    #[cfg(target_os = "linux")]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn run(listener: StdListener, shared: &Arc<Shared>, drain: &AtomicU64) {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .build_local(LocalOptions::default());
    let Ok(runtime) = runtime else { return };
    runtime.block_on(accept_until_stop(listener, shared, drain));
    runtime.shutdown_timeout(LAST_TIME);
}

async fn accept_until_stop(listener: StdListener, shared: &Arc<Shared>, drain: &AtomicU64) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let worker = Rc::new(Worker::new(shared.clone()));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = worker.stopping() => break,
        };
        match accepted {
            Ok((stream, _)) => admit(stream, &worker, &mut connections),
            // No descriptor is free, or the client is gone: the next may succeed.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    drop(listener);
    let begun = Instant::now();
    while Rc::strong_count(&worker) > 1
        && begun.elapsed().as_millis() < u128::from(drain.load(Ordering::Relaxed))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    connections.shutdown().await;
    // Streams of HTTP/2 see that their connection is gone, and threads that make blocks for it that nobody takes them.
    let ended = Instant::now();
    while Rc::strong_count(&worker) > 1 && ended.elapsed() < LAST_TIME {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn admit(stream: TcpStream, worker: &Rc<Worker>, connections: &mut JoinSet<()>) {
    if worker.shared.metrics.connections.load(Ordering::Relaxed) >= worker.shared.most_connections {
        let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    let _ = stream.set_nodelay(true);
    let worker = worker.clone();
    connections.spawn_local(async move {
        let open = Gauge::up(&worker.shared.metrics.connections);
        // A broken connection concerns its client alone.
        let _ = serve(stream, &worker).await;
        drop(open);
    });
}

async fn serve(stream: TcpStream, worker: &Rc<Worker>) -> io::Result<()> {
    let mut first = [0; PREFACE.len()];
    let count = tokio::select! {
        count = tokio::time::timeout(FIRST_BYTES, stream.peek(&mut first)) => count.map_err(|_| io::ErrorKind::TimedOut)??,
        () = worker.stopping() => return Ok(()),
    };
    let seen = first.get(..count).unwrap_or_default();
    if count >= 4 && PREFACE.starts_with(seen) {
        http2::serve(stream, worker.clone()).await
    } else {
        http1::serve(stream, worker).await
    }
}
