//! What a process may do and have: few addresses, no overcommitment, and only the system calls that
//! the README names.
#![allow(missing_docs)]

use rqmalloc::{Request, RqMalloc, stats};
use std::hint::black_box;
use std::process::ExitCode;

#[path = "support/children.rs"]
mod children;

use children::cases;

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

const PATIENCE_SECONDS: u32 = 60;
const MIB: usize = 1 << 20;

#[cfg(target_os = "linux")]
cases! {
    works_below_any_limit_of_addresses;
    a_small_program_needs_few_addresses;
    many_mapped_blocks_are_few_mappings;
    blocks_have_exact_lengths_below_a_limit_of_addresses;
    other_system_calls_are_refused;
    other_system_calls_kill;
    a_call_that_is_not_named_is_refused;
    works_without_overcommitment;
}
#[cfg(not(target_os = "linux"))]
cases! {
    works_below_any_limit_of_addresses;
}

fn main() -> ExitCode {
    children::run(CASES, PATIENCE_SECONDS)
}

// ---- helpers ---------------------------------------------------------------------------------

/// Takes memory of every kind, as safe code does that is ready for a refusal, and gives it back.
/// Returns how many allocations were refused.
fn exercise(seed: usize) -> usize {
    let mut refused = 0;
    let mut take = |size: usize| {
        let mut vector: Vec<u8> = Vec::new();
        match vector.try_reserve_exact(size) {
            Ok(()) => {
                vector.push(size as u8);
                vector.resize(size, 1);
            }
            Err(_) => refused += 1,
        }
        vector
    };
    let mut sizes = [0; 40];
    for (index, size) in sizes.iter_mut().enumerate() {
        *size = 1 + (index * 7919 + seed * 104_729) % [100, 5_000, 60_000, 600_000][index % 4];
    }
    // Arrays, because a vector of vectors could be refused, too.
    let outside = sizes.map(&mut take);
    let mut mapped = [2 * MIB, 3 * MIB].map(&mut take);
    for vector in &mut mapped {
        let _ = vector.try_reserve_exact(5 * MIB);
        vector.truncate(10);
        vector.shrink_to_fit();
    }
    let request = Request::new();
    let inside = request.run(|| sizes.map(&mut take));
    for vector in outside.iter().chain(&inside).filter(|vector| !vector.is_empty()) {
        assert!(vector[1..].iter().all(|&byte| byte == 1) && vector[0] == vector.len() as u8);
    }
    drop((outside, mapped));
    let survivors = inside.iter().filter(|vector| vector.capacity() > 0).count() as u64;
    assert_eq!(request.close().unwrap().surviving_blocks, survivors);
    drop(inside);

    rqmalloc::begin_request();
    black_box(sizes.map(&mut take)).into_iter().for_each(std::mem::forget);
    // SAFETY: its blocks are forgotten.
    let _ = unsafe { rqmalloc::end_request() };
    rqmalloc::trim();
    rqmalloc::check_structures();
    let stats = stats();
    assert_eq!(
        stats.mapped_bytes,
        stats.in_use_bytes + stats.cached_bytes + stats.free_bytes,
        "{stats}"
    );
    refused
}

/// Runs `f` in a forked process; returns how that ended.
fn status_of(f: impl FnOnce()) -> i32 {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        // SAFETY: plain system calls; alarms are not inherited.
        unsafe { libc::alarm(PATIENCE_SECONDS / 2) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(result.is_err())) }
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

fn limit_addresses(bytes: usize) {
    let limit = libc::rlimit { rlim_cur: bytes as _, rlim_max: bytes as _ };
    // SAFETY: a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

/// Returns the bytes of addresses that this process has.
fn addresses() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096
}

// ---- addresses -------------------------------------------------------------------------------

/// From plenty of addresses down to none beyond what the process has: allocations are refused, and
/// nothing else happens.
fn works_below_any_limit_of_addresses() {
    let have = if cfg!(target_os = "linux") { addresses() } else { 1 << 32 };
    for more in [512, 64, 32, 16, 12, 9, 8, 6, 5, 4, 3, 2, 1, 0] {
        let status = status_of(|| {
            limit_addresses(have + more * MIB);
            let refused: usize = (0..4).map(exercise).sum();
            if more == 512 {
                assert_eq!(refused, 0, "there is plenty");
            }
        });
        assert_eq!(status, 0, "{more} MiB of addresses beyond what the process has");
    }
}

/// The first chunk is mapped by and by: a process whose allocator is not used yet does its first
/// work in a megabyte, and more in a few.
#[cfg(target_os = "linux")]
fn a_small_program_needs_few_addresses() {
    rqmalloc::trim();
    let before = addresses();
    let blocks: Vec<Vec<u8>> = (0..1000).map(|size| vec![1; size]).collect();
    let after = addresses();
    drop(blocks);
    assert!(after - before <= 2 * MIB, "{} KiB for half a megabyte", (after - before) >> 10);
    let status = status_of(|| {
        limit_addresses(addresses() + 5 * MIB);
        let blocks: Vec<Vec<u8>> = (0..2000).map(|size| vec![1; size]).collect();
        assert_eq!(blocks.iter().map(Vec::len).sum::<usize>(), 1999 * 1000);
    });
    assert_eq!(status, 0, "2 MiB in 5");
}

#[cfg(target_os = "linux")]
fn mapping_count() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Blocks above 1 MiB lie next to one another, so the kernel joins their mappings; and those freed
/// between others leave few holes.
#[cfg(target_os = "linux")]
fn many_mapped_blocks_are_few_mappings() {
    const COUNT: usize = 20_000;
    let before = mapping_count();
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(COUNT);
    let take = |byte: u8| {
        let mut block = Vec::with_capacity(MIB + 100_000);
        block.push(byte);
        block
    };
    (0..COUNT).for_each(|index| blocks.push(take(index as u8)));
    let live = mapping_count();
    assert!(live < before + 100, "{live} mappings for {COUNT} blocks, {before} without");
    // In an order that is none: half of them go, and the others are counted on.
    let mut seed = 1_usize;
    for index in (1..COUNT).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        blocks.swap(index, (seed >> 33) % (index + 1));
    }
    blocks.truncate(COUNT / 2);
    rqmalloc::trim();
    let half = mapping_count();
    assert!(half < before + 1000, "{half} mappings after half of {COUNT} blocks were freed");
    rqmalloc::check_structures();
    (0..COUNT / 2).for_each(|index| blocks.push(take(index as u8)));
    let again = mapping_count();
    assert!(again < before + 1000, "{again} mappings for {COUNT} blocks");
    drop(blocks);
    rqmalloc::trim();
    rqmalloc::check_structures();
    let after = mapping_count();
    assert!(after < before + 100, "{after} mappings without a block, {before} before");
    let stats = stats();
    assert!(stats.mapped_bytes < 64 * MIB, "{stats}");
}

/// Where addresses are limited, a mapped block takes no more of them than it needs.
#[cfg(target_os = "linux")]
fn blocks_have_exact_lengths_below_a_limit_of_addresses() {
    let status = status_of(|| {
        limit_addresses(addresses() + 100 * MIB);
        let mut blocks = Vec::with_capacity(100);
        for _ in 0..100 {
            let mut block: Vec<u8> = Vec::new();
            if block.try_reserve_exact(MIB + 100_000).is_err() {
                break;
            }
            block.push(1);
            blocks.push(block);
        }
        assert!(blocks.len() > 75, "{} blocks of 1.1 MiB in 100 MiB", blocks.len());
    });
    assert_eq!(status, 0);
}

// ---- system calls ----------------------------------------------------------------------------

#[cfg(target_os = "linux")]
mod system_calls {
    use std::collections::BTreeMap;

    /// Returns the numbers of a system call or function that the README's paragraph names.
    fn numbers_of(name: &str) -> Vec<libc::c_long> {
        match name {
            "mmap" => vec![libc::SYS_mmap],
            "munmap" => vec![libc::SYS_munmap],
            "mremap" => vec![libc::SYS_mremap],
            "madvise" => vec![libc::SYS_madvise],
            "mprotect" => vec![libc::SYS_mprotect],
            "getrandom" => vec![libc::SYS_getrandom],
            "sched_yield" => vec![libc::SYS_sched_yield],
            "write" => vec![libc::SYS_write],
            "futex" => vec![libc::SYS_futex],
            "membarrier" => vec![libc::SYS_membarrier],
            // What the C library calls for it.
            "abort" => vec![
                libc::SYS_rt_sigprocmask,
                libc::SYS_rt_sigaction,
                libc::SYS_gettid,
                libc::SYS_getpid,
                libc::SYS_tgkill,
            ],
            // With this process's number.
            "process_vm_readv" => vec![libc::SYS_process_vm_readv, libc::SYS_getpid],
            "prctl" => vec![libc::SYS_prctl],
            "sigaltstack" => vec![libc::SYS_sigaltstack],
            // Through the vdso: no system call.
            "clock_gettime" => vec![],
            // This program never calls these: it has no try of C, and is not a library.
            "pthread_getattr_np" | "dlopen" => vec![],
            "nanosleep" => vec![libc::SYS_nanosleep, libc::SYS_clock_nanosleep],
            other => panic!("README.md names a system call that this test does not know: {other}"),
        }
    }

    /// Returns the calls that the README's paragraph names.
    pub fn named() -> BTreeMap<String, Vec<libc::c_long>> {
        let readme = include_str!("../README.md");
        let start =
            readme.find("\nSystem calls: ").expect("the README's paragraph of system calls");
        let paragraph = &readme[start + 1..];
        let paragraph = &paragraph[..paragraph.find("\n\n").unwrap()];
        // Names are between backticks; an argument may follow in brackets.
        let quoted = paragraph.split('`').skip(1).step_by(2);
        let names = quoted.map(|quoted| quoted.split('(').next().unwrap().to_string());
        let named: BTreeMap<_, _> = names.map(|name| (name.clone(), numbers_of(&name))).collect();
        assert!(named.contains_key("mmap") && named.len() > 5, "{named:?}");
        named
    }

    /// What a test process itself needs: to exit, to return from signals, to print, and for the C
    /// runtime's unwinder, whose `pthread_once` wakes waiters.
    const OF_THE_TEST: &[libc::c_long] = &[
        libc::SYS_exit_group,
        libc::SYS_exit,
        libc::SYS_rt_sigreturn,
        libc::SYS_write,
        libc::SYS_futex,
    ];

    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

    fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }

    /// From here on, every other call ends as `otherwise` says.
    pub fn allow_only(calls: &[libc::c_long], otherwise: u32) {
        let numbers = calls.iter().chain(OF_THE_TEST);
        // The number of the call is the first word of the data that a filter gets.
        let mut program = vec![instruction(LOAD, 0, 0, 0)];
        for &number in numbers {
            program.push(instruction(JUMP_IF_EQUAL, 0, 1, number as u32));
            program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
        }
        program.push(instruction(RETURN, 0, 0, otherwise));
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: a filter of this many instructions, which the kernel copies.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
        }
    }

    /// Returns the numbers of all named calls.
    pub fn allowed() -> Vec<libc::c_long> {
        named().into_values().flatten().collect()
    }
}

/// Returns how a process ends that does everything on one thread, under the filter. The allocator
/// does not need threads.
#[cfg(target_os = "linux")]
fn exercise_filtered(otherwise: u32) -> i32 {
    let allowed = system_calls::allowed();
    status_of(|| {
        system_calls::allow_only(&allowed, otherwise);
        for seed in 0..20 {
            assert_eq!(exercise(seed), 0);
        }
        // A leak report, and a request that is given up.
        let request = Request::builder().report_leaks(true).build();
        request.run(|| std::mem::forget(black_box(vec![1; 100])));
        assert_eq!(request.close().unwrap().surviving_blocks, 1);
        let request = Request::new();
        let result = request.catch(|| rqmalloc::bailout("given up"));
        assert!(result.is_err_and(|bailout: rqmalloc::Bailout| bailout.to_string() == "given up"));
    })
}

#[cfg(target_os = "linux")]
fn other_system_calls_are_refused() {
    assert_eq!(exercise_filtered(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32), 0);
}

#[cfg(target_os = "linux")]
fn other_system_calls_kill() {
    let status = exercise_filtered(libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(status, 0, "it made a call that the README does not name (31: SIGSYS)");
}

/// The filter does filter.
#[cfg(target_os = "linux")]
fn a_call_that_is_not_named_is_refused() {
    let allowed = system_calls::allowed();
    for (otherwise, expected) in [
        (libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0),
        (libc::SECCOMP_RET_KILL_PROCESS, libc::SIGSYS),
    ] {
        let status = status_of(|| {
            system_calls::allow_only(&allowed, otherwise);
            // SAFETY: a plain system call, without the C library, which may know the answer.
            let result = unsafe { libc::syscall(libc::SYS_getppid) };
            assert_eq!(result, -1);
        });
        // The low bits of a status are the signal.
        assert_eq!(status & 0x7f, expected, "status {status:#x}");
        assert_eq!(status >> 8, 0, "status {status:#x}");
    }
}

// ---- overcommitment --------------------------------------------------------------------------

/// Sets the machine's overcommitment mode while this exists.
#[cfg(target_os = "linux")]
struct Overcommit(String);

#[cfg(target_os = "linux")]
impl Overcommit {
    const PLACE: &str = "/proc/sys/vm/overcommit_memory";

    fn set(mode: &str) -> Option<Self> {
        let before = std::fs::read_to_string(Self::PLACE).ok()?;
        std::fs::write(Self::PLACE, mode).ok()?;
        Some(Self(before))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Overcommit {
    fn drop(&mut self) {
        std::fs::write(Self::PLACE, self.0.trim()).unwrap();
    }
}

/// Without overcommitment, addresses count as memory. Needs root: if it may not set the mode, it
/// says so and passes. The mode is set for a moment, and for the whole machine.
#[cfg(target_os = "linux")]
fn works_without_overcommitment() {
    let Some(mode) = Overcommit::set("2") else {
        eprintln!("skipped: {} cannot be written", Overcommit::PLACE);
        return;
    };
    let result = std::panic::catch_unwind(|| {
        // In a process of its own: whatever becomes of it, the mode is reset.
        status_of(|| {
            for seed in 0..4 {
                exercise(seed);
            }
        })
    });
    drop(mode);
    assert_eq!(result.unwrap(), 0);
}
