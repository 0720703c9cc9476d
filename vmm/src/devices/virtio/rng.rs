//! virtio-rng, an entropy source (virtio 1.2 section 5.4), on the host kernel's generator.

use std::io;

use tracing::warn;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::queue::{Chain, QueueError};
use super::worker::{ChainHandler, Pause, Served, Worker, end_all};
use super::{ActivateError, Activation, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [64];

/// Most bytes that one request gets, however long its buffers are: bounds what one notification
/// costs the host.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The entropy device. It has one queue and no configuration space.
#[derive(Default)]
pub struct Rng {
    workers: Vec<Worker>,
}

impl Rng {
    /// A device that isn't active.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for queue in activation.queues {
            self.workers.push(Worker::spawn(
                "virtio-rng".to_owned(),
                queue,
                activation.memory.clone(),
                activation.interrupt.clone(),
                Source,
            )?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        end_all(&mut self.workers);
    }

    fn stop(&mut self) {
        self.reset();
    }
}

struct Source;

impl ChainHandler for Source {
    fn serve(&mut self, chain: Chain<'_>, _pause: &mut Pause<'_>) -> Result<Served, QueueError> {
        let mut rest = chain.writable;
        let mut written = 0;
        let mut block = [0; 4096];
        while written < MAX_REQUEST_BYTES && !rest.is_empty() {
            let tail = rest.split_off(block.len());
            let bytes = &mut block[..rest.len()];
            getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))?;
            written += rest.copy_from(bytes);
            rest = tail;
        }
        let written = u32::try_from(written).expect("at most MAX_REQUEST_BYTES");
        Ok(Served::Completed(written))
    }

    fn failed(&mut self, error: &QueueError) {
        warn!(%error, "virtio-rng needs a reset");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::TestDriver;

    #[test]
    fn requests_are_filled_and_differ() {
        let mut driver = TestDriver::started(Rng::new(), 0, 1);
        let (first, len) = driver.request(0, &[], &[7, 100, 5000]);
        assert_eq!(len, 5107);
        let (second, _) = driver.request(0, &[], &[7, 100, 5000]);
        assert_ne!(first, second);
        for part in [&first[7..107], &first[107..5107], &second[107..5107]] {
            assert!(part.windows(16).all(|window| window != [0xee; 16]));
        }
    }

    #[test]
    fn a_long_request_gets_64_kib() {
        let mut driver = TestDriver::started(Rng::new(), 0, 1);
        let (bytes, len) = driver.request(0, &[], &[40 << 10, 40 << 10]);
        assert_eq!(len, 64 << 10);
        assert_eq!(bytes[64 << 10..], [0xee; 16 << 10]);
    }

    #[test]
    fn a_request_without_room_is_given_back() {
        let mut driver = TestDriver::started(Rng::new(), 0, 1);
        assert_eq!(driver.request(0, &[b"none"], &[]).1, 0);
        assert_eq!(driver.request(0, &[], &[0, 16]).1, 16);
    }
}
