//! Limits, by links that are so slow that a second frame would come a minute later: what comes
//! sooner is told apart from it without a look at a clock.

use super::*;
use crate::devices::virtio::pacing::limits::Limit;

/// One byte in a second.
fn slow() -> Option<Limit> {
    Some(Limit::steady(1))
}

fn guest(received: Option<Limit>, sent: Option<Limit>) -> Guest {
    Guest::of(
        vec![open(TAP).unwrap()],
        None,
        &NetLimits { received, sent },
    )
}

#[test]
fn a_frame_that_may_not_be_sent_yet_stays_in_the_queue_and_the_other_direction_goes_on() {
    in_namespace(|host| {
        let mut guest = guest(None, slow());
        // With which the first frame goes.
        guest.start(EVENT_IDX);
        let memory = Arc::clone(&guest.driver.memory);
        let late = [&[0; 12], &frame(GUEST, HOST, 7, 100)[..]].concat();
        let at = guest.driver.buffer(&late);
        guest.driver.rings[TRANSMIT].submit(&memory, &[(at, late.len() as u32, false)]);
        guest.driver.notify(TRANSMIT);
        for number in 0..50 {
            guest.give(&[1600]);
            host.send(&frame(HOST, GUEST, number, 100));
            assert_eq!(guest.receive().1, frame(HOST, GUEST, number, 100));
        }
        assert_eq!(guest.driver.rings[TRANSMIT].take_used(&memory), None);
        assert_eq!(guest.counters.sent_frames.get(), 1);
    });
}

#[test]
fn a_frame_that_may_not_come_yet_stays_in_the_tap_and_the_other_direction_goes_on() {
    in_namespace(|host| {
        let mut guest = guest(slow(), None);
        guest.start(MERGEABLE);
        (0..2).for_each(|_| guest.give(&[1600]));
        host.send(&frame(HOST, GUEST, 1, 100));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 1, 100));
        host.send(&frame(HOST, GUEST, 2, 100));
        for number in 0..50 {
            guest.send(&frame(GUEST, HOST, number, 100));
            assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, number, 100));
        }
        assert!(guest.take().is_none());
        assert_eq!(guest.counters.received_frames.get(), 1);
        assert_eq!(guest.counters.receive_dropped.get(), 0);
    });
}

#[test]
fn a_device_that_waits_for_its_limit_can_be_reset_and_stopped() {
    in_namespace(|host| {
        let mut guest = guest(slow(), slow());
        guest.driver.start(0, 2);
        for _ in 0..3 {
            let memory = Arc::clone(&guest.driver.memory);
            let frame = [&[0; 12], &frame(GUEST, HOST, 7, 100)[..]].concat();
            let at = guest.driver.buffer(&frame);
            guest.driver.rings[TRANSMIT].submit(&memory, &[(at, frame.len() as u32, false)]);
            guest.driver.rings[RECEIVE].submit(&memory, &[(4 << 20, 2000, true)]);
            guest.driver.notify(TRANSMIT);
            guest.driver.notify(RECEIVE);
            host.send(&self::frame(HOST, GUEST, 1, 100));
            guest.driver.start(0, 2);
        }
        guest.driver.transport.stop();
        assert!(guest.counters.sent_frames.get() <= 1);
    });
}

#[test]
fn a_limit_that_is_not_reached_lets_everything_through_in_order() {
    in_namespace(|host| {
        // Such that frames of these sizes wait for each other, a little.
        let limit = Some(Limit::steady(4 << 20));
        let mut guest = guest(limit, limit);
        guest.start(MERGEABLE | EVENT_IDX);
        for number in 0..300 {
            guest.give(&[2000]);
            host.send(&frame(HOST, GUEST, number, 1400));
            guest.send(&frame(GUEST, HOST, number, 1400));
            assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, number, 1400));
            assert_eq!(guest.receive().1, frame(HOST, GUEST, number, 1400));
        }
        assert_eq!(guest.counters.received_frames.get(), 300);
        assert_eq!(guest.counters.sent_frames.get(), 301);
    });
}

#[test]
fn interfaces_share_what_the_machine_may_carry() {
    in_namespace(|_| {
        make_tap("tap1", libc::IFF_TAP);
        let throttle = NetThrottle::new(&NetLimits {
            received: None,
            sent: slow(),
        });
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let device = |name| {
            let taps = vec![open(name).unwrap()];
            Net::new(taps, name, mac, None, Arc::new(|_, _| ()))
                .with_throttle(Arc::clone(&throttle))
        };
        let (first, second) = (device(TAP), device("tap1"));
        let control = second.control();
        let mut first = crate::devices::virtio::testing::TestDriver::started(first, 0, 2);
        let mut second = crate::devices::virtio::testing::TestDriver::started(second, 0, 2);
        let frame = [&[0; 12], &frame(GUEST, HOST, 7, 100)[..]].concat();
        first.request(TRANSMIT, &[&frame], &[]);
        let at = second.buffer(&frame);
        let memory = Arc::clone(&second.memory);
        second.rings[TRANSMIT].submit(&memory, &[(at, frame.len() as u32, false)]);
        second.notify(TRANSMIT);
        for _ in 0..100 {
            std::thread::yield_now();
            assert_eq!(second.rings[TRANSMIT].take_used(&memory), None);
        }
        assert_eq!(control.counters().sent_frames.get(), 0);
    });
}
