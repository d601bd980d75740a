//! Requests below others: what a child holds counts to its parent, and what concerns the parent
//! concerns the child.

use crate::support::{PAGE, end, layout, persistent_vec, together};
use rqmalloc::{Bailout, LimitKind, Request, RqMalloc, check};
use std::alloc::GlobalAlloc;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: usize = 1 << 20;

fn try_take(size: usize) -> *mut u8 {
    // SAFETY: no size here is 0.
    unsafe { RqMalloc.alloc(layout(size, 8)) }
}

fn give(block: *mut u8, size: usize) {
    // SAFETY: a live block of this size.
    unsafe { RqMalloc.dealloc(block, layout(size, 8)) };
}

fn child_of(parent: &Request) -> Request {
    Request::builder().parent(parent).report_limit(false).build()
}

fn footprint(request: &Request) -> usize {
    request.usage().footprint_bytes
}

#[test]
fn what_a_child_holds_counts_to_all_above_it_until_it_is_finished() {
    let _together = together();
    let root = Request::new();
    let middle = child_of(&root);
    let leaves = [child_of(&middle), child_of(&middle)];
    root.run(|| try_take(200_000));
    let of_root = footprint(&root);
    for (leaf, sizes) in leaves.iter().zip([[100, 3 * MIB], [50_000, 70_000]]) {
        leaf.run(|| sizes.iter().for_each(|&size| _ = try_take(size)));
    }
    let of_leaves: usize = leaves.iter().map(footprint).sum();
    assert!(of_leaves > 3 * MIB);
    assert_eq!((footprint(&middle), footprint(&root)), (of_leaves, of_root + of_leaves));
    assert_eq!(
        (middle.usage().live_blocks, root.usage().live_blocks),
        (0, 1),
        "blocks are its own"
    );
    assert_eq!(root.usage().peak_bytes, of_root + of_leaves);
    let block = leaves[0].run(|| try_take(5 * MIB));
    assert_eq!(footprint(&root), of_root + of_leaves + 5 * MIB + PAGE);
    // From outside, where nobody is inside the child.
    give(block, 5 * MIB);
    assert_eq!(footprint(&root), of_root + of_leaves, "what is freed is taken off, too");
    let [first, second] = leaves;
    let of_second = footprint(&second);
    end(first);
    assert_eq!((footprint(&middle), footprint(&root)), (of_second, of_root + of_second));
    // Its survivors are persistent: they are nobody's any more.
    assert_eq!(second.close().unwrap().surviving_blocks, 2);
    assert_eq!((footprint(&middle), footprint(&root)), (0, of_root));
    assert!(root.usage().peak_bytes >= of_root + of_leaves + 5 * MIB);
    end(middle);
    end(root);
}

#[test]
fn a_block_that_grows_shrinks_and_moves_is_counted_once() {
    let _together = together();
    let parent = Request::new();
    let child = child_of(&parent);
    let mut block = child.run(|| black_box(vec![1_u8; 60_000]));
    for (index, size) in
        [100_000, 2 * MIB, 3 * MIB, 40 * MIB, 5 * MIB, 900_000, 10].into_iter().enumerate()
    {
        let mut resize = || {
            block.truncate(size);
            block.shrink_to_fit();
            block.resize(size, 1);
        };
        // Inside, and as a visitor.
        if index % 2 == 0 {
            child.run(resize)
        } else {
            resize()
        }
        assert_eq!(footprint(&parent), footprint(&child), "{size}");
        assert!(footprint(&child) >= size);
    }
    drop(block);
    assert!(child.usage().peak_bytes >= 40 * MIB && parent.usage().peak_bytes >= 40 * MIB);
    end(child);
    assert_eq!(footprint(&parent), 0);
    end(parent);
}

#[test]
fn reclaiming_and_warm_regions_keep_the_sum() {
    let _together = together();
    let parent = Request::new();
    for round in 0..20 {
        let child = child_of(&parent);
        child.run(|| {
            let mut blocks = persistent_vec();
            blocks.extend((0..5_000).map(|_| try_take(100 + round)));
            blocks.iter().for_each(|&block| give(block, 100 + round));
            rqmalloc::persistent(|| drop(blocks));
        });
        assert_eq!(footprint(&parent), footprint(&child));
        assert!(child.reclaim() > 0);
        assert_eq!(footprint(&parent), footprint(&child));
        end(child);
        assert_eq!(footprint(&parent), 0);
    }
    end(parent);
}

#[test]
fn a_child_is_refused_at_its_parents_limit_and_the_parent_is_none_the_wiser() {
    let _together = together();
    let root = Request::builder().memory_limit(4 * MIB).reserve(0).build();
    let middle = child_of(&root);
    let child = child_of(&middle);
    let sibling = child_of(&root);
    sibling.run(|| assert!(!try_take(MIB).is_null()));
    let of_sibling = footprint(&sibling);
    child.run(|| {
        assert!(try_take(3 * MIB).is_null());
        assert!(!try_take(2 * MIB).is_null());
        let held = footprint(&child);
        assert!(
            try_take(MIB).is_null()
                && try_take(500_000).is_null() == (held + of_sibling + 500_000 > 4 * MIB)
        );
        assert!(Vec::<u8>::new().try_reserve_exact(3 * MIB).is_err());
    });
    assert_eq!(
        footprint(&root),
        footprint(&child) + footprint(&sibling),
        "nothing is charged in vain"
    );
    assert_eq!(footprint(&middle), footprint(&child));
    let limit = child.check().unwrap_err();
    assert_eq!((limit.kind, limit.parent), (LimitKind::Memory, Some(root.id())));
    assert_eq!(
        (limit.limit_bytes, limit.in_use_bytes, limit.asked_bytes),
        (4 * MIB, footprint(&root), 3 * MIB)
    );
    let text = format!(
        "memory limit reached (parent {}, limit 4194304, in use {}, asked {})",
        root.id(),
        limit.in_use_bytes,
        3 * MIB
    );
    assert_eq!(limit.to_string(), text);
    // Only the child knows whether it can do without.
    assert!([&sibling, &middle, &root].iter().all(|request| request.check().is_ok()));
    assert!(child.catch(|| 1).is_ok(), "nor is it given up for it");
    [child, middle, sibling, root].into_iter().for_each(end);
}

#[test]
fn small_blocks_of_children_fill_their_parents_limit() {
    let _together = together();
    let parent = Request::builder().memory_limit(40 * PAGE).reserve(0).build();
    let children = [child_of(&parent), child_of(&parent)];
    let mut refused = 0;
    while refused < 2 {
        refused = 0;
        for child in &children {
            refused += usize::from(child.run(|| try_take(24)).is_null());
        }
        assert!(footprint(&parent) <= 40 * PAGE);
    }
    let sum: usize = children.iter().map(footprint).sum();
    assert_eq!(footprint(&parent), sum);
    assert!(sum > 39 * PAGE - 256, "{sum}");
    let limit = children[0].check().unwrap_err();
    assert_eq!((limit.parent, limit.asked_bytes), (Some(parent.id()), 24));
    children.into_iter().for_each(end);
    end(parent);
}

#[test]
fn a_mark_above_gives_the_child_up() {
    let _together = together();
    let root = Request::builder().soft_limit(2 * MIB).build();
    let middle = child_of(&root);
    let child = child_of(&middle);
    let other = Request::new();
    child.run(|| try_take(MIB));
    assert!(child.catch(|| 1).is_ok());
    root.run(|| try_take(3 * MIB));
    for request in [&child, &middle] {
        let limit = request.check().unwrap_err();
        assert_eq!(
            (limit.kind, limit.parent, limit.limit_bytes),
            (LimitKind::Soft, Some(root.id()), 2 * MIB)
        );
        assert_eq!(request.catch(|| 1), Err(Bailout::Limit(limit)));
        assert_eq!(request.run(check), Err(limit));
    }
    assert_eq!(root.check().unwrap_err().parent, None);
    assert_eq!(other.check(), Ok(()));
    root.set_soft_limit(Some(16 * MIB));
    assert!([&child, &middle, &root].iter().all(|request| request.check().is_ok()));
    [other, child, middle, root].into_iter().for_each(end);
}

#[test]
fn a_child_marks_its_parent_too() {
    let _together = together();
    let parent = Request::builder().soft_limit(2 * MIB).build();
    let children = [child_of(&parent), child_of(&parent)];
    children[0].run(|| try_take(3 * MIB));
    let limit = parent.check().unwrap_err();
    assert_eq!((limit.kind, limit.parent, limit.asked_bytes), (LimitKind::Soft, None, 3 * MIB));
    assert!(children.iter().all(|child| child.check().unwrap_err().parent == Some(parent.id())));
    children.into_iter().for_each(end);
    end(parent);
}

#[test]
fn a_new_limit_of_the_parent_counts_its_children() {
    let _together = together();
    let parent = Request::new();
    let child = child_of(&parent);
    child.run(|| try_take(3 * MIB));
    let error = parent.set_memory_limit(Some(2 * MIB)).unwrap_err();
    assert_eq!((error.limit_bytes, error.in_use_bytes), (2 * MIB, footprint(&child)));
    assert_eq!(parent.usage().limit_bytes, None);
    parent.set_memory_limit(Some(4 * MIB)).unwrap();
    assert!(child.run(|| try_take(2 * MIB)).is_null());
    end(child);
    parent.set_memory_limit(Some(2 * MIB)).unwrap();
    end(parent);
}

#[test]
fn a_child_keeps_its_parent_open_and_closes_it_with_itself() {
    static CLOSED: AtomicBool = AtomicBool::new(false);
    let _together = together();
    let parent = Request::builder().on_end(|| CLOSED.store(true, Ordering::Relaxed)).build();
    let builder = Request::builder().parent(&parent);
    let parent = parent.close().expect_err("the builder has a handle of it");
    let child = builder.build();
    assert_eq!(child.parent().map(|request| request.id()), Some(parent.id()));
    assert!(parent.parent().is_none());
    let parent = parent.close().expect_err("and so has the child");
    drop(parent);
    let grandchild = child_of(&child);
    drop(child);
    assert!(!CLOSED.load(Ordering::Relaxed));
    // SAFETY: nothing is allocated in it.
    let _ = unsafe { grandchild.end() }.unwrap();
    assert!(CLOSED.load(Ordering::Relaxed), "the last of the family closes it");
    // A builder that builds nothing drops its handle.
    let parent = Request::new();
    drop(Request::builder().parent(&parent));
    end(parent);
}

#[test]
fn seven_are_above_a_request_at_most() {
    let _together = together();
    let mut family = vec![Request::new()];
    for _ in 0..7 {
        family.push(child_of(family.last().unwrap()));
    }
    family[7].run(|| try_take(MIB));
    assert!(family.iter().all(|request| footprint(request) == footprint(&family[7])));
    let lowest = family[7].clone();
    let result = std::panic::catch_unwind(|| child_of(&lowest));
    let message = result.unwrap_err();
    assert_eq!(message.downcast_ref::<String>().unwrap(), "8 requests are nested at most");
    drop(lowest);
    assert!(family[7].check().is_ok());
    family.into_iter().rev().for_each(end);
}

#[test]
fn children_on_threads_never_pass_their_parents_limit() {
    let _together = together();
    const THREADS: usize = 4;
    for round in 0..20 {
        let limit = 3 * MIB;
        let root = Request::builder().memory_limit(limit).build();
        let middle = child_of(&root);
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for index in 0..THREADS {
                let (root, middle, barrier) = (&root, &middle, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let size = [60, 5_000, 70_000, MIB][(index + round) % 4];
                    for _ in 0..10 {
                        let child = child_of(if index % 2 == 0 { root } else { middle });
                        child.run(|| {
                            for _ in 0..200 {
                                let block = try_take(size);
                                assert!(footprint(root) <= limit);
                                if block.is_null() {
                                    break;
                                }
                            }
                        });
                        end(child);
                    }
                });
            }
        });
        assert_eq!((footprint(&middle), footprint(&root)), (0, 0), "all is given back");
        assert!(root.usage().peak_bytes <= limit);
        end(middle);
        end(root);
    }
}

#[test]
fn a_charge_that_a_request_above_refuses_is_in_nobodys_way() {
    let _together = together();
    let service = Request::builder().memory_limit(40 * MIB).build();
    let tenant = Request::builder().memory_limit(64 * MIB).parent(&service).build();
    let [greedy, modest] = [child_of(&tenant), child_of(&tenant)];
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            greedy.run(|| {
                while !is_done.load(Ordering::Relaxed) {
                    assert!(try_take(45 * MIB).is_null(), "more than the service may have");
                }
            });
        });
        modest.run(|| {
            for _ in 0..20_000 {
                let block = try_take(20 * MIB);
                assert!(!block.is_null(), "it fits everywhere");
                give(black_box(block), 20 * MIB);
            }
        });
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(tenant.usage().peak_bytes <= 22 * MIB, "{}", tenant.usage().peak_bytes);
}

#[test]
fn a_budget_is_there_again_when_the_child_that_used_it_up_is_finished() {
    let _together = together();
    let soft = Request::builder().soft_limit(8 * MIB).build();
    let hard = Request::builder().memory_limit(16 * MIB).build();
    for (tenant, greedy_bytes) in [(soft, 10 * MIB), (hard, 15 * MIB)] {
        let query = |bytes: usize| {
            let query = child_of(&tenant);
            let result = query.catch(|| drop(black_box(vec![1u8; bytes])));
            assert_eq!(
                query.close().unwrap().outcome == rqmalloc::Outcome::OverLimit,
                result.is_err()
            );
            result.is_ok()
        };
        assert!(query(MIB));
        assert!(!query(greedy_bytes));
        assert_eq!(tenant.check(), Ok(()));
        assert!(query(MIB), "the tenant has room again");
        // What it holds itself still counts.
        let own = tenant.run(|| vec![1u8; greedy_bytes]);
        assert!(tenant.check().is_err() && !query(MIB / 2));
        assert!(tenant.check().is_err());
        drop(own);
    }
}
