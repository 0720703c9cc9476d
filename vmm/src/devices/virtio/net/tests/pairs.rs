//! Several pairs of queues, and the control queue.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::*;
use crate::devices::virtio::testing::TestDriver;

const PAIRS: u16 = 3;
/// Behind the pairs.
const CONTROL: usize = 2 * PAIRS as usize;
const ALL_QUEUES: u32 = 2 * PAIRS as u32 + 1;
const SEVERAL: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;

/// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, and its answers.
fn use_pairs(count: u16) -> Vec<u8> {
    [&[4, 0], &count.to_le_bytes()[..]].concat()
}
const OK: u8 = 0;
const ERR: u8 = 1;

fn with_pairs(test: impl FnOnce(&namespace::Host, &mut Guest) + Send + 'static) {
    in_namespace_of(libc::IFF_TAP | libc::IFF_MULTI_QUEUE, |host| {
        let taps = open_pairs(TAP, QueuePairs::UpTo(PAIRS)).unwrap();
        assert_eq!(taps.len(), usize::from(PAIRS));
        let mut guest = Guest::of(taps, None, &NetLimits::default());
        test(host, &mut guest);
    });
}

/// Sends a command in as many parts as Linux does, and gives the answer.
fn command(driver: &mut TestDriver, queue: usize, command: &[u8]) -> u8 {
    let (class, data) = command.split_at(command.len().min(2));
    let (answer, written) = driver.request(queue, &[class, data], &[1]);
    assert_eq!(written, 1);
    answer[0]
}

/// Sends a frame on the transmit queue of a pair, by a driver that has several.
fn send_on(guest: &mut Guest, pair: usize, frame: &[u8]) {
    let (_, written) = guest.driver.request(2 * pair + 1, &[&[0; 12], frame], &[]);
    assert_eq!(written, 0);
}

/// A datagram between two ports: the kernel tells flows apart by them.
fn datagram(from: [u8; 6], to: [u8; 6], port: u16, from_guest: bool) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    let (guest, host) = ([192, 0, 2, 2], [192, 0, 2, 1]);
    let (source, target) = if from_guest {
        (guest, host)
    } else {
        (host, guest)
    };
    frame.extend([source, target].concat());
    let ports = [port.to_be_bytes(), 9u16.to_be_bytes()];
    frame.extend(if from_guest {
        ports.concat()
    } else {
        [ports[1], ports[0]].concat()
    });
    frame.extend([0, 28, 0, 0]);
    frame.extend([0x5a; 20]);
    frame
}

#[test]
fn a_device_of_several_pairs_says_so_and_one_of_one_does_not() {
    with_pairs(|_, guest| {
        assert_eq!(guest.driver.offered_features() & SEVERAL, SEVERAL);
        let mut most = [0; 2];
        guest.driver.transport.read(0x100 + 8, &mut most);
        assert_eq!(u16::from_le_bytes(most), PAIRS);
        assert_eq!(guest.control.queue_pairs(), PAIRS);
        assert_eq!(guest.control.queue_pairs_in_use(), 1);
    });
    in_namespace(|_| {
        // Of a tap of one queue, whoever asks for more.
        let taps = open_pairs(TAP, QueuePairs::UpTo(8)).unwrap();
        let mut guest = Guest::of(taps, None, &NetLimits::default());
        assert_eq!(guest.driver.offered_features() & SEVERAL, 0);
        assert_eq!(guest.control.queue_pairs(), 1);
    });
}

#[test]
fn every_pair_sends_and_receives_what_belongs_to_its_flows() {
    with_pairs(|host, guest| {
        guest.start_queues(SEVERAL, ALL_QUEUES);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(PAIRS)), OK);
        assert_eq!(guest.control.queue_pairs_in_use(), PAIRS);
        for pair in 0..usize::from(PAIRS) {
            let port = 1000 + pair as u16;
            send_on(guest, pair, &datagram(GUEST, HOST, port, true));
            assert_eq!(host.receive(GUEST).1, datagram(GUEST, HOST, port, true));
            let buffer = (4 << 20) + 0x1_0000 * pair as u64;
            let memory = Arc::clone(&guest.driver.memory);
            guest.driver.rings[2 * pair].submit(&memory, &[(buffer, 2000, true)]);
            guest.driver.notify(2 * pair);
            let answer = datagram(HOST, GUEST, port, false);
            host.send(&answer);
            let (_, length) = guest.driver.wait_used(2 * pair);
            let received = guest.driver.bytes(buffer + 12, length as usize - 12);
            assert_eq!(received, answer, "pair {pair}");
        }
        assert_eq!(guest.counters.sent_frames.get(), 1 + u64::from(PAIRS));
        assert_eq!(guest.counters.received_frames.get(), u64::from(PAIRS));
    });
}

#[test]
fn until_the_driver_asks_for_more_everything_comes_to_the_first_pair() {
    with_pairs(|host, guest| {
        guest.start_queues(SEVERAL, ALL_QUEUES);
        for count in [1, PAIRS, 1] {
            assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(count)), OK);
            assert_eq!(guest.control.queue_pairs_in_use(), count);
        }
        // The flow was on another pair before.
        send_on(guest, 2, &datagram(GUEST, HOST, 7, true));
        host.receive(GUEST);
        for number in 0..20 {
            guest.give(&[2000]);
            let sent = datagram(HOST, GUEST, number, false);
            host.send(&sent);
            assert_eq!(guest.receive().1, sent);
        }
    });
}

#[test]
fn what_is_no_command_is_answered_with_an_error_and_changes_nothing() {
    with_pairs(|host, guest| {
        guest.start_queues(SEVERAL, ALL_QUEUES);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(2)), OK);
        let long = [&use_pairs(1)[..], &[0; 60_000]].concat();
        for bad in [
            &use_pairs(0)[..],
            &use_pairs(PAIRS + 1),
            &use_pairs(0x8000),
            &use_pairs(u16::MAX),
            &[],
            &[4],
            &[4, 0, 1],
            &[4, 1, 1, 0],
            &[0, 0, 1],
            &[1, 1, 2, 0, 0, 0, 0, 9],
            &[0xff, 0xff],
            &long,
        ] {
            assert_eq!(command(&mut guest.driver, CONTROL, bad), ERR, "{bad:?}");
            assert_eq!(guest.control.queue_pairs_in_use(), 2);
        }
        send_on(guest, 1, &frame(GUEST, HOST, 1, 100));
        assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, 1, 100));
        assert_eq!(guest.reports.messages(), [""; 0]);
    });
}

#[test]
fn a_command_that_makes_no_sense_needs_a_reset() {
    with_pairs(|host, guest| {
        let chains: [&[(u64, u32, bool)]; 4] = [
            // No room for the answer.
            &[(0x8_0000, 4, false)],
            &[(u64::MAX - 5, 100, false), (0x8_0000, 1, true)],
            &[(0x8_0000, 1, true), (0x8_0000, 4, false)],
            &[(0x8_0000, 4, false), (1 << 40, 1, true)],
        ];
        for chain in chains {
            guest.start_queues(SEVERAL, ALL_QUEUES);
            let memory = Arc::clone(&guest.driver.memory);
            guest.driver.rings[CONTROL].submit(&memory, chain);
            guest.driver.notify(CONTROL);
            guest.driver.wait_needs_reset();
        }
        assert_eq!(guest.reports.messages().len(), chains.len());
        guest.start_queues(SEVERAL, ALL_QUEUES);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(2)), OK);
        send_on(guest, 1, &frame(GUEST, HOST, 1, 100));
        assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, 1, 100));
    });
}

#[test]
fn only_pairs_whose_queues_are_ready_can_be_used() {
    with_pairs(|_, guest| {
        // Queues 0 to 3 are ready, the control queue is not.
        guest.start_queues(SEVERAL, 4);
        guest.driver.transport.stop();
        assert_eq!(guest.control.queue_pairs_in_use(), 1);
    });
    with_pairs(|_, guest| {
        // The control queue is, and of the pairs the first.
        assert!(guest.driver.negotiate(SEVERAL | 1 << 32));
        guest.driver.rings.clear();
        for index in 0..ALL_QUEUES {
            let base = u64::from(index) << 16;
            let ring = crate::devices::virtio::testing::Ring::new(base, 16);
            if index < 2 || index as usize == CONTROL {
                guest.driver.set_up_queue(index, &ring);
            }
            guest.driver.rings.push(ring);
        }
        guest.driver.write(0x70, 0xf);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(2)), ERR);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(1)), OK);
    });
}

#[test]
fn without_the_feature_the_control_queue_follows_the_first_pair() {
    with_pairs(|host, guest| {
        guest.start_queues(1 << VIRTIO_NET_F_CTRL_VQ, 3);
        assert_eq!(command(&mut guest.driver, 2, &use_pairs(1)), OK);
        assert_eq!(command(&mut guest.driver, 2, &use_pairs(2)), ERR);
        // A driver that has never heard of it.
        guest.start_queues(0, 2);
        guest.give(&[1600]);
        host.send(&frame(HOST, GUEST, 1, 100));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 1, 100));
    });
}

#[test]
fn a_reset_takes_the_other_pairs_out_of_use_again_and_again() {
    with_pairs(|host, guest| {
        for round in 0..10 {
            guest.start_queues(SEVERAL, ALL_QUEUES);
            assert_eq!(guest.control.queue_pairs_in_use(), 1);
            guest.give(&[1600]);
            host.send(&frame(HOST, GUEST, round, 100));
            assert_eq!(guest.receive().1, frame(HOST, GUEST, round, 100));
            assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(PAIRS)), OK);
            assert_eq!(guest.control.queue_pairs_in_use(), PAIRS);
        }
        guest.driver.transport.stop();
        assert_eq!(guest.control.queue_pairs_in_use(), 1);
    });
}

#[test]
fn pairs_come_and_go_under_traffic_in_both_directions() {
    with_pairs(|host, guest| {
        guest.start_queues(SEVERAL | MERGEABLE | EVENT_IDX, ALL_QUEUES);
        let (mut received, mut round) = (0, 0);
        while received < 200 {
            let count = [1, 2, PAIRS, 2][round as usize % 4];
            assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(count)), OK);
            let pair = round as usize % usize::from(count);
            send_on(guest, pair, &datagram(GUEST, HOST, round, true));
            assert_eq!(host.receive(GUEST).1, datagram(GUEST, HOST, round, true));
            let memory = Arc::clone(&guest.driver.memory);
            for pair in 0..PAIRS {
                let buffer = (4 << 20) + 0x1_0000 * u64::from(pair);
                let ring = &mut guest.driver.rings[2 * usize::from(pair)];
                ring.submit(&memory, &[(buffer, 2000, true)]);
                guest.driver.notify(2 * usize::from(pair));
            }
            // To whichever pair; those that are not used get none.
            host.send(&datagram(HOST, GUEST, round, false));
            let rings = &mut guest.driver.rings;
            let to = crate::devices::virtio::testing::wait_for("a frame", || {
                (0..PAIRS).find(|&pair| rings[2 * usize::from(pair)].take_used(&memory).is_some())
            });
            assert!(to < count, "pair {to} of {count}");
            received += 1;
            round += 1;
            // Buffers that nobody has used would fill the rings.
            if round % 12 == 0 {
                guest.start_queues(SEVERAL | MERGEABLE | EVENT_IDX, ALL_QUEUES);
            }
        }
    });
}

#[test]
fn a_removed_tap_is_noticed_by_a_device_of_several_pairs() {
    with_pairs(|_, guest| {
        guest.start_queues(SEVERAL, ALL_QUEUES);
        assert_eq!(command(&mut guest.driver, CONTROL, &use_pairs(2)), OK);
        remove_tap();
        crate::devices::virtio::testing::wait_for("the link to go down", || {
            (!guest.link_is_up()).then_some(())
        });
        for pair in 0..usize::from(PAIRS) {
            send_on(guest, pair, &frame(GUEST, HOST, 1, 100));
        }
        // Whatever is answered, it comes.
        command(&mut guest.driver, CONTROL, &use_pairs(PAIRS));
        guest.start_queues(SEVERAL, ALL_QUEUES);
        guest.driver.transport.stop();
        assert!(!guest.control.link_is_up());
        assert_eq!(guest.reports.messages().len(), 1);
    });
}

#[test]
fn a_tap_of_several_queues_serves_one_device_and_one_of_one_no_more_than_it_has() {
    in_namespace_of(libc::IFF_TAP | libc::IFF_MULTI_QUEUE, |_| {
        let first = open_pairs(TAP, QueuePairs::Exactly(2)).unwrap();
        let second = open_pairs(TAP, QueuePairs::Exactly(2));
        assert!(matches!(second, Err(TapError::InUse)));
        let second = open_pairs(TAP, QueuePairs::UpTo(1));
        assert!(matches!(second, Err(TapError::InUse)));
        drop(first);
        assert_eq!(open_pairs(TAP, QueuePairs::UpTo(8)).unwrap().len(), 8);
        // One pair of a tap that could have more.
        assert_eq!(open_pairs(TAP, QueuePairs::Exactly(1)).unwrap().len(), 1);
    });
    in_namespace(|_| {
        let several = open_pairs(TAP, QueuePairs::Exactly(2));
        assert!(matches!(several, Err(TapError::OneQueue(2))));
        assert_eq!(open_pairs(TAP, QueuePairs::Exactly(1)).unwrap().len(), 1);
    });
}
