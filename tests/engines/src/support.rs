//! What the programs of hosts share.
#![allow(dead_code, reason = "a program uses a part")]

/// What a program may grow by between its first requests and its last, in bytes: a chunk, by which
/// the allocator grows. All of the requests hold a hundred times as much.
const GROWTH_BYTES: usize = 4 << 20;

/// Returns the bytes of the process that are resident.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

/// Runs `request` so many times, and fails if the last nine tenths of them leave memory behind.
pub fn stays_flat(name: &str, count: usize, request: impl FnMut(usize)) {
    grows_less(name, count, GROWTH_BYTES, request);
}

/// The same, where the first tenth do not need as much at once as others may.
pub fn grows_less(name: &str, count: usize, growth_bytes: usize, mut request: impl FnMut(usize)) {
    (0..count / 10).for_each(&mut request);
    let before = resident_bytes();
    (count / 10..count).for_each(&mut request);
    let after = resident_bytes();
    println!("{name}: {count} times, {} KiB resident, then {}", before >> 10, after >> 10);
    assert!(after <= before + growth_bytes, "{name}: resident memory grows");
    assert!(rqmalloc::open_requests().is_empty(), "{name}: a request is open");
}
