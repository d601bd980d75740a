//! Children of unit tests that end with a line on standard error.

use std::string::String;

/// Runs `die` in a forked process: what it writes to standard error, and how it ends (the status of
/// `waitpid`).
pub fn last_words(die: impl FnOnce()) -> (String, i32) {
    let mut pipe = [0; 2];
    // SAFETY: `pipe` is writable; the child uses system calls and what is tested.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::dup2(pipe[1], 2);
            libc::alarm(20);
            die();
            libc::_exit(0);
        }
        libc::close(pipe[1]);
        // Long lines wait for their reader.
        std::thread::sleep(std::time::Duration::from_millis(5));
        let mut said = std::vec::Vec::new();
        let mut part = [0_u8; 4096];
        loop {
            let count = libc::read(pipe[0], part.as_mut_ptr().cast(), part.len());
            let Ok(count) = usize::try_from(count) else { continue };
            if count == 0 {
                break;
            }
            said.extend_from_slice(&part[..count]);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        libc::close(pipe[0]);
        (String::from_utf8_lossy(&said).into_owned(), status)
    }
}
