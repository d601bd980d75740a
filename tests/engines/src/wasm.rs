//! A host of WebAssembly (wasmi), each instance in a request: its memory grows into a soft limit,
//! whose mark the store's limiter sees, and into a hard one, at which wasmi is refused memory. Both
//! are failures of `memory.grow` that the program sees, or traps.

mod support;

use rqmalloc::{LimitKind, Outcome, Report, Request};
use support::stays_flat;
use wasmi::errors::{MemoryError, TableError};
use wasmi::{
    CompilationMode, Config, Engine, Error, Linker, Module, ResourceLimiter, Store, TrapCode,
};
use wasmi_core::LimiterError;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// What an instance's request may hold, in bytes, and in pages of WebAssembly.
const LIMIT_BYTES: usize = 8 << 20;
const LIMIT_PAGES: i32 = (LIMIT_BYTES >> 16) as i32;

/// Instances of each kind.
const MANY: usize = 10_000;
const FEW: usize = 1_000;

/// `plain` grows by 20 pages, writes to each and adds up what it wrote; `greedy` grows by a page
/// until it is refused one, and returns how many it has.
const PROGRAM: &str = r#"(module
    (memory 1)
    (func (export "plain") (result i32)
        (local $page i32) (local $sum i32)
        (drop (memory.grow (i32.const 20)))
        (loop $next
            (i32.store (i32.shl (local.get $page) (i32.const 16)) (local.get $page))
            (local.set $sum (i32.add (local.get $sum)
                (i32.load (i32.shl (local.get $page) (i32.const 16)))))
            (local.set $page (i32.add (local.get $page) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $page) (memory.size))))
        (local.get $sum))
    (func (export "greedy") (result i32)
        (loop $next
            (br_if $next (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (memory.size)))"#;

const PLAIN_RESULT: i32 = 20 * 21 / 2;

/// More than any limit here from the start.
const HUGE_PROGRAM: &str = "(module (memory 1000))";

/// What a store's memory may be.
#[derive(Clone, Copy)]
struct Limiter {
    /// A failure to grow is a trap.
    traps: bool,
}

impl Limiter {
    fn refused(self) -> Result<(), LimiterError> {
        if self.traps { Err(LimiterError::ResourceLimiterDeniedAllocation) } else { Ok(()) }
    }
}

impl ResourceLimiter for Limiter {
    /// No growth for a request that is to be given up.
    fn memory_growing(
        &mut self,
        _current: usize,
        _desired: usize,
        _maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        if rqmalloc::check().is_ok() {
            return Ok(true);
        }
        self.refused().map(|()| false)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool, LimiterError> {
        self.memory_growing(current, desired, maximum)
    }

    fn memory_grow_failed(&mut self, _error: &MemoryError) -> Result<(), LimiterError> {
        self.refused()
    }

    fn table_grow_failed(&mut self, _error: &TableError) -> Result<(), LimiterError> {
        self.refused()
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }
}

/// Makes an instance, and calls a function of it.
fn call(module: &Module, name: &str, traps: bool) -> Result<i32, Error> {
    let mut store = Store::new(module.engine(), Limiter { traps });
    store.limiter(|limiter| limiter);
    let instance = Linker::new(module.engine()).instantiate_and_start(&mut store, module)?;
    instance.get_typed_func::<(), i32>(&store, name)?.call(&mut store, ())
}

/// Closes a request of which nothing is left.
fn clean(request: Request) -> Report {
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 0, "{report}");
    report
}

fn plain(module: &Module) {
    let request = Request::builder().memory_limit(LIMIT_BYTES).build();
    assert_eq!(request.run(|| call(module, "plain", false)).unwrap(), PLAIN_RESULT);
    let report = clean(request);
    assert!(report.peak_bytes >= 21 << 16, "the memory is not the request's: {report}");
}

/// What a program compiles to goes with its engine, in the request.
fn engine_of_its_own() {
    let request = Request::new();
    let result = request.run(|| {
        let module = Module::new(&Engine::default(), PROGRAM)?;
        call(&module, "plain", false)
    });
    assert_eq!(result.unwrap(), PLAIN_RESULT);
    let report = clean(request);
    assert!(report.peak_bytes >= 21 << 16, "{report}");
}

/// The growth that passes the mark is the last one.
fn over_soft_limit(module: &Module, traps: bool) {
    let request = Request::builder().soft_limit(LIMIT_BYTES).build();
    let result = request.run(|| call(module, "greedy", traps));
    if traps {
        assert_eq!(result.unwrap_err().as_trap_code(), Some(TrapCode::GrowthOperationLimited));
    } else {
        let pages = result.unwrap();
        assert!((LIMIT_PAGES / 4..=2 * LIMIT_PAGES).contains(&pages), "{pages} pages");
    }
    let report = clean(request);
    assert_eq!(report.outcome, Outcome::OverLimit);
    assert_eq!(report.limit_exceeded.unwrap().kind, LimitKind::Soft);
    // A buffer that doubles, and its copy.
    assert!(report.peak_bytes <= 4 * LIMIT_BYTES, "{report}");
}

/// Without a reserve, so that it is the limit that refuses.
fn over_hard_limit(module: &Module, traps: bool) {
    let builder = Request::builder().memory_limit(LIMIT_BYTES).reserve(0);
    let request = builder.report_limit(false).build();
    let result = request.run(|| call(module, "greedy", traps));
    if traps {
        assert_eq!(result.unwrap_err().as_trap_code(), Some(TrapCode::GrowthOperationLimited));
    } else {
        let pages = result.unwrap();
        assert!((LIMIT_PAGES / 4..LIMIT_PAGES).contains(&pages), "{pages} pages");
    }
    let report = clean(request);
    // It could do without what it was refused.
    assert_eq!(report.outcome, Outcome::Closed);
    assert_eq!(report.limit_exceeded.unwrap().kind, LimitKind::Memory);
    assert!(report.peak_bytes <= LIMIT_BYTES, "{report}");
}

/// A program that is too large is not instantiated.
fn too_large(module: &Module) {
    let request = Request::builder().memory_limit(LIMIT_BYTES).report_limit(false).build();
    assert!(request.run(|| call(module, "none", false)).is_err());
    let report = clean(request);
    assert!(report.limit_exceeded.unwrap().asked_bytes >= 1000 << 16, "{report}");
}

fn main() {
    // What is compiled at the first call would be a request's, and outlive it.
    let engine = Engine::new(Config::default().compilation_mode(CompilationMode::Eager));
    let module = Module::new(&engine, PROGRAM).unwrap();
    let huge_module = Module::new(&engine, HUGE_PROGRAM).unwrap();
    // What the engine keeps for its instances is made now.
    assert_eq!(call(&module, "plain", false).unwrap(), PLAIN_RESULT);
    stays_flat("an instance", MANY, |_| plain(&module));
    stays_flat("an engine of its own", FEW, |_| engine_of_its_own());
    stays_flat("over a soft limit", FEW, |number| over_soft_limit(&module, number % 2 == 0));
    stays_flat("over a hard limit", FEW, |number| over_hard_limit(&module, number % 2 == 0));
    stays_flat("too large", FEW, |_| too_large(&huge_module));
    println!("ok");
}
