//! What a thread keeps for its next requests, and how many it has opened and finished.

use super::{HEAP, MAX_STASHED, Thread, current, each_thread};
use crate::base::sync::{AtomicUsize, Ordering};
use crate::blocks::identity::NUMBERS_PER_DRAW;
use crate::heap::idle::LOOK_MILLISECONDS;
use crate::request::control::Control;

/// Requests opened and finished by threads without a cache; other threads count their own.
static OPENED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);
static FINISHED_WITHOUT_THREAD: AtomicUsize = AtomicUsize::new(0);

impl Thread {
    /// Takes a control block that is nobody's. `None`: out of memory.
    #[inline]
    pub fn take_control(&self) -> Option<&'static Control> {
        let count = self.stash_count.get();
        if count == 0 {
            return HEAP.take_control();
        }
        self.stash_count.set(count - 1);
        // SAFETY: a stashed control block (M1), which is this thread's.
        Some(unsafe { &*self.stash[count - 1].get() })
    }

    /// Keeps a control block whose request is over; `false`: there is no room, or it is spent.
    #[inline(always)]
    pub fn stash_control(&self, control: &'static Control) -> bool {
        let count = self.stash_count.get();
        if count == MAX_STASHED || control.stub().is_spent() {
            return false;
        }
        control.retire();
        self.stash[count].set(control);
        self.stash_count.set(count + 1);
        true
    }

    /// Gives what was kept at the last look, and not used since, to other threads; if a look is due.
    #[inline]
    pub fn age_stash(&self, now: u64) {
        if now >= self.next_look.get() {
            self.look_at_stash(now);
        }
    }

    #[cold]
    fn look_at_stash(&self, now: u64) {
        self.next_look.set(now + LOOK_MILLISECONDS);
        self.unstash_unless(|serial| self.stash_seen.iter().all(|seen| seen.get() != serial));
    }

    /// Gives every control block that this thread keeps to other threads.
    pub fn unstash_all(&self) {
        self.unstash_unless(|_| false);
    }

    /// Keeps only what `is_kept` says by the serial of its last request.
    fn unstash_unless(&self, is_kept: impl Fn(u64) -> bool) {
        let count = self.stash_count.get();
        let mut kept = 0;
        let mut serials = [0; MAX_STASHED];
        for place in &self.stash[..count] {
            // SAFETY: a stashed control block (M1), which is this thread's.
            let control = unsafe { &*place.get() };
            let serial = control.stub().serial().0;
            if is_kept(serial) {
                self.stash[kept].set(control);
                serials[kept] = serial;
                kept += 1;
            } else {
                HEAP.recycle_old(control);
            }
        }
        self.stash_count.set(kept);
        self.stash_seen.iter().zip(serials).for_each(|(seen, serial)| seen.set(serial));
    }

    /// Takes the number of the next request.
    #[inline]
    pub fn take_number(&self) -> u64 {
        if self.next_number.get() == self.end_number.get() {
            let first = HEAP.draw_numbers();
            self.next_number.set(first);
            self.end_number.set(first + NUMBERS_PER_DRAW);
        }
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }
}

/// Counts a request opened without a thread.
pub fn count_opened_without_thread() {
    OPENED_WITHOUT_THREAD.fetch_add(1, Ordering::Relaxed);
}

/// Counts a request that this thread has finished.
pub fn count_finished() {
    match current() {
        Some(thread) => thread.finished_count.add(1),
        None => {
            FINISHED_WITHOUT_THREAD.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Returns how many requests are open now.
pub fn open_count() -> usize {
    // The finished ones are read first, so that the difference is never negative.
    let mut finished = FINISHED_WITHOUT_THREAD.load(Ordering::Relaxed);
    each_thread(|thread| finished += thread.finished_count.get());
    let mut opened = OPENED_WITHOUT_THREAD.load(Ordering::Relaxed);
    each_thread(|thread| opened += thread.opened_count.get());
    opened.saturating_sub(finished)
}

#[cfg(test)]
mod tests {
    use super::LOOK_MILLISECONDS;
    use crate::request::control::Opening;
    use crate::thread::finish::drop_handle;
    use crate::thread::life::current_or_start;
    use crate::thread::open::open;
    use std::vec::Vec;

    #[test]
    fn what_was_stashed_and_not_used_goes_at_the_next_look() {
        let thread = current_or_start().unwrap();
        let open_at_once = |count: usize| {
            let open: Vec<_> = (0..count).map(|_| open(&Opening::default()).unwrap()).collect();
            open.into_iter().for_each(drop_handle);
        };
        open_at_once(3);
        assert_eq!(thread.stash_count.get(), 3);
        // Later than any clock.
        let now = 1 << 50;
        thread.age_stash(now);
        assert_eq!(thread.stash_count.get(), 3, "they may have been used just now");
        open_at_once(1);
        thread.age_stash(now + LOOK_MILLISECONDS - 1);
        assert_eq!(thread.stash_count.get(), 3, "no look is due");
        thread.age_stash(now + LOOK_MILLISECONDS);
        assert_eq!(thread.stash_count.get(), 1, "two were not used");
        thread.age_stash(now + 2 * LOOK_MILLISECONDS);
        assert_eq!(thread.stash_count.get(), 0);
        open_at_once(6);
        assert_eq!(thread.stash_count.get(), 4);
        thread.unstash_all();
        assert_eq!(thread.stash_count.get(), 0);
    }
}
