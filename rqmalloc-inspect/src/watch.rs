//! The data of the page: one for the process, which an observer fills.

use crate::history::History;
use crate::table::Table;
use rqmalloc::{LimitExceeded, Observer, Report, RequestInfo, persistent, set_observer};
use std::sync::OnceLock;
use std::time::Instant;

/// What is known beside what the allocator knows.
pub struct Data {
    /// Of each route.
    pub table: Table,
    /// Of each second.
    pub history: History,
    /// When it began.
    pub since: Instant,
}

struct Watch(&'static Data);

impl Observer for Watch {
    fn marked(&self, request: &RequestInfo, _limit: &LimitExceeded) {
        self.0.table.count_marked(request.name);
    }

    fn closed(&self, _request: &RequestInfo, report: &Report) {
        self.0.table.count(report);
    }
}

/// Returns the data. The first call sets the observer, and starts the thread that takes samples.
pub fn data() -> &'static Data {
    static DATA: OnceLock<&'static Data> = OnceLock::new();
    DATA.get_or_init(|| {
        persistent(|| {
            let (table, history) = (Table::new(), History::new());
            let data: &Data = Box::leak(Box::new(Data { table, history, since: Instant::now() }));
            set_observer(Watch(data));
            data.history.start(&data.table);
            data
        })
    })
}
