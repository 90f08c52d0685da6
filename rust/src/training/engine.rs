//! The threads that fill batches, and the queue of their tasks.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::finish::{View, finish};
use super::oblique::Oblique;
use super::places::Place;
use super::scratch::{Pool, Scratch};
use super::subjects::{Form, Part, Subject};
use crate::base::error::{Error, ErrorKind, Result};
use crate::tiledb::output::sink::Sink;
use crate::tiledb::plan::Plan;
use crate::tiledb::reader::Effort;

/// Chunks of one task: some hundred microseconds of work.
const CHUNKS: usize = 12;

/// One item of a batch.
pub struct Order {
    /// What it is read from.
    pub subject: Arc<Subject>,
    /// Where its patch begins.
    pub place: Place,
    /// How it is changed on its way; `None` leaves it as it is stored.
    pub view: Option<View>,
}

/// What became of an order.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// First voxel of the patch along x, y, z.
    pub start: [i64; 3],
    /// Why it could not be read.
    pub error: Option<Error>,
}

/// Memory of a batch, which outlives the engine's work on it.
#[derive(Clone, Copy)]
struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: only the engine's threads write to it, each to places of its own, and `Engine::submit` demands that it
// outlives them.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

struct Item {
    order: Order,
    outcome: Mutex<Outcome>,
    has_failed: AtomicBool,
    /// The voxels that a turned patch touches, part by part.
    touched: Mutex<Option<(Oblique, Vec<Scratch>)>>,
    /// Tasks that are not done.
    left: AtomicUsize,
}

struct Batch {
    number: u64,
    form: Form,
    memory: Memory,
    items: Vec<Item>,
    /// Items that are not done.
    left: AtomicUsize,
}

enum Task {
    /// Choose the place of an item and find its chunks.
    Plan,
    /// Read some chunks of one part.
    Read { part: usize, plan: Arc<Plan>, chunks: Range<usize> },
}

struct Job {
    batch: Arc<Batch>,
    item: usize,
    task: Task,
}

#[derive(Default)]
struct Queue {
    jobs: BTreeMap<(u64, u64), Job>,
    batches: HashMap<u64, Arc<Batch>>,
    sequence: u64,
    is_stopped: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    ready: Condvar,
    keep: bool,
    shared: bool,
    scratch: Pool,
}

/// Threads that fill batches.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pid: u32,
}

impl Engine {
    /// Starts `threads` threads; with `keep`, decoded chunks are kept for later patches, with `shared` in memory
    /// that other processes use too, where this one has joined one.
    ///
    /// # Errors
    /// `io_error` when a thread cannot be started.
    pub fn start(threads: usize, keep: bool, shared: bool) -> Result<Self> {
        let shared = Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            ready: Condvar::new(),
            keep,
            shared,
            scratch: Pool::default(),
        };
        let engine = Self { shared: Arc::new(shared), threads: Mutex::default(), pid: std::process::id() };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&engine.shared);
            let name = format!("voxtier-batch-{number}");
            let handle = std::thread::Builder::new().name(name).spawn(move || shared.work())?;
            engine.threads.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        }
        Ok(engine)
    }

    /// Puts a batch into the queue.
    ///
    /// # Safety
    ///
    /// `start` has `bytes` bytes that nobody else touches until the batch has been waited for, or the engine is
    /// stopped.
    pub unsafe fn submit(&self, number: u64, form: Form, orders: Vec<Order>, start: *mut u8, bytes: usize) {
        let item = |order| Item {
            order,
            outcome: Mutex::default(),
            has_failed: AtomicBool::new(false),
            touched: Mutex::default(),
            left: AtomicUsize::new(1),
        };
        let items: Vec<Item> = orders.into_iter().map(item).collect();
        let left = AtomicUsize::new(items.len());
        let batch = Arc::new(Batch { number, form, memory: Memory { start, bytes }, items, left });
        let mut queue = self.shared.lock();
        for item in 0..batch.items.len() {
            queue.push(Job { batch: Arc::clone(&batch), item, task: Task::Plan });
        }
        queue.batches.insert(number, batch);
        drop(queue);
        self.shared.work.notify_all();
    }

    /// Waits for a batch; `None` when the time is over first, or there is no such batch.
    pub fn wait(&self, number: u64, longest: Duration) -> Option<Vec<Outcome>> {
        let queue = self.shared.lock();
        let is_open = |queue: &mut Queue| {
            queue.batches.get(&number).is_some_and(|batch| batch.left.load(Ordering::Acquire) > 0)
        };
        let waited = self.shared.ready.wait_timeout_while(queue, longest, is_open);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if is_open(&mut queue) {
            return None;
        }
        let batch = queue.batches.remove(&number)?;
        let outcome = |item: &Item| item.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(batch.items.iter().map(outcome).collect())
    }

    /// Drops what is queued and ends the threads; a task that has begun is finished first.
    pub fn stop(&self) {
        let mut queue = self.shared.lock();
        queue.is_stopped = true;
        queue.jobs.clear();
        queue.batches.clear();
        drop(queue);
        self.shared.work.notify_all();
        if self.pid != std::process::id() {
            return; // a forked child has none of the threads
        }
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }

    /// Whether this process started the engine: a forked child has no threads.
    pub fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_own() {
            self.stop();
        } else {
            std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner))
                .into_iter()
                .for_each(std::mem::forget);
        }
    }
}

impl Queue {
    /// Older batches first, and within one in the order of coming.
    fn push(&mut self, job: Job) {
        self.sequence += 1;
        self.jobs.insert((job.batch.number, self.sequence), job);
    }
}

impl Shared {
    // A poisoned lock is safe to use: no invariant spans two statements under it.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let job = loop {
                if queue.is_stopped {
                    return;
                }
                if let Some((_, job)) = queue.jobs.pop_first() {
                    break job;
                }
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let Some(item) = job.batch.items.get(job.item) else { continue };
            item.attempt(|| self.run(&job, item));
            if item.left.fetch_sub(1, Ordering::AcqRel) > 1 {
                continue;
            }
            item.attempt(|| self.finish(&job, item));
            if job.batch.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                drop(self.lock()); // who waits has either not looked yet or sleeps
                self.ready.notify_all();
            }
        }
    }

    fn run(&self, job: &Job, item: &Item) -> Result<()> {
        let effort = Effort { threads: 1, keep: self.keep, shared: self.shared };
        match &job.task {
            Task::Plan => self.plan(job, item, effort),
            Task::Read { part, plan, chunks } => {
                let source = part_of(item, *part)?;
                let sink = match &*item.touched() {
                    Some((_, scratch)) => scratch_of(scratch, *part)?.sink(source.recipe()),
                    None => job.batch.sink(source, *part, job.item)?,
                };
                source.tiles().read_part(plan, chunks.clone(), &sink, effort)
            }
        }
    }

    fn plan(&self, job: &Job, item: &Item, effort: Effort) -> Result<()> {
        let form = &job.batch.form;
        let start = item.order.place.choose(&item.order.subject, form.size, effort)?;
        item.outcome().start = start;
        let matrix = item.order.view.as_ref().and_then(|view| view.matrix);
        let oblique = matrix.map(|matrix| form.turn(matrix, start)).transpose()?;
        let (mut plans, mut touched) = (Vec::new(), Vec::new());
        for (part, source) in item.order.subject.parts.iter().enumerate() {
            plans.push(Arc::new(match &oblique {
                None => {
                    let sink = job.batch.sink(source, part, job.item)?;
                    form.with_box(source, start, form.size, form.steps, |boxes| {
                        source.tiles().prepare(boxes, source.fill(), &sink, |_, _| true)
                    })?
                }
                Some(oblique) => {
                    let scratch = self.scratch.take(oblique.voxels() * source.recipe().to().bytes());
                    let plan = form.plan_oblique(source, oblique, &scratch.sink(source.recipe()))?;
                    touched.push(scratch);
                    plan
                }
            }));
        }
        *item.touched() = oblique.map(|oblique| (oblique, touched));
        let tasks = plans.iter().enumerate().flat_map(|(part, plan)| {
            (0..plan.chunks()).step_by(CHUNKS).map(move |first| {
                let chunks = first..(first + CHUNKS).min(plan.chunks());
                Task::Read { part, plan: Arc::clone(plan), chunks }
            })
        });
        let mut queue = self.lock();
        for task in tasks {
            item.left.fetch_add(1, Ordering::AcqRel);
            queue.push(Job { batch: Arc::clone(&job.batch), item: job.item, task });
        }
        drop(queue);
        self.work.notify_all();
        Ok(())
    }

    /// Samples a turned patch, and changes what its view asks for.
    fn finish(&self, job: &Job, item: &Item) -> Result<()> {
        let Some(view) = &item.order.view else { return Ok(()) };
        let touched = item.touched().take();
        for (part, source) in item.order.subject.parts.iter().enumerate() {
            let place = job.batch.place(source, part, job.item)?;
            let from = match &touched {
                Some((oblique, all)) => Some((oblique, scratch_of(all, part)?)),
                None => None,
            };
            finish(view, &job.batch.form, source.recipe().to(), part, from, place)?;
        }
        for scratch in touched.into_iter().flat_map(|(_, all)| all) {
            self.scratch.give(scratch);
        }
        Ok(())
    }
}

fn scratch_of(all: &[Scratch], part: usize) -> Result<&Scratch> {
    let found = all.get(part);
    found.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("there is no part {part}")))
}

fn part_of(item: &Item, part: usize) -> Result<&Part> {
    let found = item.order.subject.parts.get(part);
    found.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("there is no part {part}")))
}

impl Batch {
    /// The place of a part of an item.
    #[expect(clippy::mut_from_ref, reason = "the memory is the caller's; see `submit`")]
    fn place(&self, source: &Part, part: usize, row: usize) -> Result<&mut [u8]> {
        let found = self.form.place(part, row, source.recipe().to().bytes());
        let inside = |(start, bytes): &(usize, usize)| {
            start.checked_add(*bytes).is_some_and(|end| end <= self.memory.bytes)
        };
        let Some((start, bytes)) = found.filter(inside) else {
            let detail = format!("the memory of {} bytes is too short for the batch", self.memory.bytes);
            return Err(Error::new(ErrorKind::InvalidArgument, detail));
        };
        // SAFETY: the place lies inside the memory, which lives by the contract of `submit`. Each part and row
        // has a place of its own, and sinks of one place write apart (see `Target`).
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.start.add(start), bytes) })
    }

    fn sink(&self, source: &Part, part: usize, row: usize) -> Result<Sink> {
        Ok(Sink::new(self.place(source, part, row)?, source.recipe()))
    }
}

impl Item {
    /// Runs a task, unless one has failed before.
    fn attempt(&self, task: impl FnOnce() -> Result<()>) {
        if self.has_failed.load(Ordering::Relaxed) {
            return;
        }
        let done = catch_unwind(AssertUnwindSafe(task));
        let panicked = || Err(Error::new(ErrorKind::LimitExceeded, "the engine failed: report this"));
        if let Err(error) = done.unwrap_or_else(|_| panicked()) {
            self.has_failed.store(true, Ordering::Relaxed);
            self.outcome().error.get_or_insert(error);
        }
    }

    fn touched(&self) -> MutexGuard<'_, Option<(Oblique, Vec<Scratch>)>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
