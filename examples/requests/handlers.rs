//! The work: eight kinds of request, written as any program would write them.
//!
//! Nothing here knows of the allocator. What a handler returns, drops, leaks or ties into a cycle
//! is its request's memory, except for [`SharedCache`], which looks after itself.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write;
use std::rc::Rc;
use std::str;

use minijinja::{Environment, Value, context};
use serde_json::{Map, Value as Json, json};

use crate::Failure;
use crate::service::{Leaks, SharedCache};

pub const TEMPLATES: [(&str, &str); 3] =
    [("invoice.txt", INVOICE), ("results.html", RESULTS), ("article.html", ARTICLE)];

const INVOICE: &str = "\
Invoice {{ order.id }} for {{ order.customer.name }} <{{ order.customer.email }}>
{{ order.ship_to.street }}, {{ order.ship_to.city | upper }}
{% for item in order['items'] -%}
{{ loop.index }}. {{ item.quantity }} x {{ item.title }} ({{ item.sku }}) at {{ item.price_cents }}
{% endfor -%}
{% for tag, cents in by_tag | items %}{{ tag }}: {{ cents }}; {% endfor %}
Total {{ total }}{% if order.coupon %}, coupon {{ order.coupon }}{% endif %}
";

const RESULTS: &str = "\
<h1>{{ hits | length }} of {{ found }} for {{ query }}</h1>
<ol>{% for hit in hits %}
  <li value={{ loop.index }}><b>{{ hit.title }}</b> ({{ hit.score }}) <p>{{ hit.body }}</p></li>
{%- endfor %}
</ol>
";

const ARTICLE: &str = "\
<article><h1>{{ article.title }}</h1><address>{{ article.author | upper }}</address>
{% for text in article.paragraphs %}<p id=p{{ loop.index }}>{{ text }}</p>
{% endfor %}</article>
{% for comment in article.comments recursive %}<ul><li>{{ comment.by }}: {{ comment.text }}
{{ loop(comment.replies) }}</li></ul>{% endfor %}
";

/// What a request is handled with.
pub struct Job<'a> {
    pub templates: &'a Environment<'static>,
    pub cache: &'a mut SharedCache,
    pub leaks: Leaks,
}

impl Job<'_> {
    pub fn respond(&mut self, line: &[u8]) -> Result<String, Failure> {
        let doc: Json = serde_json::from_str(str::from_utf8(line)?)?;
        match text(&doc, "kind")? {
            "session" => self.session(&doc),
            "order" => self.order(&doc),
            "search" => self.search(&doc),
            "events" => self.events(&doc),
            "config" => config(&doc),
            "article" => self.article(&doc),
            "graph" => self.graph(&doc),
            "matrix" => matrix(&doc),
            kind => Err(format!("unknown kind `{kind}`").into()),
        }
    }

    /// Tells where a user has been, now and the last time.
    fn session(&mut self, doc: &Json) -> Result<String, Failure> {
        let mut visits: HashMap<String, u64> = HashMap::new();
        for page in list(doc, "trail")? {
            let page = page.as_str().ok_or("`trail` is a list of texts")?;
            *visits.entry(page.to_owned()).or_default() += 1;
        }
        let mut favourites: Vec<(&str, u64)> =
            visits.iter().map(|(page, &count)| (page.as_str(), count)).collect();
        favourites.sort_unstable_by_key(|&(page, count)| (Reverse(count), page));
        let pages: Vec<&str> = favourites.iter().map(|&(page, _)| page).collect();
        let profile = pages.join(" ");

        let user = text(doc, "user")?;
        let last_time = self.cache.get(user).unwrap_or_default().to_owned();
        self.cache.put(user, &profile);
        let response = json!({ "user": user, "now": pages, "last_time": last_time }).to_string();
        self.leaks.forget(visits);
        Ok(response)
    }

    fn order(&mut self, doc: &Json) -> Result<String, Failure> {
        let mut by_tag: BTreeMap<String, u64> = BTreeMap::new();
        let mut audit_trail = Vec::new();
        let mut total = 0_u64;
        for item in list(doc, "items")? {
            let cents = number(item, "price_cents")?.saturating_mul(number(item, "quantity")?);
            total = total.saturating_add(cents);
            for tag in list(item, "tags")?.iter().filter_map(Json::as_str) {
                let sum = by_tag.entry(tag.to_owned()).or_default();
                *sum = sum.saturating_add(cents);
            }
            audit_trail.push(format!("{}: {cents}", text(item, "sku")?));
        }
        let invoice = self.templates.get_template("invoice.txt")?.render(context! {
            order => template_value(doc),
            by_tag,
            total => money(total),
        })?;
        self.leaks.forget(audit_trail);
        Ok(invoice)
    }

    /// Ranks the documents with an inverted index that is built for this one search and thrown
    /// away.
    fn search(&mut self, doc: &Json) -> Result<String, Failure> {
        let documents = list(doc, "documents")?;
        let mut index: HashMap<String, BTreeMap<usize, u64>> = HashMap::new();
        for (position, document) in documents.iter().enumerate() {
            let words =
                text(document, "title")?.split(' ').chain(text(document, "body")?.split(' '));
            for word in words {
                let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
                *index.entry(word).or_default().entry(position).or_default() += 1;
            }
        }
        let query = text(doc, "query")?;
        let mut scores: BTreeMap<usize, u64> = BTreeMap::new();
        for word in query.split(' ') {
            for (&position, &count) in index.get(word).into_iter().flatten() {
                *scores.entry(position).or_default() +=
                    count * 1000 / u64::try_from(index[word].len())?;
            }
        }
        let mut ranking: Vec<(usize, u64)> = scores.into_iter().collect();
        ranking.sort_by_key(|&(position, score)| (Reverse(score), position));
        let limit = usize::try_from(number(doc, "limit")?)?;
        let hits: Vec<Value> = ranking
            .iter()
            .take(limit)
            .map(|&(position, score)| {
                let document = &documents[position];
                context! {
                    title => template_value(&document["title"]),
                    body => template_value(&document["body"]),
                    score,
                }
            })
            .collect();
        let results = self.templates.get_template("results.html")?;
        Ok(results.render(context! { query, hits, found => ranking.len() })?)
    }

    /// Lists latencies by path, and what went wrong.
    fn events(&mut self, doc: &Json) -> Result<String, Failure> {
        let mut latencies: HashMap<&str, Vec<u64>> = HashMap::new();
        let mut errors: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in list(doc, "events")? {
            let (path, micros) = (text(event, "path")?, number(event, "micros")?);
            latencies.entry(path).or_default().push(micros);
            if text(event, "level")? == "error" || number(event, "status")? >= 500 {
                let seen = errors.entry(text(event, "host")?.to_owned()).or_default();
                seen.push(format!("{path} after {micros} us: {}", text(event, "message")?));
            }
        }
        let mut paths = Map::new();
        for (path, micros) in &mut latencies {
            micros.sort_unstable();
            let at = |percent: usize| micros[(micros.len() - 1) * percent / 100];
            paths.insert(
                (*path).to_owned(),
                json!({ "count": micros.len(), "p50": at(50), "p99": at(99) }),
            );
        }
        let response = json!({ "service": doc["service"], "paths": paths, "errors": &errors });
        self.leaks.forget(errors);
        Ok(serde_json::to_string(&response)?)
    }

    fn article(&mut self, doc: &Json) -> Result<String, Failure> {
        let html = self
            .templates
            .get_template("article.html")?
            .render(context! { article => template_value(doc) })?;
        let first = list(doc, "paragraphs")?.first().and_then(Json::as_str);
        let teaser = format!("{}: {}", text(doc, "title")?, first.unwrap_or_default());
        self.cache.put(text(doc, "slug")?, &teaser);
        Ok(html)
    }

    /// Finds the shortest paths from one node. The nodes own each other through `Rc`, so every edge
    /// makes a cycle, and dropping the last handle of the graph frees nothing.
    fn graph(&mut self, doc: &Json) -> Result<String, Failure> {
        let edges = list(doc, "edges")?;
        let node_count = usize::try_from(number(doc, "nodes")?)?;
        if node_count > edges.len() + 1 {
            return Err("`nodes` are more than `edges` can connect".into());
        }
        let nodes: Vec<Rc<Node>> = (0..node_count).map(Node::new).collect();
        let linked = link(&nodes, edges).and_then(|()| {
            let start = usize::try_from(number(doc, "start")?)?;
            Ok(shortest_ways(nodes.get(start).ok_or("`start` is no node")?))
        });
        if self.leaks == Leaks::None {
            for node in &nodes {
                node.edges.take();
            }
        }

        let mut response = String::new();
        for (node, (length, hops)) in linked? {
            write!(response, "{node}:{length}/{hops} ")?;
        }
        Ok(response)
    }
}

/// Merges the overlays into the base, one after another, and lists the result by dotted path.
fn config(doc: &Json) -> Result<String, Failure> {
    let mut merged = doc["base"].clone();
    for overlay in list(doc, "overlays")? {
        merge(&mut merged, overlay);
    }
    let mut flat = BTreeMap::new();
    flatten(&merged, "", &mut flat);
    let mut response = serde_json::to_string_pretty(&merged)?;
    for (path, value) in &flat {
        write!(response, "\n{path} = {value}")?;
    }
    Ok(response)
}

fn merge(base: &mut Json, overlay: &Json) {
    match (base, overlay) {
        (Json::Object(base), Json::Object(overlay)) => {
            for (name, value) in overlay {
                merge(base.entry(name.clone()).or_insert(Json::Null), value);
            }
        }
        (base, overlay) => *base = overlay.clone(),
    }
}

fn flatten(value: &Json, path: &str, flat: &mut BTreeMap<String, String>) {
    if let Json::Object(members) = value {
        for (name, member) in members {
            flatten(member, &format!("{path}.{name}"), flat);
        }
    } else {
        flat.insert(path.to_owned(), value.to_string());
    }
}

/// Multiplies the matrix by its own transpose, and adds the row sums.
fn matrix(doc: &Json) -> Result<String, Failure> {
    let rows: Vec<Vec<f64>> = list(doc, "rows")?
        .iter()
        .map(|row| row.as_array()?.iter().map(Json::as_f64).collect())
        .collect::<Option<_>>()
        .ok_or("`rows` are lists of numbers")?;
    let product: Vec<Vec<f64>> =
        rows.iter().map(|left| rows.iter().map(|right| dot(left, right)).collect()).collect();
    let mut response = String::new();
    for row in &product {
        let cells: Vec<String> = row.iter().map(|cell| format!("{cell:.3}")).collect();
        writeln!(response, "{} | {:.3}", cells.join(" "), row.iter().sum::<f64>())?;
    }
    Ok(response)
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

struct Node {
    id: usize,
    edges: RefCell<Vec<(Rc<Node>, u64)>>,
}

impl Node {
    fn new(id: usize) -> Rc<Self> {
        Rc::new(Self { id, edges: RefCell::default() })
    }
}

/// Links the nodes; edges lead both ways.
fn link(nodes: &[Rc<Node>], edges: &[Json]) -> Result<(), Failure> {
    for edge in edges {
        let end =
            |index: usize| usize::try_from(edge[index].as_u64()?).ok().and_then(|id| nodes.get(id));
        let (Some(from), Some(to), Some(length)) = (end(0), end(1), edge[2].as_u64()) else {
            return Err(format!("no edge between two nodes: {edge}").into());
        };
        from.edges.borrow_mut().push((Rc::clone(to), length));
        to.edges.borrow_mut().push((Rc::clone(from), length));
    }
    Ok(())
}

/// Dijkstra's algorithm: maps each node's id to the length of the path there and its number of
/// edges.
fn shortest_ways(start: &Rc<Node>) -> BTreeMap<usize, (u64, usize)> {
    let mut ways = BTreeMap::new();
    let mut known = HashMap::from([(start.id, Rc::clone(start))]);
    let mut frontier = BinaryHeap::from([Reverse((0_u64, 0_usize, start.id))]);
    while let Some(Reverse((length, hops, id))) = frontier.pop() {
        if ways.contains_key(&id) {
            continue;
        }
        ways.insert(id, (length, hops));
        let node = Rc::clone(&known[&id]);
        for (next, more) in &*node.edges.borrow() {
            if !ways.contains_key(&next.id) {
                known.entry(next.id).or_insert_with(|| Rc::clone(next));
                frontier.push(Reverse((length.saturating_add(*more), hops + 1, next.id)));
            }
        }
    }
    ways
}

/// Converts a value: the template engine has values of its own.
fn template_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(float)) => Value::from(float),
            (None, None) => Value::from(number.to_string()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(template_value).collect(),
        Json::Object(members) => members
            .iter()
            .map(|(name, member)| (name.clone(), template_value(member)))
            .collect::<BTreeMap<String, Value>>()
            .into(),
    }
}

fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn text<'a>(doc: &'a Json, name: &str) -> Result<&'a str, Failure> {
    doc[name].as_str().ok_or_else(|| not_a("text", name))
}

fn number(doc: &Json, name: &str) -> Result<u64, Failure> {
    doc[name].as_u64().ok_or_else(|| not_a("whole number", name))
}

fn list<'a>(doc: &'a Json, name: &str) -> Result<&'a [Json], Failure> {
    doc[name].as_array().map(Vec::as_slice).ok_or_else(|| not_a("list", name))
}

fn not_a(what: &str, name: &str) -> Failure {
    format!("`{name}` is not a {what}").into()
}
