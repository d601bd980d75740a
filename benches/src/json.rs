//! The document of the JSON workloads.

use crate::rng::Rng;
use serde_json::Value;
use std::fmt::Write;

/// Returns about 40 KB of objects, arrays, strings and numbers.
pub fn document() -> String {
    const WORDS: [&str; 12] = [
        "amber", "basalt", "cedar", "delta", "ember", "fjord", "glacier", "harbour", "islet",
        "juniper", "kelp", "lagoon",
    ];
    let mut rng = Rng::new(11);
    let mut text = String::from("{\"kind\":\"orders\",\"items\":[");
    for index in 0..160 {
        if index > 0 {
            text.push(',');
        }
        write!(
            text,
            "{{\"id\":{},\"name\":\"{} {}\",\"price\":{}.{:02},\"active\":{},\"parent\":null,\"tags\":[",
            10_000 + index,
            WORDS[rng.below(WORDS.len())],
            WORDS[rng.below(WORDS.len())],
            rng.below(1000),
            rng.below(100),
            rng.below(2) == 0,
        )
        .unwrap();
        for tag in 0..rng.between(2, 6) {
            let comma = if tag > 0 { "," } else { "" };
            write!(text, "{comma}\"{}\"", WORDS[rng.below(WORDS.len())]).unwrap();
        }
        write!(
            text,
            "],\"position\":{{\"x\":{},\"y\":{},\"path\":[{},{},{}]}},\"note\":\"line {}\\n\\\"{}\\\" of {}\"}}",
            rng.below(5000),
            rng.below(5000),
            rng.below(100),
            rng.below(100),
            rng.below(100),
            rng.below(50),
            WORDS[rng.below(WORDS.len())],
            WORDS[rng.below(WORDS.len())],
        )
        .unwrap();
    }
    text.push_str("]}");
    text
}

/// Sums up something of every value: lengths of strings and keys, integers, counts.
pub fn walk(value: &Value) -> u64 {
    match value {
        Value::Null => 1,
        Value::Bool(flag) => u64::from(*flag),
        Value::Number(number) => number.as_u64().unwrap_or(2),
        Value::String(text) => text.len() as u64,
        Value::Array(values) => values.iter().map(walk).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + walk(value)).sum(),
    }
}
