//! virtio-blk (virtio 1.2 section 5.2) on a volume of `hearth-images`.
//!
//! - [`request`]: what the driver asks for; pure.
//! - [`execute`]: doing it on the disk.
//! - [`config`]: features and configuration space.
//! - [`throttle`]: waiting until it may be done.
//! - `control`: what the host may change while the guest runs.
//! - [`storage`]: what is asked of a disk; `volume` asks it of `hearth-images`.
//!
//! Each queue has a thread. A request is executed to its end before the queue's next one, so that
//! a driver that wants more in flight uses more queues.

use std::sync::Arc;

use tracing::error;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::config::{Config, QUEUE_SIZE};
use self::execute::Executor;
use self::throttle::DiskThrottle;
use self::throttle::admission::{Admission, Admitted};
use super::errors::{ErrorReporter, OnError};
use super::queue::{Chain, QueueError};
use super::worker::{ChainHandler, Pause, Served, Worker, end_all};
use super::{ActivateError, Activation, VirtioDevice, copy_config};

pub mod config;
mod control;
pub mod execute;
pub mod request;
pub mod storage;
#[cfg(test)]
mod tests;
pub mod throttle;
mod volume;

pub use self::control::BlockControl;
pub use self::storage::Storage;

/// Most queues of one device.
pub const MAX_QUEUES: u16 = 16;

/// The block device.
pub struct Block {
    storage: Arc<dyn Storage>,
    serial: String,
    config: Config,
    control: BlockControl,
    queue_sizes: Vec<u16>,
    errors: Arc<ErrorReporter>,
    throttle: Arc<DiskThrottle>,
    workers: Vec<Worker>,
}

impl Block {
    /// A device that isn't active yet, over `storage`.
    ///
    /// `serial` is what GET_ID answers (what is past 20 bytes is cut off) and what errors are
    /// reported with. `queues` is taken into 1 to [`MAX_QUEUES`]. `on_error` is called, on a
    /// worker's thread, for failed requests and broken queues, not too often.
    pub fn new(
        storage: impl Storage + 'static,
        serial: &str,
        read_only: bool,
        queues: u16,
        on_error: OnError,
    ) -> Self {
        let queues = queues.clamp(1, MAX_QUEUES);
        Block {
            control: BlockControl::new(storage.size_bytes()),
            config: Config { read_only, queues },
            queue_sizes: vec![QUEUE_SIZE; queues.into()],
            errors: Arc::new(ErrorReporter::new(serial.to_owned(), on_error)),
            storage: Arc::new(storage),
            serial: serial.to_owned(),
            throttle: DiskThrottle::unlimited(),
            workers: Vec::new(),
        }
    }

    /// The same device, held to the limits of `throttle`.
    pub fn with_throttle(mut self, throttle: Arc<DiskThrottle>) -> Self {
        self.throttle = throttle;
        self
    }

    /// The host's handle of this device.
    pub fn control(&self) -> BlockControl {
        self.control.clone()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config.to_bytes(self.control.sectors()), offset, data);
    }

    /// The driver may write only `writeback`, which needs a feature that isn't offered.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let executor = Executor {
            storage: Arc::clone(&self.storage),
            control: self.control.clone(),
            serial: execute::serial_bytes(&self.serial),
            read_only: self.config.read_only,
            // Section 5.2.6.2: a driver that can't flush must find its data safe when a write
            // is completed.
            write_through: !activation.has_feature(VIRTIO_BLK_F_FLUSH),
        };
        for queue in activation.queues {
            self.workers.push(Worker::spawn(
                format!("virtio-blk-q{}", queue.index),
                queue,
                Arc::clone(&activation.memory),
                Arc::clone(&activation.interrupt),
                Handler {
                    executor: executor.clone(),
                    admission: Admission::new(Arc::clone(&self.throttle))?,
                    errors: Arc::clone(&self.errors),
                },
            )?);
        }
        self.control.activated(&activation.interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.control.reset();
        end_all(&mut self.workers);
    }

    fn stop(&mut self) {
        self.reset();
        if let Err(error) = self.storage.close() {
            error!(disk = self.serial, %error, "disk did not close cleanly");
            self.errors.report(format!("closing failed: {error}"));
        }
    }
}

/// Serves one queue.
struct Handler {
    executor: Executor,
    admission: Admission,
    errors: Arc<ErrorReporter>,
}

impl ChainHandler for Handler {
    fn serve(&mut self, chain: Chain<'_>, pause: &mut Pause<'_>) -> Result<Served, QueueError> {
        let request = request::Request::parse(chain)?;
        if self.admission.wait(&request.operation, pause)? == Admitted::Ended {
            return Ok(Served::Ended);
        }
        let result = self.executor.execute(&request.operation);
        if let Err(execute::Failure::Storage { what, error }) = &result {
            self.errors.report(format!("{what} failed: {error}"));
        }
        let failure = result.as_ref().err().map(execute::Failure::status);
        Ok(Served::Completed(request.finish(failure)))
    }

    fn failed(&mut self, error: &QueueError) {
        self.errors
            .report(format!("the guest's driver broke a queue: {error}"));
    }
}
