//! Spans linked by `next`.

use crate::pages::span::Span;
use core::marker::PhantomData;

/// Iterates over a list of spans, each of which may be put on another list once handed out.
pub struct SpanList<'h> {
    next: *const Span,
    heap: PhantomData<&'h Span>,
}

impl SpanList<'_> {
    /// Returns the spans from `first` on.
    ///
    /// # Safety
    /// `first` is null or a descriptor, and so is every `next` (M1). Nobody else changes the list
    /// meanwhile.
    pub unsafe fn from(first: *const Span) -> Self {
        Self { next: first, heap: PhantomData }
    }
}

impl<'h> Iterator for SpanList<'h> {
    type Item = &'h Span;
    fn next(&mut self) -> Option<&'h Span> {
        // SAFETY: the contract of `from`; the next one is read before this one is handed out.
        let span = unsafe { self.next.as_ref()? };
        self.next = span.next.get();
        Some(span)
    }
}
