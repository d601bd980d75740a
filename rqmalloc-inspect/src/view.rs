//! How a page was asked for, and what every page begins with.

use crate::sort::Sort;
use crate::text::Html;
use std::fmt::{self, Write};
use std::hash::{BuildHasher, RandomState};

/// What a page needs to know of how it was asked for.
pub struct View {
    /// What a link begins with: from the page's own address to what is below it.
    pub base: String,
    /// A link to the page itself.
    pub own: String,
    /// How its tables are sorted.
    pub sort: Sort,
    /// How many bytes were just given back.
    pub trimmed: Option<usize>,
    /// What a script must know to be run.
    pub nonce: String,
}

impl View {
    /// Returns the view that the address of a page asks for.
    pub fn new(path: &str, query: &str) -> Self {
        let own = own_link(path);
        let base = if own.is_empty() { String::new() } else { format!("{own}/") };
        let trimmed = query.split('&').find_map(|pair| pair.strip_prefix("trimmed=")?.parse().ok());
        // Nobody can tell the keys of a new hasher.
        let nonce = format!("{:016x}", RandomState::new().hash_one(path));
        Self { base, own, sort: Sort::from_query(query), trimmed, nonce }
    }
}

/// Returns a link from a page to itself. Links are relative, so that they work behind a proxy that
/// knows the page by another path.
fn own_link(path: &str) -> String {
    match path.rsplit('/').next() {
        None | Some("") => String::new(),
        Some(last) => format!("./{last}"),
    }
}

/// Returns a link to the page from a path that is so many parts below it.
pub fn link_up(path: &str, parts: usize) -> String {
    let up = "../".repeat(parts.saturating_sub(1));
    match path.rsplit('/').nth(parts) {
        None | Some("") => format!("./{up}"),
        Some(last) => format!("./{up}../{last}"),
    }
}

/// Writes what a page begins with.
pub fn head(page: &mut String, title: &str) -> fmt::Result {
    write!(
        page,
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport \
         content=\"width=device-width,initial-scale=1\"><meta name=color-scheme \
         content=\"light dark\"><title>{} - rqmalloc</title><link rel=icon \
         href=\"data:,\"><style>{}</style></head><body>",
        Html(title),
        include_str!("page.css"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_where_the_page_is() {
        let view = View::new("/debug/rqmalloc", "trimmed=12&sort=age");
        assert_eq!((view.base.as_str(), view.own.as_str()), ("./rqmalloc/", "./rqmalloc"));
        assert_eq!((view.trimmed, view.sort.requests), (Some(12), "age"));
        let view = View::new("/debug/rqmalloc/", "trimmed=-1");
        assert_eq!((view.base.as_str(), view.own.as_str(), view.trimmed), ("", "", None));
        assert_eq!(link_up("/debug/rqmalloc/trim", 1), "./../rqmalloc");
        assert_eq!(link_up("/debug/rqmalloc/requests/7", 2), "./../../rqmalloc");
        assert_eq!(link_up("/trim", 1), "./");
        assert_eq!(link_up("/requests/7", 2), "./../");
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(View::new("/", "").nonce, View::new("/", "").nonce);
    }
}
