//! Walks over everything that a request has.

use super::Supply;
use super::control::Control;
use crate::bin::Raw;
use crate::block::{Block, FREED, Header, LIVE, Memory, PERSISTENT};
use crate::lane::{Lane, walk};
use crate::size_class::{Class, HEADER_BYTES};
use crate::span::SpanKind;
use crate::sync::Ordering;

impl Control {
    /// Walks the lane the caller is in, every lane nobody is in, and their regions; fatal when a
    /// structure contradicts itself.
    pub fn check(&self, inside: Option<&Lane>) {
        self.each_lane(inside, |lane| self.check_lane(lane));
    }

    /// Visits the lane the caller is in and every lane nobody is in.
    fn each_lane(&self, inside: Option<&Lane>, mut visit: impl FnMut(&Lane)) {
        for lane in self.lanes() {
            let is_inside = inside.is_some_and(|inside| core::ptr::eq(inside, lane));
            if is_inside || lane.occupancy.try_enter() {
                visit(lane);
                if !is_inside {
                    lane.occupancy.leave();
                }
            }
        }
    }

    /// Visits the blocks that were not freed and that nobody persisted: the header, the block, its bytes
    /// and its class, which a block with a mapping of its own has not. Leaves out the lanes that other
    /// threads are in.
    pub fn each_leak<S: Supply>(
        &self,
        inside: Option<&Lane>,
        supply: &S,
        mut visit: impl FnMut(Header, Block, usize, Option<Class>),
    ) {
        let strays = inside.unwrap_or(&self.first);
        if inside.is_some() || strays.occupancy.try_enter() {
            self.drain_into(strays);
            if inside.is_none() {
                strays.occupancy.leave();
            }
        }
        self.each_lane(inside, |lane| {
            lane.retire_range();
            for region in lane.regions() {
                for (block, header, class) in walk(region, self.id()) {
                    if header.has(LIVE) && !header.has(FREED | PERSISTENT) {
                        visit(header, block, class.payload_bytes(), Some(class));
                    }
                }
            }
        });
        supply.with_large_lock(self.address(), || {
            let mut next = self.large.get();
            // SAFETY: the list holds type-stable descriptors, guarded by the lock.
            while let Some(span) = unsafe { next.as_ref() } {
                next = span.next.get();
                let block = span.base() + 2 * HEADER_BYTES;
                let header = Header(Raw.header(block).load(Ordering::Relaxed));
                if span.kept.load(Ordering::Relaxed) {
                    continue;
                }
                let class = (span.kind() == SpanKind::Large)
                    .then(|| Class::from_index(span.class_index()))
                    .flatten();
                visit(header, block, class.map_or(span.note.get(), Class::payload_bytes), class);
            }
        });
    }

    fn check_lane(&self, lane: &Lane) {
        lane.retire_range();
        lane.bins.check();
        lane.check_pieces();
        for region in lane.regions() {
            if region.owner() != self.address() {
                crate::fatal::broken("owner of a region", region.owner(), self.address());
            }
            walk(region, self.id()).for_each(drop);
        }
    }
}
