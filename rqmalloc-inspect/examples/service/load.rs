//! Load on three services beside one another, in turns of a second, from another process than
//! theirs: what they answer, how fast, and how much memory they hold meanwhile.

mod client;
mod process;

use super::options::Options;
use client::{Client, Random};
use process::Service;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often a route is asked for, in thousandths, and its path: `#` is a random number.
const MIX: [(&str, u64, &str); 8] = [
    ("items", 500, "/items/#"),
    ("pages", 200, "/pages/#"),
    ("cached", 150, "/cached/#"),
    ("streams", 40, "/streams/32"),
    ("blocking", 40, "/blocking/#"),
    ("rayon", 20, "/rayon/#"),
    ("leaks", 48, "/leaks"),
    ("eats", 2, "/eats"),
];
/// How long a service has its turn.
const TURN: Duration = Duration::from_secs(1);
/// Rows of the table of memory.
const ROWS: u64 = 10;

/// What came of one service.
#[derive(Default)]
struct Tally {
    seconds: f64,
    /// What the service used of the processors.
    processor_seconds: f64,
    answers: BTreeMap<(&'static str, String), u64>,
    /// Resident bytes after each part of the run.
    resident: Vec<u64>,
    /// Answers a second in each turn.
    rates: Vec<f64>,
}

impl Tally {
    fn count(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Returns the median of the turns' rates, as parts of those of another.
    fn ratio_to(&self, other: &Self) -> f64 {
        let pairs = self.rates.iter().zip(&other.rates);
        let mut ratios: Vec<f64> = pairs.map(|(own, other)| own / other).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Runs the services, loads them, and prints what came of it.
pub fn run(options: &Options) {
    let mix: Vec<_> = MIX
        .into_iter()
        .filter(|(name, ..)| options.only.as_deref().is_none_or(|only| only == *name))
        .collect();
    if mix.is_empty() {
        eprintln!("--only: no such route");
        std::process::exit(2);
    }
    let without = [(options.has_layer, "--no-layer"), (options.has_page, "--no-page")];
    let without: Vec<&str> =
        without.iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
    let mut services = vec![Service::start("rqmalloc", "service", &without)];
    if !options.is_alone {
        process::build_others();
        services.push(Service::start("mimalloc", "service_mimalloc", &[]));
        services.push(Service::start("system", "service_system", &[]));
    }
    if options.has_page {
        println!("watch http://{}/debug/rqmalloc meanwhile\n", services[0].address);
    }
    let mut tallies: Vec<Tally> = services.iter().map(|_| Tally::default()).collect();
    // The generator is one thread: the other core is the service's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    print_heads("resident memory, MiB", &services);
    for second in 1..=options.load_seconds {
        for (service, tally) in services.iter().zip(&mut tallies) {
            runtime.block_on(turn(service, &mix, options.connections, tally));
        }
        if second * ROWS / options.load_seconds > (second - 1) * ROWS / options.load_seconds {
            print_memory(&services, &mut tallies, second * 100 / options.load_seconds);
        }
    }
    print_results(&services, &tallies);
    if options.has_page {
        print_outcomes(&runtime, &services[0]);
    }
}

/// Loads a service for one turn.
async fn turn(
    service: &Service,
    mix: &[(&'static str, u64, &'static str)],
    connections: usize,
    tally: &mut Tally,
) {
    let start = Instant::now();
    let processor_seconds = service.processor_seconds();
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (mix, address) = (mix.to_vec(), service.address);
        let mut random = Random::new(tally.count() + number as u64);
        tasks.spawn(async move {
            let mut answers = BTreeMap::new();
            let mut client = Client::new(address);
            let whole: u64 = mix.iter().map(|(_, weight, _)| weight).sum();
            while start.elapsed() < TURN {
                let mut ticket = random.below(whole);
                let chosen = mix.iter().find(|(_, weight, _)| {
                    let is_it = ticket < *weight;
                    ticket = ticket.saturating_sub(*weight);
                    is_it
                });
                let Some((name, _, path)) = chosen else { continue };
                let path = path.replace('#', &random.below(50_000).to_string());
                let answer = client.get(&path).await.unwrap_or_else(|error| error.to_string());
                *answers.entry((*name, answer)).or_insert(0) += 1;
            }
            answers
        });
    }
    let before = tally.count();
    while let Some(answers) = tasks.join_next().await {
        for (answer, count) in answers.unwrap_or_default() {
            *tally.answers.entry(answer).or_insert(0) += count;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    tally.seconds += seconds;
    tally.processor_seconds += service.processor_seconds() - processor_seconds;
    tally.rates.push((tally.count() - before) as f64 / seconds);
}

fn print_heads(title: &str, services: &[Service]) {
    print!("{title:<28}");
    services.iter().for_each(|service| print!("{:>12}", service.name));
    println!();
}

fn print_memory(services: &[Service], tallies: &mut [Tally], percent: u64) {
    print!("{:<28}", format!("after {percent:>3} % of the time"));
    for (service, tally) in services.iter().zip(tallies) {
        let bytes = service.resident_bytes();
        tally.resident.push(bytes);
        print!("{:>12.1}", bytes as f64 / (1 << 20) as f64);
    }
    println!();
}

fn print_results(services: &[Service], tallies: &[Tally]) {
    let row = |title: &str, figure: &dyn Fn(&Tally) -> String| {
        print!("{title:<28}");
        tallies.iter().for_each(|tally| print!("{:>12}", figure(tally)));
        println!();
    };
    println!();
    print_heads("answers", services);
    row("requests a second", &|tally| format!("{:.0}", tally.count() as f64 / tally.seconds));
    if let Some(other) = tallies.get(1) {
        row("as a part of mimalloc's", &|tally| format!("{:.3}", tally.ratio_to(other)));
    }
    row("processor time, us each", &|tally| {
        format!("{:.1}", tally.processor_seconds * 1e6 / tally.count() as f64)
    });
    row("requests", &|tally| tally.count().to_string());
    let kinds: std::collections::BTreeSet<_> =
        tallies.iter().flat_map(|tally| tally.answers.keys().cloned()).collect();
    for kind in kinds {
        let title = format!("  {}: {}", kind.0, kind.1);
        row(&title, &|tally| tally.answers.get(&kind).copied().unwrap_or(0).to_string());
    }
}

/// Prints what the page of the first service says of its routes.
fn print_outcomes(runtime: &tokio::runtime::Runtime, service: &Service) {
    let content =
        runtime.block_on(Client::new(service.address).content("/debug/rqmalloc/routes.json"));
    let routes: Vec<serde_json::Value> =
        content.ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    println!("\n{:<24}{:>10}{:>12}{:>14}  outcomes", "route", "requests", "peak p99", "survivors");
    for route in routes {
        let number = |key: &str| route[key].as_u64().unwrap_or(0);
        print!("{:<24}{:>10}", route["name"].as_str().unwrap_or("?"), number("count"));
        print!("{:>8} KiB", number("peak_p99_bytes") / 1024);
        print!("{:>10} KiB ", number("surviving_bytes") / 1024);
        let outcomes = route["outcomes"].as_object().into_iter().flatten();
        let seen = outcomes.filter(|(_, count)| count.as_u64() != Some(0));
        seen.for_each(|(outcome, count)| print!(" {outcome} {count}"));
        println!();
    }
}
