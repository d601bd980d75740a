//! Figures of blocks and requests, and the memory limit.

use crate::api::stats::Stats;
use crate::c::zend;
use crate::request::limit::{LimitExceeded, LimitKind};
use core::ffi::{c_int, c_void};

/// `rq_limit_error`.
#[repr(C)]
pub struct LimitError {
    limit_bytes: usize,
    in_use_bytes: usize,
    asked_bytes: usize,
    kind: c_int,
}

impl LimitError {
    fn of(limit: &LimitExceeded) -> Self {
        let &LimitExceeded { kind, parent: _, limit_bytes, in_use_bytes, asked_bytes } = limit;
        let kind = match kind {
            LimitKind::Memory => 0,
            LimitKind::Soft => 1,
            LimitKind::Process => 2,
        };
        Self { limit_bytes, in_use_bytes, asked_bytes, kind }
    }
}

/// Returns whether there is no error, and writes it to `place`.
///
/// # Safety
/// `place` is null or writable.
unsafe fn is_below(checked: Result<(), LimitExceeded>, place: *mut LimitError) -> bool {
    let Err(limit) = checked else { return true };
    if !place.is_null() {
        // SAFETY: the caller's contract.
        unsafe { place.write(LimitError::of(&limit)) };
    }
    false
}

/// `rq_process_stats`.
#[repr(C)]
pub struct ProcessStats {
    mapped_bytes: usize,
    in_use_bytes: usize,
    live_bytes: usize,
    adopted_bytes: usize,
    descriptor_bytes: usize,
    cached_bytes: usize,
    thread_cache_bytes: usize,
    thread_cache_credit_bytes: usize,
    depot_bytes: usize,
    slab_bytes: usize,
    warm_bytes: usize,
    cached_mapping_bytes: usize,
    free_bytes: usize,
    free_resident_bytes: usize,
    open_request_count: u64,
}

/// Writes what the process uses.
///
/// # Safety
/// `place` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_stats(place: *mut ProcessStats) {
    let Stats {
        mapped_bytes,
        in_use_bytes,
        live_bytes,
        adopted_bytes,
        descriptor_bytes,
        cached_bytes,
        thread_cache_bytes,
        thread_cache_credit_bytes,
        depot_bytes,
        slab_bytes,
        warm_bytes,
        cached_mapping_bytes,
        free_bytes,
        free_resident_bytes,
        open_request_count,
    } = crate::stats();
    // SAFETY: the caller's contract.
    unsafe {
        place.write(ProcessStats {
            mapped_bytes,
            in_use_bytes,
            live_bytes,
            adopted_bytes,
            descriptor_bytes,
            cached_bytes,
            thread_cache_bytes,
            thread_cache_credit_bytes,
            depot_bytes,
            slab_bytes,
            warm_bytes,
            cached_mapping_bytes,
            free_bytes,
            free_resident_bytes,
            open_request_count,
        });
    }
}

/// Gives the idle memory of the process back.
#[unsafe(no_mangle)]
pub extern "C" fn rq_trim() -> usize {
    crate::trim()
}

/// Sets what the process should have in use at most.
#[unsafe(no_mangle)]
pub extern "C" fn rq_set_process_limit(bytes: usize) {
    crate::set_process_limit((bytes != usize::MAX).then_some(bytes));
}

/// Returns whether the process is below its limit.
///
/// # Safety
/// `error` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_check_process(error: *mut LimitError) -> bool {
    // SAFETY: the caller's contract.
    unsafe { is_below(crate::check_process(), error) }
}

/// `zend_mem_block_size`.
///
/// # Safety
/// `pointer` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_block_size(pointer: *const c_void) -> usize {
    // SAFETY: the caller's contract.
    unsafe { zend::block_size(pointer.cast()) }
}

/// `is_zend_ptr`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_is_ours(pointer: *const c_void) -> bool {
    zend::is_ours(pointer.cast())
}

/// `zend_memory_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_usage(real: bool) -> usize {
    zend::memory_usage(real)
}

/// `zend_memory_peak_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_peak_usage(real: bool) -> usize {
    zend::memory_peak_usage(real)
}

/// `zend_memory_reset_peak_usage`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_memory_reset_peak_usage() {
    zend::memory_reset_peak_usage();
}

/// `zend_set_memory_limit`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_set_memory_limit(bytes: usize) -> bool {
    zend::set_memory_limit(bytes).is_ok()
}

/// `zend_mm_gc`.
#[unsafe(no_mangle)]
pub extern "C" fn rq_gc() -> usize {
    zend::gc()
}

/// Returns whether this thread's request is below its mark.
///
/// # Safety
/// `error` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rq_check(error: *mut LimitError) -> bool {
    // SAFETY: the caller's contract.
    unsafe { is_below(crate::check(), error) }
}
