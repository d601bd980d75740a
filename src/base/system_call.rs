//! System calls made without the C library's wrappers: most of those are cancellation points, and a
//! thread cancelled inside the allocator would never release what it holds.

/// Returns the address of this thread's `errno`.
#[cfg(target_os = "linux")]
fn errno_place() -> *mut i32 {
    // SAFETY: always callable; the result is this thread's.
    unsafe { libc::__errno_location() }
}

/// Returns the address of this thread's `errno`.
#[cfg(target_os = "macos")]
fn errno_place() -> *mut i32 {
    // SAFETY: always callable; the result is this thread's.
    unsafe { libc::__error() }
}

/// Returns the error of this thread's last call.
pub fn errno() -> i32 {
    // SAFETY: `errno` is this thread's own.
    unsafe { *errno_place() }
}

/// Runs `call` and leaves the thread's `errno` as it was: callers of `malloc` and of Rust's
/// allocator do not expect it to change.
pub fn keeping_errno<R>(call: impl FnOnce() -> R) -> R {
    let place = errno_place();
    // SAFETY: `errno` is this thread's own and stays valid.
    let before = unsafe { *place };
    let result = call();
    // SAFETY: as above.
    unsafe { *place = before };
    result
}

/// The file descriptor of standard error.
const STANDARD_ERROR: libc::c_int = 2;

/// Writes all bytes to standard error, until an error other than an interruption.
pub fn write_to_standard_error(mut bytes: &[u8]) {
    keeping_errno(|| {
        while !bytes.is_empty() {
            match write_some(bytes) {
                Some(count) => bytes = bytes.get(count..).unwrap_or_default(),
                None if errno() == libc::EINTR => {}
                None => return,
            }
        }
    });
}

/// Writes some of the bytes and returns how many, at least one; `None` on an error.
fn write_some(bytes: &[u8]) -> Option<usize> {
    #[cfg(target_os = "linux")]
    // SAFETY: the bytes are readable.
    let count = unsafe {
        libc::syscall(libc::SYS_write, STANDARD_ERROR, bytes.as_ptr(), bytes.len()) as isize
    };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the bytes are readable.
    let count = unsafe { libc::write(STANDARD_ERROR, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(count).ok().filter(|&count| count > 0)
}

/// Gives the processor up for this long, also to threads of lower priority, which yielding would
/// not do.
pub fn sleep(nanoseconds: u32) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds.into() };
    keeping_errno(|| {
        #[cfg(target_os = "linux")]
        // SAFETY: the time is readable; the time left after a signal is not asked for.
        unsafe {
            libc::syscall(libc::SYS_nanosleep, &raw const time, core::ptr::null_mut::<u8>());
        }
        #[cfg(not(target_os = "linux"))]
        // SAFETY: as above.
        unsafe {
            libc::nanosleep(&raw const time, core::ptr::null_mut());
        }
    });
}

/// Fills `value` with random bytes, if the system has them without waiting.
pub fn random_bytes(value: &mut [u8; 8]) {
    #[cfg(target_os = "linux")]
    keeping_errno(|| {
        // SAFETY: the buffer is eight writable bytes.
        unsafe {
            libc::syscall(libc::SYS_getrandom, value.as_mut_ptr(), value.len(), libc::GRND_NONBLOCK)
        }
    });
    #[cfg(target_os = "macos")]
    // SAFETY: the buffer is eight writable bytes.
    unsafe {
        libc::arc4random_buf(value.as_mut_ptr().cast(), value.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::dying::last_words;

    extern "C" fn ignore(_signal: libc::c_int) {}

    /// A timer keeps interrupting a write that fills the pipe.
    #[test]
    fn a_line_is_written_whole_though_writes_are_short_and_interrupted() {
        const LINE_BYTES: usize = 8 << 20;
        let line = std::vec![b'x'; LINE_BYTES];
        let (said, status) = last_words(|| {
            let every = libc::timeval { tv_sec: 0, tv_usec: 200 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            // SAFETY: zeros are an action without flags, which lets it interrupt system calls.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
                libc::sigaction(libc::SIGALRM, &raw const action, core::ptr::null_mut());
                libc::setitimer(libc::ITIMER_REAL, &raw const timer, core::ptr::null_mut());
            }
            write_to_standard_error(&line);
        });
        assert_eq!((said.len(), status), (LINE_BYTES, 0));
    }
}
