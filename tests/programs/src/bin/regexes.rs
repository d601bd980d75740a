//! Regular expressions: big automata, and lazily filled caches in pools that all threads share.

use regex::{Regex, RegexSet};
use rqmalloc_programs::{Program, Rng};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::thread;

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

const LINES: usize = 4000;

/// A log, with what must be found in it.
struct Log {
    text: String,
    addresses: usize,
    errors: usize,
    by_user: BTreeMap<String, usize>,
}

fn log(seed: u64) -> Log {
    const USERS: [&str; 8] = ["ann", "bert", "céline", "dörte", "емил", "fumi", "gül", "héctor"];
    let mut rng = Rng::new(seed);
    let mut log = Log { text: String::new(), addresses: 0, errors: 0, by_user: BTreeMap::new() };
    for line in 0..LINES {
        let user = USERS[rng.below(8) as usize];
        let level = ["INFO", "WARN", "ERROR"][rng.below(3) as usize];
        let (hour, minute) = (rng.below(24), rng.below(60));
        write!(log.text, "2024-03-{:02} {hour:02}:{minute:02} {level} user={user} ", line % 28 + 1)
            .unwrap();
        if rng.below(4) == 0 {
            write!(log.text, "from 10.{}.{}.{} ", rng.below(256), rng.below(256), rng.below(256))
                .unwrap();
            log.addresses += 1;
        }
        writeln!(log.text, "took {} ms", rng.below(5000)).unwrap();
        log.errors += usize::from(level == "ERROR");
        *log.by_user.entry(user.to_owned()).or_default() += 1;
    }
    log
}

struct Patterns {
    line: Regex,
    address: Regex,
    words: Regex,
    set: RegexSet,
}

impl Patterns {
    fn new() -> Self {
        let octet = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)";
        Patterns {
            line: Regex::new(
                r"(?mx)^ (?<date>\d{4}-\d{2}-\d{2}) \s (?<time>\d{2}:\d{2}) \s (?<level>INFO|WARN|ERROR)
                  \s user=(?<user>\p{L}+) .*? took \s (?<ms>\d+) \s ms $",
            )
            .unwrap(),
            address: Regex::new(&format!(r"\b{octet}(?:\.{octet}){{3}}\b")).unwrap(),
            words: Regex::new(r"\b\w{3,20}\b").unwrap(),
            set: RegexSet::new([r"ERROR", r"user=\p{Cyrillic}+", r"took [0-9]{4} ms", r"(?i)INFO|warn"])
                .unwrap(),
        }
    }

    /// Checks what is found, and returns the text with numbers masked.
    fn search(&self, log: &Log) -> String {
        let mut by_user = BTreeMap::<String, usize>::new();
        let mut milliseconds = 0;
        for captures in self.line.captures_iter(&log.text) {
            *by_user.entry(captures["user"].to_owned()).or_default() += 1;
            milliseconds += captures["ms"].parse::<u64>().unwrap();
        }
        assert_eq!(by_user, log.by_user);
        assert!(milliseconds > 0);
        assert_eq!(self.address.find_iter(&log.text).count(), log.addresses);

        let sets: Vec<_> = log.text.lines().map(|line| self.set.matches(line)).collect();
        assert_eq!(sets.len(), LINES);
        assert_eq!(sets.iter().filter(|set| set.matched(0)).count(), log.errors);
        assert_eq!(sets.iter().filter(|set| set.matched(3)).count(), LINES - log.errors);
        assert_eq!(sets.iter().filter(|set| set.matched(1)).count(), log.by_user["емил"]);

        let words: Vec<&str> =
            self.words.find_iter(&log.text).map(|found| found.as_str()).collect();
        assert_eq!(words.iter().filter(|word| **word == "took").count(), LINES);
        self.address.replace_all(&log.text, |_: &regex::Captures| "x".repeat(7)).into_owned()
    }
}

/// Builds big automata, uses them once and drops them.
fn build_big(rng: &mut Rng) {
    let mut alternatives = Vec::new();
    for _ in 0..300 {
        let word: String =
            (0..4 + rng.below(8)).map(|_| (b'a' + rng.below(26) as u8) as char).collect();
        alternatives.push(word);
    }
    let any = Regex::new(&format!(r"^(?:{})(?:-\pL{{2,12}})*$", alternatives.join("|"))).unwrap();
    for word in &alternatives {
        assert!(any.is_match(&format!("{word}-größe")));
        assert!(!any.is_match(&format!("{word}-1")));
    }
    // And one that is refused for its size.
    assert!(Regex::new(r"\pL{1000}{1000}").is_err());
}

fn main() {
    let mut program = Program::start("regexes");
    let mut rng = Rng::new(1);
    let mut logs = 0;

    // Unchanged: patterns shared by four threads.
    let patterns = Patterns::new();
    let masked = thread::scope(|scope| {
        let search = |seed| patterns.search(&log(seed));
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || search(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    logs += masked.len();
    (0..5).for_each(|_| build_big(&mut rng));

    // Patterns of a request that is closed.
    for (seed, expected) in masked.iter().enumerate() {
        let (patterns, found) = program.request(|| {
            let patterns = Patterns::new();
            let found = patterns.search(&log(seed as u64));
            (patterns, found)
        });
        assert_eq!(found, *expected);
        // They have survived it, and serve the next.
        let again = program.request(|| patterns.search(&log(seed as u64)));
        assert_eq!(again, *expected);
        assert_eq!(patterns.search(&log(seed as u64)), *expected);
        logs += 3;
    }

    // Patterns of the process, whose caches are first filled in requests of several threads.
    let patterns = Patterns::new();
    for _ in 0..4 {
        let found: Vec<String> = program.shared_request(|request| {
            let threads: Vec<_> = (0..4).map(|seed| (seed, request.clone())).collect();
            let search = |seed| patterns.search(&log(seed));
            thread::scope(|scope| {
                let threads: Vec<_> = threads
                    .into_iter()
                    .map(|(seed, request)| scope.spawn(move || request.run(|| search(seed))))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            })
        });
        assert_eq!(found, masked);
        logs += found.len();
    }
    for _ in 0..5 {
        program.request(|| build_big(&mut rng));
    }

    program.finish(format_args!("{logs} logs of {LINES} lines"));
}
