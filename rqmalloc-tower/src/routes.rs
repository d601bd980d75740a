//! The routes of a process, and what is counted for each.

use rqmalloc::RequestName;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, PoisonError, RwLock};

/// Most routes that are told apart. What requests with other names do is counted as that of one
/// route, OTHER.
pub(crate) const MOST_ROUTES: usize = 1000;
const OTHER: &str = "other";
/// The route of requests without a name.
const UNNAMED: &str = "unnamed";

/// A route; there are at most `MOST_ROUTES + 1`, and they stay.
pub(crate) struct Route {
    pub(crate) name: RequestName,
    watched_requests: AtomicU64,
    leaking_requests: AtomicU64,
    leaked_blocks: AtomicU64,
    leaked_bytes: AtomicU64,
    #[cfg(feature = "metrics")]
    pub(crate) measures: std::sync::OnceLock<crate::measure::Measures>,
    #[cfg(feature = "tracing")]
    pub(crate) warning: std::sync::Mutex<crate::span::Warning>,
}

impl Route {
    fn new(name: RequestName) -> &'static Self {
        Box::leak(Box::new(Self {
            name,
            watched_requests: AtomicU64::new(0),
            leaking_requests: AtomicU64::new(0),
            leaked_blocks: AtomicU64::new(0),
            leaked_bytes: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            measures: std::sync::OnceLock::new(),
            #[cfg(feature = "tracing")]
            warning: std::sync::Mutex::default(),
        }))
    }

    /// Counts what a request left that was watched.
    pub(crate) fn count_leaks(&'static self, blocks: u64, bytes: usize) {
        self.watched_requests.fetch_add(1, Relaxed);
        if blocks == 0 {
            return;
        }
        self.leaking_requests.fetch_add(1, Relaxed);
        self.leaked_blocks.fetch_add(blocks, Relaxed);
        self.leaked_bytes.fetch_add(bytes as u64, Relaxed);
        #[cfg(feature = "metrics")]
        crate::measure::measure_leaks(self, blocks, bytes);
        #[cfg(feature = "tracing")]
        crate::span::warn(self, blocks, bytes);
    }
}

static ROUTES: LazyLock<RwLock<HashMap<RequestName, &'static Route>>> =
    LazyLock::new(RwLock::default);
static OTHERS: LazyLock<&'static Route> = LazyLock::new(|| Route::new(name_of(OTHER)));

fn name_of(text: &'static str) -> RequestName {
    RequestName::new(text).expect("a text that is not empty")
}

/// Returns the route of requests that are called so. Its own memory belongs to no request.
pub(crate) fn route(name: Option<RequestName>) -> &'static Route {
    let name = name.unwrap_or_else(|| name_of(UNNAMED));
    if let Some(route) = ROUTES.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
        return route;
    }
    rqmalloc::persistent(|| {
        let mut routes = ROUTES.write().unwrap_or_else(PoisonError::into_inner);
        if routes.len() >= MOST_ROUTES && !routes.contains_key(&name) {
            return *OTHERS;
        }
        routes.entry(name).or_insert_with(|| Route::new(name))
    })
}

/// What watched requests of one route have left behind: see
/// [`RequestLayer::watch_leaks`](crate::RequestLayer::watch_leaks).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RouteLeaks {
    /// The name of the requests; `other` for what is beyond 1000 routes.
    pub route: RequestName,
    /// Requests that were watched to the end.
    pub watched_requests: u64,
    /// Of those, the ones that left something.
    pub leaking_requests: u64,
    /// Blocks that they left.
    pub leaked_blocks: u64,
    /// Their bytes, including headers and what size classes add.
    pub leaked_bytes: u64,
}

/// Returns what watched requests have left behind since the start of the process, by route, the most
/// bytes first; routes that left nothing too. A cache that is filled is here once; what grows from
/// look to look is a leak.
///
/// ```
/// for leaks in rqmalloc_tower::leaks() {
///     println!("{}: {} bytes", leaks.route, leaks.leaked_bytes);
/// }
/// ```
pub fn leaks() -> Vec<RouteLeaks> {
    let routes = ROUTES.read().unwrap_or_else(PoisonError::into_inner);
    let all = routes.values().copied().chain([*OTHERS]);
    let mut leaks: Vec<RouteLeaks> = all
        .map(|route| RouteLeaks {
            route: route.name,
            watched_requests: route.watched_requests.load(Relaxed),
            leaking_requests: route.leaking_requests.load(Relaxed),
            leaked_blocks: route.leaked_blocks.load(Relaxed),
            leaked_bytes: route.leaked_bytes.load(Relaxed),
        })
        .filter(|leaks| leaks.watched_requests > 0)
        .collect();
    leaks.sort_by_key(|leaks| std::cmp::Reverse(leaks.leaked_bytes));
    leaks
}
