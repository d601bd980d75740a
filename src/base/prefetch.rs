//! Telling the processor what is needed soon.

/// Has the cache line of an address fetched, for reading and writing, while the program goes on. Any
/// address will do: nothing is read.
#[inline(always)]
pub fn prefetch<T>(pointer: *const T) {
    // SAFETY: the instruction has no effect that a program can see.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = pointer;
}
