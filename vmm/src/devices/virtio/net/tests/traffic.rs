//! Frames in both directions.

use super::*;

#[test]
fn frames_go_both_ways() {
    in_namespace(|host| {
        for features in [0, EVENT_IDX, MERGEABLE, MERGEABLE | EVENT_IDX] {
            let mut guest = Guest::started(features);
            let sent = frame(GUEST, HOST, 1, 1500);
            guest.send(&sent);
            assert_eq!(host.receive(GUEST).1, sent);

            guest.give(&[2000]);
            let sent = frame(HOST, GUEST, 2, 1500);
            host.send(&sent);
            let (header, received, lengths) = guest.receive();
            assert_eq!((header, received), (PLAIN.to_vec(), sent));
            assert_eq!(lengths, [12 + 1514]);
            guest.driver.wait_interrupt();
            assert_eq!(guest.counters.sent_frames.get(), 2);
            assert_eq!(guest.counters.received_frames.get(), 1);
            assert_eq!(guest.counters.received_bytes.get(), 1514);
        }
    });
}

#[test]
fn a_buffer_may_be_split_anywhere() {
    in_namespace(|host| {
        let mut guest = Guest::started(0);
        for (number, parts) in [
            &[12, 1600][..],
            &[1, 11, 1, 1600],
            &[5, 20, 700, 900],
            &[13, 1513],
        ]
        .iter()
        .enumerate()
        {
            guest.fill_buffers(0xee);
            guest.give(parts);
            let sent = frame(HOST, GUEST, number as u32, 1500);
            host.send(&sent);
            let (header, received, _) = guest.receive();
            assert_eq!((header, received), (PLAIN.to_vec(), sent), "{parts:?}");
        }
    });
}

#[test]
fn a_segmented_frame_is_received_whole_in_several_buffers() {
    in_namespace(|host| {
        let mut guest = Guest::started(MERGEABLE | RECEIVE_OFFLOADS | EVENT_IDX);
        (0..15).for_each(|_| guest.give(&[4096]));
        let sent = tcp_frame(HOST, GUEST, 50_000);
        host.send_with(tcp_header(1448), &sent);
        let (header, received, lengths) = guest.receive();
        assert_eq!(header[..2], [1, 1]);
        assert_eq!(header[4..10], tcp_header(1448)[4..]);
        assert_eq!(lengths.len(), 13);
        assert!(lengths[..12].iter().all(|&len| len == 4096), "{lengths:?}");
        assert!(received == sent);

        // The two buffers that are left serve the next.
        host.send(&frame(HOST, GUEST, 3, 300));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 3, 300));
    });
}

#[test]
fn a_segmented_frame_is_received_whole_in_one_large_buffer() {
    in_namespace(|host| {
        let mut guest = Guest::started(RECEIVE_OFFLOADS);
        guest.give(&[12, 4084, 61466]);
        let sent = tcp_frame(HOST, GUEST, 60_000);
        host.send_with(tcp_header(1448), &sent);
        let (header, received, _) = guest.receive();
        assert_eq!((header[1], &header[10..]), (1, &[1, 0][..]));
        assert!(received == sent);
    });
}

#[test]
fn without_offloads_the_host_finishes_checksums_and_segments() {
    in_namespace(|host| {
        let mut guest = Guest::started(MERGEABLE);
        (0..4).for_each(|_| guest.give(&[1600]));
        let sent = tcp_frame(HOST, GUEST, 3000);
        host.send_with(tcp_header(1000), &sent);
        for part in 0..3 {
            let (header, received, _) = guest.receive();
            assert_eq!(header, PLAIN);
            assert_eq!(received.len(), 1054);
            assert_ne!(received[50..52], [0, 0], "the TCP checksum is there");
            assert!(received[54..] == sent[54 + part * 1000..][..1000]);
        }
    });
}

#[test]
fn a_segmented_frame_of_the_guest_reaches_the_host_whole() {
    in_namespace(|host| {
        let mut guest = Guest::started(SEND_OFFLOADS | EVENT_IDX);
        let sent = tcp_frame(GUEST, HOST, 60_000);
        guest.send_with(tcp_header(1448), &sent);
        let (header, received) = host.receive(GUEST);
        assert_eq!(header[..2], [1, 1]);
        assert_eq!(header[4..6], 1448u16.to_le_bytes());
        assert!(received == sent);
    });
}

#[test]
fn frames_wait_in_the_tap_while_the_guest_gives_no_buffers() {
    in_namespace(|host| {
        for features in [0, EVENT_IDX, MERGEABLE | EVENT_IDX] {
            let mut guest = Guest::started(features);
            (0..300).for_each(|number| host.send(&frame(HOST, GUEST, number, 100)));
            // The other direction isn't held up.
            guest.send(&frame(GUEST, HOST, 1, 100));
            host.receive(GUEST);
            for number in 0..300 {
                guest.give(&[1600]);
                assert_eq!(guest.receive().1, frame(HOST, GUEST, number, 100));
            }
            assert_eq!(guest.counters.receive_dropped.get(), 0);
        }
    });
}

#[test]
fn a_frame_larger_than_the_buffers_at_hand_waits_for_more() {
    in_namespace(|host| {
        let mut guest = Guest::started(MERGEABLE | EVENT_IDX);
        guest.give(&[500]);
        guest.give(&[100, 200]);
        for number in [7, 8] {
            host.send(&frame(HOST, GUEST, number, 1400));
        }
        for _ in 0..3 {
            guest.send(&frame(GUEST, HOST, 1, 60));
            assert!(guest.take().is_none());
            guest.give(&[250]);
        }
        let (header, received, lengths) = guest.receive();
        assert_eq!(header[10..], [5, 0]);
        assert_eq!(received, frame(HOST, GUEST, 7, 1400));
        assert_eq!(lengths, [500, 300, 250, 250, 126]);
        guest.give(&[1600]);
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 8, 1400));
    });
}

#[test]
fn a_frame_that_never_fits_is_dropped_and_the_next_one_gets_its_buffer() {
    in_namespace(|host| {
        let mut guest = Guest::started(0);
        guest.give(&[200]);
        host.send(&frame(HOST, GUEST, 1, 175));
        host.send(&frame(HOST, GUEST, 2, 174));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 2, 174));
        assert_eq!(guest.counters.receive_dropped.get(), 1);

        guest.start(MERGEABLE);
        (0..16).for_each(|_| guest.give(&[60]));
        host.send(&frame(HOST, GUEST, 1, 1000));
        host.send(&frame(HOST, GUEST, 2, 900));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 2, 900));
        assert_eq!(guest.counters.receive_dropped.get(), 2);
    });
}

#[test]
fn a_driver_that_knows_the_mtu_gets_nothing_beyond_it() {
    in_namespace(|host| {
        set_mtu(9000);
        let mut guest = Guest::new(Some(1400));
        let offered = guest.driver.offered_features();
        assert_ne!(offered & (1 << VIRTIO_NET_F_MTU), 0);
        let mut mtu = [0; 2];
        guest.driver.transport.read(0x100 + 10, &mut mtu);
        assert_eq!(u16::from_le_bytes(mtu), 1400);

        guest.start(MERGEABLE | 1 << VIRTIO_NET_F_MTU);
        (0..4).for_each(|_| guest.give(&[4000]));
        host.send(&frame(HOST, GUEST, 1, 1405));
        host.send(&frame(HOST, GUEST, 2, 1400));
        assert_eq!(guest.receive().1, frame(HOST, GUEST, 2, 1400));
        assert_eq!(guest.counters.receive_dropped.get(), 1);
    });
}

#[test]
fn jumbo_frames_pass_both_ways() {
    in_namespace(|host| {
        const MTU: u16 = 9001;
        set_mtu(MTU.into());
        let mut guest = Guest::new(Some(MTU));
        for features in [0, MERGEABLE | EVENT_IDX] {
            guest.start(features | 1 << VIRTIO_NET_F_MTU);
            if features == 0 {
                guest.give(&[12, u32::from(MTU) + 14]);
            } else {
                (0..5).for_each(|_| guest.give(&[2000]));
            }
            let sent = frame(HOST, GUEST, 1, MTU.into());
            host.send(&sent);
            assert!(guest.receive().1 == sent);
            let sent = frame(GUEST, HOST, 2, MTU.into());
            guest.send(&sent);
            assert!(host.receive(GUEST).1 == sent);
        }
        assert_eq!(guest.counters.receive_dropped.get(), 0);
        assert_eq!(guest.counters.send_refused.get(), 0);
    });
}

#[test]
fn thousands_of_frames_of_any_size_arrive_in_order_and_unchanged() {
    in_namespace(|host| {
        let features = MERGEABLE | RECEIVE_OFFLOADS | SEND_OFFLOADS | EVENT_IDX;
        let mut guest = Guest::started(features);
        let mut state = 1u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        let (mut given, mut sent, mut taken) = (0, 0, 0);
        let mut sizes = std::collections::VecDeque::new();
        while taken < 3000 {
            if given < 16 && random(2) == 0 {
                guest.give(&[300 + random(3000)]);
                given += 1;
            }
            // So few that the tap never overflows.
            if sent < 3000 && sent - taken < 100 && random(2) == 0 {
                let size = 46 + random(1400) as usize;
                host.send(&frame(HOST, GUEST, sent, size));
                sizes.push_back(size);
                sent += 1;
            }
            if random(4) == 0 {
                let size = 46 + random(1400) as usize;
                let back = frame(GUEST, HOST, taken, size);
                guest.send(&back);
                assert!(host.receive(GUEST).1 == back);
            }
            while let Some((_, received, lengths)) = guest.take() {
                given -= lengths.len();
                let size = sizes.pop_front().unwrap();
                assert!(received == frame(HOST, GUEST, taken, size), "frame {taken}");
                taken += 1;
            }
        }
        assert_eq!(guest.counters.receive_dropped.get(), 0);
    });
}
