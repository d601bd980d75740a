//! Threads: which bins are active in one, what it has entered, how it starts and how it exits.
//!
//! `active` is one thread-local pointer without a destructor: to the thread cache's bins, or to
//! those of the lane the thread is in. Before first use and after exit it points at a static
//! sentinel whose bins are empty and whose tag no live header equals.
//!
//! - **T1** `active` is the bins of the topmost live entry, or the cache's when there is none.
//! - **T2** An entry owns a handle of its request from when it is pushed until it is left.
//! - **T3** A lane that a thread is in is owned by exactly one of its live entries.
//! - **T4** Inside a request that traces its leaks `active` is a sentinel too: every allocation and every
//!   free goes the slow way, which finds the lane by the entry.

pub mod cancel;
pub mod finish;
#[cfg_attr(
    all(feature = "capi", target_os = "linux", target_arch = "x86_64"),
    path = "local_initial_exec.rs"
)]
mod local;
mod pin;
pub mod slow;
#[cfg(feature = "capi")]
pub mod tries;

use crate::bin::{Bins, Kind};
use crate::block::{Block, NONE};
use crate::cache::Cache;
use crate::fatal::Line;
use crate::heap::{Heap, SERIALS_PER_DRAW, TICK_MILLISECONDS};
use crate::lane::Lane;
use crate::os;
use crate::pool::{Pool, Successors};
use crate::request::control::{Control, Opening};
use crate::sync::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Gauge, Lock, Ordering};
use crate::trace::Site;
use core::cell::Cell;
use core::ptr::{null, null_mut, with_exposed_provenance, with_exposed_provenance_mut};

/// The heap of the process.
pub static HEAP: Heap = Heap::new();

pub static UNUSED: Bins = Bins::new(Kind::Unused);
static EXITED: Bins = Bins::new(Kind::Exited);
static TRACED: Bins = Bins::new(Kind::Traced);

/// Threads that are not in use, and all there ever were.
static POOL: Pool = Pool::new();
static ALL: AtomicPtr<Thread> = AtomicPtr::new(null_mut());
static RUNNING_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Requests opened and finished by threads that have no cache; the others count their own.
static OPENED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);
static FINISHED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);

/// Slow paths between two looks at the clock.
const SLOW_PATHS_PER_LOOK: u32 = 32;
/// Entries that a thread has room for before it allocates.
const INLINE_ENTRIES: usize = 8;
/// Pooled control blocks that a thread keeps for itself.
const MAX_STASHED: usize = 4;

/// Why a thread is where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A guard.
    Guard,
    /// `begin_request`.
    Hook,
    /// `persistent`.
    Persistent,
    /// `rq_persistent_on`.
    #[cfg(feature = "capi")]
    PersistentHook,
}

/// A thread's being inside a request, or inside `persistent`.
#[derive(Clone, Copy)]
struct Entry {
    bins: *const Bins,
    control: *const Control,
    lane: *const Lane,
    serial: u64,
    kind: EntryKind,
    owns_lane: bool,
    live: bool,
}

const NO_ENTRY: Entry = Entry {
    bins: null(),
    control: null(),
    lane: null(),
    serial: 0,
    kind: EntryKind::Persistent,
    owns_lane: false,
    live: false,
};

/// Names an entry of the current thread.
#[derive(Clone, Copy)]
pub struct EntryName {
    index: usize,
    serial: u64,
}

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
    entry_serial: Cell<u64>,
    inline_entries: Cell<[Entry; INLINE_ENTRIES]>,
    /// Entries beyond the inline ones: a persistent block.
    more_entries: Cell<*mut Entry>,
    more_capacity: Cell<usize>,
    depth: Cell<usize>,
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
    on_fork();
    Some(thread)
}

fn take_thread() -> Option<&'static Thread> {
    if let Some(address) = POOL.take(&ThreadMemory) {
        // SAFETY: only threads are pooled here.
        return Some(unsafe { &*with_exposed_provenance::<Thread>(address) });
    }
    let address = HEAP.pages.meta.take(size_of::<Thread>())?;
    let place = with_exposed_provenance_mut::<Thread>(address);
    // SAFETY: fresh zeroed memory of a thread's size and alignment. Zeros are a thread but for what
    // holds an enum or is not all zeros when empty: written here.
    let thread = unsafe {
        (&raw mut (*place).inline_entries).write(Cell::new([NO_ENTRY; INLINE_ENTRIES]));
        (&raw mut (*place).site).write(Cell::new(Site::NONE));
        (&raw mut (*place).bailout_text).write(Cell::new(Line::EMPTY));
        &*place
    };
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

// ---- fork ------------------------------------------------------------------------------------

static HANDLES_FORK: AtomicBool = AtomicBool::new(false);

/// Registers what is done around a `fork`, once. Without memory for it (`ENOMEM`) a child forked while
/// another thread is in a slow path may wait for ever, as without any handler.
fn on_fork() {
    if !HANDLES_FORK.swap(true, Ordering::Relaxed) {
        // SAFETY: the handlers are functions for ever.
        unsafe {
            libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork_in_child))
        };
    }
}

extern "C" fn before_fork() {
    EXIT_KEY_LOCK.hold_for_fork();
    HEAP.hold_for_fork();
}

extern "C" fn after_fork() {
    // SAFETY: `before_fork` ran in this thread.
    unsafe {
        HEAP.release_after_fork();
        EXIT_KEY_LOCK.release_after_fork();
    }
}

/// The child has one thread. What the others had in their caches and lanes is lost to it, and the
/// requests they were inside never close.
extern "C" fn after_fork_in_child() {
    after_fork();
    RUNNING_COUNT.store(usize::from(current().is_some()), Ordering::Relaxed);
}

extern "C" fn exit(_thread: *mut libc::c_void) {
    let Some(thread) = current() else { return };
    while thread.depth.get() > 0 {
        let top = thread.depth.get() - 1;
        thread.leave_index(top);
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
    let more = thread.more_entries.replace(null_mut());
    if !more.is_null() {
        thread.more_capacity.set(0);
        free_persistent_block(more.expose_provenance());
    }
    local::set_active(&raw const EXITED);
    local::set_thread(null());
    thread.cache.flush(|class, magazine| HEAP.put_magazine(class, magazine));
    RUNNING_COUNT.fetch_sub(1, Ordering::Relaxed);
    POOL.put(&ThreadMemory, core::ptr::from_ref(thread).expose_provenance());
}

fn free_persistent_block(block: Block) {
    let found = HEAP.find(block);
    HEAP.free_found(&found, current().map(|thread| &thread.cache), None);
}

// ---- entries ---------------------------------------------------------------------------------

impl Thread {
    fn entry(&self, index: usize) -> Entry {
        if index < INLINE_ENTRIES {
            // SAFETY: only this thread reaches its entries; copies one, not the array.
            unsafe { (*self.inline_entries.as_ptr())[index] }
        } else {
            // SAFETY: `index < depth`, and pushing made room for every entry.
            unsafe { *self.more_entries.get().add(index - INLINE_ENTRIES) }
        }
    }

    fn set_entry(&self, index: usize, entry: Entry) {
        if index < INLINE_ENTRIES {
            // SAFETY: only this thread reaches its entries, and no reference to them is out.
            unsafe { (*self.inline_entries.as_ptr())[index] = entry };
        } else {
            // SAFETY: as in `entry`.
            unsafe { *self.more_entries.get().add(index - INLINE_ENTRIES) = entry };
        }
    }

    fn make_room(&self, index: usize) -> bool {
        if index < INLINE_ENTRIES + self.more_capacity.get() {
            return true;
        }
        self.make_room_slow()
    }

    #[cold]
    fn make_room_slow(&self) -> bool {
        let old = self.more_capacity.get();
        let wanted = (old * 2).max(INLINE_ENTRIES) * size_of::<Entry>();
        let block = slow::allocate_persistent(Some(self), wanted, 16).block;
        if block == NONE {
            return false;
        }
        let fresh = with_exposed_provenance_mut::<Entry>(block);
        let before = self.more_entries.replace(fresh);
        self.more_capacity.set(wanted / size_of::<Entry>());
        if !before.is_null() {
            // SAFETY: both are persistent blocks of at least `old` entries.
            unsafe { fresh.copy_from_nonoverlapping(before, old) };
            free_persistent_block(before.expose_provenance());
        }
        true
    }

    /// Enters a request; the entry takes over a handle that the caller has for it (T2).
    /// `None`: out of memory, and the handle is still the caller's.
    #[inline]
    pub fn enter(&self, control: &'static Control, kind: EntryKind) -> Option<EntryName> {
        if !self.make_room(self.depth.get()) {
            return None;
        }
        let (lane, owns_lane) = match self.lane_inside(control) {
            Some(lane) => (lane, false),
            None => (control.enter(|bytes| HEAP.pages.meta.take(bytes))?, true),
        };
        lane.bins.set_cache(&raw const self.cache.bins);
        let is_traced = control.leaks.get().traced;
        Some(self.push(Entry {
            bins: if is_traced { &raw const TRACED } else { &raw const lane.bins },
            control,
            lane,
            serial: 0,
            kind,
            owns_lane,
            live: true,
        }))
    }

    /// The lane of a request that this thread is in already.
    pub fn lane_inside(&self, control: &Control) -> Option<&'static Lane> {
        (0..self.depth.get())
            .map(|index| self.entry(index))
            .find(|entry| entry.live && core::ptr::eq(entry.control, control))
            // SAFETY: a live entry's lane is this thread's.
            .map(|entry| unsafe { &*entry.lane })
    }

    /// The lane the thread allocates from, and its request; `None`: its allocations are persistent.
    pub fn active_lane(&self) -> Option<(&'static Control, &'static Lane)> {
        let top = self.depth.get().checked_sub(1).map(|top| self.entry(top))?;
        // SAFETY: the topmost entry is live (T1), its lane is this thread's, and its handle keeps the
        // control block.
        unsafe { top.lane.as_ref().map(|lane| (&*top.control, lane)) }
    }

    /// Enters the persistent lifetime.
    pub fn enter_persistent(&self, kind: EntryKind) -> Option<EntryName> {
        self.make_room(self.depth.get()).then(|| {
            let bins = &raw const self.cache.bins;
            self.push(Entry { bins, kind, live: true, ..NO_ENTRY })
        })
    }

    fn push(&self, entry: Entry) -> EntryName {
        let index = self.depth.get();
        let serial = self.entry_serial.get() + 1;
        self.entry_serial.set(serial);
        self.set_entry(index, Entry { serial, ..entry });
        self.depth.set(index + 1);
        local::set_active(entry.bins);
        EntryName { index, serial }
    }

    /// Leaves an entry, whatever lies above it. What it owned goes: the lane, then the handle.
    pub fn leave(&self, name: EntryName) {
        if let Some(control) = self.leave_keeping_handle(name) {
            finish::drop_handle(control);
        }
    }

    fn leave_index(&self, index: usize) {
        let serial = self.entry(index).serial;
        self.leave(EntryName { index, serial });
        // A dead entry on top, left earlier.
        self.pop_dead();
    }

    /// Leaves an entry and hands its handle to the caller. `None`: it has none, or was left before.
    fn leave_keeping_handle(&self, name: EntryName) -> Option<&'static Control> {
        if name.index >= self.depth.get() {
            return None;
        }
        let entry = self.entry(name.index);
        if entry.serial != name.serial || !entry.live {
            return None;
        }
        self.set_entry(name.index, Entry { live: false, owns_lane: false, ..entry });
        self.pop_dead();
        if entry.owns_lane && !self.pass_lane_on(entry.lane) {
            // SAFETY: the entry owned the lane.
            unsafe { &*entry.lane }.occupancy.leave();
        }
        // SAFETY: null, or a control block, which is type-stable.
        unsafe { entry.control.as_ref() }
    }

    /// Another live entry in the same lane becomes its owner (T3).
    fn pass_lane_on(&self, lane: *const Lane) -> bool {
        for index in 0..self.depth.get() {
            let entry = self.entry(index);
            if entry.live && core::ptr::eq(entry.lane, lane) {
                self.set_entry(index, Entry { owns_lane: true, ..entry });
                return true;
            }
        }
        false
    }

    /// Pops what is dead on top and makes the topmost live entry active (T1).
    fn pop_dead(&self) {
        let mut depth = self.depth.get();
        let mut bins = &raw const self.cache.bins;
        while depth > 0 {
            let top = self.entry(depth - 1);
            if top.live {
                bins = top.bins;
                break;
            }
            depth -= 1;
        }
        self.depth.set(depth);
        local::set_active(bins);
    }

    /// The innermost live entry that is in a request, hook or not.
    pub fn current_control(&self) -> Option<&'static Control> {
        let inside = (0..self.depth.get())
            .rev()
            .map(|index| self.entry(index))
            .find(|entry| entry.live && !entry.control.is_null());
        // SAFETY: a live entry's handle keeps its control block.
        inside.map(|entry| unsafe { &*entry.control })
    }

    /// Leaves the innermost entry that `begin_request` made; its request, whose handle the caller
    /// has now.
    pub fn leave_hook(&self) -> Option<&'static Control> {
        let name = self.innermost(EntryKind::Hook)?;
        self.leave_keeping_handle(name)
    }

    /// The innermost live entry of a kind.
    pub fn innermost(&self, kind: EntryKind) -> Option<EntryName> {
        (0..self.depth.get())
            .rev()
            .map(|index| (index, self.entry(index)))
            .find(|(_, entry)| entry.live && entry.kind == kind)
            .map(|(index, entry)| EntryName { index, serial: entry.serial })
    }

    /// The serial of the entry that was made last.
    #[cfg(feature = "capi")]
    pub fn last_entry(&self) -> u64 {
        self.entry_serial.get()
    }

    /// Leaves every entry that was made after the one with this serial; their requests are not over
    /// cleanly. (A depth would not do: an entry from before may have been left, and its place taken.)
    #[cfg(feature = "capi")]
    pub fn leave_after(&self, serial: u64) {
        let is_later = |&index: &usize| {
            let entry = self.entry(index);
            entry.live && entry.serial > serial
        };
        while let Some(index) = (0..self.depth.get()).rev().find(is_later) {
            // SAFETY: null, or a control block, which is type-stable.
            if let Some(control) = unsafe { self.entry(index).control.as_ref() } {
                control.bailed_out.store(true, Ordering::Relaxed);
            }
            self.leave_index(index);
        }
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
        crate::fatal::broken("handles of a request", before as usize, u32::MAX as usize / 2);
    }
}

/// What the environment says of tracing: 0: not looked at yet, 1: nothing, 2: every request is traced.
static TRACES_ALL: AtomicU8 = AtomicU8::new(0);

#[inline]
fn open(control: &Control, serial: u64, opening: &Opening) {
    if TRACES_ALL.load(Ordering::Relaxed) == 1 {
        return HEAP.open_request(control, serial, opening);
    }
    open_slow(control, serial, opening);
}

#[cold]
fn open_slow(control: &Control, serial: u64, opening: &Opening) {
    // SAFETY: a text; whoever changes the environment while others read it breaks its contract.
    let value = unsafe { libc::getenv(c"RQMALLOC_TRACE".as_ptr()) };
    // SAFETY: as above.
    let is_set = !value.is_null() && unsafe { *value } == b'1' as libc::c_char;
    TRACES_ALL.store(if is_set { 2 } else { 1 }, Ordering::Relaxed);
    let mut opening = *opening;
    opening.leaks.traced |= is_set;
    opening.leaks.reported |= is_set;
    HEAP.open_request(control, serial, &opening);
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
