//! Walks over everything a request has.

use super::Host;
use crate::base::fatal;
use crate::base::size_class::{Class, FIRST_PAYLOAD_OFFSET};
use crate::blocks::region::walk;
use crate::lockfree::header::{Block, FREED, LIVE};
use crate::lockfree::traced;
use crate::pages::span::{Span, SpanKind};
use crate::request::control::Control;
use crate::request::lane::Lane;

/// A block that was not freed. Its owner may use, move or free it at any time, so this says only
/// what is known without looking at its memory, of which only the record may be read.
pub struct Leak {
    /// The block.
    pub block: Block,
    /// Its bytes.
    pub block_bytes: usize,
    /// Its class; `None`: it has a mapping of its own.
    pub class: Option<Class>,
    /// Length of the block that its record is at the end of, if it has one.
    pub traced_bytes: Option<usize>,
}

impl Leak {
    /// Describes a large or mapped block by its descriptor, because its header may be on the move.
    fn of_span(span: &Span) -> Self {
        let class = (span.kind() == SpanKind::Large)
            .then(|| Class::from_index(span.class_index()))
            .flatten();
        let traced_bytes = span.own.traced_bytes.hear() as usize;
        Self {
            block: span.base() + FIRST_PAYLOAD_OFFSET,
            block_bytes: class.map_or(span.mapping.asked_bytes.get(), Class::payload_bytes),
            class,
            traced_bytes: (traced_bytes != 0).then_some(traced_bytes),
        }
    }
}

impl Control {
    /// Walks the lane that the caller is in, every lane that nobody is in, and their regions; fatal
    /// if a structure contradicts itself.
    pub fn check(&self, inside: Option<&Lane>) {
        self.each_lane(inside, |lane| self.check_lane(lane));
    }

    /// Visits the lane that the caller is in and every lane that nobody is in.
    /// Returns how many others are left out.
    fn each_lane(&self, inside: Option<&Lane>, mut visit: impl FnMut(&Lane)) -> u64 {
        let mut skipped = 0;
        for lane in self.lanes() {
            let is_inside = inside.is_some_and(|inside| core::ptr::eq(inside, lane));
            if is_inside || lane.occupancy.try_enter() {
                visit(lane);
                if !is_inside {
                    lane.occupancy.leave();
                }
            } else {
                skipped += 1;
            }
        }
        skipped
    }

    /// Visits the blocks that were neither freed nor persisted, leaving out the lanes that other
    /// threads are in. A record that was found stays readable during the visit: large blocks that
    /// have one do not move, and are not released without the lock that is held meanwhile. Returns
    /// how many lanes are left out.
    pub fn each_leak<S: Host>(
        &self,
        inside: Option<&Lane>,
        supply: &S,
        mut visit: impl FnMut(Leak),
    ) -> u64 {
        let taker = inside.unwrap_or(&self.lanes.first);
        if inside.is_some() || taker.occupancy.try_enter() {
            self.stub().drain_into(taker);
            if inside.is_none() {
                taker.occupancy.leave();
            }
        }
        let skipped = self.each_lane(inside, |lane| {
            lane.retire_range();
            for region in lane.regions().chain(lane.lent()) {
                for (block, header, class) in walk(region, self.ids()) {
                    if !header.has(LIVE) || header.has(FREED) {
                        continue;
                    }
                    let block_bytes = class.payload_bytes();
                    visit(Leak {
                        block,
                        block_bytes,
                        class: Some(class),
                        traced_bytes: traced::is_told(header).then_some(block_bytes),
                    });
                }
            }
        });
        let _guard = supply.large_lock(self.serial()).lock();
        self.large.spans().for_each(|span| visit(Leak::of_span(span)));
        skipped
    }

    fn check_lane(&self, lane: &Lane) {
        lane.retire_range();
        lane.bins.check();
        lane.check_pieces();
        for region in lane.regions().chain(lane.lent()) {
            if region.owner() != self.serial().0 {
                fatal::broken(
                    "owner of a region",
                    region.owner() as usize,
                    self.serial().0 as usize,
                );
            }
            walk(region, self.ids()).for_each(drop);
        }
    }
}
