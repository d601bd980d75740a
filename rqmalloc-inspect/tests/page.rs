//! What the page's addresses answer, asked for without a network.
#![allow(missing_docs)]

mod support;

use axum::Router;
use rqmalloc::{Request, RqMalloc};
use std::collections::BTreeSet;
use support::{Answer, ask, metrics, post, sample, total};

#[global_allocator]
static GLOBAL: RqMalloc = RqMalloc;

fn nested() -> Router {
    Router::new().nest("/debug/rqmalloc", rqmalloc_inspect::router())
}

fn page(path: &str) -> Answer {
    ask(&nested(), &format!("/debug/rqmalloc{path}"), &[])
}

fn text(path: &str) -> String {
    let answer = page(path);
    assert_eq!(answer.status, 200, "{path}");
    answer.text
}

fn named(name: &str) -> Request {
    Request::builder().name(name).build()
}

#[test]
fn every_address_answers_with_its_type() {
    let request = named("GET /types");
    let own = format!("/requests/{}", request.id());
    let data = format!("{own}.json");
    for (path, content_type) in [
        ("", "text/html; charset=utf-8"),
        ("?sort=age&routes=p99", "text/html; charset=utf-8"),
        ("?fragment", "text/html; charset=utf-8"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/stats.json", "application/json"),
        ("/requests.json", "application/json"),
        ("/routes.json", "application/json"),
        (&own, "text/html; charset=utf-8"),
        (&data, "application/json"),
    ] {
        let answer = page(path);
        assert_eq!((answer.status, answer.header("content-type")), (200, content_type), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        if content_type == "application/json" {
            serde_json::from_str::<serde_json::Value>(&answer.text).unwrap();
        }
    }
    for path in ["/no-such-page", "/requests/x", "/requests/-1", "/requests/99999999999999999999"] {
        assert_eq!(page(path).status, 404, "{path}");
    }
    assert_eq!(page("/trim").status, 405);
}

#[test]
fn a_page_is_whole_and_runs_only_its_own_script() {
    let whole = page("");
    assert!(whole.text.starts_with("<!doctype html>") && whole.text.ends_with("</html>"));
    let nonce = whole.text.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    let policy = whole.header("content-security-policy");
    assert!(policy.contains(&format!("script-src 'nonce-{nonce}'")), "{policy}");
    assert_eq!(whole.text.matches("<script").count(), 1);
    // Nothing of it comes from elsewhere.
    assert!(!whole.text.contains("http://") && !whole.text.contains("https://"));
    for part in ["memory", "history", "requests", "routes"] {
        assert!(whole.text.contains(&format!("<section id={part}")), "{part}");
    }
    // The allocator's ten lines: nine parts and their sum.
    let memory = whole.text.split("<section id=history").next().unwrap();
    assert_eq!(memory.matches("<th scope=row>").count(), 10);
    let fragment = text("?fragment");
    assert!(fragment.starts_with("<section id=memory") && fragment.ends_with("</section>"));
}

#[test]
fn names_are_texts() {
    let name = "<script>alert('1')</script>&\"\\";
    let request = named(name);
    let own = format!("/requests/{}", request.id());
    for path in ["", "?fragment", &own] {
        let page = text(path);
        assert!(!page.contains("<script>alert"), "{path}");
        assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\\"));
    }
    drop(request);
    assert!(!text("").contains("<script>alert"));
    assert_eq!(total("rqmalloc_requests_total", name, &text("/metrics")), 1.0);
    let routes: serde_json::Value = serde_json::from_str(&text("/routes.json")).unwrap();
    assert!(routes.as_array().unwrap().iter().any(|route| route["name"] == name));
}

#[test]
fn metrics_are_those_of_the_requests() {
    let before = text("/metrics");
    let name = "GET /metered";
    for kibibytes in [1, 100, 1000] {
        let request = named(name);
        let kept = request.run(|| vec![1u8; kibibytes << 10]);
        drop(request);
        drop(kept);
    }
    let after = text("/metrics");
    for text in [&before, &after] {
        // Every sample belongs to a metric that has a head.
        let (heads, samples) = metrics(text);
        let mut seen = BTreeSet::new();
        for sample in &samples {
            let name = &sample.name;
            let ends = ["_bucket", "_sum", "_count"].map(|end| name.strip_suffix(end));
            let is_headed = |name: &str| heads.contains_key(name);
            assert!(is_headed(name) || ends.into_iter().flatten().any(is_headed), "{name}");
            assert!(
                seen.insert((name.clone(), sample.labels.clone())),
                "{sample:?} is there twice"
            );
            assert!(sample.value >= 0.0);
        }
        let parts: f64 =
            samples.iter().filter(|s| s.name == "rqmalloc_memory_bytes").map(|s| s.value).sum();
        assert_eq!(parts, sample("rqmalloc_mapped_bytes", &[], text));
    }
    assert_eq!(total("rqmalloc_requests_total", name, &before), 0.0);
    assert_eq!(total("rqmalloc_requests_total", name, &after), 3.0);
    assert_eq!(
        sample("rqmalloc_requests_total", &[("route", name), ("outcome", "closed")], &after),
        3.0
    );
    let buckets = |limit| {
        sample("rqmalloc_request_peak_bytes_bucket", &[("route", name), ("le", limit)], &after)
    };
    assert_eq!((buckets("16384"), buckets("+Inf")), (1.0, 3.0));
    assert_eq!((buckets("262144"), buckets("4194304")), (2.0, 3.0));
    let sum = sample("rqmalloc_request_peak_bytes_sum", &[("route", name)], &after);
    assert!(sum > 1_101.0 * 1024.0, "{sum}");
    let survived = sample("rqmalloc_surviving_bytes_total", &[("route", name)], &after);
    assert!(survived > 1_101.0 * 1024.0, "{survived}");
    assert_eq!(sample("rqmalloc_surviving_blocks_total", &[("route", name)], &after), 3.0);
}

#[test]
fn how_requests_went_is_counted() {
    let name = "GET /outcomes";
    let request = Request::builder().name(name).soft_limit(1 << 20).build();
    let given_up = request.catch(|| drop(vec![1u8; 4 << 20]));
    assert!(given_up.is_err());
    drop(request);
    let request = named(name);
    let panicked = std::panic::catch_unwind(|| request.run(|| panic!("as it should")));
    assert!(panicked.is_err());
    drop(request);
    drop(named(name));
    let text = text("/metrics");
    let count = |outcome| {
        sample("rqmalloc_requests_total", &[("route", name), ("outcome", outcome)], &text)
    };
    assert_eq!([count("over_limit"), count("panicked"), count("closed")], [1.0, 1.0, 1.0]);
    assert_eq!(sample("rqmalloc_requests_marked_total", &[("route", name)], &text), 1.0);
}

#[test]
fn a_request_is_looked_at_while_it_is_open() {
    let request = named("GET /looked-at");
    let blocks = request.run(|| [vec![1u8; 5000], vec![2u8; 5000]]);
    let path = format!("/requests/{}", request.id());
    let look = text(&path);
    assert!(look.contains("GET /looked-at") && look.contains("RequestBuilder::trace_leaks"));
    let data: serde_json::Value = serde_json::from_str(&text(&format!("{path}.json"))).unwrap();
    assert_eq!(data["blocks"], 2);
    let link = format!("./rqmalloc/requests/{}", request.id());
    assert!(text("?sort=id").contains(&link));
    drop(request);
    assert_eq!(page(&path).status, 404);
    drop(blocks);
}

#[test]
fn a_traced_request_shows_where_its_blocks_are_from() {
    let request = Request::builder().trace_leaks(true).report_leaks(false).name("traced").build();
    let block = request.run(|| vec![1u8; 700]);
    let look = text(&format!("/requests/{}", request.id()));
    assert!(look.contains("<th scope=row class=site>") && look.contains("700 B"), "{look}");
    drop(block);
}

#[test]
fn tables_are_sorted_as_the_address_says() {
    let requests: Vec<Request> = ["sorted b", "sorted c", "sorted a"].map(named).into();
    let large = requests[1].run(|| vec![1u8; 3 << 20]);
    let order = |query: &str| -> Vec<usize> {
        let page = text(query);
        let page = page.split("<section id=requests").nth(1).unwrap();
        ["sorted a", "sorted b", "sorted c"].map(|name| page.find(name).unwrap()).into()
    };
    let [a, b, c] = order("?sort=name")[..] else { panic!() };
    assert!(a < b && b < c);
    let [a, b, c] = order("?sort=footprint")[..] else { panic!() };
    assert!(c < a && c < b);
    let page = text("?sort=name&routes=growth");
    assert!(
        page.contains("aria-sort=ascending><a href=\"./rqmalloc?sort=name&amp;routes=growth\"")
    );
    assert!(
        page.contains("aria-sort=descending><a href=\"./rqmalloc?sort=name&amp;routes=growth\"")
    );
    drop(large);
}

#[test]
fn trim_says_how_much() {
    let bytes_of = |text: &str| text.split(' ').next().unwrap().parse::<usize>().unwrap();
    drop(vec![1u8; 8 << 20]);
    let answer = post(&nested(), "/debug/rqmalloc/trim", &[]);
    assert_eq!(answer.status, 200);
    assert!(bytes_of(&answer.text) >= 8 << 20, "{}", answer.text);
    let browser = [("accept", "text/html,*/*;q=0.8"), ("sec-fetch-site", "same-origin")];
    let answer = post(&nested(), "/debug/rqmalloc/trim", &browser);
    let back = answer.header("location");
    assert_eq!((answer.status, back.split('=').next()), (303, Some("./../rqmalloc?trimmed")));
    assert!(text(back.strip_prefix("./../rqmalloc").unwrap()).contains("Trimmed: "));
    let answer = post(&nested(), "/debug/rqmalloc/trim", &[("sec-fetch-site", "cross-site")]);
    assert_eq!(answer.status, 403);
}

#[test]
fn it_can_be_anywhere() {
    for (app, path, base) in [
        (nested(), "/debug/rqmalloc", "./rqmalloc/"),
        (Router::new().nest_service("/x", rqmalloc_inspect::router::<()>()), "/x/", ""),
        (rqmalloc_inspect::router(), "/", ""),
    ] {
        let answer = ask(&app, path, &[]);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.text.contains(&format!("<a href=\"{base}metrics\">")), "{path}");
    }
}

#[test]
fn a_page_inside_a_request_is_not_its_own() {
    let request = named("GET /debug/rqmalloc");
    let blocks = || request.usage().live_blocks;
    let answer = request.run(|| page(""));
    assert!(answer.text.contains("GET /debug/rqmalloc"));
    // What the test's own client keeps is the request's, the page is not.
    let _ = request.run(|| page("/metrics"));
    assert!(request.usage().peak_bytes < 1 << 20 && blocks() < 100, "{:?}", request.usage());
    drop(answer);
}
