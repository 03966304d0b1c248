//! W3C trace context goes through Kafka: `traceparent` and `tracestate` into record headers byte for byte, and back to readers.
//!
//! Method: messages are published with trace headers as a tracing client writes them, then with what it should not write. kcat reads the
//! record headers from the broker; a reader must get the same bytes back under the same names: in single answers as fields, in NDJSON
//! among the headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kateway_tests::kcat;

use crate::Case;
use crate::stage::Stage;

pub const CASES: &[Case] = &[
    Case::new("trace_context::there_and_back_on_kafka", || there_and_back(&Stage::on_kafka("traced", 1))).kafka(),
    Case::new("trace_context::there_and_back_on_memory", || there_and_back(&Stage::on_memory("traced"))),
];

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// Not a version anybody knows, with inner spaces, in capitals: it is not ours to judge.
const ODD_PARENT: &str = "FF-0AF7 6519-01-xyz";
const STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE ; a=\"b%c\"";

fn there_and_back(stage: &Stage) {
    let Stage { gateway, topic, .. } = stage;
    for (parent, state) in [(PARENT, Some(STATE)), (ODD_PARENT, None)] {
        let mut request = topic.publish("partition=0", parent).header("Traceparent", parent);
        if let Some(state) = state {
            request = request.header("TraceState", state);
        }
        gateway.publish(&request).expect(201);
    }
    if stage.on_kafka {
        let headers = |offset| {
            let bytes = kcat::read_headers(&crate::kafka().bootstrap(), &topic.in_kafka(), 0, offset);
            String::from_utf8(bytes).expect("text")
        };
        assert_eq!(headers(0), format!("traceparent={PARENT},tracestate={STATE}"));
        assert_eq!(headers(1), format!("traceparent={ODD_PARENT}"));
    }
    for (parent, state) in [(PARENT, Some(STATE)), (ODD_PARENT, None)] {
        let answer = gateway.subscribe(&topic.read("single", "wait=10s")).expect(200);
        assert_eq!(answer.text(), parent);
        assert_eq!((answer.header("traceparent"), answer.header("tracestate")), (Some(parent), state));
        assert!(answer.header("x-header-traceparent").is_none(), "under its own name, once: {:?}", answer.headers);
    }
    let read = topic.read("lines", "batch=2&wait=10s&linger=1s").header("Accept", "application/x-ndjson");
    let text = gateway.subscribe(&read).expect(200).text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let encoded = |name: &str, value: &str| serde_json::json!([name, STANDARD.encode(value)]);
    assert_eq!(lines[0]["headers"], serde_json::json!([encoded("traceparent", PARENT), encoded("tracestate", STATE)]));
    assert_eq!(lines[1]["headers"], serde_json::json!([encoded("traceparent", ODD_PARENT)]));
}
