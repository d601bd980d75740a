//! Misuse ends the process by SIGABRT with exactly one line. Each case runs in a child process:
//! this program again, with the name of the case in its environment.
//!
//! The child prints what only it can know (the address, the header, the number of the request) on
//! its standard output, and the parent puts that into the line it expects.

use crate::support::{layout, payload_for};
use rqmalloc::{Request, RqMalloc};
use std::alloc::GlobalAlloc;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

const CASE: &str = "RQMALLOC_TEST_MISUSE";
/// The exit code of a child that was not stopped.
const SURVIVED: i32 = 3;
/// The exit code of a child that does not know its case.
const UNKNOWN: i32 = 4;
/// A child that hangs dies of SIGALRM.
const PATIENCE_SECONDS: u32 = 60;

fn expect_death(case: &str, expected: &str) {
    let output = Command::new(std::env::current_exe().unwrap()).env(CASE, case).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let mut line = format!("rqmalloc: {expected}\n");
    for fact in told.lines() {
        let (key, value) = fact.split_once('=').unwrap();
        line = line.replace(&format!("{{{key}}}"), value);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.signal(), said.as_ref()),
        (Some(libc::SIGABRT), line.as_str()),
        "{case}: {} (exit code {SURVIVED}: nobody noticed); it told {told:?}",
        output.status
    );
}

/// Runs before `main`; returns at once in a process that is not a child.
pub extern "C" fn run_child() {
    let Some(case) = std::env::var_os(CASE) else { return };
    // SAFETY: plain system calls; the limit is a valid structure.
    unsafe {
        libc::alarm(PATIENCE_SECONDS);
        let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
    }
    let known = case.to_str().is_some_and(run_case);
    // SAFETY: ends the process without using anything that may be broken by now.
    unsafe { libc::_exit(if known { SURVIVED } else { UNKNOWN }) }
}

/// Tells the parent a fact without allocating, because a request may be open.
fn tell(key: &str, value: std::fmt::Arguments<'_>) {
    struct Buffer([u8; 96], usize);
    impl Write for Buffer {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let end = self.1 + text.len();
            self.0.get_mut(self.1..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
            self.1 = end;
            Ok(())
        }
    }
    let mut buffer = Buffer([0; 96], 0);
    writeln!(buffer, "{key}={value}").unwrap();
    // SAFETY: the buffer has this many bytes.
    unsafe { libc::write(1, buffer.0.as_ptr().cast(), buffer.1) };
}

fn tell_address(pointer: *const u8) {
    tell("address", format_args!("{pointer:p}"));
}

fn tell_request(id: rqmalloc::RequestId) {
    tell("request", format_args!("{id}"));
}

fn tell_header(pointer: *const u8) {
    // SAFETY: the word before a payload is the allocator's and mapped.
    let header = unsafe { pointer.sub(8).cast::<u64>().read_volatile() };
    tell("header", format_args!("{header:#x}"));
}

fn take(size: usize, align: usize) -> *mut u8 {
    // SAFETY: no size here is 0.
    let pointer = unsafe { RqMalloc.alloc(layout(size, align)) };
    assert!(!pointer.is_null());
    pointer
}

/// Frees with a layout, right or wrong.
fn free(pointer: *mut u8, size: usize, align: usize) {
    // SAFETY: often none: that is what is tested, in a process of its own.
    unsafe { RqMalloc.dealloc(pointer, layout(size, align)) };
}

/// A pointer that may go to another thread.
#[derive(Clone, Copy)]
struct Loose(*mut u8);
// SAFETY: only an address.
unsafe impl Send for Loose {}

fn free_elsewhere(pointer: *mut u8, size: usize, align: usize) {
    let loose = Loose(pointer);
    // The thread's own blocks are persistent.
    rqmalloc::persistent(|| {
        std::thread::spawn(move || {
            let loose = loose;
            free(loose.0, size, align);
        })
        .join()
        .unwrap();
    });
}

fn end() -> rqmalloc::Report {
    // SAFETY: what is used later is used in order to be caught.
    unsafe { rqmalloc::end_request() }
}

/// Allocates three blocks in a row, of which the first can overrun into the second: it asked for
/// all that its class has.
fn in_a_row(size: usize) -> [*mut u8; 3] {
    let size = payload_for(size);
    // Enough blocks that some are neighbours, whatever is in the bins.
    let blocks: [*mut u8; 64] = std::array::from_fn(|_| take(size, 8));
    for &first in &blocks {
        let after = |steps: usize| {
            let address = first.addr() + steps * (size + 8);
            blocks.iter().copied().find(|block| block.addr() == address)
        };
        if let (Some(second), Some(third)) = (after(1), after(2)) {
            return [first, second, third];
        }
    }
    panic!("no three of 64 blocks are neighbours");
}

/// Writes `count` bytes past the end of a block, each different from what was there.
fn overrun(block: *mut u8, size: usize, count: usize) {
    for at in payload_for(size)..payload_for(size) + count {
        // SAFETY: these bytes are the next block's header.
        unsafe { *block.add(at) ^= 0x5a };
    }
}

macro_rules! cases {
    ($($case:ident: $expected:literal;)*) => {
        fn run_case(case: &str) -> bool {
            match case {
                $(stringify!($case) => child::$case(),)*
                _ => return false,
            }
            true
        }
        $(#[test]
        fn $case() {
            let _together = crate::support::together();
            expect_death(stringify!($case), $expected);
        })*
    };
}

cases! {
    double_free_at_once: "double free (address {address})";
    double_free_later: "double free (address {address})";
    double_free_from_another_thread: "double free (address {address})";
    double_free_after_the_thread_exited: "double free (address {address})";
    double_free_of_a_span: "double free (address {address})";
    double_free_of_a_mapping: "double free (address {address})";
    free_of_a_mapping_that_is_gone: "not a block of this allocator (address {address})";
    double_free_over_aligned: "double free (address {address})";
    double_free_over_aligned_span: "double free (address {address})";
    double_free_over_aligned_mapping: "double free (address {address})";
    double_free_in_a_request: "double free (address {address})";
    double_free_in_a_request_of_a_span: "double free (address {address})";
    double_free_in_a_request_of_a_mapping: "double free (address {address})";
    double_free_in_a_request_over_aligned: "double free (address {address})";
    double_free_of_a_stray: "double free (address {address})";
    double_free_of_a_stray_in_its_request: "double free (address {address})";
    double_free_of_a_persistent_block_in_a_request: "double free (address {address})";
    double_free_of_a_kept_block: "double free (address {address})";
    double_free_of_a_survivor: "double free (address {address})";
    realloc_after_free: "double free (address {address})";
    persist_after_free: "double free (address {address})";

    wrong_size: "freed with another layout (address {address}, capacity 104, size 200)";
    wrong_size_in_a_request: "freed with another layout (address {address}, capacity 104, size 200)";
    wrong_size_of_a_stray: "freed with another layout (address {address}, capacity 104, size 200)";
    wrong_size_of_a_span: "freed with another layout (address {address}, capacity 114696, size 100)";
    wrong_size_of_a_mapping: "freed with another layout (address {address}, capacity 3000000, size 3000001)";
    mapping_freed_as_small: "freed with another layout (address {address}, capacity 3000000, size 100)";
    small_freed_as_mapping: "freed with another layout (address {address}, capacity 104, size 3000000)";
    wrong_alignment_of_a_stray: "freed with another layout (address {address}, capacity 72, size 64)";
    over_aligned_freed_as_plain: "freed with another layout (address {address}, capacity {capacity}, size 64)";
    realloc_with_the_wrong_size: "freed with another layout (address {address}, capacity 104, size 200)";

    interior_of_a_slab: "not a block of this allocator (address {address})";
    interior_of_a_region: "not a block of this allocator (address {address})";
    interior_of_a_span: "not a block of this allocator (address {address})";
    interior_of_a_span_on_a_later_page: "not a block of this allocator (address {address})";
    interior_of_a_mapping: "not a block of this allocator (address {address})";
    unaligned: "not a block of this allocator (address {address})";
    unaligned_in_a_request: "not a block of this allocator (address {address})";
    on_the_stack: "not a block of this allocator (address {address})";
    on_the_stack_of_a_new_thread: "not a block of this allocator (address {address})";
    a_static: "not a block of this allocator (address {address})";
    from_mmap: "not a block of this allocator (address {address})";
    first_page: "not a block of this allocator (address 0x10)";
    non_canonical: "not a block of this allocator (address 0x8000000000000010)";
    first_of_a_chunk: "not a block of this allocator (address {address})";
    first_of_a_mapping: "not a block of this allocator (address {address})";
    behind_a_mapping: "not a block of this allocator (address {address})";
    resize_of_the_first_page: "not a block of this allocator (address 0x10)";
    persist_of_the_stack: "not a block of this allocator (address {address})";

    overrun_by_one_in_a_slab: "header overwritten (address {address}, header {header})";
    overrun_by_eight_in_a_slab: "header overwritten (address {address}, header {header})";
    overrun_by_one_in_a_region: "header overwritten (address {address}, header {header})";
    overrun_by_eight_in_a_region: "header overwritten (address {address}, header {header})";
    overrun_with_zeros_in_a_slab: "header overwritten (address {address}, header {header})";
    overrun_with_zeros_in_a_region: "header overwritten (address {address}, header {header})";
    overrun_found_by_close: "header overwritten (address {address}, header {header})";

    freed_after_end: "block of an ended request (address {address}, request {request})";
    freed_after_end_of_a_name: "block of an ended request (address {address}, request {request}, name GET /)";
    freed_after_end_by_another_thread: "block of an ended request (address {address}, request {request})";
    freed_in_the_next_request: "block of an ended request (address {address}, request {request})";
    freed_in_the_outer_request: "block of an ended request (address {address}, request {request})";
    span_freed_after_end: "block of an ended request (address {address}, request {request})";
    mapping_freed_after_end: "block of an ended request (address {address}, request {request})";
    over_aligned_freed_after_end: "block of an ended request (address {address}, request {request})";
    resized_after_end: "block of an ended request (address {address}, request {request})";
    header_of_a_request_long_ago: "block of an ended request (address {address}, request of long ago)";
    header_of_a_request_that_never_was: "header overwritten (address {address}, header {header})";
    freed_after_trim: "not a block of this allocator (address {address})";

    efree_of_a_persistent_block: "wrong family (address {address}, block persistent, freed as request)";
    efree_of_a_persistent_block_in_a_request: "wrong family (address {address}, block persistent, freed as request)";
    efree_of_a_box: "wrong family (address {address}, block persistent, freed as request)";
    erealloc_of_a_persistent_block: "wrong family (address {address}, block persistent, freed as request)";
    pefree_of_a_request_s_block: "wrong family (address {address}, block of a request, freed as persistent)";
    pefree_of_a_request_s_span: "wrong family (address {address}, block of a request, freed as persistent)";
    pefree_of_a_request_s_mapping: "wrong family (address {address}, block of a request, freed as persistent)";
    pefree_of_an_early_block: "wrong family (address {address}, block of a request, freed as persistent)";
    perealloc_of_a_request_s_block: "wrong family (address {address}, block of a request, freed as persistent)";
    efree_twice: "double free (address {address})";
    efree_twice_of_an_early_block: "double free (address {address})";
    pefree_twice: "double free (address {address})";
    efree_of_the_stack: "not a block of this allocator (address {address})";
    efree_of_a_page: "not a block of this allocator (address {address})";
    efree_of_an_interior: "not a block of this allocator (address {address})";
    efree_after_end: "block of an ended request (address {address}, request {request})";
    block_size_of_the_stack: "not a block of this allocator (address {address})";
    emalloc_over_the_limit: "memory limit reached (limit 1048576, in use 16384, asked 2000000)";
    emalloc_without_memory: "out of memory (asked 18446744073709551615)";
    safe_emalloc_overflow: "integer overflow in an allocation (count 9, size 18446744073709551615, offset 3)";
}

/// The faults.
mod child {
    use super::*;
    use rqmalloc::zend;

    fn efree(block: *mut u8) {
        // SAFETY: none: the fault is the case.
        unsafe { zend::efree(block) };
    }

    fn pefree(block: *mut u8) {
        // SAFETY: none: the fault is the case.
        unsafe { zend::pefree(block, true) };
    }

    fn told(block: *mut u8) -> *mut u8 {
        tell_address(block);
        block
    }

    pub fn efree_of_a_persistent_block() {
        efree(told(zend::pemalloc(100, true)));
    }

    pub fn efree_of_a_persistent_block_in_a_request() {
        rqmalloc::begin_request();
        efree(told(zend::pemalloc(100, true)));
    }

    pub fn efree_of_a_box() {
        let block = Box::into_raw(Box::new([0u8; 50])).cast();
        rqmalloc::begin_request();
        efree(told(block));
    }

    pub fn erealloc_of_a_persistent_block() {
        let block = told(zend::pemalloc(100, true));
        // SAFETY: none: the fault is the case.
        unsafe { zend::erealloc(block, 200) };
    }

    pub fn pefree_of_a_request_s_block() {
        rqmalloc::begin_request();
        pefree(told(zend::emalloc(100)));
    }

    pub fn pefree_of_a_request_s_span() {
        rqmalloc::begin_request();
        pefree(told(zend::emalloc(100_000)));
    }

    pub fn pefree_of_a_request_s_mapping() {
        rqmalloc::begin_request();
        pefree(told(zend::emalloc(3_000_000)));
    }

    pub fn pefree_of_an_early_block() {
        pefree(told(zend::emalloc(100)));
    }

    pub fn perealloc_of_a_request_s_block() {
        rqmalloc::begin_request();
        let block = told(zend::emalloc(100));
        // SAFETY: none: the fault is the case.
        unsafe { zend::perealloc(block, 200, true) };
    }

    pub fn efree_twice() {
        rqmalloc::begin_request();
        let block = told(zend::emalloc(100));
        efree(block);
        efree(block);
    }

    pub fn efree_twice_of_an_early_block() {
        let block = told(zend::emalloc(100));
        efree(block);
        efree(block);
    }

    pub fn pefree_twice() {
        let block = told(zend::pemalloc(100, true));
        pefree(block);
        pefree(block);
    }

    pub fn efree_of_the_stack() {
        rqmalloc::begin_request();
        let mut place = [0u128; 4];
        efree(told((&raw mut place[1]).cast()));
    }

    pub fn efree_of_a_page() {
        rqmalloc::begin_request();
        // SAFETY: a fresh mapping; the word before it may not exist.
        let page = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), 4096, access, flags, -1, 0)
        };
        efree(told(page.cast()));
    }

    pub fn efree_of_an_interior() {
        rqmalloc::begin_request();
        let block = zend::emalloc(100);
        efree(told(block.wrapping_add(16)));
    }

    pub fn efree_after_end() {
        tell_request(rqmalloc::begin_request());
        let block = told(zend::emalloc(100));
        let _ = end();
        efree(block);
    }

    /// A size that no fast path takes: the address is judged before anything is read through it.
    const LARGE: usize = 3 << 20;
    const CHUNK: usize = 4 << 20;

    fn free_address(address: usize) {
        tell_address(std::ptr::without_provenance(address));
        free(std::ptr::without_provenance_mut(address), LARGE, 8);
    }

    pub fn first_page() {
        free_address(16);
    }

    pub fn non_canonical() {
        free_address(0x8000_0000_0000_0010);
    }

    pub fn first_of_a_chunk() {
        // The word before it is in whatever is mapped there, if anything is.
        free_address(take(100, 8).addr() / CHUNK * CHUNK);
    }

    pub fn first_of_a_mapping() {
        free_address(take(LARGE, 8).addr() / CHUNK * CHUNK);
    }

    pub fn behind_a_mapping() {
        // Still in the chunk that the mapping begins in.
        free_address(take(2 << 20, 8).addr() / CHUNK * CHUNK + LARGE + 16);
    }

    pub fn resize_of_the_first_page() {
        let block = std::ptr::without_provenance_mut(16);
        // SAFETY: none: the process must end.
        unsafe { RqMalloc.realloc(block, layout(LARGE, 8), 2 * LARGE) };
    }

    pub fn block_size_of_the_stack() {
        let place = [0u128; 4];
        let address: *const u8 = (&raw const place[1]).cast();
        tell_address(address);
        // SAFETY: none: the process must end.
        unsafe { zend::block_size(address) };
    }

    pub fn emalloc_over_the_limit() {
        let request = Request::builder().memory_limit(1 << 20).build();
        request.run(|| {
            zend::emalloc(10);
            zend::emalloc(2_000_000)
        });
    }

    pub fn emalloc_without_memory() {
        zend::emalloc(usize::MAX);
    }

    pub fn safe_emalloc_overflow() {
        zend::safe_emalloc(9, usize::MAX, 3);
    }

    fn twice(size: usize, align: usize) {
        let block = take(size, align);
        tell_address(block);
        free(block, size, align);
        free(block, size, align);
    }

    pub fn double_free_at_once() {
        twice(100, 8);
    }

    pub fn double_free_later() {
        let before: [_; 20] = std::array::from_fn(|_| take(100, 8));
        let block = take(100, 8);
        tell_address(block);
        free(block, 100, 8);
        for other in before {
            free(other, 100, 8);
        }
        for size in 1..1000 {
            free(take(size + 200, 8), size + 200, 8);
        }
        free(block, 100, 8);
    }

    pub fn double_free_from_another_thread() {
        let block = take(100, 8);
        tell_address(block);
        free(block, 100, 8);
        free_elsewhere(block, 100, 8);
    }

    pub fn double_free_after_the_thread_exited() {
        let block = take(100, 8);
        tell_address(block);
        free_elsewhere(block, 100, 8);
        free(block, 100, 8);
    }

    pub fn double_free_of_a_span() {
        twice(100_000, 8);
    }

    pub fn double_free_of_a_mapping() {
        twice(3_000_000, 8);
    }

    pub fn free_of_a_mapping_that_is_gone() {
        let block = take(3_000_000, 8);
        tell_address(block);
        free(block, 3_000_000, 8);
        rqmalloc::trim();
        free(block, 3_000_000, 8);
    }

    pub fn double_free_over_aligned() {
        twice(100, 4096);
    }

    pub fn double_free_over_aligned_span() {
        twice(100_000, 65_536);
    }

    pub fn double_free_over_aligned_mapping() {
        twice(100, 2 << 20);
    }

    pub fn double_free_in_a_request() {
        rqmalloc::begin_request();
        twice(100, 8);
    }

    pub fn double_free_in_a_request_of_a_span() {
        rqmalloc::begin_request();
        twice(100_000, 8);
    }

    pub fn double_free_in_a_request_of_a_mapping() {
        rqmalloc::begin_request();
        twice(3_000_000, 8);
    }

    pub fn double_free_in_a_request_over_aligned() {
        rqmalloc::begin_request();
        twice(100, 4096);
    }

    pub fn double_free_of_a_stray() {
        let request = Request::new();
        let block = request.run(|| take(100, 8));
        tell_address(block);
        free_elsewhere(block, 100, 8);
        free_elsewhere(block, 100, 8);
    }

    pub fn double_free_of_a_stray_in_its_request() {
        rqmalloc::begin_request();
        let block = take(100, 8);
        tell_address(block);
        free_elsewhere(block, 100, 8);
        free(block, 100, 8);
    }

    pub fn double_free_of_a_persistent_block_in_a_request() {
        let block = take(100, 8);
        tell_address(block);
        rqmalloc::begin_request();
        free(block, 100, 8);
        free(block, 100, 8);
    }

    pub fn double_free_of_a_kept_block() {
        rqmalloc::begin_request();
        let (block, neighbour) = (take(100, 8), take(100, 8));
        tell_address(block);
        // SAFETY: live blocks.
        unsafe {
            rqmalloc::persist(block);
            rqmalloc::persist(neighbour);
        }
        let _ = end();
        free(block, 100, 8);
        free(block, 100, 8);
    }

    pub fn double_free_of_a_survivor() {
        rqmalloc::begin_request();
        let (block, _neighbour) = (take(100, 8), take(100, 8));
        tell_address(block);
        let _ = rqmalloc::close_request();
        free(block, 100, 8);
        free(block, 100, 8);
    }

    pub fn realloc_after_free() {
        let block = take(100, 8);
        tell_address(block);
        free(block, 100, 8);
        // SAFETY: none: that is what is tested.
        unsafe { RqMalloc.realloc(block, layout(100, 8), 300) };
    }

    pub fn persist_after_free() {
        rqmalloc::begin_request();
        let block = take(100, 8);
        tell_address(block);
        free(block, 100, 8);
        // SAFETY: none: that is what is tested.
        unsafe { rqmalloc::persist(block) };
    }

    /// Allocates with one layout and frees with another.
    fn as_another(size: usize, align: usize, freed_size: usize, freed_align: usize) {
        let block = take(size, align);
        tell_address(block);
        free(block, freed_size, freed_align);
    }

    pub fn wrong_size() {
        as_another(100, 8, 200, 8);
    }

    pub fn wrong_size_in_a_request() {
        rqmalloc::begin_request();
        as_another(100, 8, 200, 8);
    }

    pub fn wrong_size_of_a_stray() {
        let request = Request::new();
        let block = request.run(|| take(100, 8));
        tell_address(block);
        free_elsewhere(block, 200, 8);
    }

    pub fn wrong_size_of_a_span() {
        as_another(100_000, 8, 100, 8);
    }

    pub fn wrong_size_of_a_mapping() {
        as_another(3_000_000, 8, 3_000_001, 8);
    }

    pub fn mapping_freed_as_small() {
        as_another(3_000_000, 8, 100, 8);
    }

    pub fn small_freed_as_mapping() {
        as_another(100, 8, 3_000_000, 8);
    }

    pub fn wrong_alignment_of_a_stray() {
        // In its own lifetime it goes unnoticed and does no harm: the class is the right one.
        let request = Request::new();
        let block = request.run(|| take(64, 8));
        tell_address(block);
        free_elsewhere(block, 64, 4096);
    }

    fn usable_size(block: *const u8) -> usize {
        // SAFETY: the callers pass live blocks.
        unsafe { rqmalloc::usable_size(block) }
    }

    pub fn over_aligned_freed_as_plain() {
        // Two, because one of them may lie at the alignment by chance.
        let block = [take(64, 4096), take(64, 4096)]
            .into_iter()
            .find(|block| usable_size(*block) < payload_for(64 + 4096 - 16))
            .unwrap();
        tell_address(block);
        tell("capacity", format_args!("{}", usable_size(block)));
        free(block, 64, 8);
    }

    pub fn realloc_with_the_wrong_size() {
        let block = take(100, 8);
        tell_address(block);
        // SAFETY: none: that is what is tested.
        unsafe { RqMalloc.realloc(block, layout(200, 8), 300) };
    }

    /// Frees an address inside a block that is full of zeros.
    fn inside(size: usize, distance: usize) {
        let block = take(size, 8);
        // SAFETY: the block has `size` bytes, and `distance` is less.
        let interior = unsafe {
            block.write_bytes(0, size);
            block.add(distance)
        };
        tell_address(interior);
        free(interior, size - distance, 8);
    }

    pub fn interior_of_a_slab() {
        inside(200, 32);
    }

    pub fn interior_of_a_region() {
        rqmalloc::begin_request();
        inside(200, 32);
    }

    pub fn interior_of_a_span() {
        inside(100_000, 64);
    }

    pub fn interior_of_a_span_on_a_later_page() {
        inside(100_000, 65_536);
    }

    pub fn interior_of_a_mapping() {
        inside(3_000_000, 1 << 20);
    }

    pub fn unaligned() {
        inside(100, 3);
    }

    pub fn unaligned_in_a_request() {
        rqmalloc::begin_request();
        inside(100, 3);
    }

    #[repr(align(16))]
    struct Words([u64; 8]);

    pub fn on_the_stack() {
        let mut words = Words([0; 8]);
        let pointer = (&raw mut words.0[2]).cast();
        tell_address(pointer);
        free(pointer, 16, 8);
    }

    /// The thread's first call of the allocator, which does not know the thread yet.
    pub fn on_the_stack_of_a_new_thread() {
        extern "C" fn first(_: *mut libc::c_void) -> *mut libc::c_void {
            let mut words = Words([0; 8]);
            let pointer = (&raw mut words.0[2]).cast();
            tell_address(pointer);
            free(pointer, 8, 8);
            std::ptr::null_mut()
        }
        // SAFETY: a thread without arguments, which is joined.
        unsafe {
            let mut thread = std::mem::zeroed();
            let none: *mut libc::c_void = std::ptr::null_mut();
            libc::pthread_create(&raw mut thread, none.cast(), first, none);
            libc::pthread_join(thread, none.cast());
        }
    }

    pub fn a_static() {
        static mut WORDS: Words = Words([7; 8]);
        // SAFETY: there is one thread, and only the address is used.
        let pointer = unsafe { (&raw mut WORDS.0[4]).cast() };
        tell_address(pointer);
        free(pointer, 16, 8);
    }

    pub fn from_mmap() {
        // SAFETY: an anonymous mapping; the address lies inside it.
        let pointer = unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                65_536,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            base.cast::<u8>().add(4096)
        };
        tell_address(pointer);
        free(pointer, 4096, 8);
    }

    pub fn persist_of_the_stack() {
        let mut words = Words([0; 8]);
        let pointer = (&raw mut words.0[2]).cast();
        tell_address(pointer);
        // SAFETY: none: that is what is tested.
        unsafe { rqmalloc::persist(pointer) };
    }

    /// Overruns the second of three neighbours, and frees it.
    fn overrun_and_free(size: usize, count: usize) {
        let [first, second, _] = in_a_row(size);
        overrun(first, size, count);
        tell_address(second);
        tell_header(second);
        free(second, payload_for(size), 8);
    }

    pub fn overrun_by_one_in_a_slab() {
        overrun_and_free(100, 1);
    }

    pub fn overrun_by_eight_in_a_slab() {
        overrun_and_free(100, 8);
    }

    pub fn overrun_by_one_in_a_region() {
        rqmalloc::begin_request();
        overrun_and_free(100, 1);
    }

    pub fn overrun_by_eight_in_a_region() {
        rqmalloc::begin_request();
        overrun_and_free(100, 8);
    }

    /// Zeroes the header, as a string without room for its terminator does, and frees the block.
    fn zero_and_free(size: usize) {
        let [first, second, _] = in_a_row(size);
        // SAFETY: the word is the next block's header.
        unsafe { first.add(payload_for(size)).write_bytes(0, 8) };
        tell_address(second);
        tell_header(second);
        free(second, payload_for(size), 8);
    }

    pub fn overrun_with_zeros_in_a_slab() {
        zero_and_free(8);
    }

    pub fn overrun_with_zeros_in_a_region() {
        rqmalloc::begin_request();
        zero_and_free(8);
    }

    pub fn overrun_found_by_close() {
        rqmalloc::begin_request();
        let [first, second, _] = in_a_row(100);
        overrun(first, 100, 1);
        tell_address(second);
        tell_header(second);
        let _ = rqmalloc::close_request();
    }

    /// Returns a block of a request that has ended.
    fn ended(size: usize, align: usize) -> *mut u8 {
        let id = rqmalloc::begin_request();
        let block = take(size, align);
        tell_address(block);
        tell_request(id);
        let _ = end();
        block
    }

    pub fn freed_after_end() {
        free(ended(100, 8), 100, 8);
    }

    pub fn freed_after_end_of_a_name() {
        let request = rqmalloc::Request::builder().name("GET /").build();
        tell_request(request.id());
        let block = request.run(|| take(100, 8));
        tell_address(block);
        // SAFETY: what is used later is used in order to be caught.
        let _ = unsafe { request.end() }.unwrap();
        free(block, 100, 8);
    }

    pub fn freed_after_end_by_another_thread() {
        free_elsewhere(ended(100, 8), 100, 8);
    }

    pub fn freed_in_the_next_request() {
        // Not the first block, whose address the next request's first one gets.
        let id = rqmalloc::begin_request();
        take(100, 8);
        let block = take(100, 8);
        tell_address(block);
        tell_request(id);
        let _ = end();
        rqmalloc::begin_request();
        take(50, 8);
        free(block, 100, 8);
    }

    pub fn freed_in_the_outer_request() {
        rqmalloc::begin_request();
        take(100, 8);
        free(ended(100, 8), 100, 8);
    }

    pub fn span_freed_after_end() {
        free(ended(100_000, 8), 100_000, 8);
    }

    pub fn mapping_freed_after_end() {
        free(ended(3_000_000, 8), 3_000_000, 8);
    }

    pub fn over_aligned_freed_after_end() {
        free(ended(100, 4096), 100, 4096);
    }

    pub fn resized_after_end() {
        let block = ended(100, 8);
        // SAFETY: none: that is what is tested.
        unsafe { RqMalloc.realloc(block, layout(100, 8), 300) };
    }

    /// A persistent block with the header of a request's, whose control block and stub are gone.
    pub fn header_of_a_request_long_ago() {
        let persistent = take(100, 8);
        rqmalloc::begin_request();
        // SAFETY: the word before a payload is its header.
        let stale = unsafe { take(100, 8).sub(8).cast::<u64>().read() };
        let _ = end();
        rqmalloc::trim();
        // SAFETY: as above; the header is wrong, that is what is tested.
        unsafe { persistent.sub(8).cast::<u64>().write(stale) };
        tell_address(persistent);
        free(persistent, 100, 8);
    }

    /// The same of the stub's next request, which nobody has opened.
    pub fn header_of_a_request_that_never_was() {
        let persistent = take(100, 8);
        let mut headers = [0; 3];
        for header in &mut headers {
            rqmalloc::begin_request();
            // SAFETY: the word before a payload is its header.
            *header = unsafe { take(100, 8).sub(8).cast::<u64>().read() };
            let _ = end();
        }
        rqmalloc::trim();
        // Ids are scrambled; one with another bit is of a request far away.
        // SAFETY: as above; the header is wrong, that is what is tested.
        unsafe { persistent.sub(8).cast::<u64>().write(headers[0] ^ 1 << 40) };
        tell_address(persistent);
        tell_header(persistent);
        free(persistent, 100, 8);
    }

    pub fn freed_after_trim() {
        // Keeps the chunk mapped.
        let _pin = take(100, 8);
        let block = ended(100, 8);
        rqmalloc::trim();
        free(block, 100, 8);
    }
}
