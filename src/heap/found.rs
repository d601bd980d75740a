//! A block that came back: what it is, and whose.

use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET};
use crate::blocks::trace::Trace;
use crate::lockfree::header::{Block, Header, TRACED};
use crate::pages::span::Span;
use crate::request::control::Control;

/// A live block, found by a payload and judged: its header and its span agree.
pub struct Found<'h> {
    /// Its true payload: not the over-aligned address inside it.
    pub block: Block,
    /// Its header.
    pub header: Header,
    /// What its pages are used for.
    pub span: &'h Span,
    /// Where it lies, of which class it is, and whose.
    pub place: Place,
}

/// Where a live block lies. A control block is kept by the live blocks of its request (Q1); it is
/// type-stable, but another request's once this block is freed.
#[derive(Clone, Copy)]
pub enum Place {
    /// In a slab; if its class is large, the slab is of this block alone. Persistent.
    Slab(Class),
    /// In a region of a request.
    Region(Class, &'static Control),
    /// In a span of its own, of a request.
    Large(Class, &'static Control),
    /// In a mapping of its own, of this request or persistent. It has no class.
    Mapped(Option<&'static Control>),
}

impl Found<'_> {
    /// Its class; `None`: it has a mapping of its own.
    pub fn class(&self) -> Option<Class> {
        match self.place {
            Place::Slab(class) | Place::Region(class, _) | Place::Large(class, _) => Some(class),
            Place::Mapped(_) => None,
        }
    }

    /// The control block of the request it belongs to; `None`: it is persistent.
    pub fn control(&self) -> Option<&'static Control> {
        match self.place {
            Place::Slab(_) => None,
            Place::Region(_, control) | Place::Large(_, control) => Some(control),
            Place::Mapped(control) => control,
        }
    }

    /// Bytes from the payload to the end of its block: what may be used of it.
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

    /// Whether a block of this class is as long as this one.
    pub fn is_of_class(&self, class: Class) -> bool {
        self.class() == Some(class)
    }
}
