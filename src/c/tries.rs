//! The tries of C that a thread is inside, and which of them are still alive.
//!
//! The frame of a try is a local variable of C. A `longjmp` out of its function leaves the frame on
//! the list, and its memory to the next calls: such a frame is *dead*, and nothing in it can be
//! trusted. Its address tells, if the frame and the caller are on the same stack: a frame below the
//! stack pointer is dead. So does whether its words are as they were written, whether its function
//! still returns to the same address, and whether the unwinder finds another function where the
//! frame is.
//!
//! - **J1** The frame on top has the depth `depth`; `before[d - 1]` is what was on top before the
//!   frame of depth `d` came. A dead frame is taken off by that, without reading it.
//! - **J2** Every frame belongs to the suspension in which it came (`Thread::suspension`). One of
//!   an earlier suspension than the thread's is out of reach: the Rust frames that called back are
//!   in between. One of a later suspension is dead: that suspension is over.

use crate::lockfree::header::NONE;
use crate::thread::persistent::{alloc_persistent, free_persistent};
use crate::thread::{HEAP, current};
use core::cell::Cell;
use core::ptr::{null_mut, with_exposed_provenance_mut};

/// Frames that a thread remembers before it allocates. If there is no memory for more, a dead frame
/// that was overwritten hides those below it.
const INLINE_FRAMES: usize = 16;

/// The least that follows the first part of a frame: what `sigsetjmp` fills on any system.
const LEAST_PLACE_BYTES: usize = 128;

/// The first part of an `rq_try_frame`, up to what `sigsetjmp` fills.
#[repr(C)]
pub struct TryFrame {
    previous: *mut TryFrame,
    /// The order of the thread's last entry when the try was entered.
    pub entry: u64,
    depth: u64,
    /// The stack frame of the function, whose second word is the return address. Null if it is not
    /// known.
    function: *const usize,
    returns_to: usize,
    /// A hash of all of this. 0: the try was left.
    check: u64,
    /// What `sigsetjmp` fills.
    pub place: [u64; 0],
}

impl TryFrame {
    /// Returns the hash of the words of a frame at `address`.
    fn check_of(&self, address: usize) -> u64 {
        let words = [
            address as u64,
            self.previous.addr() as u64,
            self.entry,
            self.depth,
            self.function.addr() as u64,
            self.returns_to as u64,
        ];
        let secret = HEAP.persistent_tag().0;
        let mix = |hash: u64, word: u64| {
            (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        };
        words.into_iter().fold(secret, mix) | 1
    }
}

/// Returns the stack pointer of the function this is called in, or a little less.
#[inline(always)]
pub fn stack_here() -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let here;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mov {}, rsp", out(reg) here,
                options(nomem, nostack, preserves_flags));
        }
        here
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    {
        let here;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mov {}, sp", out(reg) here,
                options(nomem, nostack, preserves_flags));
        }
        here
    }
    #[cfg(any(not(any(target_arch = "x86_64", target_arch = "aarch64")), miri))]
    {
        let local = 0u8;
        core::hint::black_box(&raw const local).addr()
    }
}

/// The addresses of a stack.
#[derive(Clone, Copy)]
struct Bounds {
    low: usize,
    high: usize,
}

impl Bounds {
    const NONE: Self = Self { low: 0, high: 0 };

    fn contains(self, address: usize) -> bool {
        (self.low..self.high).contains(&address)
    }
}

/// Returns the stack that the thread was started with.
#[cfg(target_os = "linux")]
fn bounds_of_thread() -> Bounds {
    // SAFETY: zeros are attributes to be overwritten.
    let mut attributes = unsafe { core::mem::zeroed() };
    // SAFETY: the attributes are writable, and are read and destroyed only if they were made.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) != 0 {
            return Bounds::NONE;
        }
        let (mut low, mut bytes) = (null_mut(), 0);
        let result =
            libc::pthread_attr_getstack(&raw const attributes, &raw mut low, &raw mut bytes);
        libc::pthread_attr_destroy(&raw mut attributes);
        if result != 0 {
            return Bounds::NONE;
        }
        Bounds { low: low.addr(), high: low.addr().saturating_add(bytes) }
    }
}

/// Returns the stack that the thread was started with.
#[cfg(target_os = "macos")]
fn bounds_of_thread() -> Bounds {
    // SAFETY: always callable.
    unsafe {
        let high = libc::pthread_get_stackaddr_np(libc::pthread_self()).addr();
        let bytes = libc::pthread_get_stacksize_np(libc::pthread_self());
        Bounds { low: high.saturating_sub(bytes), high }
    }
}

/// Returns the stack that the thread's signal handlers run on, if they have one.
fn bounds_for_signals() -> Bounds {
    // SAFETY: zeros are a valid `stack_t`.
    let mut stack: libc::stack_t = unsafe { core::mem::zeroed() };
    // SAFETY: only a query.
    let result = unsafe { libc::sigaltstack(core::ptr::null(), &raw mut stack) };
    if result != 0 || stack.ss_flags & libc::SS_DISABLE != 0 {
        return Bounds::NONE;
    }
    let low = stack.ss_sp.addr();
    Bounds { low, high: low.saturating_add(stack.ss_size) }
}

/// What was on top before a frame came.
#[derive(Clone, Copy)]
struct Before {
    frame: *mut TryFrame,
    suspension: u64,
}

/// The tries of a thread.
pub struct Tries {
    top: Cell<*mut TryFrame>,
    depth: Cell<usize>,
    /// The suspension that the frame on top belongs to (J2).
    suspension: Cell<u64>,
    inline_before: [Cell<Before>; INLINE_FRAMES],
    /// What does not fit into `inline_before`: a persistent block.
    more_before: Cell<*mut Cell<Before>>,
    more_capacity: Cell<usize>,
    /// The thread's stack; `NONE`: not looked up yet.
    stack: Cell<Bounds>,
}

impl Tries {
    /// No try.
    pub const fn new() -> Self {
        const NOTHING: Before = Before { frame: null_mut(), suspension: 0 };
        Self {
            top: Cell::new(null_mut()),
            depth: Cell::new(0),
            suspension: Cell::new(0),
            inline_before: [const { Cell::new(NOTHING) }; INLINE_FRAMES],
            more_before: Cell::new(null_mut()),
            more_capacity: Cell::new(0),
            stack: Cell::new(Bounds::NONE),
        }
    }

    /// Forgets everything, because the thread exits.
    pub fn clear(&self) {
        self.top.set(null_mut());
        self.depth.set(0);
        self.suspension.set(0);
        self.stack.set(Bounds::NONE);
        self.more_capacity.set(0);
        let more = self.more_before.replace(null_mut());
        if !more.is_null() {
            free_persistent(current(), more.expose_provenance());
        }
    }

    /// Returns `before[depth - 1]` (J1), if there is room for it.
    fn before(&self, depth: usize) -> Option<&Cell<Before>> {
        let index = depth.checked_sub(1)?;
        if let Some(before) = self.inline_before.get(index) {
            return Some(before);
        }
        let index = index - INLINE_FRAMES;
        // SAFETY: the block has `more_capacity` entries, all of them set or zeroed.
        (index < self.more_capacity.get()).then(|| unsafe { &*self.more_before.get().add(index) })
    }

    /// Makes room for a frame of this depth, if there is memory.
    #[cold]
    fn make_room(&self, depth: usize) {
        let (old, count) = (self.more_before.get(), self.more_capacity.get());
        let capacity = (2 * count).max(INLINE_FRAMES).max(depth);
        let bytes = capacity * size_of::<Cell<Before>>();
        let block = alloc_persistent(current(), bytes, align_of::<Cell<Before>>()).block;
        if block == NONE {
            return;
        }
        let fresh = with_exposed_provenance_mut::<Cell<Before>>(block);
        // SAFETY: the fresh block has `capacity` entries and the old one `count`, and they do not
        // overlap.
        unsafe {
            fresh.add(count).write_bytes(0, capacity - count);
            if !old.is_null() {
                fresh.copy_from_nonoverlapping(old, count);
            }
        }
        self.more_before.set(fresh);
        self.more_capacity.set(capacity);
        free_persistent(current(), old.expose_provenance());
    }

    /// Puts a frame on top, after taking off dead ones. `suspension` is the thread's.
    ///
    /// # Safety
    /// The frame is writable and its `function` is set. `here` is the stack pointer of the caller
    /// of C.
    pub unsafe fn enter(&self, frame: *mut TryFrame, entry: u64, suspension: u64, here: usize) {
        loop {
            let top = self.top.get();
            if top.is_null() || self.suspension.get() < suspension {
                break;
            }
            let is_over = self.suspension.get() > suspension;
            let overlaps =
                top.addr().abs_diff(frame.addr()) < size_of::<TryFrame>() + LEAST_PLACE_BYTES;
            if !is_over && !overlaps && (top.addr() >= here || self.is_alive(top, here)) {
                break;
            }
            self.drop_top();
        }
        let depth = self.depth.get() + 1;
        let mut before = Before { frame: self.top.get(), suspension: self.suspension.get() };
        if depth > INLINE_FRAMES + self.more_capacity.get() {
            self.make_room(depth);
        }
        match self.before(depth) {
            Some(place) => place.set(before),
            // Without a note of its suspension it would come into reach too early.
            None if before.suspension != suspension => before.frame = null_mut(),
            None => {}
        }
        // SAFETY: the caller's contract; a function's frame begins with two words.
        unsafe {
            let function = (*frame).function;
            (*frame).previous = before.frame;
            (*frame).entry = entry;
            (*frame).depth = depth as u64;
            (*frame).returns_to = if function.is_null() { 0 } else { function.add(1).read() };
            (*frame).check = (*frame).check_of(frame.addr());
        }
        self.top.set(frame);
        self.depth.set(depth);
        self.suspension.set(suspension);
    }

    /// Takes a frame off, with everything above it.
    ///
    /// # Safety
    /// The frame was put on the list by this thread, in a function that has not returned.
    pub unsafe fn leave(&self, frame: *mut TryFrame) {
        // SAFETY: the caller's contract.
        unsafe {
            let depth = (*frame).depth as usize;
            self.top.set((*frame).previous);
            self.depth.set(depth.saturating_sub(1));
            // If there is no note of it, it was the frame's own.
            if let Some(before) = self.before(depth) {
                self.suspension.set(before.get().suspension);
            }
            (*frame).check = 0;
        }
    }

    /// Takes off the innermost frame that is alive, with those above it. `None`: none is in reach.
    pub fn take_alive(&self, suspension: u64, here: usize) -> Option<*mut TryFrame> {
        loop {
            let top = self.top.get();
            if top.is_null() || self.suspension.get() < suspension {
                return None;
            }
            let is_over = self.suspension.get() > suspension;
            let is_alive = !is_over && self.is_alive(top, here) && !walk::finds_another(top);
            self.drop_top();
            if is_alive {
                return Some(top);
            }
        }
    }

    fn drop_top(&self) {
        let (top, depth) = (self.top.get(), self.depth.get());
        let before = match self.before(depth) {
            Some(before) => before.get(),
            None => Before {
                // SAFETY: an intact frame is readable, and is what was written.
                frame: if self.is_intact(top) { unsafe { (*top).previous } } else { null_mut() },
                suspension: self.suspension.get(),
            },
        };
        self.top.set(before.frame);
        self.depth.set(depth.saturating_sub(1));
        self.suspension.set(before.suspension);
    }

    /// Returns whether the frame on top may be jumped to.
    #[cold]
    fn is_alive(&self, top: *mut TryFrame, here: usize) -> bool {
        !(top.addr() < here && self.is_known_dead(top.addr(), here)) && self.is_intact(top)
    }

    /// Returns whether the words of the frame on top are as they were written, and its function
    /// still returns to the same address.
    fn is_intact(&self, top: *mut TryFrame) -> bool {
        // SAFETY: it was a frame, on a stack that is still mapped; any words can be read as one.
        let frame = unsafe { &*top };
        frame.depth == self.depth.get() as u64
            && frame.check == frame.check_of(top.addr())
            // SAFETY: a checked frame names the stack frame of a function.
            && unsafe { frame.function.is_null() || *frame.function.add(1) == frame.returns_to }
    }

    /// Returns whether a frame below the stack pointer is known to be on the same stack, so dead.
    /// Nothing is known of stacks that neither the thread nor its signal handlers were started
    /// with.
    fn is_known_dead(&self, frame: usize, here: usize) -> bool {
        if self.stack.get().high == 0 {
            self.stack.set(bounds_of_thread());
        }
        let (thread, signals) = (self.stack.get(), bounds_for_signals());
        if signals.contains(frame) {
            // A handler's frame is gone once the thread is back on its own stack.
            return signals.contains(here) || thread.contains(here);
        }
        thread.contains(frame) && thread.contains(here) && !signals.contains(here)
    }
}

mod walk {
    //! Which function has the memory of a frame now: walks the active functions, innermost first.

    use super::TryFrame;
    use crate::base::unwinder;

    /// Most stack frames that are looked at.
    const MOST_STEPS: usize = 10_000;
    /// The bits of an address; above them are pointer signatures.
    const ADDRESS_MASK: usize = (1 << 48) - 1;

    /// Returns whether the memory of an intact frame belongs to a function with another return
    /// address than the frame's. `false`: it does not, or the unwinder does not get there.
    pub(super) fn finds_another(frame: *mut TryFrame) -> bool {
        // SAFETY: an intact frame is readable.
        let (address, returns_to) = unsafe { (frame.addr(), (*frame).returns_to) };
        let (mut steps, mut finds_another) = (0, false);
        unwinder::walk(|step| {
            if step.stack() > address {
                // The function looked at before has the memory, if this is the same stack.
                let is_other = (step.returns_to() ^ returns_to) & ADDRESS_MASK != 0;
                finds_another = steps > 0 && is_other;
                return true;
            }
            steps += 1;
            steps == MOST_STEPS
        });
        finds_another && returns_to != 0
    }
}
