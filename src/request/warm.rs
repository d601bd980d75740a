//! Warm regions: empty ones that stay with a control block for its next request.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `bytes` | the thread that keeps a region or lets go of it, by read-modify-write | the same |

use super::Host;
use crate::base::sync::{AtomicUsize, Ordering};
use crate::pages::span::{IS_CHARGED_AS_WARM, Span};

/// Most bytes of regions that stay with one control block.
const MAX_WARM_BYTES: usize = 1024 * 1024;

/// The warm memory that a control block is charged for.
pub struct Warm {
    /// Bytes of regions, including those that the request uses again.
    bytes: AtomicUsize,
}

impl Warm {
    /// Creates a charge of nothing.
    pub const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0) }
    }

    /// Decides whether an empty region stays: if it did already, or if the caps of the control
    /// block and of the process allow it.
    pub fn keeps<S: Host>(&self, region: &Span, supply: &S) -> bool {
        let bytes = region.bytes();
        let is_charged = region.region.is(IS_CHARGED_AS_WARM);
        let stays = is_charged
            || (self.bytes.load(Ordering::Relaxed) + bytes <= MAX_WARM_BYTES
                && supply.charge_warm(bytes));
        if stays && !is_charged {
            region.region.note(IS_CHARGED_AS_WARM, true);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        stays
    }

    /// Notes that a region leaves the control block for good.
    pub fn let_go<S: Host>(&self, region: &Span, supply: &S) {
        if region.region.note(IS_CHARGED_AS_WARM, false) {
            self.bytes.fetch_sub(region.bytes(), Ordering::Relaxed);
            supply.refund_warm(region.bytes());
        }
    }
}
