//! A template engine: minijinja, with reference-counted values and templates compiled on demand.

use minijinja::{AutoEscape, Environment, Value, context};
use rqmalloc_programs::{Program, Rng};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

const BASE: &str = "<html><head><title>{% block title %}{% endblock %}</title></head>\
    <body>{% block body %}{% endblock %}</body></html>";

const PAGE: &str = "{% extends 'base' %}\
    {% macro cell(text, class='plain') %}<td class='{{ class }}'>{{ text }}</td>{% endmacro %}\
    {% block title %}{{ title|upper }} ({{ rows|length }}){% endblock %}\
    {% block body %}<table>\
    {% for row in rows %}<tr id='{{ loop.index }}'>{{ cell(row.name) }}{{ cell(row.price, class='number') }}\
    {{ cell(row.tags|sort|join(', ')) }}</tr>{% endfor %}\
    </table><p>total {{ total(rows) }}</p>{% set seen = namespace(n=0) %}\
    {% for row in rows if row.price > 50 %}{% set seen.n = seen.n + 1 %}{% endfor %}\
    <p>dear {{ seen.n }}</p>{% endblock %}";

static TOTALS: AtomicUsize = AtomicUsize::new(0);

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("base", BASE).unwrap();
    environment.add_template("page", PAGE).unwrap();
    environment.add_function("total", |rows: Vec<Value>| -> Result<i64, minijinja::Error> {
        TOTALS.fetch_add(1, Ordering::Relaxed);
        let mut total = 0;
        for row in rows {
            total += i64::try_from(row.get_attr("price")?)?;
        }
        Ok(total)
    });
    environment
}

struct Page {
    rows: Value,
    count: usize,
    total: i64,
    dear: usize,
}

fn page(seed: u64) -> Page {
    let mut rng = Rng::new(seed);
    let mut page = Page { rows: Value::UNDEFINED, count: 200, total: 0, dear: 0 };
    let rows: Vec<Value> = (0..page.count)
        .map(|index| {
            let price = rng.below(100) as i64;
            page.total += price;
            page.dear += usize::from(price > 50);
            let mut row = BTreeMap::new();
            row.insert("name", Value::from(format!("<item> {index}")));
            row.insert("price", Value::from(price));
            let tags = (0..rng.below(6)).map(|tag| format!("tag{}", 9 - tag)).map(Value::from);
            row.insert("tags", Value::from_iter(tags));
            Value::from(row)
        })
        .collect();
    page.rows = Value::from(rows);
    page
}

fn render(environment: &Environment, page: &Page) -> String {
    let template = environment.get_template("page").unwrap();
    let text =
        template.render(context! { title => "things & such", rows => page.rows.clone() }).unwrap();
    assert!(text.contains(&format!("<title>THINGS &amp; SUCH ({})</title>", page.count)));
    assert_eq!(text.matches("<tr id=").count(), page.count);
    assert_eq!(text.matches("&lt;item&gt;").count(), page.count);
    assert!(text.contains(&format!("<p>total {}</p>", page.total)));
    assert!(text.contains(&format!("<p>dear {}</p>", page.dear)));
    text
}

fn main() {
    let mut program = Program::start("templates");
    let mut pages = 0;

    // Unchanged.
    let shared = environment();
    let expected: Vec<String> = (0..50).map(|seed| render(&shared, &page(seed))).collect();
    pages += expected.len();

    // One page a request, as a server would do; the text is compared after the request.
    for _ in 0..5 {
        for (seed, expected) in expected.iter().enumerate() {
            let text = program.request(|| render(&shared, &page(seed as u64)));
            assert_eq!(text, *expected);
            pages += 1;
        }
    }

    // Values of one request, rendered in another by an environment of a third.
    let environment = program.request(environment);
    for (seed, expected) in expected.iter().enumerate() {
        let page = program.request(|| page(seed as u64));
        let text = program.request(|| render(&environment, &page));
        assert_eq!(text, *expected);
        program.request(move || drop((page, text)));
        pages += 1;
    }
    drop(environment);

    // Two servers at once, on one environment.
    let rendered = AtomicUsize::new(0);
    program.shared_request(|request| {
        let handles = [request.clone(), request.clone()];
        thread::scope(|scope| {
            let threads = handles.map(|request| {
                let (shared, expected, rendered) = (&shared, &expected, &rendered);
                scope.spawn(move || {
                    for (seed, expected) in expected.iter().enumerate() {
                        let text = request.run(|| render(shared, &page(seed as u64)));
                        assert_eq!(text, *expected);
                        rendered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            for thread in threads {
                thread.join().unwrap();
            }
        });
    });
    pages += rendered.into_inner();
    assert_eq!(TOTALS.load(Ordering::Relaxed), pages);

    program.finish(format_args!("{pages} pages"));
}
