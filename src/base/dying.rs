//! Child processes of unit tests that die with a line on standard error.

use std::string::String;

/// Runs `die` in a forked process. Returns what it writes to standard error and how it ends (the
/// status from `waitpid`).
pub fn last_words(die: impl FnOnce()) -> (String, i32) {
    let mut pipe = [0; 2];
    // SAFETY: `pipe` is writable; the child runs only system calls and what is under test.
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
        // Let a long line fill the pipe, so that its writer has to wait.
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
