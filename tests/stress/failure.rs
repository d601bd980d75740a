//! How a run fails: an unplanned panic, or a process that makes no progress.

use crate::model::without_allocator_flag;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The payload of a panic that the program raises on purpose.
pub struct Planned;

/// A payload whose drop panics, too.
pub struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::panic_any(Planned);
        }
    }
}

/// Most threads whose last action is remembered.
const PLACE_COUNT: usize = 64;
/// A process without progress for this long hangs.
const PATIENCE_SECONDS: u64 = 40;

/// Whether this is a forked process.
pub static IS_FORKED: AtomicBool = AtomicBool::new(false);
static SEED: AtomicU64 = AtomicU64::new(0);
static ROUND: AtomicUsize = AtomicUsize::new(0);
static PROGRESS: AtomicU64 = AtomicU64::new(0);
static ACTIONS: [AtomicUsize; PLACE_COUNT] = [const { AtomicUsize::new(0) }; PLACE_COUNT];

/// Records what a thread begins to do.
pub fn note_action(place: usize, action: usize) {
    ACTIONS[place % PLACE_COUNT].store(action, Ordering::Relaxed);
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

pub fn note_round(seed: u64, round: usize) {
    SEED.store(seed, Ordering::Relaxed);
    ROUND.store(round, Ordering::Relaxed);
}

/// Ends the process with a line on standard error.
pub fn fail(text: &str) -> ! {
    let (seed, round) = (SEED.load(Ordering::Relaxed), ROUND.load(Ordering::Relaxed));
    let whose = if IS_FORKED.load(Ordering::Relaxed) { " in a forked process" } else { "" };
    let line =
        rqmalloc::persistent(|| format!("FAILED{whose}, seed {seed} round {round}: {text}\n"));
    // SAFETY: the text's own bytes. Without `std`, whose lock may have been held by a thread that a
    // fork lost.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    // SAFETY: ends the process at once, whatever other threads do.
    unsafe { libc::_exit(101) }
}

/// Lets any panic but a planned one end the process.
pub fn set_up() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        if payload.is::<Planned>() || payload.is::<Bomb>() {
            return;
        }
        without_allocator_flag(|| {
            let text = rqmalloc::persistent(|| info.to_string());
            fail(&text)
        })
    }));
    std::thread::spawn(watch);
}

fn watch() {
    let mut last = (0, 0);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = PROGRESS.load(Ordering::Relaxed);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        if last.1 == PATIENCE_SECONDS || (last.1 == 3 && crate::options::breaks("hang")) {
            let actions: Vec<_> =
                ACTIONS.iter().map(|action| action.load(Ordering::Relaxed)).collect();
            let _ = std::io::stderr().flush();
            fail(&format!("no progress for {} s; last actions by thread: {actions:?}", last.1));
        }
    }
}
