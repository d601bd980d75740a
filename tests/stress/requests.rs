//! What a thread does with requests: it opens, enters, leaves and finishes them.

use crate::callbacks;
use crate::failure::IS_FORKED;
use crate::model::{Block, Tracked, lock, persistent_vec};
use crate::options::{breaks, with};
use crate::worker::{Kind, REQUEST_COUNT, Worker, leave};
use rqmalloc::{Report, Request, persistent};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The smallest limit, below the size of a few blocks with mappings of their own.
const LEAST_LIMIT: usize = 512 * 1024;

/// Whether requests may stay open: in a forked process, one does if a thread that is not there was
/// growing a block of it.
fn may_stay_open() -> bool {
    IS_FORKED.load(Ordering::Relaxed)
}

impl Worker {
    /// Opens a request of any kind. A sole one never has a handle but the model's.
    pub fn open(&mut self, is_sole: bool) -> Arc<Tracked> {
        let is_traced = with("traces") && self.below(8) == 0;
        let is_reported = with("reports") && self.below(30) == 0;
        let is_limited = with("limits") && self.below(6) == 0;
        let mut builder = Request::builder().trace_leaks(is_traced).report_leaks(is_reported);
        if self.below(3) == 0 {
            builder = builder.name("stress");
        }
        if is_limited {
            builder = builder.memory_limit(LEAST_LIMIT + self.below(8 << 20));
            if self.below(2) == 0 {
                builder = builder.reserve(self.below(LEAST_LIMIT));
            }
        }
        let request = builder.build();
        let tracked = Tracked::new(request.id(), Some(request), is_traced, is_limited);
        lock(&self.shared.all).push(tracked.clone());
        if with("callbacks") && self.below(4) == 0 {
            callbacks::add(self, &tracked, !is_sole);
        }
        tracked
    }

    /// Enters a shared request, or the sole one, or one that nobody else will see.
    pub fn enter(&mut self) {
        if !self.has_room() {
            return self.leave_any();
        }
        let place = self.below(REQUEST_COUNT + 1);
        let tracked = match self.shared.requests.get(place) {
            Some(tracked) => lock(tracked).clone(),
            None => match lock(&self.shared.soles[self.place % self.shared.soles.len()]).clone() {
                Some(tracked) if !self.is_helper => tracked,
                _ => return,
            },
        };
        self.enter_this(tracked);
    }

    pub fn enter_this(&mut self, tracked: Arc<Tracked>) {
        let guard = {
            let handle = lock(&tracked.handle);
            let Some(request) = handle.as_ref() else { return };
            // The entry's own handle is created under the lock; the model's may go after that.
            request.enter()
        };
        if self.below(40) == 0 {
            std::mem::forget(guard);
            self.push(Kind::Forgotten, Some(tracked), None);
        } else {
            self.push(Kind::Guard, Some(tracked), Some(guard));
        }
    }

    /// Drops any of the guards, out of order more often than not, or ends the innermost hook.
    pub fn leave_any(&mut self) {
        let guards = self.entries.iter().filter(|entry| entry.kind == Kind::Guard).count();
        if guards == 0 || (with("hooks") && self.below(10) == 0) {
            return self.leave_hook();
        }
        let chosen = self.below(guards);
        let index = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.kind == Kind::Guard)
            .map(|(index, _)| index)
            .nth(chosen);
        if let Some(index) = index {
            let entry = self.entries.remove(index);
            leave(entry);
        }
    }

    /// Begins a request that `close_request` or the thread's exit closes.
    pub fn begin_hook(&mut self) {
        let id = rqmalloc::begin_request();
        let tracked = Tracked::new(id, None, false, false);
        tracked.may_be_over.store(true, Ordering::Relaxed);
        lock(&self.shared.all).push(tracked.clone());
        self.push(Kind::Hook, Some(tracked), None);
    }

    fn leave_hook(&mut self) {
        let Some(index) = self.entries.iter().rposition(|entry| entry.kind == Kind::Hook) else {
            if with("hooks") && self.has_room() {
                self.begin_hook();
            }
            return;
        };
        let report = rqmalloc::close_request();
        let entry = self.entries.remove(index);
        let tracked = entry.target.clone().unwrap();
        leave(entry);
        assert_eq!((report.id, report.freed_blocks), (tracked.id, 0), "{report}");
        assert!(!report.still_open || may_stay_open(), "{report}, and nobody else has a handle");
    }

    /// Replaces a request by a new one; the old one's handle is closed or dropped.
    pub fn replace(&mut self) {
        let fresh = self.open(false);
        let place = self.below(REQUEST_COUNT);
        let before = std::mem::replace(&mut *lock(&self.shared.requests[place]), fresh);
        if breaks("handle") {
            std::mem::forget(before.clone_handle());
        }
        let Some(request) = before.take_handle() else { return };
        if self.below(3) == 0 {
            return drop(request);
        }
        match request.close() {
            Ok(report) => self.expect_closed(&before, &report),
            Err(request) => {
                self.shared.count("still open");
                let text = persistent(|| request.to_string());
                assert!(text.contains("open"), "{text}");
                drop(request);
                persistent(|| drop(text));
            }
        }
    }

    /// Checks a report of a close. Others may free meanwhile, so the survivors are not checked.
    fn expect_closed(&mut self, tracked: &Tracked, report: &Report) {
        self.shared.count("closed");
        assert_eq!((report.id, report.freed_blocks), (tracked.id, 0), "{report}");
        assert!(!report.still_open, "{report}");
    }

    /// Uses a request with one handle that other threads look at, and whose blocks they grow and
    /// free: the thread with the handle can close it whenever nobody is inside.
    pub fn sole(&mut self) {
        if self.is_helper {
            return;
        }
        let sole = lock(&self.shared.soles[self.place]).clone();
        let Some(tracked) = sole else {
            let tracked = self.open(true);
            *lock(&self.shared.soles[self.place]) = Some(tracked);
            return;
        };
        if self.is_inside(&tracked) {
            return;
        }
        *lock(&self.shared.soles[self.place]) = None;
        let Some(request) = tracked.take_handle() else { return };
        match request.close() {
            Ok(report) => self.expect_closed(&tracked, &report),
            Err(request) if may_stay_open() => drop(request),
            Err(request) => {
                let text = persistent(|| request.to_string());
                panic!("close of the only handle was refused: {text}");
            }
        }
    }

    /// Uses a request that nobody else knows, counted to the block.
    pub fn sealed(&mut self) {
        let is_hook = with("hooks") && self.below(2) == 0 && self.has_room();
        let (tracked, hook) = if is_hook {
            self.begin_hook();
            let entry = self.entries.last().unwrap();
            (entry.target.clone().unwrap(), Some(entry.serial))
        } else {
            (self.open(true), None)
        };
        let mut blocks = persistent_vec(80);
        for _ in 0..1 + self.below(2) {
            let entered = hook.is_none().then(|| {
                let guard = lock(&tracked.handle).as_ref().unwrap().enter();
                self.push(Kind::Guard, Some(tracked.clone()), Some(guard))
            });
            self.fill_sealed(&mut blocks);
            if let Some(serial) = entered {
                self.pop(serial);
            }
        }
        let usage = match hook {
            Some(_) => Request::current().unwrap().usage(),
            None => lock(&tracked.handle).as_ref().unwrap().usage(),
        };
        assert_eq!(usage.live_blocks, tracked.live() as u64, "blocks live in {tracked:?}");
        self.finish_sealed(tracked, hook, blocks);
    }

    fn fill_sealed(&mut self, blocks: &mut Vec<Block>) {
        for _ in 0..self.below(60) {
            blocks.extend(self.allocate());
            if blocks.is_empty() {
                continue;
            }
            let index = self.below(blocks.len());
            match self.below(8) {
                0 | 1 => self.resize(&mut blocks[index]),
                2 | 3 => blocks.swap_remove(index).free(),
                4 if with("persist") => blocks[index].persist(),
                _ => {}
            }
        }
    }

    fn finish_sealed(&mut self, tracked: Arc<Tracked>, hook: Option<u64>, blocks: Vec<Block>) {
        let is_end = self.below(2) == 0;
        let request = if hook.is_none() { tracked.take_handle() } else { None };
        blocks.iter().for_each(Block::verify);
        // SAFETY: nobody else knows its blocks, and those that are not persistent are
        // forgotten.
        let report = unsafe {
            match request {
                Some(request) if is_end => request.end(),
                Some(request) => request.close(),
                None if is_end => Ok(rqmalloc::end_request()),
                None => Ok(rqmalloc::close_request()),
            }
        };
        let report = report.expect("a request that nobody else knows");
        if let Some(serial) = hook {
            self.pop(serial);
        }
        self.shared.count(if is_end { "ended" } else { "closed" });
        // After the end, because a callback may have left something.
        expect_report(&tracked, &report, is_end);
        for block in blocks {
            let is_freed = is_end && block.is_of(&tracked);
            if is_freed { block.forget() } else { self.keep(block) }
        }
        if is_end {
            let late = std::mem::take(&mut *lock(&tracked.late));
            late.into_iter().for_each(Block::forget);
        }
    }
}

/// Checks the report of a request whose blocks nobody else touches.
pub fn expect_report(tracked: &Tracked, report: &Report, is_end: bool) {
    let live = tracked.live() as u64;
    let expected = if is_end { (live, 0) } else { (0, live) };
    let is = (report.freed_blocks, report.surviving_blocks);
    assert_eq!(is, expected, "blocks live in {tracked:?} by its report: {report}");
    assert!(!report.still_open && report.id == tracked.id, "{report}");
}
