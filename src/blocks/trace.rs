//! Where a block was allocated: a record behind the payload, in requests that trace their leaks.
//!
//! A traced block is longer than its layout asks for by `TRACE_BYTES`; a flag in its header says so
//! and keeps it off the fast paths.

use crate::base::size_class::{HEADER_BYTES, padded_size};
use crate::lockfree::header::Block;
use crate::lockfree::versioned::Versioned;
use core::ptr::{null, with_exposed_provenance};

/// How much longer a traced block is: the record, and what aligning it may take.
pub const TRACE_BYTES: usize = size_of::<Record>() + align_of::<Record>();
/// Returns the size that a block needs for this layout. If it is traced, the record comes after the
/// padding for alignment.
pub fn needed_size(size: usize, align: usize, is_traced: bool) -> Option<usize> {
    let padded = padded_size(size, align)?;
    if is_traced { padded.checked_add(TRACE_BYTES) } else { Some(padded) }
}

/// How many return addresses are kept: enough to lead out of the standard library's collections.
pub const FRAME_COUNT: usize = 20;

/// A location in a source file that the caller named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    file: *const u8,
    file_length: usize,
    /// The line in the file.
    pub line: u32,
}

impl Site {
    /// Unknown.
    pub const NONE: Self = Self { file: null(), file_length: 0, line: 0 };

    /// A location in a file whose name lives forever.
    pub fn new(file: &'static [u8], line: u32) -> Self {
        Self { file: file.as_ptr(), file_length: file.len(), line }
    }

    /// Returns the file's name; empty if the location is unknown.
    pub fn file(&self) -> &'static [u8] {
        if self.file.is_null() {
            return &[];
        }
        // SAFETY: made from a slice that lives forever.
        unsafe { core::slice::from_raw_parts(self.file, self.file_length) }
    }
}

/// Words of a record: the size asked for, the three of the site, and the frames.
const WORD_COUNT: usize = 4 + FRAME_COUNT;
/// A record as it is stored in a block, where others may read it while its owner rewrites it.
type Record = Versioned<WORD_COUNT>;

/// How often a reader tries while the record is being written.
const ATTEMPTS: usize = 8;

/// The contents of a record.
#[derive(Clone, Copy)]
pub struct Trace {
    /// Bytes that were asked for.
    pub asked_bytes: usize,
    /// Where, if the caller named it.
    pub site: Site,
    /// The callers, innermost first; 0 after the last.
    pub frames: [usize; FRAME_COUNT],
}

const _: () = assert!(
    align_of::<Record>() == HEADER_BYTES,
    "a record can be wherever a word of a payload can"
);

impl Trace {
    /// Records an allocation of `asked_bytes` made here.
    pub fn here(asked_bytes: usize, site: Site) -> Self {
        let mut trace = Self { asked_bytes, site, frames: [0; FRAME_COUNT] };
        if site == Site::NONE {
            fill(&mut trace.frames);
        }
        trace
    }

    /// Returns the offset of the record in a traced block of `block_bytes`; everything before it is
    /// the caller's.
    pub fn place(block_bytes: usize) -> usize {
        (block_bytes - size_of::<Record>()) & !(align_of::<Record>() - 1)
    }

    /// Writes the record of a traced block. Others may read it meanwhile.
    ///
    /// # Safety
    /// The block is the caller's (V1) and has `block_bytes`, at least `TRACE_BYTES`.
    pub unsafe fn write(self, block: Block, block_bytes: usize) {
        let mut words = [0; WORD_COUNT];
        let head = [
            self.asked_bytes,
            self.site.file.expose_provenance(),
            self.site.file_length,
            self.site.line as usize,
        ];
        for (word, value) in words.iter_mut().zip(head.iter().chain(&self.frames)) {
            *word = *value as u64;
        }
        // SAFETY: the caller's contract.
        unsafe { record(block, block_bytes) }.write(&words);
    }

    /// Reads the record of a traced block; `None`: its owner is writing it.
    ///
    /// # Safety
    /// The block has `block_bytes`, its memory keeps its use, and the caller has seen that a record
    /// was written there (V2).
    pub unsafe fn read(block: Block, block_bytes: usize) -> Option<Self> {
        // SAFETY: the caller's contract.
        let record = unsafe { record(block, block_bytes) };
        let [asked, file, file_length, line, frames @ ..] =
            (0..ATTEMPTS).find_map(|_| record.read())?.map(|word| word as usize);
        let site = Site { file: with_exposed_provenance(file), file_length, line: line as u32 };
        Some(Self { asked_bytes: asked, site, frames })
    }
}

/// Returns the record of a traced block.
///
/// # Safety
/// The block has `block_bytes`, at least `TRACE_BYTES`, and stays mapped.
unsafe fn record<'b>(block: Block, block_bytes: usize) -> &'b Record {
    // SAFETY: the caller's contract; the record is aligned and inside the block.
    unsafe { &*with_exposed_provenance::<Record>(block + Trace::place(block_bytes)) }
}

/// Walks the stack by the unwinder's tables, without a lock and without symbols.
#[cfg(feature = "trace")]
fn fill(frames: &mut [usize; FRAME_COUNT]) {
    let mut slots = frames.iter_mut();
    // SAFETY: without the lock only symbols may not be resolved; nothing here does.
    unsafe {
        backtrace::trace_unsynchronized(|frame| match slots.next() {
            Some(slot) => {
                *slot = frame.ip().expose_provenance();
                true
            }
            None => false,
        });
    }
}

#[cfg(not(feature = "trace"))]
fn fill(_frames: &mut [usize; FRAME_COUNT]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_stands_behind_whatever_was_asked_for() {
        for asked in 0..100 {
            let block_bytes = asked + TRACE_BYTES;
            let place = Trace::place(block_bytes);
            assert!(place >= asked && place + size_of::<Record>() <= block_bytes);
            assert_eq!(place % align_of::<Record>(), 0);
        }
    }
}
