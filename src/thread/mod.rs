//! Threads: which bins are active in one, what it has entered, how it starts and how it exits.
//!
//! `active` is one thread-local pointer without a destructor: to the thread cache's bins, or to
//! those of the lane the thread is in. Before first use and after exit it points at a static
//! sentinel whose bins are empty and whose tag no live header equals.
//!
//! - **T1** `active` is the bins of the topmost live entry, or the cache's when there is none.
//! - **T2** An entry owns a handle of its request from when it is pushed until it is left.
//! - **T3** A lane that a thread is in knows the thread, and how many of its live entries are in it; the
//!   last one leaves it.
//! - **T4** Inside a request that traces its leaks `active` is a sentinel too: every allocation and every
//!   free goes the slow way, which finds the lane by the entry.

pub mod cancel;
mod entries;
pub mod finish;
mod fork;
#[cfg_attr(
    all(feature = "capi", target_os = "linux", target_arch = "x86_64"),
    path = "local_initial_exec.rs"
)]
mod local;
mod pin;
pub mod slow;
#[cfg(feature = "capi")]
pub mod tries;

pub use entries::EntryKind;

use crate::base::fatal::Line;
use crate::base::os;
use crate::base::sync::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Gauge, Lock, Ordering};
use crate::blocks::bin::{Bins, Kind};
use crate::blocks::identity::SERIALS_PER_DRAW;
use crate::blocks::trace::Site;
use crate::heap::Heap;
use crate::heap::idle::TICK_MILLISECONDS;
use crate::lockfree::header::NONE;
use crate::lockfree::pool::{Pool, Successors};
use crate::lockfree::refusals::Refusals;
use crate::persistent::cache::Cache;
use crate::request::control::{Control, Opening};
use crate::request::lane::Lane;
use core::cell::Cell;
use core::ffi::CStr;
use core::ptr::{null, null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use entries::{Entries, Entry, EntryName};

/// The heap of the process.
pub static HEAP: Heap = Heap::new();

pub static UNUSED: Bins = Bins::new(Kind::Unused);
static EXITED: Bins = Bins::new(Kind::Exited);
static TRACED: Bins = Bins::new(Kind::Traced);

/// Threads that are not in use, and all there ever were.
static POOL: Pool = Pool::new();
static ALL: AtomicPtr<Thread> = AtomicPtr::new(null_mut());
static RUNNING_COUNT: AtomicUsize = AtomicUsize::new(0);
/// What was said of requests that were refused memory at their limit.
static REFUSALS: Refusals = Refusals::new();
/// Requests opened and finished by threads that have no cache; the others count their own.
static OPENED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);
static FINISHED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);

/// Slow paths between two looks at the clock.
const SLOW_PATHS_PER_LOOK: u32 = 32;
/// Pooled control blocks that a thread keeps for itself.
const MAX_STASHED: usize = 4;

/// Being inside an entry of this thread, until it is dropped.
pub struct Inside(pub EntryName);

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(thread) = current() {
            thread.leave(self.0);
        }
    }
}

/// What the allocator knows of a thread. Type-stable, reused by later threads.
#[repr(C, align(64))]
pub struct Thread {
    /// First, so that the cache's bins lead to the thread.
    pub cache: Cache,
    successor: AtomicU64,
    all_next: Cell<*const Thread>,
    next_serial: Cell<u64>,
    end_serial: Cell<u64>,
    stash: [Cell<*const Control>; MAX_STASHED],
    stash_count: Cell<usize>,
    /// Requests this thread opened and finished; for figures.
    opened_count: Gauge,
    finished_count: Gauge,
    entries: Entries,
    /// The request that this thread visits; null: none.
    visited: Cell<*const Control>,
    slow_count: Cell<u32>,
    next_age: Cell<u64>,
    /// How many callers up the stack wait for a bailout by unwinding.
    pub catching_count: Cell<usize>,
    /// Every `rq_try` of C that the thread is in.
    #[cfg(feature = "capi")]
    pub tries: tries::Tries,
    /// The text of the last bailout to one.
    pub bailout_text: Cell<Line>,
    /// Whether the error handler of C runs.
    pub is_telling: Cell<bool>,
    /// Where the allocation is that is going on, when its caller says so.
    pub site: Cell<Site>,
}

struct ThreadMemory;

impl Successors for ThreadMemory {
    fn successor(&self, address: usize) -> &AtomicU64 {
        // SAFETY: only threads are pooled here, and they are type-stable.
        unsafe { &(*with_exposed_provenance::<Thread>(address)).successor }
    }
}

/// The bins that are active in this thread.
#[inline(always)]
pub fn active() -> &'static Bins {
    // SAFETY: `active` always points at a sentinel, a cache or a lane, all of which are for ever.
    unsafe { &*local::active() }
}

/// This thread, if it has used the heap and not exited.
pub fn current() -> Option<&'static Thread> {
    // SAFETY: null, or a thread, which is type-stable.
    unsafe { local::thread().as_ref() }
}

/// The innermost request that this thread is inside.
pub fn current_control() -> Option<&'static Control> {
    current()?.current_control()
}

/// This thread, made known to the heap if it is not. `None`: it has exited, or there is no memory.
pub fn current_or_start() -> Option<&'static Thread> {
    current().or_else(start)
}

/// Whether this thread has given everything back: only its last destructors run.
pub fn has_exited() -> bool {
    active().kind() == Kind::Exited
}

#[cold]
fn start() -> Option<&'static Thread> {
    if has_exited() {
        return None;
    }
    HEAP.set_up();
    let thread = take_thread()?;
    let running = RUNNING_COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    thread.cache.open(HEAP.persistent_tag(), running);
    // Before anything that may allocate: from here on this thread's allocations find its cache.
    local::set_thread(thread);
    local::set_active(&raw const thread.cache.bins);
    on_exit(thread);
    fork::handle();
    Some(thread)
}

fn take_thread() -> Option<&'static Thread> {
    if let Some(address) = POOL.take(&ThreadMemory) {
        // SAFETY: only threads are pooled here.
        return Some(unsafe { &*with_exposed_provenance::<Thread>(address) });
    }
    let address = HEAP.take_descriptor_memory(size_of::<Thread>())?;
    let place = with_exposed_provenance_mut::<Thread>(address);
    // SAFETY: fresh zeroed memory of a thread's size and alignment. Zeros are a thread but for what
    // holds an enum or is not all zeros when empty: written here.
    let thread = unsafe {
        (&raw mut (*place).entries).write(Entries::new());
        (&raw mut (*place).site).write(Cell::new(Site::NONE));
        (&raw mut (*place).bailout_text).write(Cell::new(Line::EMPTY));
        &*place
    };
    thread.entries.settle();
    let mut first = ALL.load(Ordering::Relaxed);
    loop {
        thread.all_next.set(first);
        match ALL.compare_exchange_weak(first, place, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(thread),
            Err(now) => first = now,
        }
    }
}

// ---- exit ------------------------------------------------------------------------------------

/// Key whose destructor runs at thread exit, plus one; 0: not made yet.
static EXIT_KEY: AtomicUsize = AtomicUsize::new(0);
static EXIT_KEY_LOCK: Lock<()> = Lock::new(());

/// Registers the thread's exit. Without a key (a process may have 1024), or where this code may be
/// unloaded before, the cache of a thread that exits stays as it is: memory is lost, nothing
/// breaks.
fn on_exit(thread: &'static Thread) {
    // Outside of any lock of ours: the loader has its own.
    if let Some(key) = pin::is_pinned().then(exit_key).flatten() {
        // SAFETY: the key exists; the value is not null, so the destructor runs.
        unsafe { libc::pthread_setspecific(key, core::ptr::from_ref(thread).cast()) };
    }
}

fn exit_key() -> Option<libc::pthread_key_t> {
    if EXIT_KEY.load(Ordering::Acquire) == 0 {
        let _guard = EXIT_KEY_LOCK.lock();
        if EXIT_KEY.load(Ordering::Relaxed) == 0 {
            let mut key = 0;
            // SAFETY: `key` is writable; the destructor takes what `pthread_setspecific` was given.
            let result = unsafe { libc::pthread_key_create(&raw mut key, Some(exit)) };
            if result != 0 {
                return None;
            }
            EXIT_KEY.store(key as usize + 1, Ordering::Release);
        }
    }
    Some((EXIT_KEY.load(Ordering::Relaxed) - 1) as libc::pthread_key_t)
}

extern "C" fn exit(_thread: *mut libc::c_void) {
    let Some(thread) = current() else { return close_late() };
    while let Some((name, _)) = thread.entries.newest() {
        thread.leave(name);
    }
    // Nothing of this thread is to be seen by the next one that has its memory.
    #[cfg(feature = "capi")]
    thread.tries.clear();
    thread.bailout_text.set(Line::EMPTY);
    thread.is_telling.set(false);
    thread.catching_count.set(0);
    for control in thread.stash.iter().take(thread.stash_count.replace(0)) {
        // SAFETY: stashed control blocks are this thread's.
        HEAP.recycle(unsafe { &*control.get() });
    }
    let room = thread.entries.take_idle_room(true);
    slow::free_persistent(Some(thread), room.expose_provenance());
    local::set_active(&raw const EXITED);
    local::set_thread(null());
    thread.cache.flush(|class, magazine| HEAP.put_magazine(class, magazine));
    RUNNING_COUNT.fetch_sub(1, Ordering::Relaxed);
    POOL.put(&ThreadMemory, core::ptr::from_ref(thread).expose_provenance());
}

// ---- requests of an exited thread --------------------------------------------------------------

/// `begin_request` in a thread that has exited: as with `Request::run` there, what it allocates is
/// persistent. The request is closed by its end, or when the C library runs destructors again.
pub fn begin_late(control: &'static Control) {
    control.begun_before.set(local::late());
    local::set_late(control);
    if let Some(key) = exit_key() {
        // SAFETY: the key exists; the value is not null, so the destructor runs once more.
        unsafe { libc::pthread_setspecific(key, core::ptr::from_ref(control).cast()) };
    }
}

/// Takes the request that `begin_late` was called with last, and its handle.
pub fn leave_late() -> Option<&'static Control> {
    // SAFETY: null, or a control block, which is type-stable.
    let control = unsafe { local::late().as_ref() }?;
    local::set_late(control.begun_before.get());
    Some(control)
}

fn close_late() {
    while let Some(control) = leave_late() {
        finish::drop_handle(control);
    }
}

// ---- entries ---------------------------------------------------------------------------------

impl Thread {
    #[inline]
    fn make_room(&self) -> bool {
        self.entries.has_room() || self.make_room_slow()
    }

    #[cold]
    fn make_room_slow(&self) -> bool {
        let block = slow::allocate_persistent(Some(self), self.entries.wanted_bytes(), 16).block;
        if block == NONE {
            return false;
        }
        // SAFETY: a fresh block of that size.
        let before = unsafe { self.entries.grow(with_exposed_provenance_mut(block)) };
        slow::free_persistent(Some(self), before.expose_provenance());
        true
    }

    /// Enters a request; the entry takes over a handle that the caller has for it (T2).
    /// `None`: out of memory, and the handle is still the caller's.
    #[inline]
    pub fn enter(&self, control: &'static Control, kind: EntryKind) -> Option<EntryName> {
        if !self.make_room() {
            return None;
        }
        let lane = match self.lane_inside(control) {
            Some(lane) => lane,
            None => {
                let lane = control.enter(|bytes| HEAP.take_descriptor_memory(bytes))?;
                lane.occupant.set(self.address());
                lane
            }
        };
        lane.entry_count.set(lane.entry_count.get() + 1);
        lane.bins.set_cache(&raw const self.cache.bins);
        let is_traced = control.leaks.get().traced;
        let bins = if is_traced { &raw const TRACED } else { &raw const lane.bins };
        Some(self.push(Entry::new(kind, bins).in_lane(control, lane)))
    }

    /// What a lane knows the thread by.
    fn address(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// The lane of a request that this thread is in already.
    #[inline]
    pub fn lane_inside<'c>(&self, control: &'c Control) -> Option<&'c Lane> {
        let is_here = |lane: &&Lane| lane.occupant.get() == self.address();
        let first = Some(&control.lanes.first).filter(is_here);
        if first.is_some() || control.has_one_lane() {
            first
        } else {
            control.lanes().find(is_here)
        }
    }

    /// The lane the thread allocates from, and its request; `None`: its allocations are persistent.
    pub fn active_lane(&self) -> Option<(&'static Control, &'static Lane)> {
        let (_, newest) = self.entries.newest()?;
        // SAFETY: an entry's lane is this thread's, and its handle keeps the control block (T2).
        unsafe { newest.lane.as_ref().map(|lane| (&*newest.control, lane)) }
    }

    /// Enters the persistent lifetime.
    pub fn enter_persistent(&self, kind: EntryKind) -> Option<EntryName> {
        self.make_room().then(|| self.push(Entry::new(kind, &raw const self.cache.bins)))
    }

    #[inline]
    fn push(&self, entry: Entry) -> EntryName {
        local::set_active(entry.bins);
        self.entries.push(entry)
    }

    /// Leaves an entry, whatever is newer. What it owned goes: the lane, then the handle.
    pub fn leave(&self, name: EntryName) {
        if let Some(control) = self.leave_keeping_handle(name) {
            finish::drop_handle(control);
        }
    }

    /// Leaves an entry and hands its handle to the caller. `None`: it has none, or was left before.
    #[inline]
    fn leave_keeping_handle(&self, name: EntryName) -> Option<&'static Control> {
        let entry = self.entries.remove(name)?;
        let cache = &raw const self.cache.bins;
        local::set_active(self.entries.newest().map_or(cache, |(_, newest)| newest.bins));
        // SAFETY: null, or a lane of this thread's.
        if let Some(lane) = unsafe { entry.lane.as_ref() } {
            let left = lane.entry_count.get() - 1;
            lane.entry_count.set(left);
            if left == 0 {
                lane.occupant.set(0);
                lane.occupancy.leave();
            }
        }
        let idle_room = self.entries.take_idle_room(false);
        if !idle_room.is_null() {
            slow::free_persistent(Some(self), idle_room.expose_provenance());
        }
        // SAFETY: null, or a control block, which is type-stable.
        unsafe { entry.control.as_ref() }
    }

    /// The request of the newest entry that is in one.
    pub fn current_control(&self) -> Option<&'static Control> {
        let of_kind = |kind| self.entries.newest_of(kind);
        let (_, entry) = [of_kind(EntryKind::Guard), of_kind(EntryKind::Hook)]
            .into_iter()
            .flatten()
            .max_by_key(|(name, _)| name.serial())?;
        // SAFETY: a live entry's handle keeps its control block (T2).
        unsafe { entry.control.as_ref() }
    }

    /// Leaves the newest entry that `begin_request` made; its request, whose handle the caller has
    /// now.
    pub fn leave_hook(&self) -> Option<&'static Control> {
        self.leave_keeping_handle(self.innermost(EntryKind::Hook)?)
    }

    /// The newest entry of a kind.
    pub fn innermost(&self, kind: EntryKind) -> Option<EntryName> {
        self.entries.newest_of(kind).map(|(name, _)| name)
    }

    /// The serial of the entry that was made last.
    #[cfg(feature = "capi")]
    pub fn last_entry(&self) -> u64 {
        self.entries.last_serial()
    }

    /// Leaves every entry that was made after the one with this serial; their requests are not over
    /// cleanly. (A depth would not do: an entry from before may have been left, and its place taken.)
    #[cfg(feature = "capi")]
    pub fn leave_after(&self, serial: u64) {
        while let Some((name, entry)) = self.entries.newest() {
            if name.serial() <= serial {
                break;
            }
            // SAFETY: null, or a control block, which is type-stable.
            if let Some(control) = unsafe { entry.control.as_ref() } {
                control.bailed_out.store(true, Ordering::Relaxed);
            }
            self.leave(name);
        }
    }

    /// Walks what the thread has; fatal when it contradicts itself.
    pub fn check(&self) {
        self.entries.check();
        self.cache.check();
    }

    // ---- requests ----------------------------------------------------------------------------

    /// Opens a request with one handle, the caller's. `None`: out of memory.
    #[inline]
    pub fn open_request(&self, opening: &Opening) -> Option<&'static Control> {
        let control = self.take_control()?;
        open(control, self.take_serial(), opening);
        self.opened_count.add(1);
        Some(control)
    }

    #[inline]
    fn take_control(&self) -> Option<&'static Control> {
        let count = self.stash_count.get();
        if count == 0 {
            return HEAP.take_control();
        }
        self.stash_count.set(count - 1);
        // SAFETY: stashed control blocks are this thread's.
        Some(unsafe { &*self.stash[count - 1].get() })
    }

    fn stash_control(&self, control: &'static Control) -> bool {
        let count = self.stash_count.get();
        if count == MAX_STASHED {
            return false;
        }
        control.retire();
        self.stash[count].set(control);
        self.stash_count.set(count + 1);
        true
    }

    #[inline]
    fn take_serial(&self) -> u64 {
        if self.next_serial.get() == self.end_serial.get() {
            let first = HEAP.draw_serials();
            self.next_serial.set(first);
            self.end_serial.set(first + SERIALS_PER_DRAW);
        }
        let serial = self.next_serial.get();
        self.next_serial.set(serial + 1);
        serial
    }

    // ---- slow paths --------------------------------------------------------------------------

    /// Now and then a slow path looks at the clock, and idle memory goes back.
    fn tick(&self) {
        let count = self.slow_count.get() + 1;
        self.slow_count.set(count % SLOW_PATHS_PER_LOOK);
        if count == SLOW_PATHS_PER_LOOK {
            let now = os::coarse_milliseconds();
            if now >= self.next_age.get() {
                self.next_age.set(now + TICK_MILLISECONDS);
                self.cache.set_share(RUNNING_COUNT.load(Ordering::Relaxed));
                self.cache.age(|class, magazine| HEAP.put_magazine(class, magazine));
            }
            HEAP.tick(now);
        }
    }
}

/// One more handle, for who has one. Fatal when there are so many that counting them would soon fail:
/// only forgetting handles in a loop gets there.
pub fn add_handle(control: &Control) {
    let before = control.handles.add();
    if before > u32::MAX / 2 {
        crate::base::fatal::broken("handles of a request", before as usize, u32::MAX as usize / 2);
    }
}

/// What the environment says of all requests, as these flags; 0: it was not looked at yet.
static OF_ALL_REQUESTS: AtomicU8 = AtomicU8::new(0);
const IS_KNOWN: u8 = 1;
const ARE_TRACED: u8 = 2;
const HIDE_LIMITS: u8 = 4;

#[inline]
fn open(control: &Control, serial: u64, opening: &Opening) {
    if OF_ALL_REQUESTS.load(Ordering::Relaxed) == IS_KNOWN {
        return HEAP.open_request(control, serial, opening);
    }
    open_slow(control, serial, opening);
}

#[cold]
fn open_slow(control: &Control, serial: u64, opening: &Opening) {
    let mut flags = IS_KNOWN;
    if begins_with(c"RQMALLOC_TRACE", b'1') {
        flags |= ARE_TRACED;
    }
    if begins_with(c"RQMALLOC_REPORT_LIMIT", b'0') {
        flags |= HIDE_LIMITS;
    }
    OF_ALL_REQUESTS.store(flags, Ordering::Relaxed);
    let mut opening = *opening;
    opening.leaks.traced |= flags & ARE_TRACED != 0;
    opening.leaks.reported |= flags & ARE_TRACED != 0;
    opening.hides_limit |= flags & HIDE_LIMITS != 0;
    HEAP.open_request(control, serial, &opening);
}

/// Whether a variable of the environment begins with this byte.
fn begins_with(name: &CStr, first: u8) -> bool {
    // SAFETY: a text; whoever changes the environment while others read it breaks its contract.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: as above.
    !value.is_null() && unsafe { *value } == first as libc::c_char
}

/// Opens a request in a thread that has exited or has no memory for a cache.
pub fn open_without_thread(opening: &Opening) -> Option<&'static Control> {
    HEAP.set_up();
    let control = HEAP.take_control()?;
    open(control, HEAP.draw_serials(), opening);
    OPENED_WITHOUT_THREAD.fetch_add(1, Ordering::Relaxed);
    Some(control)
}

/// How many requests are open just now.
pub fn open_count() -> usize {
    // What was finished is read first, so that the difference is never negative.
    let mut finished = FINISHED_WITHOUT_THREAD.load(Ordering::Relaxed);
    each_thread(|thread| finished += thread.finished_count.get());
    let mut opened = OPENED_WITHOUT_THREAD.load(Ordering::Relaxed);
    each_thread(|thread| opened += thread.opened_count.get());
    opened.saturating_sub(finished)
}

/// Calls `visit` with the cache of every thread there is or was.
pub fn each_cache(mut visit: impl FnMut(&Cache)) {
    each_thread(|thread| visit(&thread.cache));
}

fn each_thread(mut visit: impl FnMut(&Thread)) {
    let mut next: *const Thread = ALL.load(Ordering::Acquire);
    // SAFETY: threads are type-stable and their list only grows.
    while let Some(thread) = unsafe { next.as_ref() } {
        visit(thread);
        next = thread.all_next.get();
    }
}

/// Gives everything idle of this thread and of the process back to the system; the bytes that went.
pub fn trim() -> usize {
    if let Some(thread) = current() {
        thread.cache.flush(|class, magazine| HEAP.put_magazine(class, magazine));
        for control in thread.stash.iter().take(thread.stash_count.get()) {
            // SAFETY: stashed control blocks are this thread's.
            HEAP.release_warm_of(unsafe { &*control.get() });
        }
    }
    HEAP.release_all_idle()
}
