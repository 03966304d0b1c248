//! A partition against a plain model: random interleavings of everything that can happen to a lease.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;
use crate::store::Header;

const TERM: Duration = Duration::from_secs(30);

fn budget() -> Rc<Budget> {
    let budget = Budget::new(1 << 20);
    budget.enter();
    budget
}

fn message(offset: Offset) -> Message {
    Message {
        partition: 0,
        offset,
        timestamp_ms: 0,
        key: None,
        value: Bytes::from_static(b"12345678"),
        ..Message::default()
    }
}

fn spec(messages_max: usize, lease: Option<LeaseSpec>) -> FetchSpec {
    let (wait, linger) = (Duration::ZERO, Duration::ZERO);
    FetchSpec {
        messages_max,
        bytes_max: usize::MAX,
        wait,
        linger,
        filter: None,
        lease,
        client: None,
        with_ends: false,
        waited: Duration::ZERO,
    }
}

#[allow(clippy::unnecessary_wraps)] // The form in which `spec` takes it.
fn held(deliveries_max: Option<u32>, stream: Option<u64>) -> Option<LeaseSpec> {
    Some(LeaseSpec { deliveries_max, stream, ..LeaseSpec::of(TERM) })
}

fn take(part: &mut Part, lease: LeaseId, spec: &FetchSpec, now: Instant) -> Delivery {
    let mut delivery = Delivery::default();
    part.take(lease, spec, None, &mut delivery, now);
    delivery
}

/// As [`take`], and the client has it.
fn give(part: &mut Part, lease: LeaseId, spec: &FetchSpec, now: Instant) -> Delivery {
    let delivery = take(part, lease, spec, now);
    delivery.grants.iter().for_each(|grant| part.settle(grant, Outcome::Delivered, now, &mut Vec::new()));
    delivery
}

fn offsets(delivery: &Delivery) -> Vec<Offset> {
    delivery.messages.iter().map(|message| message.offset).collect()
}

#[test]
fn an_ack_covers_its_lease_up_to_there_and_no_other() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..6).for_each(|offset| part.push(message(offset)));
    take(&mut part, 1, &spec(3, held(None, None)), now);
    take(&mut part, 2, &spec(3, held(None, None)), now);
    assert_eq!(part.ack_at(4), Acked::Done);
    assert_eq!((part.table.end(), part.table.leased()), (0, 4), "3 and 4 are done, 5 is not, nor is the other lease");
    assert_eq!(part.ack_at(2), Acked::Done);
    assert_eq!(part.table.end(), 5);
    assert_eq!(part.ack_at(1), Acked::Done, "again: no change");
    assert_eq!(part.ack_at(6), Acked::NotLeased, "never handed out");
    assert_eq!(part.ack_at(5), Acked::Done);
    assert_eq!((part.table.end(), part.bytes(), part.held.len()), (6, 0, 0));
}

#[test]
fn a_stream_is_one_lease() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..6).for_each(|offset| part.push(message(offset)));
    take(&mut part, 1, &spec(2, held(None, Some(7))), now);
    take(&mut part, 2, &spec(2, held(None, Some(8))), now);
    take(&mut part, 3, &spec(2, held(None, Some(7))), now);
    assert_eq!(part.ack_at(4), Acked::Done);
    assert_eq!((part.table.end(), part.table.leased()), (2, 3), "0, 1 and 4 are done; 2, 3 and 5 are not");
}

/// What came again from another client, and is on its way behind what is acknowledged, is not acknowledged with it.
#[test]
fn a_stream_is_acknowledged_as_far_as_it_was_given() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..4).for_each(|offset| part.push(message(offset)));
    let short = LeaseSpec::of(TERM / 2);
    give(&mut part, 1, &spec(2, Some(short)), now);
    take(&mut part, 2, &spec(2, held(None, Some(7))), now);
    part.expire(now + TERM / 2, &mut Vec::new());
    assert_eq!(offsets(&take(&mut part, 3, &spec(2, held(None, Some(7))), now)), [0, 1]);
    assert_eq!(part.ack_at(3), Acked::Done);
    assert_eq!(part.table.end(), 0);
    assert_eq!(part.ack_at(1), Acked::Done);
    assert_eq!(part.table.end(), 4);
}

#[test]
fn a_lease_ends_unless_it_is_extended() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..2).for_each(|offset| part.push(message(offset)));
    give(&mut part, 1, &spec(1, held(None, None)), now);
    give(&mut part, 2, &spec(1, held(None, None)), now);
    assert_eq!(part.extend_at(1, TERM * 2, now), Acked::Done);
    assert_eq!(part.expire(now + TERM, &mut Vec::new()), 1);
    assert_eq!((part.ack_at(0), part.extend_at(0, TERM, now)), (Acked::NotLeased, Acked::NotLeased), "late");
    assert_eq!(part.ack_at(1), Acked::Done);
    let again = take(&mut part, 3, &spec(9, held(None, None)), now);
    assert_eq!((offsets(&again), again.redelivered), (vec![0], vec![(0, 2)]));
}

#[test]
fn an_answer_that_was_not_taken_is_another_clients_at_once() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..4).for_each(|offset| part.push(message(offset)));
    for (lease, how) in [(1, None), (2, held(None, None))] {
        let delivery = take(&mut part, lease, &spec(2, how), now);
        part.settle(&delivery.grants[0], Outcome::Cut, now, &mut Vec::new());
        assert_eq!(part.table.returned(), 2);
        assert_eq!(offsets(&take(&mut part, lease + 10, &spec(2, None), now)).len(), 2);
        let grant = Grant { partition: 0, epoch: 1, lease: lease + 10, first: 0, last: 9 };
        part.settle(&grant, Outcome::Delivered, now, &mut Vec::new());
    }
    assert_eq!(part.table.end(), 4);
}

#[test]
fn returned_messages_of_two_leases_are_two_answers() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..5).for_each(|offset| part.push(message(offset)));
    give(&mut part, 1, &spec(2, held(None, None)), now);
    give(&mut part, 2, &spec(2, held(None, None)), now);
    part.expire(now + TERM, &mut Vec::new());
    // Whoever held the first lease and acknowledges late must not acknowledge what only the second had.
    assert_eq!(offsets(&take(&mut part, 3, &spec(9, held(None, None)), now)), [0, 1]);
    assert_eq!(offsets(&take(&mut part, 4, &spec(9, held(None, None)), now)), [2, 3, 4], "the last is new");
}

#[test]
fn what_was_delivered_often_enough_is_to_be_buried() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    part.push(message(0));
    let mut worn = Vec::new();
    for lease in 1..=2 {
        assert_eq!(offsets(&give(&mut part, lease, &spec(1, held(Some(2), None)), now)), [0]);
        part.expire(now + TERM, &mut worn);
    }
    assert_eq!((worn.len(), worn[0].deliveries), (1, 2));
    assert!(take(&mut part, 3, &spec(1, held(Some(2), None)), now).messages.is_empty());
    assert_eq!(part.table.end(), 0);
    part.end_bury(&worn[0], true);
    assert_eq!(part.table.end(), 1);
}

/// An answer of which nothing left is no delivery: its messages are nobody's last.
#[test]
fn what_was_not_sent_is_not_buried() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    part.push(message(0));
    let mut worn = Vec::new();
    for lease in 1..=3 {
        let taken = take(&mut part, lease, &spec(1, held(Some(1), None)), now);
        assert_eq!((offsets(&taken), taken.redelivered), (vec![0], vec![]));
        part.settle(&taken.grants[0], Outcome::Unsent, now, &mut worn);
    }
    assert!(worn.is_empty() && part.held.is_empty());
    let taken = take(&mut part, 4, &spec(1, held(Some(1), None)), now);
    part.settle(&taken.grants[0], Outcome::Cut, now, &mut worn);
    assert_eq!(worn.len(), 1, "a client may have had it");
}

/// However long an answer takes to be written: the time of its lease begins when its client has it.
#[test]
fn a_lease_does_not_end_while_its_answer_is_written() {
    let (mut part, mut now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..2).for_each(|offset| part.push(message(offset)));
    let here = take(&mut part, 1, &spec(1, held(None, None)), now);
    let on_way = Some(TERM / 3);
    let away = take(&mut part, 2, &spec(1, Some(LeaseSpec { on_way, ..LeaseSpec::of(TERM * 9) })), now);
    now += TERM / 4;
    part.renew(&away.grants[0], now);
    now += TERM / 4;
    assert_eq!(part.expire(now, &mut Vec::new()), 0);
    now += TERM;
    assert_eq!(part.expire(now, &mut Vec::new()), 1, "nobody renews the one that went to another gateway");
    assert_eq!(part.ack_at(1), Acked::NotLeased);
    part.settle(&here.grants[0], Outcome::Delivered, now, &mut Vec::new());
    assert_eq!(part.expire(now + TERM * 9 / 10, &mut Vec::new()), 0);
    assert_eq!(part.expire(now + TERM, &mut Vec::new()), 1);
}

/// The time of a lease that was read for another gateway is its own, not that of the way.
#[test]
fn a_lease_is_as_long_as_it_is_wherever_its_answer_goes() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..3).for_each(|offset| part.push(message(offset)));
    let short = |term| spec(1, Some(LeaseSpec { on_way: Some(TERM), ..LeaseSpec::of(term) }));
    let first = take(&mut part, 1, &short(TERM / 10), now);
    part.settle(&first.grants[0], Outcome::Delivered, now, &mut Vec::new());
    assert_eq!(part.expire(now + TERM / 10, &mut Vec::new()), 1, "delivered, its own time counts");
    let second = take(&mut part, 2, &short(TERM / 10), now);
    assert_eq!(part.extend_at(0, TERM / 5, now), Acked::Done);
    assert_eq!(part.expire(now + TERM / 2, &mut Vec::new()), 0, "it is still on its way");
    part.settle(&second.grants[0], Outcome::Delivered, now + TERM / 20, &mut Vec::new());
    assert_eq!(part.expire(now + TERM / 6, &mut Vec::new()), 0, "its client has extended it");
    assert_eq!(part.expire(now + TERM / 5, &mut Vec::new()), 1);
}

/// What retention took is told until a client has heard of it.
#[test]
fn a_gap_is_told_until_it_is_heard() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    part.note_gap(0, 6);
    (7..9).for_each(|offset| part.push(message(offset)));
    for (lease, outcome) in [(1, Outcome::Unsent), (2, Outcome::Cut), (3, Outcome::Delivered)] {
        let taken = take(&mut part, lease, &spec(1, None), now);
        assert_eq!(taken.gaps, [Gap { partition: 0, from: 0, to: 6 }]);
        part.settle(&taken.grants[0], outcome, now, &mut Vec::new());
    }
    assert!(take(&mut part, 4, &spec(1, None), now).gaps.is_empty());
    // Also where nothing that is wanted follows: then with no message at all.
    part.note_gap(9, 12);
    part.push(message(13));
    let filter = TagFilter::parse(b"wanted");
    let mut delivery = Delivery::default();
    assert!(part.take(5, &spec(1, None), filter.as_ref(), &mut delivery, now), "it is passed over");
    assert_eq!((delivery.messages.len(), delivery.gaps.len()), (0, 1));
    part.end_telling(5, true);
    assert!(part.gap.is_none());
}

/// A partition is behind while its log goes on and nothing comes, and not before.
#[test]
fn behind_is_what_does_not_come() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    part.set_latest(0, now);
    assert!(!part.is_behind(TERM, now + TERM * 2), "there is nothing");
    part.set_latest(2, now + TERM);
    assert!(!part.is_behind(TERM, now + TERM + TERM / 2));
    part.set_latest(3, now + TERM + TERM / 2);
    assert!(part.is_behind(TERM, now + TERM * 2));
    part.push(message(0));
    part.set_latest(3, now + TERM * 2);
    give(&mut part, 1, &spec(9, None), now);
    assert!(!part.is_behind(TERM, now + TERM * 2), "it has moved");
    assert!(part.is_behind(TERM, now + TERM * 3));
}

#[test]
fn a_burial_that_fails_goes_back_to_its_lease() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    (0..2).for_each(|offset| part.push(message(offset)));
    take(&mut part, 1, &spec(2, held(None, None)), now);
    let burial = part.begin_bury(1).expect("it is leased");
    assert_eq!(part.begin_bury(1).err(), Some(Acked::Burying), "once");
    part.end_bury(&burial, false);
    let burial = part.begin_bury(1).expect("it is leased again");
    part.end_bury(&burial, true);
    assert_eq!(part.table.end(), 2, "what its lease holds before it was processed, too");
    assert_eq!(part.begin_bury(1).err(), Some(Acked::Done), "it is in the queue already");
    assert_eq!(part.begin_bury(0).err(), Some(Acked::NotLeased), "of what was only acknowledged there is no copy");
}

#[test]
fn a_delayed_message_waits_and_holds_up_no_other() {
    let (mut part, now) = (Part::new(0, 1, 0, true, &budget()), Instant::now());
    let due = |ms: i64| -> std::sync::Arc<[Header]> {
        [(Bytes::from_static(crate::store::DUE_HEADER), Some(ms.to_string().into()))].into()
    };
    part.push(Message { headers: Some(due(i64::MAX)), ..message(0) });
    part.push(message(1));
    assert_eq!(offsets(&take(&mut part, 1, &spec(9, None), now)), [1]);
    assert_eq!((part.wake_delayed(), part.table.end()), (0, 0));
    part.delayed = BTreeSet::from([(1, 0)]);
    assert_eq!(part.wake_delayed(), 1);
    let first = take(&mut part, 2, &spec(9, None), now);
    assert_eq!((offsets(&first), first.redelivered), (vec![0], vec![]), "it is its first delivery");
}

/// What the model knows of one message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Unread,
    Held,
    Acked,
}

/// Random interleavings of deliver (here, for another gateway, for a stream, by a filter), ack, renew, extend, expire, answers that were
/// cut or never sent, burials that succeed or fail, and revocation.
#[test]
fn nothing_is_lost_and_nothing_unacknowledged_is_committed() {
    const MESSAGES: Offset = 60;
    let mut random = crate::store::random();
    for _ in 0..400 {
        let budget = budget();
        let mut now = Instant::now();
        let (mut epoch, mut lease) = (1, 0);
        let filter = TagFilter::parse(b"wanted").expect("it names one");
        let mut part = Part::new(0, epoch, 0, true, &budget);
        (0..MESSAGES).for_each(|offset| part.push(message(offset)));
        let mut fate = vec![Fate::Unread; usize::try_from(MESSAGES).expect("small")];
        // By lease: what it was given, in order.
        let mut given: Vec<(LeaseId, Vec<Offset>, Grant, bool)> = Vec::new();
        let mut burials: Vec<Burial> = Vec::new();
        let mut steps = 0;
        while part.table.end() < MESSAGES {
            steps += 1;
            assert!(steps < 100_000, "it comes to an end");
            let mut worn = Vec::new();
            match random(9) {
                8 if !given.is_empty() => {
                    let (_, list, grant, is_held) = &given[usize::try_from(random(given.len() as u64)).expect("small")];
                    if random(2) == 0 {
                        part.renew(grant, now);
                    } else if *is_held {
                        part.extend_at(list[0], TERM * u32::try_from(random(3)).expect("small"), now);
                    }
                }
                0..=2 => {
                    lease += 1;
                    let is_held = random(3) > 0;
                    let how =
                        if is_held { held((random(2) == 0).then_some(3), (random(4) == 0).then_some(7)) } else { None };
                    let on_way = (random(3) == 0).then_some(TERM / 3);
                    let spec = spec(
                        1 + usize::try_from(random(5)).expect("small"),
                        how.map(|how| LeaseSpec { on_way, ..how }),
                    );
                    let mut delivery = Delivery::default();
                    // What a filter passes over is acknowledged by that.
                    part.take(lease, &spec, (random(12) == 0).then_some(&filter), &mut delivery, now);
                    for offset in offsets(&delivery) {
                        let known = &mut fate[usize::try_from(offset).expect("small")];
                        assert_eq!(*known, Fate::Unread, "{offset} is held by one lease at a time");
                        *known = Fate::Held;
                    }
                    if let Some(grant) = delivery.grants.first() {
                        given.push((lease, offsets(&delivery), *grant, is_held));
                    }
                }
                3 if !given.is_empty() => {
                    // An acknowledgement of any message of a held lease; it may have ended.
                    let (_, list, _, is_held) = &given[usize::try_from(random(given.len() as u64)).expect("small")];
                    let at = usize::try_from(random(list.len() as u64)).expect("small");
                    if *is_held {
                        part.ack_at(list[at]);
                    }
                }
                4 if !given.is_empty() => {
                    let at = usize::try_from(random(given.len() as u64)).expect("small");
                    let (_, _, grant, is_held) = given.swap_remove(at);
                    let outcomes = [Outcome::Delivered, Outcome::Delivered, Outcome::Cut, Outcome::Unsent];
                    let outcome = outcomes[usize::try_from(random(4)).expect("small")];
                    // What its client has is not written any more.
                    let is_written = !part.held.get(&grant.lease).is_some_and(|held| held.is_delivered);
                    let outcome = if is_written { outcome } else { Outcome::Delivered };
                    part.settle(&grant, outcome, now, &mut worn);
                    if is_held && outcome == Outcome::Delivered {
                        given.push((grant.lease, vec![grant.last], grant, true));
                    }
                }
                5 => {
                    now += TERM / 2;
                    part.expire(now, &mut worn);
                }
                6 if !given.is_empty() => {
                    let (_, list, _, _) = &given[usize::try_from(random(given.len() as u64)).expect("small")];
                    if let Ok(burial) =
                        part.begin_bury(list[usize::try_from(random(list.len() as u64)).expect("small")])
                    {
                        burials.push(burial);
                    }
                }
                7 if random(20) == 0 => {
                    // The partition goes and comes back: everything starts from what was committed.
                    let end = part.table.end();
                    epoch += 1;
                    part = Part::new(0, epoch, end, true, &budget);
                    (end..MESSAGES).for_each(|offset| part.push(message(offset)));
                    given.clear();
                    burials.clear();
                }
                _ => {
                    if let Some(burial) = burials.pop() {
                        part.end_bury(&burial, random(3) > 0);
                    }
                }
            }
            burials.append(&mut worn);
            // What the table says of each message is what the model may believe.
            for offset in 0..MESSAGES {
                let known = &mut fate[usize::try_from(offset).expect("small")];
                *known = match part.table.holder(offset) {
                    Holder::Done => Fate::Acked,
                    Holder::Lease(_) => Fate::Held,
                    Holder::Burial | Holder::Nobody => Fate::Unread,
                };
            }
            let contiguous = fate.iter().take_while(|fate| **fate == Fate::Acked).count();
            assert_eq!(part.table.end(), Offset::try_from(contiguous).expect("small"));
            assert_eq!(part.table.leased(), fate.iter().filter(|fate| **fate == Fate::Held).count());
            let leased: usize = part.held.values().map(|held| held.leased).sum();
            assert!(leased <= part.table.leased(), "the rest is held by answers on their way");
            assert!(part.held.values().all(|held| held.leased + held.burying > 0), "no lease outlives its messages");
        }
        assert_eq!((part.bytes(), budget.held(), part.held.len()), (0, 0, 0));
    }
}
