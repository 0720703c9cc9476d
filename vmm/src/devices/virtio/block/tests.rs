//! The device as a driver sees it, on volumes of a real store.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hearth_images::{Access, Disk, Store, VolumeId, VolumeSource};
use proptest::prelude::*;
use tempfile::TempDir;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::VolatileSlice;

use super::*;
use crate::devices::virtio::testing::{NEEDS_RESET, TestDriver};

mod live;

const DISK_BYTES: u64 = 2 << 20;
const SECTORS: u64 = DISK_BYTES / 512;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// An empty volume in a store of its own.
struct Volume {
    store: Store,
    id: VolumeId,
    _dir: TempDir,
}

impl Volume {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id = VolumeId::new("vol-1").unwrap();
        store
            .create_volume(&id, VolumeSource::Empty, Some(DISK_BYTES))
            .unwrap();
        Volume {
            store,
            id,
            _dir: dir,
        }
    }

    fn open(&self, access: Access) -> Disk {
        self.store.open_volume(&self.id, access).unwrap()
    }

    fn driver(&self) -> TestDriver {
        let disk = self.open(Access::ReadWrite);
        let block = Block::new(disk, "vol-1", false, 1, Arc::new(|_, _| ()));
        TestDriver::started(block, FLUSH | EVENT_IDX, 1)
    }
}

/// What the device told the agent.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<Vec<(String, String)>>>);

impl Reports {
    fn callback(&self) -> OnError {
        let reports = self.clone();
        Arc::new(move |serial, message| {
            reports.0.lock().unwrap().push((serial.to_owned(), message));
        })
    }

    fn messages(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().clone()
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A driver of block devices. All return the status byte.
impl TestDriver {
    fn write_disk(&mut self, queue: usize, sector: u64, data: &[u8]) -> u8 {
        let head = header(VIRTIO_BLK_T_OUT, sector);
        self.request(queue, &[&head, data], &[1]).0[0]
    }

    fn read_disk(&mut self, queue: usize, sector: u64, len: usize) -> (Vec<u8>, u8) {
        let head = header(VIRTIO_BLK_T_IN, sector);
        let (mut data, _) = self.request(queue, &[&head], &[len, 1]);
        let status = data.pop().unwrap();
        (data, status)
    }

    fn flush_disk(&mut self) -> u8 {
        let head = header(VIRTIO_BLK_T_FLUSH, 0);
        self.request(0, &[&head], &[1]).0[0]
    }

    fn zero(&mut self, kind: u32, segments: &[[u8; 16]]) -> u8 {
        let head = header(kind, 0);
        self.request(0, &[&head, &segments.concat()], &[1]).0[0]
    }
}

#[test]
fn what_is_written_is_read_again_and_is_there_when_the_volume_is_opened_next() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    let data: Vec<u8> = (0..64 << 10).map(|i: u32| (i / 7) as u8).collect();
    assert_eq!(driver.write_disk(0, 100, &data), OK);
    assert_eq!(driver.read_disk(0, 100, data.len()), (data.clone(), OK));
    assert_eq!(driver.zero(VIRTIO_BLK_T_DISCARD, &[segment(110, 8, 0)]), OK);
    assert_eq!(driver.flush_disk(), OK);
    driver.transport.stop();

    let disk = volume.open(Access::ReadOnly);
    let mut found = vec![0; data.len()];
    disk.read(&mut found, 100 * 512).unwrap();
    let mut expected = data;
    expected[10 * 512..18 * 512].fill(0);
    assert!(found == expected);
}

#[test]
fn the_id_is_the_serial_padded_and_cut() {
    let volume = Volume::new();
    for (serial, room, expected) in [
        (
            "vol-0123",
            20,
            b"vol-0123\0\0\0\0\0\0\0\0\0\0\0\0".as_slice(),
        ),
        ("vol-0123456789abcdef-too-long", 20, b"vol-0123456789abcdef"),
        ("vol-0123", 3, b"vol"),
        ("vol-0123", 0, b""),
    ] {
        let disk = volume.open(Access::ReadWrite);
        let block = Block::new(disk, serial, false, 1, Arc::new(|_, _| ()));
        let mut driver = TestDriver::started(block, FLUSH, 1);
        let head = header(VIRTIO_BLK_T_GET_ID, 0);
        let (bytes, _) = driver.request(0, &[&head], &[room, 1]);
        assert_eq!(bytes, [expected, &[OK]].concat());
    }
}

#[test]
fn a_read_only_disk_is_read_and_nothing_else() {
    let volume = Volume::new();
    let mut writer = volume.driver();
    assert_eq!(writer.write_disk(0, 0, &[5; 512]), OK);
    writer.transport.stop();
    drop(writer);

    let disk = volume.open(Access::ReadOnly);
    let reports = Reports::default();
    let block = Block::new(disk, "vol-1", true, 1, reports.callback());
    let mut driver = TestDriver::started(block, FLUSH, 1);
    assert_ne!(driver.offered_features() & (1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(driver.write_disk(0, 0, &[6; 512]), IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(driver.zero(kind, &[segment(0, 8, 0)]), IOERR);
    }
    assert_eq!(driver.flush_disk(), OK);
    assert_eq!(driver.read_disk(0, 0, 512), (vec![5; 512], OK));
    driver.transport.stop();
    assert_eq!(reports.messages(), []);
}

#[test]
fn requests_beyond_the_disk_or_not_in_sectors_are_io_errors() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    for (sector, len) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 513),
    ] {
        assert_eq!(driver.write_disk(0, sector, &vec![1; len]), IOERR);
        let (data, status) = driver.read_disk(0, sector, len);
        assert_eq!((data, status), (vec![0xee; len], IOERR));
    }
    assert_eq!(driver.write_disk(0, SECTORS - 1, &[1; 512]), OK);
    assert_eq!(driver.write_disk(0, SECTORS, &[]), OK);
    assert_eq!(driver.read_disk(0, 0, 0), (vec![], OK));
}

#[test]
fn several_segments_are_zeroed_or_none() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    for (kind, flags) in [
        (VIRTIO_BLK_T_DISCARD, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1),
    ] {
        let mut expected = vec![9; 256 << 10];
        assert_eq!(driver.write_disk(0, 0, &expected), OK);
        for bad in [
            segment(SECTORS - 1, 2, flags),
            segment(u64::MAX, 1, flags),
            segment(0, u32::MAX, flags),
        ] {
            assert_eq!(driver.zero(kind, &[segment(0, 8, flags), bad]), IOERR);
        }
        assert_eq!(
            driver.zero(kind, &[segment(0, 8, flags), segment(0, 8, 4)]),
            UNSUPP
        );
        assert_eq!(
            driver.read_disk(0, 0, expected.len()),
            (expected.clone(), OK)
        );
        let segments = [
            segment(1, 3, flags),
            segment(7, 0, flags),
            segment(128, 200, flags),
        ];
        assert_eq!(driver.zero(kind, &segments), OK);
        expected[512..4 * 512].fill(0);
        expected[128 * 512..328 * 512].fill(0);
        assert_eq!(driver.read_disk(0, 0, expected.len()), (expected, OK));
    }
}

#[test]
fn the_configuration_space_is_read_in_any_width_and_never_written() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    let offset = u64::from(VIRTIO_MMIO_CONFIG);
    driver.transport.write(offset, &[0xff; 8]);
    let mut capacity = [0; 8];
    driver.transport.read(offset, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    for at in 0..8 {
        let mut byte = [0xff];
        driver.transport.read(offset + at, &mut byte);
        assert_eq!(byte[0], capacity[at as usize]);
    }
    let mut past = [0xff; 8];
    driver.transport.read(offset + 0xe00, &mut past);
    assert_eq!(past, [0; 8]);
}

#[test]
fn queues_work_side_by_side_and_a_driver_may_use_only_some() {
    let volume = Volume::new();
    for used_queues in [4, 2] {
        let disk = volume.open(Access::ReadWrite);
        let block = Block::new(disk, "vol-1", false, 4, Arc::new(|_, _| ()));
        let mut driver = TestDriver::started(block, FLUSH | EVENT_IDX, used_queues);
        driver.write(VIRTIO_MMIO_QUEUE_SEL, 3);
        assert_eq!(
            driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX),
            u32::from(QUEUE_SIZE)
        );
        let memory = Arc::clone(&driver.memory);
        for round in 0..20u8 {
            // One request in each queue at the same time, all over the same cluster.
            let mut statuses = Vec::new();
            for queue in 0..used_queues as usize {
                let head = driver.buffer(&header(VIRTIO_BLK_T_OUT, queue as u64));
                let data = driver.buffer(&[round * 4 + queue as u8; 512]);
                let status = driver.buffer(&[0xee]);
                let parts = [(head, 16, false), (data, 512, false), (status, 1, true)];
                driver.rings[queue].submit(&memory, &parts);
                statuses.push(status);
            }
            (0..used_queues as usize).for_each(|queue| driver.notify(queue));
            for (queue, status) in statuses.into_iter().enumerate() {
                driver.wait_used(queue);
                assert_eq!(driver.bytes(status, 1), [OK]);
            }
        }
        for queue in 0..used_queues as usize {
            let (data, status) = driver.read_disk(queue, queue as u64, 512);
            assert_eq!((data, status), (vec![19 * 4 + queue as u8; 512], OK));
        }
        driver.transport.stop();
    }
}

/// A volume that can be made to fail, and counts its flushes.
struct Faulty {
    disk: Disk,
    failing: AtomicBool,
    flushes: AtomicUsize,
}

impl Faulty {
    fn new(disk: Disk) -> Arc<Self> {
        Arc::new(Faulty {
            disk,
            failing: AtomicBool::new(false),
            flushes: AtomicUsize::new(0),
        })
    }

    fn check(&self) -> io::Result<()> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

impl Storage for Faulty {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn read(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.check()?;
        Storage::read(&self.disk, into, offset)
    }
    fn write(&self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.check()?;
        Storage::write(&self.disk, from, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.check()?;
        self.disk.write_zeroes(offset, len, may_unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        self.disk.discard(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        self.check()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.disk.flush()
    }
    fn close(&self) -> io::Result<()> {
        self.check()?;
        Storage::close(&self.disk)
    }
}

#[test]
fn a_driver_that_cannot_flush_gets_every_write_flushed() {
    let volume = Volume::new();
    for (features, flushes) in [(FLUSH, 0), (0, 3)] {
        let faulty = Faulty::new(volume.open(Access::ReadWrite));
        let block = Block::new(faulty.clone(), "vol-1", false, 1, Arc::new(|_, _| ()));
        let mut driver = TestDriver::started(block, features, 1);
        assert_eq!(driver.write_disk(0, 0, &[1; 512]), OK);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(driver.zero(kind, &[segment(0, 8, 0)]), OK);
        }
        assert_eq!(driver.read_disk(0, 0, 512), (vec![0; 512], OK));
        assert_eq!(faulty.flushes.load(Ordering::SeqCst), flushes);
        assert_eq!(driver.flush_disk(), OK);
        assert_eq!(faulty.flushes.load(Ordering::SeqCst), flushes + 1);
        driver.transport.stop();
    }
}

#[test]
fn a_failing_disk_gives_io_errors_and_is_reported_but_not_for_ever() {
    let volume = Volume::new();
    let faulty = Faulty::new(volume.open(Access::ReadWrite));
    let reports = Reports::default();
    let block = Block::new(faulty.clone(), "vol-1", false, 1, reports.callback());
    let mut driver = TestDriver::started(block, FLUSH, 1);
    faulty.failing.store(true, Ordering::SeqCst);
    assert_eq!(driver.write_disk(0, 3, &[1; 512]), IOERR);
    let (serial, message) = reports.messages().remove(0);
    assert_eq!(serial, "vol-1");
    assert!(
        message.starts_with("write of 512 bytes at 1536 failed: No space left"),
        "{message}"
    );
    assert_eq!(driver.read_disk(0, 0, 512).1, IOERR);
    assert_eq!(driver.flush_disk(), IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(driver.zero(kind, &[segment(0, 8, 0)]), IOERR);
    }
    let reported = reports.messages().len();
    for _ in 0..20 {
        assert_eq!(driver.write_disk(0, 0, &[1; 512]), IOERR);
    }
    assert!(reports.messages().len() < reported + 20);
    faulty.failing.store(false, Ordering::SeqCst);
    assert_eq!(driver.write_disk(0, 0, &[2; 512]), OK);
    assert_eq!(driver.read_disk(0, 0, 512), (vec![2; 512], OK));
}

#[test]
fn a_broken_queue_is_reported_and_the_others_go_on_until_a_reset() {
    let volume = Volume::new();
    let disk = volume.open(Access::ReadWrite);
    let reports = Reports::default();
    let block = Block::new(disk, "vol-1", false, 2, reports.callback());
    let mut driver = TestDriver::started(block, FLUSH, 2);
    let memory = Arc::clone(&driver.memory);
    driver.rings[0].submit(&memory, &[(0x8000, 16, false)]);
    driver.notify(0);
    driver.wait_needs_reset();
    assert_eq!(
        reports.messages(),
        [(
            "vol-1".to_owned(),
            "the guest's driver broke a queue: descriptor chain 0: no room for the status"
                .to_owned()
        )]
    );
    assert_eq!(driver.write_disk(1, 0, &[3; 512]), OK);
    driver.start(FLUSH, 2);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    assert_eq!(driver.read_disk(0, 0, 512), (vec![3; 512], OK));
}

#[test]
fn requests_that_share_a_notification_are_served_in_order() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    let memory = Arc::clone(&driver.memory);
    let mut heads = Vec::new();
    let mut statuses = Vec::new();
    for value in 0..5u8 {
        let head = driver.buffer(&header(VIRTIO_BLK_T_OUT, 0));
        let data = driver.buffer(&[value; 512]);
        let status = driver.buffer(&[0xee]);
        let parts = [(head, 16, false), (data, 512, false), (status, 1, true)];
        heads.push(driver.rings[0].submit(&memory, &parts));
        statuses.push(status);
    }
    driver.notify(0);
    for (head, status) in heads.into_iter().zip(statuses) {
        assert_eq!(driver.wait_used(0), (head, 1));
        assert_eq!(driver.bytes(status, 1), [OK]);
    }
    driver.wait_interrupt();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(driver.read_disk(0, 0, 512), (vec![4; 512], OK));
}

#[test]
fn a_reset_in_the_middle_of_work_leaves_a_device_that_starts_again() {
    let volume = Volume::new();
    let mut driver = volume.driver();
    let memory = Arc::clone(&driver.memory);
    let head = driver.buffer(&header(VIRTIO_BLK_T_OUT, 0));
    let data = driver.buffer(&[1; 64 << 10]);
    let status = driver.buffer(&[0xee]);
    let parts = [
        (head, 16, false),
        (data, 64 << 10, false),
        (status, 1, true),
    ];
    for _ in 0..10 {
        for _ in 0..5 {
            driver.rings[0].submit(&memory, &parts);
        }
        driver.notify(0);
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.start(FLUSH, 1);
        assert_eq!(driver.read_disk(0, 0, 512).1, OK);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        sector: u64,
        sectors: u64,
        value: u8,
    },
    Read {
        sector: u64,
        sectors: u64,
    },
    Zero {
        kind: u32,
        flags: u32,
        ranges: Vec<(u64, u64)>,
    },
    Flush,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SECTORS - 1, 1..300u64).prop_map(|(s, n)| (s, n.min(SECTORS - s)));
    let ranges = move || prop::collection::vec(range(), 1..4);
    prop_oneof![
        4 => (range(), 1..=255u8).prop_map(|((sector, sectors), value)| Op::Write { sector, sectors, value }),
        3 => range().prop_map(|(sector, sectors)| Op::Read { sector, sectors }),
        2 => (ranges(), 0..2u32).prop_map(|(ranges, flags)| Op::Zero { kind: VIRTIO_BLK_T_WRITE_ZEROES, flags, ranges }),
        1 => ranges().prop_map(|ranges| Op::Zero { kind: VIRTIO_BLK_T_DISCARD, flags: 0, ranges }),
        1 => Just(Op::Flush),
        1 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_random_run_leaves_what_a_byte_array_would_hold(ops in prop::collection::vec(op(), 1..40)) {
        let volume = Volume::new();
        let mut driver = volume.driver();
        let mut model = vec![0u8; DISK_BYTES as usize];
        let bytes = |sector: u64, sectors: u64| (sector * 512) as usize..((sector + sectors) * 512) as usize;
        for op in ops {
            match op {
                Op::Write { sector, sectors, value } => {
                    let range = bytes(sector, sectors);
                    model[range.clone()].fill(value);
                    model[range.start] = value.wrapping_add(1);
                    prop_assert_eq!(driver.write_disk(0, sector, &model[range]), OK);
                }
                Op::Read { sector, sectors } => {
                    let range = bytes(sector, sectors);
                    let (data, status) = driver.read_disk(0, sector, range.len());
                    prop_assert_eq!(status, OK);
                    prop_assert!(data == model[range]);
                }
                Op::Zero { kind, flags, ranges } => {
                    let mut segments = Vec::new();
                    for (sector, sectors) in ranges {
                        model[bytes(sector, sectors)].fill(0);
                        segments.push(segment(sector, sectors as u32, flags));
                    }
                    prop_assert_eq!(driver.zero(kind, &segments), OK);
                }
                Op::Flush => prop_assert_eq!(driver.flush_disk(), OK),
                Op::Restart => driver.start(FLUSH, 1),
            }
        }
        driver.transport.stop();
        drop(driver);
        let disk = volume.open(Access::ReadOnly);
        let mut found = vec![0; model.len()];
        disk.read(&mut found, 0).unwrap();
        prop_assert!(found == model);
    }
}
