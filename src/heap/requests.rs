//! Requests from their control block to what is left of them.

use super::Heap;
use crate::base::sync::Ordering;
use crate::blocks::memory::Raw;
use crate::lockfree::header::{Memory, PERSISTENT};
use crate::request::Host;
use crate::request::control::{Control, Opening};
use crate::request::finish::{self, Outcome, Survivors};

impl Heap {
    /// A control block that is the caller's alone. `None`: the system has no more memory.
    pub fn take_control(&self) -> Option<&'static Control> {
        self.controls.take(&self.pages.descriptors)
    }

    /// Puts a control block back whose request is over.
    pub fn recycle(&self, control: &Control) {
        control.retire();
        self.controls.put(control);
    }

    /// Opens a request in a control block that is the caller's alone.
    #[inline]
    pub fn open_request(&self, control: &Control, serial: u64, opening: &Opening) {
        control.open(serial, self.identity.id_of(serial), opening);
    }

    /// Finishes a request whose last handle the caller dropped.
    pub fn finish_request(&self, control: &Control, survivors: Survivors) -> Outcome {
        finish::finish(control, self, survivors)
    }

    /// Decrees that a live block of a request outlives it. Fatal when it is no live block.
    pub fn persist(&self, payload: usize) {
        let found = self.find(payload);
        let Some(control) = found.control() else { return };
        // A release, for what `TRACED` promises to those who see it in this word.
        Raw.header(found.block).store(found.header.with(PERSISTENT).0, Ordering::Release);
        found.span.own.kept.store(true, Ordering::Relaxed);
        control.kept.store(true, Ordering::Relaxed);
    }
}

impl Host for Heap {
    fn charge_warm(&self, bytes: usize) -> bool {
        self.controls.charge_warm(bytes)
    }

    fn refund_warm(&self, bytes: usize) {
        self.controls.refund_warm(bytes);
    }

    fn with_large_lock<R>(&self, control: usize, change: impl FnOnce() -> R) -> R {
        let _guard = self.controls.large_lock(control).lock();
        change()
    }
}
