//! A block that came back: what it is, and whose it is.

use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET};
use crate::blocks::identity::Serial;
use crate::blocks::trace::Trace;
use crate::lockfree::header::{Block, Header, TRACED};
use crate::pages::span::Span;
use crate::request::control::Control;
use crate::request::stub::Stub;

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

/// Where a live block lies, and of which lifetime it is.
#[derive(Clone, Copy)]
pub enum Place {
    /// In a slab, so persistent; if its class is large, the slab has only this block.
    Slab(Class),
    /// In a region, and persistent: it was adopted.
    Adopted(Class),
    /// In a region, of the request that its header names.
    Region(Class, Owner),
    /// In a span of its own, of this request or persistent.
    Large(Class, Option<Owner>),
    /// In a mapping of its own, of this request or persistent. It has no class.
    Mapped(Option<Owner>),
}

/// A request that has a block, as its stub and its serial. A live block keeps neither: the request
/// may be over at any time, and the block is persistent then.
#[derive(Clone, Copy)]
pub struct Owner {
    /// What its header leads to.
    pub stub: &'static Stub,
    /// Which of the stub's requests.
    pub serial: Serial,
}

impl Owner {
    /// Whether it is open: else its live blocks are survivors.
    pub fn is_open(self) -> bool {
        self.stub.state.look().is_open(self.serial.generation())
    }

    /// Its control block, which is the request's as long as something else keeps it.
    pub fn control(self) -> &'static Control {
        Control::of(self.stub)
    }
}

impl Found<'_> {
    /// Returns the size that a block of this capacity was made for, as far as that is known.
    pub fn made_for(&self, capacity: usize) -> usize {
        match self.place {
            Place::Mapped(_) => self.span.mapping.asked_bytes.get(),
            _ => capacity,
        }
    }

    /// Returns its class; `None`: it has a mapping of its own.
    pub fn class(&self) -> Option<Class> {
        match self.place {
            Place::Slab(class)
            | Place::Adopted(class)
            | Place::Region(class, _)
            | Place::Large(class, _) => Some(class),
            Place::Mapped(_) => None,
        }
    }

    /// The request it belongs to; `None`: it is persistent.
    pub fn owner(&self) -> Option<Owner> {
        match self.place {
            Place::Slab(_) | Place::Adopted(_) => None,
            Place::Region(_, owner) => Some(owner),
            Place::Large(_, owner) | Place::Mapped(owner) => owner,
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
