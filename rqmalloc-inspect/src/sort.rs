//! How the tables are sorted: part of the page's address, so that it works without a script.

use crate::table::Totals;
use rqmalloc::RequestInfo;
use std::cmp::Reverse;

/// The columns that open requests can be sorted by.
pub const REQUEST_COLUMNS: [&str; 6] = ["id", "name", "age", "footprint", "peak", "live"];
/// The columns that routes can be sorted by.
pub const ROUTE_COLUMNS: [&str; 7] = ["name", "count", "p50", "p99", "max", "survivors", "growth"];

/// A column for each table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sort {
    /// One of [`REQUEST_COLUMNS`].
    pub requests: &'static str,
    /// One of [`ROUTE_COLUMNS`].
    pub routes: &'static str,
}

impl Default for Sort {
    fn default() -> Self {
        Self { requests: "footprint", routes: "count" }
    }
}

impl Sort {
    /// Returns what the address asks for; what is no column is not heeded.
    pub fn from_query(query: &str) -> Self {
        let mut sort = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let known = |columns: &[&'static str]| columns.iter().copied().find(|&c| c == value);
            match key {
                "sort" => sort.requests = known(&REQUEST_COLUMNS).unwrap_or(sort.requests),
                "routes" => sort.routes = known(&ROUTE_COLUMNS).unwrap_or(sort.routes),
                _ => {}
            }
        }
        sort
    }

    /// Returns the part of an address that asks for this, escaped for a page.
    pub fn query(self) -> String {
        format!("?sort={}&amp;routes={}", self.requests, self.routes)
    }

    /// Sorts open requests: numbers from the largest down, names and ids upward.
    pub fn requests(self, open: &mut [RequestInfo]) {
        match self.requests {
            "id" => open.sort_unstable_by_key(|info| info.id),
            "name" => open.sort_unstable_by_key(|info| (info.name, info.id)),
            "age" => open.sort_unstable_by_key(|info| (Reverse(info.age), info.id)),
            "peak" => open.sort_unstable_by_key(|info| (Reverse(info.usage.peak_bytes), info.id)),
            "live" => open.sort_unstable_by_key(|info| (Reverse(info.usage.live_bytes), info.id)),
            _ => open.sort_unstable_by_key(|info| (Reverse(info.usage.footprint_bytes), info.id)),
        }
    }

    /// Sorts routes: numbers from the largest down, names upward.
    pub fn routes(self, routes: &mut [Totals]) {
        let number = |totals: &Totals| match self.routes {
            "name" => 0,
            "p50" => totals.peak(50) as u64,
            "p99" => totals.peak(99) as u64,
            "max" => totals.largest_bytes as u64,
            "survivors" => totals.surviving_bytes,
            "growth" => totals.growth.iter().sum(),
            _ => totals.count,
        };
        routes.sort_by_cached_key(|totals| (Reverse(number(totals)), totals.name.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_how() {
        assert_eq!(Sort::from_query(""), Sort::default());
        assert_eq!(Sort::from_query("sort=<x>&routes&=&routes=count"), Sort::default());
        for requests in REQUEST_COLUMNS {
            for routes in ROUTE_COLUMNS {
                let sort = Sort { requests, routes };
                let query = sort.query().replace("&amp;", "&");
                assert_eq!(Sort::from_query(&query[1..]), sort);
            }
        }
    }
}
