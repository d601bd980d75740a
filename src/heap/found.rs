//! A block that came back: what it is, and whose it is.

use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET};
use crate::blocks::trace::Trace;
use crate::lockfree::header::{Block, Header, TRACED};
use crate::pages::span::Span;
use crate::request::control::Control;

/// A live block, found by a payload and judged: its header and its span agree.
pub struct Found<'h> {
    /// Its true payload, not an over-aligned address inside it.
    pub block: Block,
    /// Its header.
    pub header: Header,
    /// What its pages are used for.
    pub span: &'h Span,
    /// Where it lies, which class it has, and whose it is.
    pub place: Place,
}

/// Where a live block lies. The live blocks of a request keep its control block (Q1); once they are
/// freed it can still be read (M1), but may be another request's.
#[derive(Clone, Copy)]
pub enum Place {
    /// In a slab, so persistent; if its class is large, the slab has only this block.
    Slab(Class),
    /// In a region of a request.
    Region(Class, &'static Control),
    /// In a span of its own, of a request.
    Large(Class, &'static Control),
    /// In a mapping of its own, of this request or persistent. It has no class.
    Mapped(Option<&'static Control>),
}

impl Found<'_> {
    /// Returns its class; `None`: it has a mapping of its own.
    pub fn class(&self) -> Option<Class> {
        match self.place {
            Place::Slab(class) | Place::Region(class, _) | Place::Large(class, _) => Some(class),
            Place::Mapped(_) => None,
        }
    }

    /// Returns the control block of its request; `None`: it is persistent.
    pub fn control(&self) -> Option<&'static Control> {
        match self.place {
            Place::Slab(_) => None,
            Place::Region(_, control) | Place::Large(_, control) => Some(control),
            Place::Mapped(control) => control,
        }
    }

    /// Returns the bytes from the payload to the end of its block that may be used.
    pub fn capacity(&self, payload: usize) -> usize {
        let is_traced = self.header.has(TRACED);
        let whole = match self.class() {
            Some(class) => class.payload_bytes(),
            None if is_traced => self.span.mapping.asked_bytes.get(),
            None => self.span.needed_bytes() - FIRST_PAYLOAD_OFFSET,
        };
        let whole = if is_traced { Trace::place(whole) } else { whole };
        whole.saturating_sub(payload - self.block)
    }

    /// Whether the block is of this class.
    pub fn is_of_class(&self, class: Class) -> bool {
        self.class() == Some(class)
    }
}
