use rqmalloc_benches::Hooks;
use std::process::ExitCode;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

fn begin() {
    rqmalloc::begin_request();
}

/// # Safety
///
/// As `rqmalloc::end_request`.
unsafe fn end() {
    // SAFETY: the caller's promise.
    let _ = unsafe { rqmalloc::end_request() };
}

fn main() -> ExitCode {
    assert!(rqmalloc::is_installed());
    rqmalloc_benches::main(Some(Hooks { begin, end }))
}
