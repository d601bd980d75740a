//! Captures standard error, for a test that has its process to itself.

/// Returns what `f` writes to standard error.
pub fn standard_error_of(f: impl FnOnce()) -> String {
    use std::io::{Read, Seek};
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: plain calls; nobody else has the new file.
    let mut file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"error".as_ptr(), 0)) };
    // SAFETY: as above.
    unsafe {
        let before = libc::dup(2);
        libc::dup2(file.as_raw_fd(), 2);
        f();
        libc::dup2(before, 2);
        libc::close(before);
    }
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
