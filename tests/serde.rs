//! Reports, figures and lists as JSON (feature `serde`).
#![allow(missing_docs)]

use rqmalloc::{Request, open_requests, stats};
use serde_json::{Value, to_value};

#[global_allocator]
static GLOBAL: rqmalloc::RqMalloc = rqmalloc::RqMalloc;

#[test]
fn a_report_is_an_object_of_its_fields() {
    let request = Request::builder().name("GET /").soft_limit(1 << 20).build();
    let kept = request.run(|| vec![0u8; 2 << 20]);
    assert!(request.check().is_err());
    let report = request.close().unwrap();
    let json = to_value(report).unwrap();
    assert_eq!(json["id"], report.id.get());
    assert_eq!((&json["name"], &json["outcome"]), (&"GET /".into(), &"over_limit".into()));
    assert_eq!(json["limit_exceeded"]["kind"], "soft");
    assert_eq!(json["limit_exceeded"]["limit_bytes"], 1 << 20);
    assert_eq!(json["limit_bytes"], Value::Null);
    assert_eq!(json["surviving_blocks"], 1);
    assert!(json["elapsed"]["secs"].is_u64());
    drop(kept);
}

#[test]
fn figures_lists_and_snapshots_are_objects_too() {
    let request = Request::builder().name("seen").build();
    let kept = request.run(|| Box::new(7u64));
    let open = to_value(open_requests()).unwrap();
    let of_it = |info: &&Value| info["id"] == request.id().get();
    let info = open.as_array().unwrap().iter().find(of_it).unwrap();
    assert_eq!((&info["name"], &info["usage"]["live_blocks"]), (&"seen".into(), &1.into()));
    let snapshot = to_value(request.snapshot()).unwrap();
    assert_eq!((&snapshot["request"]["name"], &snapshot["blocks"]), (&"seen".into(), &1.into()));
    assert_eq!(snapshot["classes"][0]["payload_bytes"], 8);
    assert_eq!(to_value(request.leaks()).unwrap()["bytes"], 16);
    assert_eq!(to_value(request.usage()).unwrap(), snapshot["request"]["usage"]);
    let stats = to_value(stats()).unwrap();
    let parts = ["in_use_bytes", "cached_bytes", "free_bytes"];
    let sum: u64 = parts.iter().map(|part| stats[*part].as_u64().unwrap()).sum();
    assert_eq!(stats["mapped_bytes"], sum);
    drop(kept);
}
