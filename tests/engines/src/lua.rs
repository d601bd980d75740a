//! A host of Lua scripts (mlua), each of them in a request: with the memory that mlua allocates,
//! over a soft limit; with a heap for the script alone, over a hard one; and scripts that leak.
//!
//! mlua's own allocation callback ends the process when it is refused memory, so a hard limit is for
//! what only Lua allocates: [`Script`] has its blocks in a request that is a child of the script's.
//! Rust's part, errors for example, is in the parent and is not refused.

mod support;

use mlua::ffi::{lua_State, lua_close, lua_newstate, luaL_openlibs};
use mlua::{Error, HookTriggers, Lua, VmState};
use rqmalloc::{LimitExceeded, LimitKind, Outcome, Report, Request, zend};
use std::ffi::c_void;
use std::ptr::null_mut;
use support::stays_flat;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// What a script's heap may hold, in bytes.
const LIMIT_BYTES: usize = 4 << 20;

/// Scripts of each kind. Those that reach a limit do some milliseconds of work each.
const MANY: usize = 10_000;
const FEW: usize = 500;

/// How many instructions of Lua run between two looks at the request.
const HOOK_INSTRUCTIONS: u32 = 1_000;

/// Needs a few hundred kilobytes, and makes some garbage.
const PLAIN: &str = "
    local lines = {}
    for i = 1, 500 do lines[i] = ('line ' .. i):rep(3) end
    return #table.concat(lines)";

const PLAIN_RESULT: i64 = 3 * (500 * 5 + 9 + 2 * 90 + 3 * 401);

/// Keeps more and more.
const GREEDY: &str = "
    local kept = {}
    for i = 1, 1e9 do kept[i] = 'item ' .. i end";

/// Is refused one large string and many small ones, and goes on with what it has. (Lua collects its
/// garbage when it is refused memory for anything but the buffer of a string.)
const REFUSED: &str = "
    local large = pcall(string.rep, 'x', 1 << 28)
    local kept = {}
    local small, why = pcall(function() for i = 1, 1e9 do kept[i] = 'item ' .. i end end)
    assert(#kept > 1000)
    kept = nil
    collectgarbage()
    assert(not large and not small and why == 'not enough memory')
    return #('y'):rep(1 << 20)";

/// Makes ten times as much garbage as its heap may hold.
const GARBAGE: &str = "
    local sum = 0
    for i = 1, 40000 do sum = sum + #(('x'):rep(1000) .. i) end
    return sum";

const GARBAGE_RESULT: i64 = 40_000 * 1_000 + 9 + 2 * 90 + 3 * 900 + 4 * 9_000 + 5 * 30_001;

/// Lua's allocation callback: blocks of the request that `heap` points to.
///
/// # Safety
/// That of `lua_Alloc`; `heap` points to a `Request` that is open until the state is closed.
unsafe extern "C" fn allocate(
    heap: *mut c_void,
    block: *mut c_void,
    old_bytes: usize,
    bytes: usize,
) -> *mut c_void {
    let block: *mut u8 = block.cast();
    // SAFETY: the caller's contract. A handle is used by any thread.
    let heap = unsafe { &*heap.cast::<Request>() };
    let resized = heap.run(|| {
        if bytes == 0 {
            // SAFETY: the caller's contract: Lua does not use it any more.
            unsafe { zend::efree(block) };
            return null_mut();
        }
        if block.is_null() {
            return zend::try_emalloc(bytes).unwrap_or(null_mut());
        }
        // SAFETY: the caller's contract: the block is Lua's.
        match unsafe { zend::try_erealloc(block, bytes) } {
            Ok(resized) => resized,
            // Lua assumes that a block can shrink.
            Err(_) if bytes <= old_bytes => block,
            Err(_) => null_mut(),
        }
    });
    resized.cast()
}

/// A Lua state whose blocks are in a request of their own, a child of the script's request.
struct Script {
    state: *mut lua_State,
    /// Boxed, since the callback points to it.
    heap: Box<Request>,
}

impl Script {
    /// Opens a state inside the request.
    fn new(request: &Request) -> Self {
        let builder = Request::builder().parent(request).memory_limit(LIMIT_BYTES);
        let heap = Box::new(builder.report_limit(false).build());
        // SAFETY: the callback keeps its contract, since `close` is the only way out.
        let state = unsafe { lua_newstate(allocate, (&raw const *heap).cast_mut().cast()) };
        assert!(!state.is_null());
        // SAFETY: the state is open, and its heap has room for what it opens.
        unsafe { luaL_openlibs(state) };
        Self { state, heap }
    }

    fn lua(&self) -> &Lua {
        // SAFETY: the state is open as long as `self`.
        unsafe { Lua::get_or_init_from_ptr(self.state) }
    }

    /// Closes the state, and ends its heap.
    fn close(self) -> Report {
        // SAFETY: `lua` lent the only `Lua`.
        unsafe { lua_close(self.state) };
        // SAFETY: only the state used its blocks.
        unsafe { self.heap.end() }.unwrap()
    }

    /// Drops everything without looking at it: what the state would have done at its close is not
    /// done.
    ///
    /// # Safety
    /// Nothing that the state or mlua allocated for it is used later, in or out of the heap.
    unsafe fn abandon(self) -> Report {
        // SAFETY: the caller's contract.
        unsafe { self.heap.end() }.unwrap()
    }
}

/// Runs a script, and returns what it returns.
fn run(lua: &Lua, script: &str) -> mlua::Result<i64> {
    lua.load(script).eval()
}

/// Has a script give up at the mark of its request.
fn give_up_at_mark(lua: &Lua) {
    let triggers = HookTriggers::new().every_nth_instruction(HOOK_INSTRUCTIONS);
    let look = |_: &Lua, _: &mlua::debug::Debug| {
        rqmalloc::check().map_err(Error::external)?;
        Ok(VmState::Continue)
    };
    lua.set_hook(triggers, look).unwrap();
}

fn limit_of(error: &Error) -> Option<LimitExceeded> {
    match error {
        Error::CallbackError { cause, .. } => limit_of(cause),
        Error::ExternalError(cause) => cause.downcast_ref().copied(),
        _ => None,
    }
}

fn plain(_: usize) {
    let request = Request::new();
    let result = request.run(|| run(&Lua::new(), PLAIN));
    assert_eq!(result.unwrap(), PLAIN_RESULT);
    let report = request.close().unwrap();
    assert_eq!(report.surviving_blocks, 0, "{report}");
}

/// The mark is found by a hook; what the script allocates in between is allocated.
fn over_soft_limit(_: usize) {
    let request = Request::builder().soft_limit(LIMIT_BYTES).build();
    request.run(|| {
        let lua = Lua::new();
        give_up_at_mark(&lua);
        let error = run(&lua, GREEDY).unwrap_err();
        let limit = limit_of(&error).unwrap_or_else(|| panic!("{error}"));
        assert_eq!((limit.kind, limit.limit_bytes), (LimitKind::Soft, LIMIT_BYTES));
    });
    let report = request.close().unwrap();
    assert_eq!((report.outcome, report.surviving_blocks), (Outcome::OverLimit, 0), "{report}");
    // The table doubles: the mark comes before it does, or after.
    assert!(report.peak_bytes < 4 * LIMIT_BYTES, "{report}");
}

fn heap_of_its_own(_: usize) {
    let request = Request::new();
    let heap = request.run(|| {
        let script = Script::new(&request);
        assert_eq!(run(script.lua(), PLAIN).unwrap(), PLAIN_RESULT);
        script.close()
    });
    assert_eq!((heap.outcome, heap.freed_blocks), (Outcome::Ended, 0), "{heap}");
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}

/// Lua is refused memory, collects its garbage, and raises its error if that is not enough.
fn over_hard_limit(number: usize) {
    let request = Request::new();
    let heap = request.run(|| {
        let script = Script::new(&request);
        match number % 3 {
            0 => {
                let error = run(script.lua(), GREEDY).unwrap_err();
                assert!(matches!(error, Error::MemoryError(_)), "{error}");
            }
            1 => assert_eq!(run(script.lua(), REFUSED).unwrap(), 1 << 20),
            _ => assert_eq!(run(script.lua(), GARBAGE).unwrap(), GARBAGE_RESULT),
        }
        script.close()
    });
    assert_eq!(heap.freed_blocks, 0, "{heap}");
    assert!(heap.peak_bytes <= LIMIT_BYTES, "{heap}");
    if number % 3 != 2 {
        assert!(heap.limit_exceeded.is_some(), "{heap}");
    }
    assert_eq!(request.close().unwrap().surviving_blocks, 0);
}

/// Makes a function that keeps the state that it is in: no garbage collector sees that.
fn leak(lua: Lua) {
    let kept = lua.clone();
    let function = lua.create_function(move |_, ()| Ok(kept.globals().len()? > 0)).unwrap();
    lua.globals().set("never_freed", function).unwrap();
    assert_eq!(run(&lua, PLAIN).unwrap(), PLAIN_RESULT);
}

fn cycle(_: usize) {
    let request = Request::new();
    request.run(|| leak(Lua::new()));
    assert!(request.usage().live_blocks > 100, "it does not leak any more");
    // SAFETY: nothing outside points to the state, and mlua keeps nothing else.
    let report = unsafe { request.end() }.unwrap();
    assert!(report.freed_blocks > 100, "{report}");
}

/// A state is given up in the middle of a script, with all that it has.
fn abandoned(_: usize) {
    let request = Request::new();
    request.run(|| {
        let script = Script::new(&request);
        assert_eq!(run(script.lua(), PLAIN).unwrap(), PLAIN_RESULT);
        // SAFETY: neither the state nor the `Lua` is used again; the request is ended.
        assert!(unsafe { script.abandon() }.freed_blocks > 100);
    });
    // SAFETY: nothing outside points to what mlua had for the state.
    assert!(unsafe { request.end() }.unwrap().freed_blocks > 0);
}

fn main() {
    // What is created once is created now.
    assert_eq!(run(&Lua::new(), PLAIN).unwrap(), PLAIN_RESULT);
    stays_flat("a script", MANY, plain);
    stays_flat("a script with a heap of its own", MANY, heap_of_its_own);
    stays_flat("a cycle that leaks", MANY, cycle);
    stays_flat("a state that is given up", MANY, abandoned);
    stays_flat("over a soft limit", FEW, over_soft_limit);
    stays_flat("over a hard limit", FEW, over_hard_limit);
    println!("ok");
}
