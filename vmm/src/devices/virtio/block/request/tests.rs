use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_SCSI_CMD, VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_T_ZONE_REPORT,
};
use vm_memory::VolatileSlice;

use super::*;

fn buffers<'m>(parts: &'m mut [Vec<u8>]) -> Buffers<'m> {
    let mut buffers = Buffers::default();
    for part in parts {
        buffers.push(VolatileSlice::from(part.as_mut_slice()));
    }
    buffers
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xaa; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Parses a chain of these parts and hands the request to `look`.
fn parse<T>(
    readable: &[Vec<u8>],
    writable: &[usize],
    look: impl FnOnce(Result<Request<'_>, QueueError>) -> T,
) -> T {
    let mut readable = readable.to_vec();
    let mut writable: Vec<_> = writable.iter().map(|&len| vec![0xee; len]).collect();
    look(Request::parse(Chain {
        head: 7,
        readable: buffers(&mut readable),
        writable: buffers(&mut writable),
    }))
}

fn invalid(readable: &[Vec<u8>]) -> Option<InvalidRequest> {
    parse(readable, &[1], |request| match request.unwrap().operation {
        Operation::Invalid(why) => Some(why),
        _ => None,
    })
}

#[test]
fn a_read_has_its_sector_and_all_writable_bytes_but_the_status() {
    parse(&[header(VIRTIO_BLK_T_IN, 5)], &[512, 512, 1], |request| {
        let request = request.unwrap();
        let Operation::Read { sector, into } = &request.operation else {
            panic!("not a read");
        };
        assert_eq!((*sector, into.len()), (5, 1024));
        assert_eq!(request.finish(None), 1025);
    });
}

#[test]
fn descriptors_may_split_a_request_anywhere() {
    let mut all = header(VIRTIO_BLK_T_OUT, u64::MAX);
    all.extend([7; 512]);
    for at in 0..all.len() {
        let (front, back) = all.split_at(at);
        parse(&[front.to_vec(), back.to_vec()], &[1], |request| {
            let Operation::Write { sector, from } = request.unwrap().operation else {
                panic!("not a write");
            };
            let mut data = vec![0; from.len()];
            from.copy_to(&mut data);
            assert_eq!((sector, data), (u64::MAX, vec![7; 512]));
        });
    }
}

#[test]
fn the_status_goes_into_the_last_writable_byte() {
    for (failure, byte) in [
        (None, 0),
        (Some(FailureStatus::IoError), 1),
        (Some(FailureStatus::Unsupported), 2),
    ] {
        let mut readable = [header(VIRTIO_BLK_T_IN, 0)];
        let mut writable = [vec![0xee; 3], vec![0xee; 2]];
        let chain = Chain {
            head: 0,
            readable: buffers(&mut readable),
            writable: buffers(&mut writable),
        };
        Request::parse(chain).unwrap().finish(failure);
        assert_eq!(writable.concat(), [0xee, 0xee, 0xee, 0xee, byte]);
    }
}

#[test]
fn the_used_length_counts_only_what_was_written() {
    let used = |kind, room: &[usize], failure| {
        parse(&[header(kind, 0)], room, |request| {
            request.unwrap().finish(failure)
        })
    };
    let io_error = Some(FailureStatus::IoError);
    assert_eq!(used(VIRTIO_BLK_T_IN, &[512, 1], None), 513);
    assert_eq!(used(VIRTIO_BLK_T_IN, &[512, 1], io_error), 0);
    assert_eq!(used(VIRTIO_BLK_T_OUT, &[1], None), 1);
    assert_eq!(used(VIRTIO_BLK_T_OUT, &[1], io_error), 1);
    assert_eq!(used(VIRTIO_BLK_T_GET_ID, &[20, 1], None), 21);
    assert_eq!(used(VIRTIO_BLK_T_GET_ID, &[64, 1], None), 20);
    assert_eq!(used(VIRTIO_BLK_T_FLUSH, &[8, 1], None), 0);
}

#[test]
fn without_a_header_or_a_status_there_is_no_request() {
    let error = |readable: &[Vec<u8>], writable: &[usize]| {
        parse(readable, writable, |request| match request {
            Err(QueueError::BadRequest { head: 7, what }) => what,
            _ => panic!("not a bad request"),
        })
    };
    let whole = header(VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(
        error(std::slice::from_ref(&whole), &[]),
        "no room for the status"
    );
    for len in 0..HEADER_BYTES {
        assert_eq!(
            error(&[whole[..len].to_vec()], &[1]),
            "the request's header is cut off"
        );
    }
}

#[test]
fn types_that_are_not_served_are_unsupported() {
    for kind in [
        VIRTIO_BLK_T_SCSI_CMD,
        VIRTIO_BLK_T_SECURE_ERASE,
        VIRTIO_BLK_T_ZONE_REPORT,
        3,
        0x8000_0000,
        u32::MAX,
    ] {
        assert_eq!(
            invalid(&[header(kind, 0)]),
            Some(InvalidRequest::Unsupported)
        );
    }
}

#[test]
fn segments_are_read_one_by_one() {
    let readable = [
        header(VIRTIO_BLK_T_WRITE_ZEROES, 0),
        segment(1, 2, 0),
        segment(3, 4, 1),
    ];
    parse(&readable, &[1], |request| {
        let Operation::WriteZeroes(segments) = request.unwrap().operation else {
            panic!("not a write of zeroes");
        };
        let flat: Vec<_> = segments
            .iter()
            .map(|s| (s.sector, s.sectors, s.unmap))
            .collect();
        assert_eq!(flat, [(1, 2, false), (3, 4, true)]);
    });
}

#[test]
fn flags_that_are_not_known_are_unsupported() {
    let with_flags = |kind, flags| invalid(&[header(kind, 0), segment(0, 8, flags)]);
    assert_eq!(with_flags(VIRTIO_BLK_T_DISCARD, 0), None);
    assert_eq!(with_flags(VIRTIO_BLK_T_WRITE_ZEROES, 1), None);
    for (kind, flags) in [
        (VIRTIO_BLK_T_DISCARD, 1),
        (VIRTIO_BLK_T_DISCARD, 2),
        (VIRTIO_BLK_T_WRITE_ZEROES, 3),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1 << 31),
    ] {
        assert_eq!(with_flags(kind, flags), Some(InvalidRequest::Unsupported));
    }
}

#[test]
fn segments_come_whole_and_not_too_many() {
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let with_data = |data: Vec<u8>| invalid(&[header(kind, 0), data]);
        assert_eq!(with_data(vec![]), Some(InvalidRequest::Segments));
        assert_eq!(with_data(vec![0; 15]), Some(InvalidRequest::Segments));
        assert_eq!(with_data(vec![0; 17]), Some(InvalidRequest::Segments));
        assert_eq!(with_data(vec![0; 16 * 16]), None);
        assert_eq!(with_data(vec![0; 16 * 17]), Some(InvalidRequest::Segments));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_parsing_panic(
        kind in prop_oneof![0..16u32, any::<u32>()],
        readable in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5),
        writable in prop::collection::vec(0..600usize, 0..4),
        with_header: bool,
    ) {
        let mut parts = readable;
        if with_header {
            parts.insert(0, header(kind, 0));
        }
        let room: usize = writable.iter().sum();
        parse(&parts, &writable, |request| {
            if let Ok(request) = request {
                assert!(room > 0);
                assert!(request.finish(None) as usize <= room);
            } else {
                assert!(room == 0 || parts.concat().len() < HEADER_BYTES);
            }
        });
    }
}
