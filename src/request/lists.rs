//! Lists of free blocks by class, which a request with a second lane has.
//!
//! | field | written by | read by |
//! |---|---|---|
//! | `by_class` | see `stack`: who is inside a lane pushes and drains | |
//! | `slot` | who makes the lists | who gives them back |

use crate::base::size_class::CLASS_COUNT;
use crate::lockfree::header::NONE;
use crate::lockfree::pool::ALIGN;
use crate::lockfree::stack::Stack;

/// Free blocks by class.
#[repr(align(64))]
pub struct Lists {
    /// What lanes handed on.
    pub by_class: [Stack; CLASS_COUNT],
    /// Its number among the lists of the process.
    pub slot: u32,
}

const _: () = assert!(NONE == 0, "zeros are empty, open lists");
const _: () = assert!(align_of::<Lists>() <= ALIGN, "slots are aligned for the lists");

impl Lists {
    /// Empty ones, with this number.
    pub fn new(slot: u32) -> Self {
        Self { by_class: [const { Stack::new() }; CLASS_COUNT], slot }
    }
}
