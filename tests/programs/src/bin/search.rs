//! A search engine: tantivy, whose threads index, merge and search.

use rqmalloc_programs::{Program, Rng};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tantivy::collector::{Count, TopDocs};
use tantivy::query::QueryParser;
use tantivy::schema::{FAST, Field, INDEXED, STORED, Schema, TEXT, Value};
use tantivy::{Index, IndexWriter, Searcher, TantivyDocument, Term, doc};

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

const THREADS: u64 = 3;
const DOCUMENTS: u64 = 30_000;
const SYLLABLES: [&str; 16] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va",
];

#[derive(Clone, Copy)]
struct Fields {
    number: Field,
    title: Field,
    body: Field,
}

/// Returns a document that says in words what its number is divisible by, so that hits can be
/// counted by arithmetic.
fn document(fields: Fields, number: u64) -> TantivyDocument {
    let mut rng = Rng::new(number);
    let mut body = String::new();
    for divisor in [2, 3, 7, 100] {
        if number.is_multiple_of(divisor) {
            body += &format!("divisibleby{divisor} ");
        }
    }
    for _ in 0..20 + rng.below(40) {
        for _ in 0..2 + rng.below(3) {
            body += SYLLABLES[rng.below(16) as usize];
        }
        body.push(' ');
    }
    doc!(fields.number => number, fields.title => format!("document number{number}"), fields.body => body)
}

fn new_index() -> (Index, Fields) {
    let mut schema = Schema::builder();
    let fields = Fields {
        number: schema.add_u64_field("number", INDEXED | FAST | STORED),
        title: schema.add_text_field("title", TEXT | STORED),
        body: schema.add_text_field("body", TEXT),
    };
    (Index::create_in_ram(schema.build()), fields)
}

fn new_writer(index: &Index) -> IndexWriter {
    index.writer_with_num_threads(2, 40_000_000).unwrap()
}

fn hits(index: &Index, searcher: &Searcher, fields: Fields, query: &str) -> usize {
    let parser = QueryParser::for_index(index, vec![fields.title, fields.body]);
    searcher.search(&parser.parse_query(query).unwrap(), &Count).unwrap()
}

/// Returns queries, and how many numbers below `end` they hit.
fn queries(end: u64) -> Vec<(String, u64)> {
    let multiples = |of: u64| end.div_ceil(of);
    vec![
        ("divisibleby3".into(), multiples(3)),
        ("+divisibleby2 +divisibleby7".into(), multiples(14)),
        ("+divisibleby2 -divisibleby100".into(), multiples(2) - multiples(100)),
        ("divisibleby7 divisibleby3".into(), multiples(7) + multiples(3) - multiples(21)),
        ("\"document number123\"".into(), 1),
        (format!("number:[100 TO {}]", end - 1), end - 100),
        ("absentword".into(), 0),
    ]
}

fn check_hits(index: &Index, fields: Fields, end: u64) -> usize {
    let searcher = index.reader().unwrap().searcher();
    assert_eq!(searcher.num_docs(), end);
    let queries = queries(end);
    for (query, expected) in &queries {
        assert_eq!(hits(index, &searcher, fields, query) as u64, *expected, "{query}");
    }
    queries.len()
}

/// Returns the titles of a query's best ten.
fn titles(index: &Index, fields: Fields, query: &str) -> Vec<String> {
    let searcher = index.reader().unwrap().searcher();
    let query = QueryParser::for_index(index, vec![fields.body]).parse_query(query).unwrap();
    let best = searcher.search(&query, &TopDocs::with_limit(10).order_by_score()).unwrap();
    let title = |address| {
        let document: TantivyDocument = searcher.doc(address).unwrap();
        document.get_first(fields.title).unwrap().as_str().unwrap().to_owned()
    };
    best.into_iter().map(|(_, address)| title(address)).collect()
}

/// Merges all segments into one. The writer also merges by itself, and may just have taken some of
/// them.
fn merge(index: &Index, writer: &mut IndexWriter) {
    for _ in 0..1000 {
        let segments = index.searchable_segment_ids().unwrap();
        if segments.len() <= 1 {
            return;
        }
        if writer.merge(&segments).wait().is_err() {
            thread::sleep(Duration::from_millis(10));
        }
    }
    panic!("still more than one segment");
}

fn main() {
    let mut program = Program::start("search");
    let mut searches = 0;

    // Unchanged: threads add documents alongside the writer's own.
    let (index, fields) = new_index();
    let mut writer = new_writer(&index);
    for part in 0..3 {
        let (from, to) = (part * DOCUMENTS / 3, (part + 1) * DOCUMENTS / 3);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let writer = &writer;
                scope.spawn(move || {
                    for number in (from..to).filter(|number| number % THREADS == thread) {
                        writer.add_document(document(fields, number)).unwrap();
                    }
                });
            }
        });
        writer.commit().unwrap();
        searches += check_hits(&index, fields, to);
    }
    merge(&index, &mut writer);
    searches += check_hits(&index, fields, DOCUMENTS);
    let plain_titles = titles(&index, fields, "+divisibleby7 +divisibleby100");
    assert_eq!(plain_titles.len(), 10);

    // Searches in requests, several threads in each: what readers and pools keep survives.
    for _ in 0..20 {
        let count = AtomicUsize::new(0);
        program.shared_request(|request| {
            let threads = [(); 2].map(|()| request.clone());
            thread::scope(|scope| {
                // Joined one by one: only then have the threads dropped their handles.
                for thread in threads.map(|request| {
                    let (index, count) = (&index, &count);
                    scope.spawn(move || {
                        let hits = request.run(|| check_hits(index, fields, DOCUMENTS));
                        count.fetch_add(hits, Ordering::Relaxed);
                    })
                }) {
                    thread.join().unwrap();
                }
            });
        });
        searches += count.into_inner();
        let found = program.request(|| titles(&index, fields, "+divisibleby7 +divisibleby100"));
        assert_eq!(found, plain_titles);
        searches += 1;
    }

    // An index that lives through all requests is written in them: documents pass to the writer's
    // threads, and segments are created and merged while requests open and close.
    let (index, fields) = new_index();
    let mut writer = new_writer(&index);
    let mut end = 0;
    for slice in 1..=10 {
        program.request(|| {
            for number in end..slice * DOCUMENTS / 20 {
                writer.add_document(document(fields, number)).unwrap();
            }
        });
        end = slice * DOCUMENTS / 20;
        if slice % 2 == 0 {
            program.request(|| writer.commit().unwrap());
        } else {
            writer.commit().unwrap();
        }
        searches += check_hits(&index, fields, end);
    }
    program.request(|| merge(&index, &mut writer));
    searches += check_hits(&index, fields, end);
    program.request(|| writer.delete_term(Term::from_field_u64(fields.number, 42)));
    writer.commit().unwrap();
    assert_eq!(index.reader().unwrap().searcher().num_docs(), end - 1);
    writer.wait_merging_threads().unwrap();

    // And one that is created, filled and dropped in a request.
    for _ in 0..3 {
        searches += program.request(|| {
            let (index, fields) = new_index();
            let mut writer = new_writer(&index);
            for number in 0..2000 {
                writer.add_document(document(fields, number)).unwrap();
            }
            writer.commit().unwrap();
            merge(&index, &mut writer);
            let searches = check_hits(&index, fields, 2000);
            writer.wait_merging_threads().unwrap();
            searches
        });
    }

    program.finish(format_args!("{} documents, {searches} searches", DOCUMENTS + end + 3 * 2000));
}
