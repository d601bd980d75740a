//! A JavaScript engine: boa, with its garbage collector, its interned strings and its shape caches.

use boa_engine::{Context, Source, gc};
use rqmalloc_programs::Program;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// Scripts, and what each evaluates to, as text.
const SCRIPTS: &[(&str, &str)] = &[
    // Countless objects, a tree at a time.
    (
        "function tree(depth) {
             return depth === 0 ? { value: 1 } : { left: tree(depth - 1), right: tree(depth - 1), value: 1 };
         }
         function sum(node) { return node.value + (node.left ? sum(node.left) + sum(node.right) : 0); }
         let total = 0;
         for (let i = 0; i < 6; i++) { total += sum(tree(10)); }
         total",
        "12282",
    ),
    // Eight queens.
    (
        "function place(row, columns, rising, falling) {
             if (row === 8) { return 1; }
             let count = 0;
             for (let c = 0; c < 8; c++) {
                 if (columns.has(c) || rising.has(row + c) || falling.has(row - c)) { continue; }
                 count += place(row + 1, new Set([...columns, c]), new Set([...rising, row + c]),
                                new Set([...falling, row - c]));
             }
             return count;
         }
         place(0, new Set(), new Set(), new Set())",
        "92",
    ),
    // Strings: joined, split, counted in a map.
    (
        "const words = [];
         for (let i = 0; i < 6000; i++) { words.push('w' + (i * 7919) % 100); }
         const counts = new Map();
         for (const word of words.join(' ').split(' ')) { counts.set(word, (counts.get(word) || 0) + 1); }
         [counts.size, counts.get('w0'), counts.get('w99')].join()",
        "100,60,60",
    ),
    // Big integers.
    (
        "let product = 1n;
         for (let i = 1n; i <= 400n; i++) { product *= i; }
         let zeros = 0;
         while (product % 10n === 0n) { product /= 10n; zeros++; }
         zeros",
        "99",
    ),
    // JSON, written and read back.
    (
        "const rows = [];
         for (let i = 0; i < 1500; i++) {
             rows.push({ id: i, name: `row ${i}`, tags: ['a', 'b', String(i)], nested: { half: i / 2, odd: i % 2 === 1 } });
         }
         const text = JSON.stringify(rows);
         const back = JSON.parse(text);
         back.length + ' ' + back.reduce((sum, row) => sum + row.nested.half, 0) + ' ' + (JSON.stringify(back) === text)",
        "1500 562125 true",
    ),
    // Classes, generators, destructuring, closures.
    (
        "class Counter { #n = 0; next(by) { this.#n += by; return this; } get value() { return this.#n; } }
         function* naturals(limit) { for (let i = 0; i < limit; i++) { yield [i, i * i]; } }
         const counter = new Counter();
         const closures = [];
         for (const [i, square] of naturals(3000)) { closures.push(() => counter.next(square - i * i + 1)); }
         closures.forEach(f => f());
         counter.value",
        "3000",
    ),
    // A sieve and a sort.
    (
        "const sieve = new Uint8Array(20000);
         const primes = [];
         for (let i = 2; i < sieve.length; i++) {
             if (sieve[i]) { continue; }
             primes.push(i);
             for (let j = i * i; j < sieve.length; j += i) { sieve[j] = 1; }
         }
         primes.sort((a, b) => (a % 1000) - (b % 1000) || a - b);
         [primes.length, primes[0], primes[primes.length - 1]].join()",
        "2262,3001,13999",
    ),
    // Errors thrown through frames, and regular expressions.
    (
        "function deep(n) { if (n === 0) { throw new Error('at the bottom'); } try { deep(n - 1); } finally { depth++; } }
         let depth = 0, caught = 0;
         for (let i = 0; i < 30; i++) { try { deep(20); } catch (e) { if (/^at (the )?bottom$/.test(e.message)) { caught++; } } }
         depth + ' ' + caught + ' ' + 'a1b22c333'.replace(/\\d+/g, d => '<' + d.length + '>')",
        "600 30 a<1>b<2>c<3>",
    ),
];

/// Promises: the jobs run after the script and leave the result in a global.
const PROMISES: &str = "
    globalThis.settled = 'not yet';
    async function step(n) { return n === 0 ? 0 : 1 + await step(n - 1); }
    Promise.all([step(20), step(30), new Promise(done => done(7))]).then(all => { globalThis.settled = all.join('+'); });";

fn evaluate(context: &mut Context, script: &str) -> String {
    let value = context.eval(Source::from_bytes(script)).expect(script);
    value.to_string(context).expect(script).to_std_string_escaped()
}

/// Evaluates in a block, because a `let` at the top of a script stays global.
fn evaluate_in_block(context: &mut Context, script: &str) -> String {
    evaluate(context, &format!("{{ {script} }}"))
}

fn promises(context: &mut Context) -> String {
    evaluate_in_block(context, PROMISES);
    context.run_jobs().expect("jobs");
    evaluate(context, "globalThis.settled")
}

fn all_scripts(context: &mut Context) {
    for (script, expected) in SCRIPTS {
        assert_eq!(evaluate_in_block(context, script), *expected, "{script}");
    }
    assert_eq!(promises(context), "20+30+7");
}

fn main() {
    let mut program = Program::start("javascript");
    let mut evaluations = 0;

    // Unchanged.
    for _ in 0..2 {
        all_scripts(&mut Context::default());
        evaluations += SCRIPTS.len() + 1;
    }
    gc::force_collect();

    // A context in each request. What the thread-local collector keeps of it survives.
    for _ in 0..4 {
        let results: Vec<String> = program.request(|| {
            let mut context = Context::default();
            let evaluate = |(script, _): &(&str, _)| evaluate_in_block(&mut context, script);
            SCRIPTS.iter().map(evaluate).collect()
        });
        // The strings were allocated in the request.
        let expected = SCRIPTS.iter().map(|(_, expected)| *expected);
        assert!(results.iter().map(String::as_str).eq(expected));
        evaluations += results.len();
    }

    // One context for many requests: its heap, its global object and its caches grow in all of
    // them.
    let mut context = Context::default();
    evaluate(&mut context, "globalThis.kept = [];");
    for round in 0..5 {
        for (script, expected) in SCRIPTS {
            let result = program.request(|| evaluate_in_block(&mut context, script));
            assert_eq!(result, *expected, "round {round}: {script}");
            evaluations += 1;
        }
        let settled = program.request(|| promises(&mut context));
        assert_eq!(settled, "20+30+7");
        program.request(|| {
            evaluate(
                &mut context,
                "for (let i = 0; i < 2000; i++) { kept.push({ index: kept.length, text: 'item ' + kept.length }); }",
            );
        });
        // Collected sometimes in a request, sometimes outside all of them.
        if round % 2 == 0 {
            gc::force_collect();
        } else {
            program.request(gc::force_collect);
        }
        let seen = evaluate(
            &mut context,
            "kept.every((item, i) => item.index === i && item.text === `item ${i}`) + ' ' + kept.length",
        );
        assert_eq!(seen, format!("true {}", (round + 1) * 2000));
        evaluations += 3;
    }
    evaluate(&mut context, "kept = null");
    gc::force_collect();
    drop(context);
    gc::force_collect();
    all_scripts(&mut Context::default());
    evaluations += SCRIPTS.len() + 1;

    program.finish(format_args!("{evaluations} evaluations"));
}
