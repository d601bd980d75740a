//! A library in Rust whose allocator is rqmalloc; unload_host opens and closes it.

use rqmalloc::{Request, RqMalloc};

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

/// Allocates on the caller's thread; returns 1 if all is well.
#[unsafe(no_mangle)]
pub extern "C" fn use_memory() -> i32 {
    let kept: Vec<u64> = (0..100).collect();
    let request = Request::builder().build();
    let copy = {
        let _inside = request.enter();
        kept.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
    };
    let is_well = copy.starts_with("0 1 2") && copy.ends_with("98 99");
    drop((copy, request));
    i32::from(is_well)
}
