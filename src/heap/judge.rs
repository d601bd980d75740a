//! Judging what comes back: finds the live block that a payload is in, or names the fault.

use super::Heap;
use super::found::{Found, Owner, Place};
use crate::base::fatal;
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET, HEADER_BYTES, PAYLOAD_ALIGN};
use crate::base::sync::Ordering;
use crate::blocks::identity::Serial;
use crate::blocks::memory::Raw;
use crate::blocks::trace::needed_size;
use crate::lockfree::header::{ALIGNED, Block, FREED, Header, LARGE, LIVE, Memory, TRACED};
use crate::lockfree::hole::Hole;
use crate::lockfree::judged::has_changed;
use crate::pages::registry::Backing;
use crate::pages::span::{Span, SpanKind};
use crate::persistent::slab_purge::is_purged;
use crate::request::control::Control;

impl Heap {
    /// Returns whether a block was a request's and is persistent now, or as soon as the thread that
    /// closes the request comes to it.
    pub fn is_adopted(&self, found: &Found<'_>) -> bool {
        match found.owner() {
            Some(owner) => !owner.is_open(),
            None => {
                matches!(found.place, Place::Adopted(_))
                    || found.header.id() != self.persistent_tag().id()
            }
        }
    }

    /// Whether the page or mapping of this payload is this heap's.
    pub fn is_ours(&self, payload: usize) -> bool {
        match self.pages.space.registry.find(payload) {
            Some(Backing::Chunk(chunk)) => (chunk.base()..chunk.end()).contains(&payload),
            // Chunk numbers are longer than mappings.
            Some(Backing::Mapping(span)) => (span.base()..span.end()).contains(&payload),
            None => false,
        }
    }

    /// Finds the block of a payload that is freed or resized with this layout. Fatal, naming the
    /// fault, if it is not a live block of this heap with that layout.
    pub fn judge(&self, payload: usize, size: usize, align: usize) -> Found<'_> {
        let found = self.find(payload);
        let is_traced = found.header.has(TRACED);
        let needed = needed_size(size, align, is_traced);
        let fits = match (found.class(), needed.and_then(Class::of)) {
            (Some(class), Some(needed_class)) => class == needed_class,
            (None, None) => {
                let asked = found.span.mapping.asked_bytes.get();
                if is_traced { Some(asked) == needed } else { asked == size }
            }
            _ => false,
        };
        if !fits {
            let capacity = match found.place {
                Place::Mapped(_) => found.span.mapping.asked_bytes.get(),
                _ => found.capacity(payload),
            };
            fatal::another_layout(payload, capacity, size);
        }
        found
    }

    /// Finds the live block of a payload, whatever its layout. An address that no block can have is
    /// reported before anything is read through it.
    pub fn find(&self, payload: usize) -> Found<'_> {
        if payload % PAYLOAD_ALIGN != 0 || payload == 0 {
            fatal::not_a_block(payload);
        }
        let span = match self.pages.space.registry.find(payload) {
            None => fatal::not_a_block(payload),
            // The registry goes by chunk number, which covers more than the mapping.
            Some(Backing::Mapping(span)) if is_inside(payload, span.base(), span.end()) => span,
            Some(Backing::Mapping(_)) => fatal::not_a_block(payload),
            Some(Backing::Chunk(chunk)) => {
                if !is_inside(payload, chunk.base(), chunk.end()) {
                    fatal::not_a_block(payload);
                }
                match chunk.span(chunk.page_of(payload - HEADER_BYTES)) {
                    Some(span) => span,
                    // The inside of a span of one block, or a free page.
                    None => self.find_aligned_or_die(payload),
                }
            }
        };
        let word = Header(Raw.header(payload).load(Ordering::Relaxed));
        match word.aligned_distance() {
            Some(distance) if leads_back(span, payload, distance) => {
                if word.has(FREED) {
                    fatal::double_free(payload);
                }
                self.live_block(payload, payload - distance, span)
            }
            _ => self.live_block(payload, payload, span),
        }
    }

    /// Finds the span of a payload whose page names none: it is over-aligned and far inside a span
    /// of one block. Anything else is misuse, and fatal.
    fn find_aligned_or_die(&self, payload: usize) -> &Span {
        // The page lies in a mapped chunk, so its words can be read.
        let word = Header(Raw.header(payload).load(Ordering::Relaxed));
        let base = word.aligned_distance().and_then(|distance| payload.checked_sub(distance));
        if let Some(Backing::Chunk(chunk)) =
            base.and_then(|base| self.pages.space.registry.find(base))
        {
            let page = base.map_or(0, |base| chunk.page_of(base - HEADER_BYTES));
            if let Some(span) = chunk.span(page) {
                if payload < span.end() {
                    return span;
                }
            }
        }
        self.die_of_a_free_page(payload, word)
    }

    /// Dies of a payload in a free page: what its header was tells what happened.
    fn die_of_a_free_page(&self, payload: usize, word: Header) -> ! {
        let serial = self.identity.serial_of(word.id());
        if word.has(ALIGNED) && word.has(FREED) {
            fatal::double_free(payload);
        }
        if serial == Serial::PERSISTENT && !word.has(LIVE) {
            fatal::double_free(payload);
        }
        if !word.has(ALIGNED) && self.controls.was_issued(serial) {
            self.die_of_a_request(payload, serial, word);
        }
        fatal::not_a_block(payload)
    }

    /// Looks at the header of a block; fatal, naming the fault, if anything is wrong with it.
    fn live_block<'h>(&'h self, payload: usize, block: Block, span: &'h Span) -> Found<'h> {
        if Raw.header(block).load(Ordering::Relaxed) == 0 && is_purged(span, block) {
            fatal::double_free(payload);
        }
        if !starts_a_block(span, block) {
            fatal::not_a_block(payload);
        }
        loop {
            let word = Raw.header(block).load(Ordering::Relaxed);
            if let Some(found) = self.judge_header(payload, block, span, Header(word)) {
                return found;
            }
            if Raw.header(block).load(Ordering::Relaxed) == word {
                fatal::header_overwritten(payload, word);
            }
            // Its request was closed meanwhile, and the block adopted.
        }
    }

    /// `None`: the header is none that a block of the span has, or was another one by then.
    fn judge_header<'h>(
        &'h self,
        payload: usize,
        block: Block,
        span: &'h Span,
        header: Header,
    ) -> Option<Found<'h>> {
        let serial = self.identity.serial_of(header.id());
        let class = Class::from_index(header.class_index());
        let of_span = class.filter(|class| class.index() == span.class_index());
        let is_persistent = serial == Serial::PERSISTENT;
        let place = match span.kind() {
            SpanKind::Cached if is_persistent => fatal::double_free(payload),
            SpanKind::Slab if is_persistent => Place::Slab(of_span?),
            SpanKind::Region if is_persistent => Place::Adopted(class?),
            SpanKind::Region => match self.owner(serial) {
                Some(owner) => Place::Region(class?, owner),
                None => return self.die_of_a_stale_header(payload, block, span, header),
            },
            SpanKind::Large | SpanKind::Mapped => {
                if header.id() != span.own.header_id.load(Ordering::Relaxed) {
                    return self.die_of_a_stale_header(payload, block, span, header);
                }
                let owner = self.owner(Serial(span.owner()));
                if span.kind() == SpanKind::Large {
                    Place::Large(of_span?, owner)
                } else {
                    (header.class_index() == 0).then_some(Place::Mapped(owner))?
                }
            }
            _ => return self.die_of_a_stale_header(payload, block, span, header),
        };
        let has_own_pages = matches!(place, Place::Large(..) | Place::Mapped(_));
        if header.has(LARGE) != has_own_pages || header.has(ALIGNED) {
            return None;
        }
        if !header.has(LIVE) || header.has(FREED) {
            // A free from outside whose request was closed meanwhile looks so, too, but not twice.
            fatal::double_free(payload);
        }
        Some(Found { block, header, span, place })
    }

    /// The request with this serial, unless it is over; `None` for that of persistent blocks too.
    pub(super) fn owner(&self, serial: Serial) -> Option<Owner> {
        let stub = self.controls.stub(serial.index())?;
        stub.state.has(serial.generation()).then_some(Owner { stub, serial })
    }

    /// The header of a block names a request that is over, or nothing that ever was. `None`: it has
    /// changed meanwhile.
    fn die_of_a_stale_header<'h>(
        &'h self,
        payload: usize,
        block: Block,
        span: &Span,
        header: Header,
    ) -> Option<Found<'h>> {
        let serial = self.identity.serial_of(header.id());
        if has_changed(&Raw, block, header) {
            return None;
        }
        if self.controls.was_issued(serial) {
            self.die_of_a_request(payload, serial, header);
        }
        if Hole::of(header).is_some() {
            fatal::double_free(payload);
        }
        if span.kind() == SpanKind::Region && !self.is_cut(span, block) {
            fatal::not_a_block(payload);
        }
        fatal::header_overwritten(payload, header.0)
    }

    /// A header of a request that its place does not belong to: the request is over, or the block
    /// had been given back before.
    fn die_of_a_request(&self, payload: usize, serial: Serial, header: Header) -> ! {
        if header.has(LARGE) && !header.has(LIVE) {
            fatal::double_free(payload);
        }
        self.die_of_an_ended_request(payload, serial)
    }

    /// The request of a block is over.
    pub(super) fn die_of_an_ended_request(&self, payload: usize, serial: Serial) -> ! {
        let name = self.controls.name_of_past(serial);
        fatal::ended_request(payload, self.controls.number_of_past(serial), name.as_deref())
    }

    /// Whether a region's blocks, walked from its start, include this one. Only used to word a
    /// fatal error; stops at the first word that is no header.
    fn is_cut(&self, span: &Span, block: Block) -> bool {
        let end = match self.owner(Serial(span.owner())) {
            Some(owner) if span.region.held_pages.load(Ordering::Relaxed) == 0 => {
                bump_in(span, owner.control())
            }
            _ => span.end(),
        };
        let mut at = span.base() + FIRST_PAYLOAD_OFFSET;
        while at < block && at < end {
            let header = Header(Raw.header(at).load(Ordering::Relaxed));
            at += match (Hole::of(header), Class::from_index(header.class_index())) {
                (Some(hole), _) if hole.is_in_use => Hole::WORD_BYTES,
                (Some(hole), _) if hole.bytes > 0 => hole.bytes,
                (None, Some(class)) => class.stride_bytes(),
                _ => return false,
            };
        }
        at == block && at < end
    }
}

/// How far a region is cut: a lane knows while its range is in it.
fn bump_in(span: &Span, control: &Control) -> usize {
    let cut_end = span.region.cut_end.get();
    let inside = |bump: &usize| *bump > span.base() && *bump <= span.end();
    control
        .lanes()
        .map(|lane| lane.bins.bump())
        .find(inside)
        .map_or(cut_end, |bump| bump.max(cut_end))
}

/// Whether an `ALIGNED` word leads to an address in the same span.
fn leads_back(span: &Span, payload: usize, distance: usize) -> bool {
    payload.checked_sub(distance).is_some_and(|block| block >= span.base() + FIRST_PAYLOAD_OFFSET)
}

/// Whether a payload and the word before it lie in the memory from `start` to `end`.
fn is_inside(payload: usize, start: usize, end: usize) -> bool {
    payload >= start + HEADER_BYTES && payload < end
}

/// Whether a block can begin here at all, by the span's geometry.
fn starts_a_block(span: &Span, block: Block) -> bool {
    let Some(offset) = block.checked_sub(span.base() + FIRST_PAYLOAD_OFFSET) else { return false };
    match span.kind() {
        SpanKind::Slab => Class::from_index(span.class_index()).is_some_and(|class| {
            offset % class.stride_bytes() == 0
                && offset / class.stride_bytes() < class.slab_count() as usize
        }),
        SpanKind::Region => offset % PAYLOAD_ALIGN == 0,
        _ => offset == 0,
    }
}
