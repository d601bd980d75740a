//! Programs that hold what they made: marked with the most they hold, and a second after most of it
//! is gone.

use super::{mark, settled};
use crate::Context;
use crate::rng::Rng;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::BuildHasherDefault;
use std::hint::black_box;
use std::mem;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A tenth of it if quick.
fn scaled(context: Context, count: usize) -> usize {
    if context.quick { count / 10 } else { count }
}

/// A word of two to six syllables; low numbers are likelier, as in a text.
fn word(rng: &mut Rng, words: usize) -> String {
    const SYLLABLES: [&str; 16] = [
        "an", "bel", "cor", "da", "el", "fir", "go", "hin", "is", "jo", "kal", "lu", "mer", "no",
        "or", "pas",
    ];
    let mut index = rng.below(words) * rng.below(words) / words;
    let mut text = String::new();
    for _ in 0..2 {
        text.push_str(SYLLABLES[index % 16]);
        index /= 16;
    }
    while index > 0 {
        text.push_str(SYLLABLES[index % 16]);
        index /= 16;
    }
    text
}

/// Documents are parsed, changed and replaced, as in a store of documents.
pub fn json(context: Context) {
    let held = scaled(context, 500);
    let text = crate::json::document();
    let mut rng = Rng::new(1);
    let mut total = 0;
    let mut store = Vec::new();
    for turn in 0..4 * held {
        let mut document: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        for item in document["items"].as_array_mut().expect("a list").iter_mut().step_by(3) {
            let note = format!("changed in turn {turn} by {}", word(&mut rng, 1000));
            item["note"] = serde_json::Value::String(note);
        }
        total += crate::json::walk(&document);
        if store.len() < held {
            store.push(document);
        } else {
            let index = rng.below(held);
            total += serde_json::to_string(&store[index]).expect("it prints").len() as u64;
            store[index] = document;
        }
    }
    mark("peak");
    for (index, document) in mem::take(&mut store).into_iter().enumerate() {
        if index % 8 == 0 {
            store.push(document);
        }
    }
    for document in &mut store {
        *document = serde_json::from_str(&text).expect("it is JSON");
    }
    settled(context);
    black_box((total, store));
}

/// Returns the text of a Rust file with so many functions and types.
fn source(rng: &mut Rng, items: usize) -> String {
    let mut text = String::from("use std::collections::HashMap;\n");
    for index in 0..items {
        let [a, b, c] = [(); 3].map(|()| word(rng, 3000));
        let (m, n) = (rng.below(100), rng.below(9) + 1);
        write!(
            text,
            "/// About {a} and {b}.\n#[derive(Clone, Debug, PartialEq)]\npub struct T{index}<'a, T> {{\n    \
             pub {a}_{m}: Vec<Option<T>>,\n    r#{b}: &'a [u8; {n}],\n    pub(crate) inner: \
             HashMap<String, Box<dyn Fn(u32) -> Result<T, String> + 'a>>,\n}}\n\nimpl<'a, T: Clone> \
             T{index}<'a, T> {{\n    pub fn {c}_{n}(&mut self, mut {a}: usize) -> Result<T, String> \
             {{\n        let rest = self.{a}_{m}.iter().filter(|x| x.is_some()).count() * {m};\n        \
             for i in 0..{a} {{\n            if rest + i > {m} && self.inner.len() != {n} {{\n                \
             match self.{a}_{m}.get(i) {{\n                    Some(Some(value)) => return \
             Ok(value.clone()),\n                    Some(None) | None => {a} += i << {n},\n                \
             }}\n            }} else {{\n                println!(\"{{}} {b}\", i);\n            }}\n        \
             }}\n        let f = self.inner.get(\"{c}\").ok_or_else(|| format!(\"no {{}}\", {a}))?;\n        \
             f({m} as u32)\n    }}\n}}\n\n"
        )
        .expect("a string grows");
    }
    text
}

/// A tool that has the trees of several files and looks at each item.
pub fn syntax(context: Context) {
    let items = scaled(context, 1200);
    let mut rng = Rng::new(2);
    let mut trees: Vec<syn::File> = Vec::new();
    let mut count = 0;
    for turn in 0..12 {
        let tree = syn::parse_file(&source(&mut rng, items)).expect("it is Rust");
        // A copy without what is not public.
        let mut copy = tree.clone();
        copy.items.retain(|item| matches!(item, syn::Item::Impl(_)));
        count += copy.items.len();
        if trees.len() < 6 {
            trees.push(tree);
        } else {
            trees[turn % 6] = tree;
        }
        drop(copy);
    }
    mark("peak");
    trees.truncate(1);
    trees[0] = syn::parse_file(&source(&mut rng, items)).expect("it is Rust");
    settled(context);
    black_box((count, trees));
}

/// Values of a script: arrays, maps, strings, closures.
pub fn interpreter(context: Context) {
    const SCRIPT: &str = r#"
        fn make(count, seed) {
            let people = [];
            let x = seed;
            for i in 0..count {
                x = (x * 1103515245 + 12345) % 2147483648;
                let person = #{
                    id: i,
                    name: "person number " + x,
                    tags: [x % 7, x % 11, "tag " + (x % 13)],
                    score: x.to_float() / 1000.0,
                };
                if x % 3 == 0 { person.friend = #{ id: x % count, since: 1900 + x % 120 }; }
                people.push(person);
            }
            people
        }
        fn group(people) {
            let groups = #{};
            for person in people {
                let key = "group " + (person.id % 97);
                if !(key in groups) { groups[key] = []; }
                groups[key].push(person.name);
            }
            groups
        }
        fn sum(people) {
            let total = 0.0;
            for person in people { total += person.score + person.tags.len(); }
            total
        }
        let held = [];
        let total = 0.0;
        for turn in 0..TURNS {
            let people = make(COUNT, turn + 1);
            let groups = group(people);
            total += sum(people) + groups.len();
            if held.len() >= 6 { held.remove(0); }
            held.push(#{ people: people, groups: groups });
        }
    "#;
    let mut engine = rhai::Engine::new();
    engine.set_max_expr_depths(0, 0);
    let mut scope = rhai::Scope::new();
    let count = i64::try_from(scaled(context, 8000)).expect("it is small");
    scope.push_constant("TURNS", 12_i64).push_constant("COUNT", count);
    let script = engine.compile(SCRIPT).expect("it is Rhai");
    engine.run_ast_with_scope(&mut scope, &script).expect("it runs");
    mark("peak");
    engine.run_with_scope(&mut scope, "held.truncate(1)").expect("it runs");
    let held = scope;
    let mut scope = rhai::Scope::new();
    scope.push_constant("TURNS", 1_i64).push_constant("COUNT", count / 10);
    engine.run_ast_with_scope(&mut scope, &script).expect("it runs");
    settled(context);
    black_box((held, scope));
}

/// A segment: for each word the documents it is in, and how often.
struct Segment {
    postings: Map<String, Vec<(u32, u16)>>,
}

impl Segment {
    fn build(rng: &mut Rng, documents: std::ops::Range<u32>) -> Self {
        let mut postings: Map<String, Vec<(u32, u16)>> = Map::default();
        for document in documents {
            let text: Vec<String> = (0..rng.between(20, 120)).map(|_| word(rng, 60_000)).collect();
            let text = text.join(" ");
            let mut counts: Map<&str, u16> = Map::default();
            for word in text.split(' ') {
                *counts.entry(word).or_default() += 1;
            }
            for (word, count) in counts {
                match postings.get_mut(word) {
                    Some(list) => list.push((document, count)),
                    None => {
                        postings.insert(word.to_owned(), vec![(document, count)]);
                    }
                }
            }
        }
        Self { postings }
    }

    fn merge(segments: Vec<Self>) -> Self {
        let mut postings: Map<String, Vec<(u32, u16)>> = Map::default();
        for segment in segments {
            for (word, list) in segment.postings {
                postings.entry(word).or_default().extend_from_slice(&list);
            }
        }
        postings.values_mut().for_each(|list| list.sort_unstable());
        Self { postings }
    }

    fn search(&self, words: [&str; 2]) -> Vec<(u32, u16)> {
        let [Some(one), Some(other)] = words.map(|word| self.postings.get(word)) else {
            return Vec::new();
        };
        let other: Map<u32, u16> = other.iter().copied().collect();
        let mut found: Vec<(u32, u16)> = one
            .iter()
            .filter_map(|(document, count)| {
                other.get(document).map(|more| (*document, count + more))
            })
            .collect();
        found.sort_unstable_by_key(|&(document, count)| (u16::MAX - count, document));
        found.truncate(10);
        found
    }
}

/// Segments are built one by one and merged by six; queries go on.
pub fn index(context: Context) {
    let documents = scaled(context, 2500) as u32;
    let mut rng = Rng::new(4);
    let mut segments: Vec<Segment> = Vec::new();
    let mut found = 0;
    for turn in 0..12 {
        segments.push(Segment::build(&mut rng, turn * documents..(turn + 1) * documents));
        if segments.len() == 6 {
            segments = vec![Segment::merge(mem::take(&mut segments))];
        }
        for _ in 0..50 {
            let words = [word(&mut rng, 500), word(&mut rng, 500)];
            let words = words.each_ref().map(String::as_str);
            found += segments.iter().map(|segment| segment.search(words).len()).sum::<usize>();
        }
    }
    mark("peak");
    // The words that are in few documents go.
    let mut segment = Segment::merge(segments);
    segment.postings.retain(|_, list| list.len() > 20);
    segment.postings.shrink_to_fit();
    segment.postings.values_mut().for_each(Vec::shrink_to_fit);
    settled(context);
    black_box((found, segment));
}

pub fn strings(context: Context) {
    let held = scaled(context, 400_000);
    let mut rng = Rng::new(6);
    let mut map: Map<String, String> = Map::default();
    let text = |rng: &mut Rng| {
        let most = [12, 24, 40, 80, 200][rng.below(5)];
        let mut text = word(rng, 100_000);
        while text.len() < most {
            text.push(' ');
            text.push_str(&word(rng, 100_000));
        }
        text.shrink_to_fit();
        text
    };
    for index in 0..held {
        map.insert(format!("key {index}"), text(&mut rng));
    }
    for _ in 0..2 * held {
        let key = format!("key {}", rng.below(2 * held));
        if map.remove(&key).is_none() {
            map.insert(key, text(&mut rng));
        }
    }
    mark("peak");
    map.retain(|key, _| key.ends_with('7'));
    for index in 0..held / 20 {
        map.insert(format!("new {index}"), text(&mut rng));
    }
    settled(context);
    black_box(map);
}
