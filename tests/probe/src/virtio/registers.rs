//! The registers of a virtio-mmio device, raw (virtio 1.2 section 4.2.2).

/// `virt`.
const MAGIC: u32 = 0x7472_6976;

/// Offsets.
pub mod offset {
    #![allow(missing_docs)]
    pub const MAGIC: u64 = 0x000;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESCRIPTORS: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the device status (section 2.1).
pub mod status {
    #![allow(missing_docs)]
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
}

/// How often the status is read after a reset; some seconds, as each is an exit to the VMM.
const RESET_TURNS: u32 = 100_000;

/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
}

impl Registers {
    /// Registers at a guest-physical address.
    pub fn new(base: u64) -> Self {
        Self { base }
    }

    /// Reads a register or a word of the configuration space.
    pub fn read(&self, offset: u64) -> u32 {
        // SAFETY: device memory, mapped; reading it changes no memory of ours. Plain 32-bit
        // accesses are what any emulator decodes.
        unsafe { ((self.base + offset) as *const u32).read_volatile() }
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        // SAFETY: device memory, mapped. What the device then does to memory is bounded by the
        // queues that it was given.
        unsafe { ((self.base + offset) as *mut u32).write_volatile(value) };
    }

    fn write64(&self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// Whether a device is there at all.
    pub fn is_virtio(&self) -> bool {
        self.read(offset::MAGIC) == MAGIC
    }

    /// What kind it is; 0 is none.
    pub fn device_id(&self) -> u32 {
        self.read(offset::DEVICE_ID)
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.read(offset::STATUS)
    }

    /// Resets the device and waits until that is done (section 4.2.3.1), but not for ever.
    pub fn reset(&self) {
        self.write(offset::STATUS, 0);
        for _ in 0..RESET_TURNS {
            if self.status() == 0 {
                return;
            }
        }
    }

    /// What the device offers.
    pub fn features(&self) -> u64 {
        self.write(offset::DEVICE_FEATURES_SELECT, 0);
        let low = self.read(offset::DEVICE_FEATURES);
        self.write(offset::DEVICE_FEATURES_SELECT, 1);
        u64::from(self.read(offset::DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    /// Resets the device and negotiates features up to FEATURES_OK: those of `wanted` that it
    /// offers. `None` if it refuses them.
    pub fn negotiate(&self, wanted: u64) -> Option<u64> {
        self.reset();
        self.write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let features = self.features() & wanted;
        self.accept(features).then_some(features)
    }

    /// Writes these features and FEATURES_OK; whether the device agrees.
    pub fn accept(&self, features: u64) -> bool {
        self.write(offset::DRIVER_FEATURES_SELECT, 0);
        self.write(offset::DRIVER_FEATURES, features as u32);
        self.write(offset::DRIVER_FEATURES_SELECT, 1);
        self.write(offset::DRIVER_FEATURES, (features >> 32) as u32);
        let value = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(offset::STATUS, value);
        self.status() & status::FEATURES_OK != 0
    }

    /// Lets the device work.
    pub fn driver_ok(&self) {
        let negotiated = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(offset::STATUS, negotiated | status::DRIVER_OK);
    }

    /// Entries that a queue may have; 0 if there is no such queue.
    pub fn queue_size_max(&self, queue: u16) -> u32 {
        self.write(offset::QUEUE_SELECT, queue.into());
        self.read(offset::QUEUE_SIZE_MAX)
    }

    /// Gives the device a queue.
    pub fn set_queue(&self, queue: u16, size: u32, rings: &Rings) {
        self.write(offset::QUEUE_SELECT, queue.into());
        self.write(offset::QUEUE_SIZE, size);
        self.write64(offset::QUEUE_DESCRIPTORS, rings.descriptors);
        self.write64(offset::QUEUE_DRIVER, rings.available);
        self.write64(offset::QUEUE_DEVICE, rings.used);
        self.write(offset::QUEUE_READY, 1);
    }

    /// Rings the doorbell.
    pub fn notify(&self, queue: u32) {
        self.write(offset::QUEUE_NOTIFY, queue);
    }
}

/// Guest-physical addresses of a queue's parts.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}
