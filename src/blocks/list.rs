//! Lists of free blocks, for tests.

use super::memory::Raw;
use crate::base::fatal;
use crate::base::sync::Ordering;
use crate::lockfree::depot::Magazine;
use crate::lockfree::header::{Header, Memory, linked};

/// Walks a list of free blocks; fatal if one does not have this header, or if their number is not
/// the list's count. `name` names the latter fault.
pub fn check_list(name: &'static str, listed: Magazine, free_header: Header) {
    let mut count = 0;
    // A list that leads back into itself is too long as well.
    for block in linked(&Raw, listed.head).take(listed.count as usize + 1) {
        let header = Header(Raw.header(block).load(Ordering::Relaxed));
        if header != free_header {
            fatal::header_overwritten(block, header.0);
        }
        count += 1;
    }
    if count != listed.count {
        fatal::broken(name, count as usize, listed.count as usize);
    }
}
