//! What a hostile driver does, and what a tap may do to the device; and resets.

use super::*;

#[test]
fn a_receive_buffer_without_room_for_the_header_needs_a_reset() {
    in_namespace(|host| {
        for features in [0, MERGEABLE] {
            let mut guest = Guest::started(features);
            guest.give(&[11]);
            guest.driver.wait_needs_reset();
            let reports = guest.reports.messages();
            assert!(reports[0].contains("no room for the header"), "{reports:?}");

            guest.start(features);
            guest.give(&[1600]);
            host.send(&frame(HOST, GUEST, 1, 100));
            assert_eq!(guest.receive().1, frame(HOST, GUEST, 1, 100));
        }
    });
}

#[test]
fn a_transmit_chain_that_makes_no_sense_needs_a_reset() {
    in_namespace(|host| {
        let chains: [&[(u64, u32, bool)]; 4] = [
            &[(0x8_0000, 11, false)],
            &[(0x8_0000, 100, true)],
            &[(u64::MAX - 5, 100, false)],
            &[(0x8_0000, 12, true), (0x8_0000, 100, false)],
        ];
        let mut guest = Guest::started(0);
        for chain in chains {
            let memory = Arc::clone(&guest.driver.memory);
            guest.driver.rings[TRANSMIT].submit(&memory, chain);
            guest.driver.notify(TRANSMIT);
            guest.driver.wait_needs_reset();

            guest.start(0);
            guest.send(&frame(GUEST, HOST, 1, 100));
            assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, 1, 100));
        }
        assert_eq!(guest.reports.messages().len(), chains.len());
    });
}

#[test]
fn an_available_index_that_runs_away_needs_a_reset() {
    in_namespace(|_| {
        for queue in [RECEIVE, TRANSMIT] {
            let mut guest = Guest::started(0);
            let memory = Arc::clone(&guest.driver.memory);
            guest.driver.rings[queue].set_available_index(&memory, 1000);
            guest.driver.notify(queue);
            guest.driver.wait_needs_reset();
        }
    });
}

#[test]
fn the_device_never_holds_more_buffers_than_a_queue_has() {
    in_namespace(|host| {
        let mut guest = Guest::started(MERGEABLE | RECEIVE_OFFLOADS);
        for round in 1..=2 {
            // The driver gives all its buffers again, none of which it has got back.
            (0..16).for_each(|_| guest.give(&[64]));
            host.send(&frame(HOST, GUEST, 1, 1400));
            wait_for("a dropped frame", || {
                (guest.counters.receive_dropped.get() == round).then_some(())
            });
        }
        host.send(&frame(HOST, GUEST, 1, 46));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 1, 46));
    });
}

#[test]
fn frames_with_bad_headers_are_dropped_and_counted() {
    in_namespace(|host| {
        let mut guest = Guest::started(SEND_OFFLOADS);
        let tcp = tcp_frame(GUEST, HOST, 3000);
        let mut past_the_end = tcp_header(1000);
        past_the_end[7] = 0xff;
        guest.send_with(past_the_end, &tcp);
        guest.send_with(tcp_header(1), &tcp);
        guest.send(&GUEST);
        guest.send(&[]);
        let mut not_negotiated = tcp_header(1000);
        not_negotiated[1] = 4;
        guest.send_with(not_negotiated, &tcp);
        assert_eq!(guest.counters.send_malformed.get(), 5);

        // Passes us, but the packet is no TCP, which the kernel finds out.
        let mut udp = tcp.clone();
        udp[12..14].copy_from_slice(&[0x88, 0xb5]);
        guest.send_with(tcp_header(1000), &udp);

        guest.send_with(tcp_header(1000), &tcp);
        assert!(wait_for_tcp(host) == tcp);
        assert_eq!(guest.counters.send_malformed.get(), 5);
        assert_eq!(guest.reports.messages(), [""; 0]);
    });
}

fn wait_for_tcp(host: &namespace::Host) -> Vec<u8> {
    loop {
        let (_, frame) = host.receive(GUEST);
        if frame[12..14] == [8, 0] {
            return frame;
        }
    }
}

#[test]
fn frames_for_an_interface_that_is_down_are_dropped_and_counted() {
    in_namespace(|host| {
        let mut guest = Guest::started(0);
        set_up(false);
        guest.send(&frame(GUEST, HOST, 1, 100));
        assert_eq!(guest.counters.send_refused.get(), 1);
        set_up(true);
        guest.send(&frame(GUEST, HOST, 2, 100));
        assert_eq!(host.receive(GUEST).1, frame(GUEST, HOST, 2, 100));
        assert!(guest.link_is_up());
    });
}

#[test]
fn a_tap_that_is_removed_takes_the_link_down() {
    in_namespace(|_| {
        for buffers in [0, 1] {
            if buffers == 1 {
                make_tap(TAP, libc::IFF_TAP);
                set_up(true);
            }
            let mut guest = Guest::started(0);
            (0..buffers).for_each(|_| guest.give(&[1600]));
            assert!(guest.link_is_up());
            remove_tap();
            wait_for("the link to go down", || {
                (!guest.link_is_up()).then_some(())
            });
            guest.driver.wait_interrupt();
            wait_for("a report", || {
                (guest.reports.messages().len() == 1).then_some(())
            });
            for number in 0..40 {
                guest.send(&frame(GUEST, HOST, number, 100));
            }
            guest.start(0);
            assert!(!guest.link_is_up());
            guest.driver.transport.stop();
            assert_eq!(guest.reports.messages().len(), 1);
        }
    });
}

#[test]
fn a_device_is_reset_and_started_again_and_again() {
    in_namespace(|host| {
        let mut guest = Guest::new(None);
        for round in 0..20 {
            // Of a driver before: with checksums that this one may not have to finish.
            host.send_with(tcp_header(1448), &tcp_frame(HOST, GUEST, 9000));
            let features = if round % 2 == 0 {
                MERGEABLE
            } else {
                RECEIVE_OFFLOADS
            };
            guest.start(features);
            guest.give(&[70_000]);
            host.send(&frame(HOST, GUEST, round, 100));
            let (header, received, _) = guest.receive();
            assert_eq!(
                (header, received),
                (PLAIN.to_vec(), frame(HOST, GUEST, round, 100))
            );
            guest.give(&[70_000]);
        }
        guest
            .driver
            .write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
        let before = guest.driver.bytes(4 << 20, 1 << 20);
        host.send(&frame(HOST, GUEST, 99, 100));
        assert!(guest.take_nothing());
        assert!(guest.driver.bytes(4 << 20, 1 << 20) == before);
    });
}

impl Guest {
    /// That nothing is in the used ring, after a time in which something could have come.
    fn take_nothing(&mut self) -> bool {
        (0..100).all(|_| {
            std::thread::yield_now();
            self.take().is_none()
        })
    }
}

#[test]
fn a_stopped_device_has_left_its_thread_and_a_dropped_one_its_tap() {
    in_namespace(|_| {
        let mut guest = Guest::started(0);
        assert!(
            matches!(open(TAP), Err(TapError::Attach(_))),
            "one device has the tap"
        );
        guest.driver.transport.stop();
        let held = Arc::strong_count(&guest.counters);
        // The device's own, and two of this test; the thread had one more.
        assert_eq!(held, 3);
        drop(guest);
        open(TAP).unwrap();
    });
}

#[test]
fn a_tap_is_never_made_and_other_interfaces_are_refused() {
    in_namespace(|_| {
        assert!(matches!(open("tap1"), Err(TapError::NotThere(_))));
        assert!(matches!(open("tap1"), Err(TapError::NotThere(_))));
        assert!(matches!(open(""), Err(TapError::NotThere(_))));
        assert!(matches!(
            open("a-name-of-more-than-15-bytes"),
            Err(TapError::NotThere(_))
        ));
        assert!(matches!(open("lo"), Err(TapError::Attach(_))));
        make_tap("tun1", libc::IFF_TUN);
        assert!(matches!(open("tun1"), Err(TapError::Attach(_))));
        open(TAP).unwrap();
    });
}
