//! The route table: which path and method is whose, and what of it is refused at once.

use std::rc::Rc;

use smallvec::SmallVec;

use super::{
    Action, Arrival, Route,
    ack::Acks,
    admit,
    bury::Bury,
    call::Call,
    codes,
    context::Context,
    forwarded,
    manage::Manage,
    peer,
    positions::{Forget, Move, Peek},
    profile,
    publish::Publish,
    readers::Readers,
    reply::{Problem, Stamp},
    shadow::{Redrive, Shadow},
    subscribe::Subscribe,
    ws,
};
use crate::{
    config::resolve::Roles,
    proto::{Head, Method},
};

pub(super) type Routed = (Route, Result<Action, Problem>);

pub(super) fn route(ctx: &Rc<Context>, head: &Head<'_>, arrival: Arrival, stamp: &Stamp) -> Routed {
    let Arrival { roles, client } = arrival;
    let segments: SmallVec<[&[u8]; 10]> = head.path.split(|b| *b == b'/').skip(1).collect();
    match segments.as_slice() {
        [b"v1", b"msgs", topic, ver] if roles.publish => {
            let planned = || {
                check_method(head, &[Method::Post], "POST")?;
                Publish::plan(ctx, head, topic, ver)
            };
            (Route::Publish, planned())
        }
        [b"v1", b"msgs", appid, topic, ver] if roles.subscribe => {
            let planned = || {
                check_method(head, &[Method::Get, Method::Put], "GET, PUT")?;
                let (reader, parts) = (admit::appid(head)?, [*appid, *topic, *ver]);
                if head.method == Method::Put {
                    return Bury::plan(ctx, head, reader, parts).map(|bury| Action::Call(Box::new(Call::Bury(bury))));
                }
                let client = forwarded::client(&ctx.config.borrow().balancers, head, client);
                Subscribe::plan(ctx, head, reader, client, parts)
                    .map(|subscribe| Action::Subscribe(Box::new(subscribe)))
            };
            (if head.method == Method::Put { Route::Bury } else { Route::Subscribe }, planned())
        }
        [b"v1", b"peer", b"ops" | b"greeting"] if roles.subscribe => {
            let planned = || {
                check_method(head, &[Method::Post], "POST")?;
                peer::Asked::plan(ctx, head).map(Action::Peer)
            };
            (Route::Peer, planned())
        }
        [b"v1", b"ws", rest @ ..] => ws_route(ctx, head, arrival, stamp, rest),
        _ if roles.subscribe || roles.manage => group_route(ctx, head, roles, &segments),
        _ => manage_route(ctx, head, roles, &segments),
    }
}

/// WebSockets.
fn ws_route(ctx: &Rc<Context>, head: &Head<'_>, arrival: Arrival, stamp: &Stamp, segments: &[&[u8]]) -> Routed {
    let Arrival { roles, client } = arrival;
    let ws = |route, methods: &[Method], allow, plan: &dyn Fn() -> Result<ws::Asked, Problem>| {
        let planned = check_method(head, methods, allow).and_then(|()| plan());
        (route, planned.map(|asked| Action::Ws(Box::new(asked))))
    };
    match segments {
        // RFC 6455 has GET; kateway always documented POST.
        [b"msgs", topic, ver] if roles.publish => {
            ws(Route::WsPublish, &[Method::Get, Method::Post], "GET, POST", &|| {
                ws::Asked::publish(ctx, head, stamp, topic, ver)
            })
        }
        [b"msgs", appid, topic, ver] if roles.subscribe => ws(Route::WsSubscribe, &[Method::Get], "GET", &|| {
            let client = forwarded::client(&ctx.config.borrow().balancers, head, client);
            ws::Asked::subscribe(ctx, head, stamp, client, [appid, topic, ver])
        }),
        [b"_echo"] if roles.manage && ctx.config.borrow().http.ws_echo => {
            ws(Route::WsEcho, &[Method::Get], "GET", &|| ws::Asked::echo(ctx, head, stamp))
        }
        _ => unknown_path(),
    }
}

fn unknown_path() -> Routed {
    (Route::Unknown, Err(Problem::new(&codes::UNKNOWN_PATH, "no such route on this listener")))
}

/// What is about a group: answered on `sub`, and most of it on `man` too.
fn group_route(ctx: &Rc<Context>, head: &Head<'_>, roles: Roles, segments: &[&[u8]]) -> Routed {
    let call = |route, method, allow, plan: &dyn Fn(&str) -> Result<Call, Problem>| {
        let planned = || {
            check_method(head, &[method], allow)?;
            plan(admit::appid(head)?).map(|call| Action::Call(Box::new(call)))
        };
        (route, planned())
    };
    match segments {
        [b"v1", b"bury", appid, topic, ver] if roles.subscribe => call(Route::Bury, Method::Put, "PUT", &|reader| {
            Bury::plan(ctx, head, reader, [appid, topic, ver]).map(Call::Bury)
        }),
        [b"v1", b"offsets", appid, topic, ver, group] if roles.subscribe => {
            call(Route::Offsets, Method::Put, "PUT", &|reader| {
                Acks::plan(head, reader, [appid, topic, ver], group).map(Call::Acks)
            })
        }
        [b"v1", b"shadow", appid, topic, ver, group] => call(Route::Shadow, Method::Post, "POST", &|reader| {
            Shadow::plan(head, reader, [appid, topic, ver], group).map(Call::Shadow)
        }),
        [b"v1", b"redrive", appid, topic, ver, group] => call(Route::Redrive, Method::Post, "POST", &|reader| {
            Redrive::plan(head, reader, [appid, topic, ver], group).map(Call::Redrive)
        }),
        [b"v1", b"offset", appid, topic, ver, group] => call(Route::Position, Method::Put, "PUT", &|reader| {
            Move::plan(head, reader, [appid, topic, ver], group, None).map(Call::Move)
        }),
        [b"v1", b"offset", appid, topic, ver, group, partition] => {
            call(Route::Position, Method::Put, "PUT", &|reader| {
                Move::plan(head, reader, [appid, topic, ver], group, Some(partition)).map(Call::Move)
            })
        }
        [b"v1", b"groups", appid, topic, ver, group] => call(Route::Forget, Method::Delete, "DELETE", &|reader| {
            Forget::plan(head, reader, [appid, topic, ver], group).map(Call::Forget)
        }),
        [b"v1", b"peek", appid, topic, ver] => {
            call(Route::Peek, Method::Get, "GET", &|_| Peek::plan(head, [appid, topic, ver]).map(Call::Peek))
        }
        [b"v1", b"status", appid, topic, ver] => call(Route::Readers, Method::Get, "GET", &|reader| {
            Readers::of_reader(head, reader, [appid, topic, ver]).map(Call::Readers)
        }),
        [b"v1", b"subd", topic, ver] => call(Route::Readers, Method::Get, "GET", &|owner| {
            Readers::of_owner(head, owner, topic, ver).map(Call::Readers)
        }),
        _ => manage_route(ctx, head, roles, segments),
    }
}

fn manage_route(ctx: &Rc<Context>, head: &Head<'_>, roles: Roles, segments: &[&[u8]]) -> Routed {
    match segments {
        [b"alive"] => manage(Route::Alive, head),
        [b"livez"] => manage(Route::Livez, head),
        [b"readyz"] => manage(Route::Readyz, head),
        [b"v1", b"status"] if roles.manage => manage(Route::Status, head),
        [b"metrics"] if roles.manage => manage(Route::Metrics, head),
        [b"debug", b"profile"] if roles.manage => {
            let planned = || {
                check_method(head, &[Method::Get], "GET")?;
                profile::Asked::plan(ctx, head).map(Action::Profile)
            };
            (Route::Profile, planned())
        }
        // `*`: what any route takes.
        [] => {
            let (route, unknown) = unknown_path();
            (route, check_method(head, &[], "GET, HEAD, POST, PUT, DELETE").and(unknown))
        }
        _ => unknown_path(),
    }
}

fn manage(route: Route, head: &Head<'_>) -> Routed {
    let planned = || {
        check_method(head, &[Method::Get, Method::Head], "GET, HEAD")?;
        Manage::plan(route, head).map(Action::Manage)
    };
    (route, planned())
}

fn check_method(head: &Head<'_>, allowed: &[Method], allow: &'static str) -> Result<(), Problem> {
    if allowed.contains(&head.method) {
        return Ok(());
    }
    Err(Problem::new(&codes::METHOD_NOT_ALLOWED, format!("this route takes {allow}")).allow(allow))
}
