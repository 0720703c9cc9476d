//! Telling everybody that the daemon ends.

use tokio::sync::watch;

/// Says when the daemon ends; cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Ends the daemon.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A pair.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// The daemon ends now.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether the daemon ends: for work that blocks.
    pub fn is_ending(&self) -> bool {
        // The trigger is dropped only after it was fired.
        *self.0.borrow()
    }

    /// Returns once the daemon ends.
    pub async fn wait(&mut self) {
        // An error means that the trigger is gone: the daemon has ended.
        let _ = self.0.wait_for(|ending| *ending).await;
    }
}
