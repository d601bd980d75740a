//! Spans linked by `next`.

use crate::pages::span::Span;
use core::marker::PhantomData;

/// The spans of a list, each of which may be put on another list once it is handed out.
pub struct SpanList<'h> {
    next: *const Span,
    heap: PhantomData<&'h Span>,
}

impl SpanList<'_> {
    /// The spans from `first` on.
    ///
    /// # Safety
    /// `first` is null or a descriptor, and so is every `next`: descriptors are type-stable. Nobody
    /// else changes the list meanwhile.
    pub unsafe fn from(first: *const Span) -> Self {
        Self { next: first, heap: PhantomData }
    }
}

impl<'h> Iterator for SpanList<'h> {
    type Item = &'h Span;
    fn next(&mut self) -> Option<&'h Span> {
        // SAFETY: the contract of `from`; the next one is read before this one is used.
        let span = unsafe { self.next.as_ref()? };
        self.next = span.next.get();
        Some(span)
    }
}
