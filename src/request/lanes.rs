//! The lanes of a request: one for each thread that is in it at the same time.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `first`, further lanes | see `lane` | |
//! | `others` | see `grow_list`: the thread that adds a lane, the closer that sheds some | any thread |
//! | `shared` | the opener of the request; the thread that enters a second lane | any thread |

use super::Host;
use crate::base::sync::{AtomicBool, Ordering};
use crate::blocks::bins::Kind;
use crate::lockfree::grow_list::GrowList;
use crate::lockfree::header::Header;
use crate::request::lane::{Lane, Out};

/// The lanes of a request.
#[repr(C)]
pub struct Lanes {
    /// The only lane of a request that one thread at a time is in.
    pub first: Lane,
    /// The others.
    others: GrowList<Lane>,
    /// Whether more than one lane was entered.
    shared: AtomicBool,
}

/// Most further lanes that stay with a control block when its request is over.
pub const MAX_KEPT_LANES: usize = 3;

impl Lanes {
    /// Creates one lane, of no request.
    pub fn new() -> Self {
        Self { first: Lane::new(0), others: GrowList::new(), shared: AtomicBool::new(false) }
    }

    /// Opens the first lane for a new request that no other thread knows yet; `tag` is the header
    /// of its live blocks. The other lanes are opened by the threads that enter them.
    #[inline]
    pub fn open(&self, tag: Header) {
        self.first.bins.open(Kind::Lane, tag);
        if self.shared.load(Ordering::Relaxed) {
            self.shared.store(false, Ordering::Relaxed);
            self.first.set_shared(false);
        }
    }

    /// Whether there is only the first lane.
    #[inline]
    pub fn is_one(&self) -> bool {
        !self.shared.load(Ordering::Relaxed)
    }

    /// Returns the lanes that may have been entered: the first, and all once it was not enough.
    #[inline]
    pub fn entered(&self) -> impl Iterator<Item = &Lane> {
        let mut first = Some(&self.first);
        let mut others = (!self.is_one()).then(|| self.others.all());
        core::iter::from_fn(move || first.take().or_else(|| others.as_mut()?.next()))
    }

    /// Returns all lanes, those of earlier requests included.
    #[inline]
    pub fn all(&self) -> impl Iterator<Item = &Lane> {
        core::iter::once(&self.first).chain(self.others.all())
    }

    /// Enters the first lane if it is idle.
    #[inline]
    pub fn enter_first(&self) -> Option<&Lane> {
        self.first.occupancy.try_enter().then_some(&self.first)
    }

    /// Notes that a second lane is entered: from here on bins are bounded, those of occupied lanes
    /// too.
    pub fn share(&self) {
        if !self.shared.swap(true, Ordering::Relaxed) {
            self.all().for_each(|lane| lane.set_shared(true));
        }
    }

    /// Enters an idle lane, else one of the host's.
    pub fn enter_any<S: Host>(&self, tag: Header, host: &S) -> Option<&Lane> {
        if let Some(lane) = self.all().find(|lane| lane.occupancy.try_enter()) {
            lane.bins.open(Kind::Lane, tag);
            return Some(lane);
        }
        let lane = host.take_lane()?;
        lane.bins.open(Kind::Lane, tag);
        lane.set_shared(true);
        lane.occupancy.try_enter();
        // SAFETY: a lane of this thread alone, on no list, and never unmapped (M1).
        unsafe { self.others.push(core::ptr::from_ref(lane).cast_mut()) };
        Some(lane)
    }

    /// Passes the further lanes but `kept` of them to `take`: they are not the request's any more.
    /// The caller has it alone.
    pub fn shed(&self, kept: usize, take: impl FnMut(&Lane)) {
        self.others.cut(kept, take);
    }

    /// Returns what all lanes together have outside their bins.
    pub fn out(&self) -> Out {
        let alone = self.is_one();
        let nothing = Out { blocks: 0, bytes: 0 };
        self.entered().map(|lane| lane.out(alone)).fold(nothing, |sum, out| Out {
            blocks: sum.blocks + out.blocks,
            bytes: sum.bytes + out.bytes,
        })
    }
}
