//! A scripting language: rhai, with shared values, closures and interned strings.

use rhai::{AST, Dynamic, Engine, Scope};
use rqmalloc_programs::Program;
use std::sync::Arc;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

/// Scripts, and what each evaluates to, as text.
const SCRIPTS: &[(&str, &str)] = &[
    (
        "fn fib(n) { if n < 2 { n } else { fib(n - 1) + fib(n - 2) } }
         fib(19)",
        "4181",
    ),
    (
        "let rows = [];
         for i in 0..3000 { rows.push(#{ id: i, name: `row ${i}`, parts: [i, i * 2, `${i}`] }); }
         rows.filter(|row| row.id % 3 == 0).map(|row| row.parts[1]).reduce(|sum, x| sum + x, 0)",
        "2997000",
    ),
    (
        "let text = \"\";
         for i in 0..2000 { text += `${i % 10}`; }
         let count = 0;
         for c in text.split(\"9\") { if c == \"012345678\" { count += 1; } }
         count",
        "200",
    ),
    (
        "let counts = #{};
         for i in 0..5000 {
             let key = `k${i * 31 % 97}`;
             if key in counts { counts[key] += 1; } else { counts[key] = 1; }
         }
         let total = 0;
         for n in counts.values() { total += n; }
         `${counts.len()} ${total}`",
        "97 5000",
    ),
    (
        "let caught = 0;
         for i in 0..500 { try { if i % 2 == 0 { throw `odd one out: ${i}`; } } catch (e) { if e.contains(\"odd\") { caught += 1; } } }
         let total = 0;
         let add = |n| { total += n; };
         for i in 0..200 { add.call(i); }
         `${caught} ${total}`",
        "250 19900",
    ),
];

fn engine() -> Engine {
    let mut engine = Engine::new();
    engine.set_max_expr_depths(0, 0);
    engine.register_fn("shared_text", |n: i64| Arc::new("x".repeat(n as usize)).to_string());
    engine
}

fn text(value: &Dynamic) -> String {
    value.to_string()
}

fn run_all(engine: &Engine) -> usize {
    for (script, expected) in SCRIPTS {
        let value: Dynamic = engine.eval(script).expect(script);
        assert_eq!(text(&value), *expected, "{script}");
    }
    SCRIPTS.len()
}

fn main() {
    let mut program = Program::start("scripts");
    let mut evaluations = 0;

    // Unchanged.
    let long_lived = engine();
    for _ in 0..3 {
        evaluations += run_all(&long_lived);
    }

    // An engine, its syntax trees and its values in a request; the trees and values are used after
    // it.
    for _ in 0..5 {
        evaluations += program.request(|| run_all(&engine()));
        let (engine, results): (Engine, Vec<(AST, Dynamic)>) = program.request(|| {
            let engine = engine();
            let compile = |(script, _): &(&str, _)| {
                let ast = engine.compile(script).expect(script);
                let value = engine.eval_ast(&ast).expect(script);
                (ast, value)
            };
            let results = SCRIPTS.iter().map(compile).collect();
            (engine, results)
        });
        for ((ast, value), (script, expected)) in results.into_iter().zip(SCRIPTS) {
            assert_eq!(text(&value), *expected, "{script}");
            let again: Dynamic = engine.eval_ast(&ast).expect(script);
            assert_eq!(text(&again), *expected, "{script}");
            let once_more = program.request(|| engine.eval_ast::<Dynamic>(&ast).expect(script));
            assert_eq!(text(&once_more), *expected, "{script}");
            // The trees of one request, freed in another.
            program.request(move || drop(ast));
            evaluations += 3;
        }
    }

    // An engine and a scope of the process, whose variables grow in many requests.
    let mut scope = Scope::new();
    scope.push("kept", rhai::Array::new());
    for round in 1..=20 {
        program.request(|| {
            let push = "for i in 0..500 { kept.push(#{ index: kept.len(), text: `item ${kept.len()}` + shared_text(20) }); }";
            long_lived.run_with_scope(&mut scope, push).unwrap();
        });
        let check = "let bad = 0;
            for (item, i) in kept { if item.index != i || !item.text.starts_with(`item ${i}x`) { bad += 1; } }
            `${kept.len()} ${bad}`";
        let seen: String = long_lived.eval_with_scope(&mut scope, check).unwrap();
        assert_eq!(seen, format!("{} 0", round * 500));
        evaluations += 2;
    }
    program.request(|| drop(scope));
    evaluations += run_all(&long_lived);

    program.finish(format_args!("{evaluations} evaluations"));
}
