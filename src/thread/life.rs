//! How a thread starts, on its first slow path, and how it exits.

use super::entries::Entries;
use super::local;
use super::persistent::free_persistent;
use super::sentinels::EXITED;
use super::{ALL, HEAP, RUNNING_COUNT, Thread, current, fork, has_exited, pin};
use crate::base::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::blocks::trace::Site;
use crate::lockfree::pool::{Pool, Successors};
use crate::lockfree::said::Said;
use crate::request::control::Control;
use core::cell::Cell;
use core::ptr::{null, null_mut, with_exposed_provenance, with_exposed_provenance_mut};

/// Threads that are not in use.
static POOL: Pool = Pool::new();

struct ThreadMemory;

impl Successors for ThreadMemory {
    fn successor(&self, address: usize) -> &AtomicU64 {
        // SAFETY: only threads are pooled here (M1).
        unsafe { &(*with_exposed_provenance::<Thread>(address)).successor }
    }
}

/// Returns this thread, made known to the heap if it is not. `None`: it has exited, or there is no
/// memory.
pub fn current_or_start() -> Option<&'static Thread> {
    current().or_else(start)
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
    // Before anything that may allocate: from here on this thread's allocations find its cache
    // (T1).
    local::set_thread(core::ptr::from_ref(thread).cast());
    local::set_active(&raw const thread.cache.bins);
    on_exit(thread);
    fork::handle();
    Some(thread)
}

fn take_thread() -> Option<&'static Thread> {
    if let Some(address) = POOL.take(&ThreadMemory) {
        // SAFETY: only threads are pooled here (M1).
        return Some(unsafe { &*with_exposed_provenance::<Thread>(address) });
    }
    let address = HEAP.take_descriptor_memory(size_of::<Thread>())?;
    let place = with_exposed_provenance_mut::<Thread>(address);
    // SAFETY: fresh zeroed memory of a thread's size and alignment. Zeros are a thread, except for
    // the fields written here: they contain an enum or are not all zeros when empty.
    let thread = unsafe {
        (&raw mut (*place).entries).write(Entries::new());
        (&raw mut (*place).site).write(Cell::new(Site::NONE));
        &*place
    };
    thread.entries.settle();
    // SAFETY: written above, and its memory is for the life of the process.
    unsafe { ALL.push(place) };
    Some(thread)
}

// ---- exit ------------------------------------------------------------------------------------

/// The key whose destructor runs at thread exit, plus one; 0: not made yet.
static EXIT_KEY: Said = Said::new();

/// Registers the thread's exit. Without a key (a process may have 1024), or where this code may be
/// unloaded earlier, the cache of an exiting thread stays as it is: memory is lost, nothing breaks.
fn on_exit(thread: &'static Thread) {
    // Outside any lock of ours: the loader has its own.
    if let Some(key) = pin::is_pinned().then(exit_key).flatten() {
        // SAFETY: the key exists; the value is not null, so the destructor runs.
        unsafe { libc::pthread_setspecific(key, core::ptr::from_ref(thread).cast()) };
    }
}

fn exit_key() -> Option<libc::pthread_key_t> {
    if EXIT_KEY.hear() == 0 {
        let _guard = fork::EXIT_KEY_LOCK.lock();
        if EXIT_KEY.peek() == 0 {
            let mut key = 0;
            // SAFETY: `key` is writable; the destructor takes what `pthread_setspecific` was given.
            let result = unsafe { libc::pthread_key_create(&raw mut key, Some(exit)) };
            if result != 0 {
                return None;
            }
            EXIT_KEY.say(key as u64 + 1);
        }
    }
    Some((EXIT_KEY.peek() - 1) as libc::pthread_key_t)
}

/// A `DropHandle`; null: no request was ever opened.
static DROP_HANDLE: AtomicPtr<()> = AtomicPtr::new(null_mut());

type DropHandle = fn(&'static Control);

/// Sets how an exiting thread drops the handles it has. (That may finish a request, whose callbacks
/// may start a thread, so the function is above this file.)
pub fn drop_handles_by(drop_handle: DropHandle) {
    DROP_HANDLE.store(drop_handle as *mut (), Ordering::Relaxed);
}

fn drop_handle(control: &'static Control) {
    let drop_handle = DROP_HANDLE.load(Ordering::Relaxed);
    // SAFETY: only `drop_handles_by` stores there. The handle came from a thread that opened its
    // request, which had stored the function before, or seen that another had.
    let drop_handle = unsafe { core::mem::transmute::<*mut (), DropHandle>(drop_handle) };
    drop_handle(control);
}

extern "C" fn exit(_thread: *mut libc::c_void) {
    let Some(thread) = current() else { return close_late() };
    while let Some((name, _)) = thread.entries.newest() {
        if let Some(control) = thread.leave_keeping_handle(name) {
            drop_handle(control);
        }
    }
    // The next thread that has this memory must see nothing of this one.
    let extension = thread.extension.get();
    if !extension.is_null() {
        // SAFETY: an extension stays with the thread's memory, for the life of the process (M1).
        unsafe { ((*extension).clear)(extension) };
    }
    thread.catching_count.set(0);
    thread.suspension.set(0);
    thread.is_observing.set(false);
    thread.outside_after.set(0);
    thread.unstash_all();
    let room = thread.entries.take_idle_room(true);
    free_persistent(Some(thread), room.expose_provenance());
    local::set_active(&raw const EXITED);
    local::set_thread(null());
    HEAP.flush(&thread.cache);
    RUNNING_COUNT.fetch_sub(1, Ordering::Relaxed);
    POOL.put(&ThreadMemory, core::ptr::from_ref(thread).expose_provenance());
}

// ---- requests of an exited thread --------------------------------------------------------------

/// Begins a request in a thread that has exited: as with `Request::run` there, what it allocates is
/// persistent. The request is finished by its end, or closed when the C library runs destructors
/// again.
pub fn begin_late(control: &'static Control) {
    control.begun_before.set(local::late());
    local::set_late(control);
    if let Some(key) = exit_key() {
        // SAFETY: the key exists; the value is not null, so the destructor runs once more.
        unsafe { libc::pthread_setspecific(key, core::ptr::from_ref(control).cast()) };
    }
}

/// Takes the request last passed to `begin_late`, and its handle.
pub fn leave_late() -> Option<&'static Control> {
    // SAFETY: null, or a control block (M1).
    let control = unsafe { local::late().as_ref() }?;
    local::set_late(control.begun_before.get());
    Some(control)
}

fn close_late() {
    while let Some(control) = leave_late() {
        drop_handle(control);
    }
}
