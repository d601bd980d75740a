//! Who gives an adopted span back: a region whose request is over and in which persistent blocks
//! are.
//!
//! - **T5** An adopted span has one *token*: it is listed in the store, or in one thread's hand.
//!   Only whoever has the token gives the span back.
//! - **T6** The count is the adopted blocks that were not reaped yet, plus one for the token.
//!   Before the closer has added its blocks it runs below zero by those that were reaped meanwhile.
//! - **T7** After it has published a span nobody but the next one who takes its token touches what
//!   only the token's holder may.

use crate::base::sync::{AtomicU64, Ordering};

/// The count of an adopted span.
pub struct AdoptedCount(pub AtomicU64);

impl AdoptedCount {
    /// Of a region that is made and not handed out yet.
    pub fn arm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// So many blocks were adopted, by the token's holder.
    pub fn add(&self, adopted: u64) {
        self.0.fetch_add(adopted, Ordering::Relaxed);
    }

    /// The region becomes an adopted span, and the caller has its token.
    pub fn add_token(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many blocks were reaped; whether only the token is left.
    fn drop(&self, reaped: u64) -> bool {
        self.0.fetch_sub(reaped, Ordering::Release) == reaped + 1
    }

    /// Whether only the token is left.
    fn has_only_token(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }
}

/// Where tokens are listed.
pub trait Store {
    /// What has a token.
    type Span: ?Sized;
    /// Its count.
    fn count<'s>(&self, span: &'s Self::Span) -> &'s AdoptedCount;
    /// Lists a span unless `is_empty` says, under the store's lock, that nothing is left of it;
    /// whether it was listed.
    fn list_unless(&self, span: &Self::Span, is_empty: impl FnOnce() -> bool) -> bool;
    /// Takes this span's token, if it is listed.
    fn unlist(&self, span: &Self::Span) -> bool;
    /// Gives the span back, whole.
    fn give_back(&self, span: &Self::Span);
}

/// Puts a token back. The span is given back if nothing else is left of it.
pub fn publish<S: Store>(store: &S, span: &S::Span) {
    if !store.list_unless(span, || store.count(span).has_only_token()) {
        store.give_back(span);
    }
}

/// Counts blocks off that were reaped; the last thing that their reaper does to the span.
pub fn reap<S: Store>(store: &S, span: &S::Span, blocks: u64) {
    if store.count(span).drop(blocks) && store.unlist(span) {
        publish(store, span);
    }
}
