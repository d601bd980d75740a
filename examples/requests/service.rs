//! What lives as long as the process: the templates and the shared cache.
//!
//! This file keeps the rule that makes the bulk free sound. **Whatever is created inside a request
//! and kept after it would be freed from under its keeper.** So:
//!
//! - The [`Environment`] with its compiled templates is created before the first request.
//!   (Compiling a template inside one would also fill the compiler's thread-local pools with that
//!   request's memory.)
//! - [`Service::new`] creates lazily created statics by rendering a template: the engine keeps a
//!   process-wide table of small integers as text, created when the first one is printed into HTML.
//!   (The rehearsal in `rounds.rs` reports such things: 257 blocks outlived a request.)
//! - The buffer of standard output is such a static too: nothing is printed inside a request.
//! - A `HashMap`'s random keys are a thread-local without heap memory: nothing to do.
//! - The shared cache changes only inside [`keep`].

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::mem;

use minijinja::{Environment, UndefinedBehavior, context};

use crate::Failure;
use crate::counting::{self, Side};
use crate::handlers;

/// Whether handlers leak memory on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leaks {
    OnPurpose,
    None,
}

impl Leaks {
    /// Leaks the value on purpose, or drops it: the careless handler's `drop`.
    pub fn forget<T>(self, value: T) {
        if self == Self::OnPurpose {
            mem::forget(value);
        }
    }
}

/// What leaves a request: a plain number, with no memory of the request.
#[derive(Clone, Copy)]
pub struct Answer {
    /// Stands in for sending the response, which a server does before the request ends.
    pub digest: u64,
}

impl Answer {
    fn to(response: &str) -> Self {
        // Fixed keys, unlike `RandomState`, because both processes must get the same number.
        let mut hasher = DefaultHasher::new();
        hasher.write(response.as_bytes());
        Self { digest: hasher.finish() }
    }
}

/// Why a line was refused. The text is persistent: it is printed after the request.
pub struct Refused(pub String);

pub struct Service {
    templates: Environment<'static>,
    cache: SharedCache,
}

impl Service {
    pub fn new() -> Result<Self, Failure> {
        let mut templates = Environment::new();
        // A missing field makes the line malformed rather than leaving a gap in the answer.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in handlers::TEMPLATES {
            templates.add_template(name, source)?;
        }
        // Fills the table of small integers, outside any request.
        templates.render_named_str("first.html", "{{ number }}", context! { number => 1 })?;
        Ok(Self { templates, cache: SharedCache::new() })
    }

    /// Handles one line. All that outlives the call is in the return value or was allocated inside
    /// [`keep`].
    pub fn handle(&mut self, line: &[u8], leaks: Leaks) -> Result<Answer, Refused> {
        let mut job = handlers::Job { templates: &self.templates, cache: &mut self.cache, leaks };
        match job.respond(line) {
            Ok(response) => Ok(Answer::to(&response)),
            // The error itself is the request's memory and goes with it.
            Err(error) => Err(Refused(keep(|| error.to_string()))),
        }
    }

    pub fn cache(&self) -> &SharedCache {
        &self.cache
    }
}

/// Runs `f`, whose allocations outlive the request.
pub fn keep<R>(f: impl FnOnce() -> R) -> R {
    match counting::side() {
        Side::RqMalloc => rqmalloc::persistent(f),
        // On that side, every block stays until it is freed.
        Side::System => f(),
    }
}

/// A process-wide cache of texts with a bounded number of entries; the oldest one makes room.
pub struct SharedCache {
    texts: HashMap<String, String>,
    oldest_first: VecDeque<String>,
    blocks_held: i64,
}

impl SharedCache {
    /// Fewer than the keys of the shipped file, so that every round replaces some.
    const MAX_ENTRIES: usize = 128;

    /// Creates an empty cache, outside requests; nothing is allocated before the first entry.
    fn new() -> Self {
        Self { texts: HashMap::new(), oldest_first: VecDeque::new(), blocks_held: 0 }
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns the number of blocks that belong to the cache, which are not a request's leaks.
    pub fn blocks_held(&self) -> i64 {
        self.blocks_held
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.texts.get(key).map(String::as_str)
    }

    /// Stores a copy of `text`. The caller's strings belong to the request; the copies must not.
    pub fn put(&mut self, key: &str, text: &str) {
        let before = counting::calls();
        if let Some(present) = self.texts.get_mut(key) {
            // The old text is a persistent block freed inside a request: any block may be freed
            // anywhere.
            *present = keep(|| text.to_owned());
        } else {
            if self.texts.len() == Self::MAX_ENTRIES {
                if let Some(oldest) = self.oldest_first.pop_front() {
                    self.texts.remove(&oldest);
                }
            }
            // The tables grow too, so this is inside as well.
            keep(|| {
                self.oldest_first.push_back(key.to_owned());
                self.texts.insert(key.to_owned(), text.to_owned());
            });
        }
        self.blocks_held += (counting::calls() - before).balance();
    }
}
