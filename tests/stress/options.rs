//! The command line, and the two sets of names it may use.

use std::sync::OnceLock;

/// Families of actions that can be left out, to narrow a failure down.
pub const FAMILIES: &[&str] = &[
    "bombs",
    "callbacks",
    "cancel",
    "fork",
    "growth",
    "hooks",
    "large",
    "limits",
    "looks",
    "panics",
    "persist",
    "reports",
    "revive",
    "scopes",
    "sole",
    "threads",
    "traces",
    "trim",
];

/// Faults that can be planted, and part of what the program must then say.
pub const BREAKS: &[(&str, &str)] = &[
    ("free", "blocks live in"),
    ("forget", "blocks live in"),
    ("pattern", "is not what was written"),
    ("twice", "double free"),
    ("leave", "in the wrong request"),
    ("callback", "callbacks ran"),
    ("handle", "requests are open"),
    ("hang", "no progress"),
    ("child", "the forked process"),
];

/// Seeds that once failed; they run first.
pub const KNOWN_SEEDS: &[u64] = &[
    // A look between a charge and the peak it raises.
    950831126,
    // A fork while a thread outside was cutting a block: its lane cannot be walked in the child.
    473372087,
    // The same in a request that the forking thread has: it stays open there.
    500339132,
];

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub is_child: bool,
    pub is_self_test: bool,
    pub seed: Option<u64>,
    pub seconds: u64,
    pub threads: usize,
    pub rounds: Option<usize>,
    pub without: Vec<String>,
    pub breaks: Option<String>,
}

static OPTIONS: OnceLock<Options> = OnceLock::new();

/// Whether a family of actions takes part.
pub fn with(family: &str) -> bool {
    debug_assert!(FAMILIES.contains(&family), "{family}");
    OPTIONS.get().is_none_or(|options| options.without.iter().all(|name| name != family))
}

/// Whether to plant this fault.
pub fn breaks(fault: &str) -> bool {
    debug_assert!(BREAKS.iter().any(|(name, _)| *name == fault), "{fault}");
    OPTIONS.get().is_some_and(|options| options.breaks.as_deref() == Some(fault))
}

impl Options {
    pub fn from_arguments() -> Self {
        let mut options = Self {
            is_child: false,
            is_self_test: false,
            seed: None,
            seconds: 60,
            threads: 4,
            rounds: None,
            without: Vec::new(),
            breaks: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| usage(&argument));
            let number = |value: String| value.parse().unwrap_or_else(|_| usage(&value));
            match argument.as_str() {
                "--child" => options.is_child = true,
                "--self-test" => options.is_self_test = true,
                "--seed" => options.seed = Some(number(value())),
                "--seconds" => options.seconds = number(value()),
                "--threads" => options.threads = (number(value()) as usize).max(1),
                "--rounds" => options.rounds = Some(number(value()) as usize),
                "--without" => options.without.extend(value().split(',').map(String::from)),
                "--break" => options.breaks = Some(value()),
                other => match other.strip_prefix("--no-") {
                    Some(family) => options.without.push(family.to_string()),
                    None => usage(other),
                },
            }
        }
        let unknown = options.without.iter().find(|name| !FAMILIES.contains(&name.as_str()));
        let unknown = unknown.or(options
            .breaks
            .as_ref()
            .filter(|fault| BREAKS.iter().all(|(name, _)| name != fault)));
        if let Some(unknown) = unknown {
            usage(unknown);
        }
        OPTIONS.get_or_init(|| options).clone()
    }

    /// Returns the arguments of a process with this seed.
    pub fn arguments(&self, seed: u64) -> Vec<String> {
        let mut arguments = vec!["--seed".to_string(), seed.to_string()];
        let mut add = |name: &str, value: String| arguments.extend([name.to_string(), value]);
        add("--threads", self.threads.to_string());
        if let Some(rounds) = self.rounds {
            add("--rounds", rounds.to_string());
        }
        if !self.without.is_empty() {
            add("--without", self.without.join(","));
        }
        if let Some(fault) = &self.breaks {
            add("--break", fault.clone());
        }
        arguments
    }
}

fn usage(wrong: &str) -> ! {
    eprintln!(
        "stress: not understood: {wrong}; the head of tests/stress/main.rs has the arguments"
    );
    eprintln!("families: {}", FAMILIES.join(" "));
    eprintln!("faults: {}", BREAKS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" "));
    std::process::exit(2)
}
