//! Figures of blocks and requests, and the memory limit.

use crate::c::zend;
use core::ffi::c_void;

/// `rq_limit_error`.
#[repr(C)]
pub struct LimitError {
    limit_bytes: usize,
    in_use_bytes: usize,
    asked_bytes: usize,
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
    let Err(limit) = crate::check() else { return true };
    if !error.is_null() {
        // SAFETY: the caller's contract.
        unsafe {
            error.write(LimitError {
                limit_bytes: limit.limit_bytes,
                in_use_bytes: limit.in_use_bytes,
                asked_bytes: limit.asked_bytes,
            });
        }
    }
    false
}
