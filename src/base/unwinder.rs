//! A walk up the stack with the unwinder that std is linked with. On glibc it takes no lock and
//! allocates nothing.

use core::ffi::{c_int, c_void};

/// The unwinder's view of a frame, valid during the visit.
#[repr(C)]
pub struct Frame {
    _opaque: [u8; 0],
}

/// `_URC_NO_REASON`.
const GO_ON: c_int = 0;
/// `_URC_NORMAL_STOP`.
const STOP: c_int = 4;

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: unsafe extern "C" fn(*mut Frame, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetRegionStart(frame: *mut Frame) -> usize;
    #[cfg(feature = "capi")]
    fn _Unwind_GetCFA(frame: *mut Frame) -> usize;
    #[cfg(feature = "capi")]
    fn _Unwind_GetIP(frame: *mut Frame) -> usize;
}

impl Frame {
    fn pointer(&mut self) -> *mut Self {
        self
    }

    /// Returns the address at which its function begins.
    pub fn function(&mut self) -> usize {
        // SAFETY: the unwinder's own frame, passed on by `walk`.
        unsafe { _Unwind_GetRegionStart(self.pointer()) }
    }

    /// Returns its stack pointer at its call of the frame visited before.
    #[cfg(feature = "capi")]
    pub fn stack(&mut self) -> usize {
        // SAFETY: as above.
        unsafe { _Unwind_GetCFA(self.pointer()) }
    }

    /// Returns the address to which that call returns.
    #[cfg(feature = "capi")]
    pub fn returns_to(&mut self) -> usize {
        // SAFETY: as above.
        unsafe { _Unwind_GetIP(self.pointer()) }
    }
}

/// Visits this thread's frames, innermost first, until `visit` returns `true`.
pub fn walk(mut visit: impl FnMut(&mut Frame) -> bool) {
    /// # Safety
    /// `frame` is the unwinder's, and `data` points to an `F` that nothing else uses.
    unsafe extern "C" fn step<F: FnMut(&mut Frame) -> bool>(
        frame: *mut Frame,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: the caller's contract.
        let is_enough = unsafe { (*data.cast::<F>())(&mut *frame) };
        if is_enough { STOP } else { GO_ON }
    }
    fn step_of<F: FnMut(&mut Frame) -> bool>(
        _visit: &F,
    ) -> unsafe extern "C" fn(*mut Frame, *mut c_void) -> c_int {
        step::<F>
    }
    let step = step_of(&visit);
    // SAFETY: `step` is called with each frame and `visit`, which outlives the call.
    unsafe { _Unwind_Backtrace(step, (&raw mut visit).cast()) };
}
