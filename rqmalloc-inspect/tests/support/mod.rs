//! Asking a router without a network, and reading what Prometheus reads.
#![allow(dead_code, reason = "each test uses a part of it")]

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, Request};
use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tower_service::Service;

/// An answer that was read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Runs what never waits.
fn run<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nobody would wake it"),
    }
}

pub fn ask(app: &Router, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(app, "GET", path, headers)
}

pub fn post(app: &Router, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(app, "POST", path, headers)
}

fn send(app: &Router, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let (head, body) = run(app.clone().call(request)).unwrap().into_parts();
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = run(std::future::poll_fn(|context| body.as_mut().poll_frame(context))) {
        bytes.extend(frame.unwrap().into_data().unwrap());
    }
    let text = String::from_utf8(bytes).unwrap();
    Answer { status: head.status.as_u16(), headers: head.headers, text }
}

/// A line of metrics.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Returns the metrics' types by their names, and the samples. Panics at what is no metric.
pub fn metrics(text: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(helps.insert(name.to_owned(), help).is_none(), "{name} has two heads");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(helps.contains_key(name), "{name} has no help");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            samples.push(parse(line).unwrap_or_else(|| panic!("no sample: {line}")));
        }
    }
    (types, samples)
}

fn parse(line: &str) -> Option<Sample> {
    let name_end = line.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_'))?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (end, '"') => break end,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        char @ ('\\' | '"') => char,
                        _ => return None,
                    }),
                    (_, char) => value.push(char),
                }
            };
            labels.insert(label.to_owned(), value);
            rest = after[end + 1..].strip_prefix(',').unwrap_or(&after[end + 1..]);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Returns the value of the one sample with these labels, perhaps beside others.
pub fn sample(name: &str, labels: &[(&str, &str)], text: &str) -> f64 {
    let samples = metrics(text).1;
    let has = |sample: &Sample| {
        labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
    };
    let mut found = samples.iter().filter(|sample| sample.name == name && has(sample));
    let value = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}")).value;
    assert!(found.next().is_none(), "two of {name} {labels:?}");
    value
}

/// Returns the sum of the samples of a route.
pub fn total(name: &str, route: &str, text: &str) -> f64 {
    let samples = metrics(text).1;
    let of_route = |sample: &&Sample| {
        sample.name == name && sample.labels.get("route").is_some_and(|label| label == route)
    };
    samples.iter().filter(of_route).map(|sample| sample.value).sum()
}
