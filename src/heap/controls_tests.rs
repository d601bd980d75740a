//! Tests of `controls`.

use crate::base::size_class::Class;
use crate::blocks::identity::{MAX_GENERATION, Serial};
use crate::heap::tests::{NoCallbacks, new_heap};
use crate::heap::{Heap, controls::Controls, idle::LOOK_MILLISECONDS};
use crate::request::control::{Control, Opening};
use crate::request::finish::Survivors;
use crate::request::lanes::MAX_KEPT_LANES;
use crate::request::stub::Stub;
use std::vec::Vec;

fn open(heap: &'static Heap) -> &'static Control {
    let control = heap.take_control().unwrap();
    heap.open_request(control, heap.draw_numbers(), &Opening::default());
    control
}

fn end(heap: &'static Heap, control: &Control) {
    assert!(control.stub().state.drop_only_handle(&NoCallbacks));
    heap.finish_request(control, Survivors::None);
    heap.recycle(control);
}

/// Allocates in a request by as many threads as there are lanes.
fn use_lanes(heap: &'static Heap, control: &Control, count: usize) {
    let lanes: Vec<_> = (0..count).map(|_| control.enter(heap).unwrap()).collect();
    for lane in lanes {
        heap.alloc_of_request(control, lane, Class::from_index(3).unwrap(), 1);
        lane.occupancy.leave();
    }
    heap.check_request(control, None);
}

fn made_bytes(heap: &Heap) -> usize {
    let Controls { blocks, lanes, lists, .. } = &heap.controls;
    [blocks.figures(), lanes.figures(), lists.figures()].iter().map(|part| part.made_bytes).sum()
}

#[test]
fn what_is_idle_goes_at_the_third_look_and_a_serial_never_comes_again() {
    let heap = new_heap();
    heap.set_up();
    let mut serials = Vec::new();
    for round in 1..=4 {
        let controls: Vec<_> = (0..1000).map(|_| open(heap)).collect();
        controls.iter().for_each(|control| use_lanes(heap, control, 2));
        serials.extend(controls.iter().map(|control| control.serial()));
        controls.into_iter().for_each(|control| end(heap, control));
        let (figures, made) = (heap.controls.figures(), made_bytes(heap));
        let block_bytes = size_of::<Control>() + size_of::<Stub>();
        assert_eq!(figures.idle_bytes, 1000 * block_bytes, "no control block is in use");
        assert!(figures.warm_bytes > 0 && made > 3 << 20, "{figures:?}");
        let start = round * 100 * LOOK_MILLISECONDS;
        heap.tick(start);
        heap.tick(start + LOOK_MILLISECONDS / 2);
        heap.tick(start + LOOK_MILLISECONDS);
        assert_eq!(made_bytes(heap), made, "a burst may come every second");
        heap.tick(start + 2 * LOOK_MILLISECONDS);
        assert_eq!((made_bytes(heap), heap.controls.warm_bytes()), (0, 0));
        assert!(serials.iter().all(|&serial| heap.controls.was_issued(serial)));
        assert!(serials.iter().all(|&serial| heap.owner(serial).is_none()));
        heap.check();
    }
    let next = Serial::new(serials[0].index(), serials.len() as u32);
    assert!(!heap.controls.was_issued(next), "it was not issued yet");
    serials.sort_unstable();
    serials.dedup();
    assert_eq!(serials.len(), 4000);
}

#[test]
fn what_is_in_use_stays_while_its_neighbours_go() {
    let heap = new_heap();
    heap.set_up();
    let controls: Vec<_> = (0..1000).map(|_| open(heap)).collect();
    let mut kept: Vec<(&Control, Serial)> = Vec::new();
    for (index, control) in controls.into_iter().enumerate() {
        use_lanes(heap, control, 1 + index % 3);
        if index % 97 == 5 {
            kept.push((control, control.serial()));
        } else {
            end(heap, control);
        }
    }
    let before = made_bytes(heap);
    heap.release_all_idle();
    assert!(made_bytes(heap) < before / 10, "{} of {before}", made_bytes(heap));
    heap.check();
    let more: Vec<_> = (0..1000).map(|_| open(heap)).collect();
    for &(control, serial) in &kept {
        assert_eq!(control.serial(), serial);
        assert_eq!(control.figures().live_blocks, control.lanes().count());
        assert!(heap.owner(serial).is_some_and(|o| core::ptr::eq(o.control(), control)));
    }
    more.into_iter().chain(kept.into_iter().map(|(c, _)| c)).for_each(|c| end(heap, c));
    heap.release_all_idle();
    assert_eq!((made_bytes(heap), heap.pages.chunk_bytes()), (0, 0));
}

#[test]
fn slots_are_taken_lowest_first() {
    let heap = new_heap();
    heap.set_up();
    let mut controls: Vec<_> = (0..10_000).map(|_| open(heap)).collect();
    let indices: Vec<_> = controls.iter().map(|control| control.stub().index()).collect();
    assert!(indices.iter().copied().eq(1..=10_000), "two groups and a half");
    let given: Vec<_> = controls.drain(1000..9000).collect();
    given.into_iter().rev().for_each(|control| end(heap, control));
    assert_eq!(open(heap).stub().index(), 1001);
}

#[test]
fn a_request_with_many_lanes_leaves_few() {
    let heap = new_heap();
    heap.set_up();
    let control = open(heap);
    use_lanes(heap, control, 300);
    assert_eq!(control.lanes().count(), 300);
    end(heap, control);
    assert_eq!(control.lanes.all().count(), 1 + MAX_KEPT_LANES);
    let again = open(heap);
    assert!(core::ptr::eq(again, control));
    use_lanes(heap, again, 2);
    assert_eq!(again.lanes().count(), 1 + MAX_KEPT_LANES, "what is walked from now on");
    use_lanes(heap, again, 300);
    end(heap, again);
    heap.check();
    heap.release_all_idle();
    assert_eq!((made_bytes(heap), heap.controls.warm_bytes()), (0, 0));
    assert_eq!(heap.pages.chunk_bytes(), 0, "no lane has a region left");
}

#[test]
fn a_spent_stub_has_no_other_request_and_its_neighbours_go_on() {
    let heap = new_heap();
    heap.set_up();
    let control = open(heap);
    let index = control.stub().index();
    end(heap, control);
    control.stub().state.rest(MAX_GENERATION - 1);
    let last = open(heap);
    assert_eq!(last.serial(), Serial::new(index, MAX_GENERATION));
    use_lanes(heap, last, 2);
    let serial = last.serial();
    end(heap, last);
    let other = open(heap);
    assert_ne!(other.stub().index(), index);
    end(heap, other);
    heap.check();
    heap.release_all_idle();
    assert_eq!(made_bytes(heap), 0, "spent ones go, too");
    assert!(heap.controls.was_issued(serial) && heap.owner(serial).is_none());
    let next = open(heap);
    assert_eq!(next.serial(), Serial::new(index + 1, 2), "not lifted to the last generation");
    end(heap, next);
}

#[test]
fn a_request_is_named_until_its_control_block_is_made_anew() {
    let heap = new_heap();
    heap.set_up();
    let control = open(heap);
    let (serial, number) = (control.serial(), control.request_id().0);
    end(heap, control);
    assert_eq!(heap.controls.number_of_past(serial), Some(number));
    heap.release_all_idle();
    assert_eq!(heap.controls.number_of_past(serial), None);
    assert!(heap.controls.was_issued(serial));
    end(heap, open(heap));
    assert_eq!(heap.controls.number_of_past(serial), None);
}
