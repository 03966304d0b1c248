//! HTTP/2 on one connection: as many streams at a time as the plan says, each with one request under way.

use std::{rc::Rc, time::Instant};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{Request, Uri};
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    answer::{Answer, Body},
    lane::Lane,
    plan::Plan,
    stamp,
    tally::Attempt,
};

const WINDOW_BYTES: u32 = 16 * 1_024 * 1_024;

/// Serves the connection until it or the plan ends.
pub async fn drive(lane: &Rc<Lane>, stream: TcpStream, number: usize) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let Ok((send, connection)) = builder.handshake::<_, Bytes>(stream).await else {
        lane.fail("connect", 1);
        return;
    };
    let mut tasks = JoinSet::new();
    for slot in 0..lane.plan.depth {
        let (lane, send) = (Rc::clone(lane), send.clone());
        tasks.spawn_local(async move { slot_loop(&lane, send, number, slot).await });
    }
    drop(send);
    let all = async { while tasks.join_next().await.is_some() {} };
    // Its end, for whatever reason, is an error to the streams that were open, which count it.
    tokio::select! {
        _ = connection => {}
        () = all => return,
    }
    while tasks.join_next().await.is_some() {}
}

async fn slot_loop(lane: &Lane, send: SendRequest<Bytes>, number: usize, slot: usize) {
    let plan = &lane.plan;
    let uris: Vec<Uri> = plan
        .targets(number * plan.depth + slot)
        .iter()
        .map(|target| format!("http://{}{target}", plan.target).parse().expect("a target of the plan is a URI"))
        .collect();
    let plain = Bytes::from(plan.body());
    for uri in uris.iter().cycle() {
        let Some(intended) = lane.pacer.turn().await else { return };
        let body = if plan.is_stamped() {
            let mut stamped = plain.to_vec();
            stamp::write(&mut stamped, lane.wall(intended));
            stamped.into()
        } else {
            plain.clone()
        };
        let sent = Attempt { intended, sent: Instant::now(), bytes: body.len() as u64 };
        match tokio::time::timeout(plan.patience(), exchange(plan, &send, uri.clone(), &body)).await {
            Ok(Ok(answer)) => lane.answered(&sent, &answer),
            Ok(Err(class)) => {
                lane.fail(class, 1);
                if class == "closed" {
                    return;
                }
            }
            Err(_) => lane.fail("timeout", 1),
        }
    }
}

async fn exchange(plan: &Plan, send: &SendRequest<Bytes>, uri: Uri, body: &Bytes) -> Result<Answer, &'static str> {
    let mut send = send.clone().ready().await.map_err(|_| "closed")?;
    let mut request = Request::builder().method(plan.method()).uri(uri).header("appid", &plan.appid);
    if let Some(form) = plan.content_type() {
        request = request.header("content-type", form);
    }
    let request = request.body(()).map_err(|_| "malformed")?;
    let (response, mut sending) = send.send_request(request, body.is_empty()).map_err(|_| "closed")?;
    if !body.is_empty() {
        sending.send_data(body.clone(), true).map_err(|_| "reset")?;
    }
    let response = response.await.map_err(|error| class_of(&error))?;
    let status = response.status().as_u16();
    read(plan, status, response.into_body()).await
}

fn class_of(error: &h2::Error) -> &'static str {
    if error.is_reset() { "reset" } else { "closed" }
}

async fn read(plan: &Plan, status: u16, mut stream: RecvStream) -> Result<Answer, &'static str> {
    let mut body = Body::new(status, plan.wanted());
    while let Some(piece) = stream.data().await {
        let piece = piece.map_err(|_| "cut")?;
        body.feed(&piece).map_err(|_| "malformed")?;
        // Only a connection that has ended refuses this, and its next piece says so.
        let _ = stream.flow_control().release_capacity(piece.len());
    }
    body.finish(false).map_err(|_| "malformed")
}
