//! The control queue (virtio 1.2 section 5.1.6.5): how the driver says how many pairs of queues it
//! uses. There is no other command: the address is the host's choice, and what the guest doesn't
//! want to receive it filters itself.

use std::sync::Arc;

use tracing::{debug, warn};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::steering::Steering;
use crate::devices::virtio::errors::ErrorReporter;
use crate::devices::virtio::queue::{Chain, QueueError};
use crate::devices::virtio::worker::{ChainHandler, Pause, Served};

/// Class, command and number of pairs.
const PAIRS_SET_BYTES: usize = 4;

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Use so many pairs, from the first on.
    UsePairs(u16),
    /// What isn't known, or is cut off.
    Unknown,
}

impl Command {
    /// Reads class, command and what belongs to it. More than that is no command of ours.
    fn parse(bytes: &[u8]) -> Self {
        match *bytes {
            [class, command, low, high]
                if u32::from(class) == VIRTIO_NET_CTRL_MQ
                    && u32::from(command) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET =>
            {
                Command::UsePairs(u16::from_le_bytes([low, high]))
            }
            _ => Command::Unknown,
        }
    }
}

/// Serves the control queue.
pub(super) struct Commands {
    pub(super) steering: Steering,
    /// How many pairs the driver may use: those that it has agreed to and made ready.
    pub(super) most: u16,
    pub(super) errors: Arc<ErrorReporter>,
}

impl Commands {
    /// Whether it was done.
    fn execute(&self, command: Command) -> bool {
        match command {
            // Section 5.1.6.5.5: from 1 up to the most.
            Command::UsePairs(count) if (1..=self.most).contains(&count) => {
                let before = self.steering.in_use();
                let Err(error) = self.steering.use_pairs(count) else {
                    return true;
                };
                warn!(count, %error, "pairs of queues could not be brought into use");
                // The driver goes on with those that it had.
                if let Err(error) = self.steering.use_pairs(before) {
                    warn!(before, %error, "nor back");
                }
                false
            }
            command => {
                debug!(?command, most = self.most, "a command that is refused");
                false
            }
        }
    }
}

impl ChainHandler for Commands {
    fn serve(&mut self, chain: Chain<'_>, _pause: &mut Pause<'_>) -> Result<Served, QueueError> {
        if chain.writable.is_empty() {
            return Err(QueueError::BadRequest {
                head: chain.head,
                what: "a command has no room for its answer",
            });
        }
        // One byte more than a command has, so that a longer one is seen as such.
        let mut bytes = [0; PAIRS_SET_BYTES + 1];
        let length = chain.readable.copy_to(&mut bytes);
        let done = self.execute(Command::parse(&bytes[..length]));
        let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        chain.writable.copy_from(&[answer as u8]);
        Ok(Served::Completed(1))
    }

    fn failed(&mut self, error: &QueueError) {
        self.errors
            .report(format!("the guest's driver broke a queue: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_command_to_use_pairs_is_known() {
        assert_eq!(Command::parse(&[4, 0, 3, 0]), Command::UsePairs(3));
        assert_eq!(Command::parse(&[4, 0, 0, 0x80]), Command::UsePairs(0x8000));
        for bytes in [
            &[][..],
            &[4],
            &[4, 0],
            &[4, 0, 1],
            &[4, 0, 1, 0, 0],
            &[4, 1, 1, 0],
            &[0, 0, 1, 0],
            &[1, 1, 2, 0],
        ] {
            assert_eq!(Command::parse(bytes), Command::Unknown, "{bytes:?}");
        }
    }
}
