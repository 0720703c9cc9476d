//! Lives the life of one instance (drawn in [`super::state`]).
//!
//! One task per instance owns all its changes: what callers ask, what its VMM does, and timers
//! enter one queue and are handled one after the other. So no two changes of one instance ever
//! meet. Anything that takes long (starting, pressing, killing) runs beside the queue and comes
//! back into it as an input, so that a terminate is heard at any time.
//!
//! Each change is committed before it is carried out.

pub mod plug;

use std::{sync::Arc, time::Duration};

use hearth_images::crash_point;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use self::plug::{PlugInput, Plugs};
use super::{
    cleanup, launch,
    model::{Instance, Operation, StateReason},
    start,
    state::{Answer, Asked, End, InstanceState, Next, after_end, answer, backoff},
    vmm::{
        Process, Vmm,
        adopt::{Found, adopt},
        monitor,
        spawn::Started,
    },
};
use crate::{
    context::Context,
    db::{self, DbError, Tx},
    error::{ApiError, ApiResult, Reason},
    events::{self, NewEvent},
    networks,
    time::Millis,
    volumes::{
        credits,
        model::{Volume, VolumeState},
    },
};

/// How long a guest may take to shut down for a reboot.
const REBOOT_PATIENCE: Duration = Duration::from_secs(240);

/// How often the power button is pressed again: a guest that was still booting the last time
/// has not seen it.
const PRESS_AGAIN: Duration = Duration::from_secs(15);

/// A guest that ends by itself sooner than this after its start is in a loop.
const QUICK: Duration = Duration::from_secs(60);

/// A change that a caller asked for: the state before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub previous: InstanceState,
    pub current: InstanceState,
}

/// What others see of an instance without asking the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub state: InstanceState,
    /// Which VMM of this instance is up, counted from the agent's start.
    pub vmm: Option<u64>,
}

/// What enters the queue.
#[derive(Debug)]
pub enum Input {
    /// A caller asks.
    Asked {
        what: Asked,
        /// For a stop: how long the guest may take.
        patience: Duration,
        reply: oneshot::Sender<ApiResult<Change>>,
    },
    /// A start has come to its end.
    Started {
        generation: u64,
        result: Result<Started, String>,
    },
    /// The power button could not be pressed.
    PressFailed { generation: u64 },
    /// The VMM has ended.
    Ended { generation: u64, end: End },
    /// Volumes come or go.
    Plug(PlugInput),
    /// A disk of the guest failed.
    DiskError { serial: String, message: String },
}

/// What the timer is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// Press the power button, or give up on the guest.
    Press { deadline: Millis },
    /// Start the guest that reset itself.
    StartAgain,
}

/// The task's own.
pub struct Driver {
    context: Arc<Context>,
    starts: Arc<Semaphore>,
    row: Instance,
    queue: mpsc::UnboundedReceiver<Input>,
    back: mpsc::UnboundedSender<Input>,
    live: watch::Sender<Live>,
    /// Counts starts; inputs about an earlier VMM are dropped.
    generation: u64,
    /// A start is under way.
    starting: bool,
    vmm: Option<Process>,
    /// When the present VMM was started.
    up_since: Instant,
    timer: Option<(Instant, Timer)>,
    quick_resets: u32,
    plugs: Plugs,
}

/// How others reach a driver.
#[derive(Clone, Debug)]
pub struct Handle {
    pub inputs: mpsc::UnboundedSender<Input>,
    pub live: watch::Receiver<Live>,
}

/// Starts the task of an instance: a new one, or one from the database after the agent's start.
pub fn spawn(context: Arc<Context>, starts: Arc<Semaphore>, row: Instance, new: bool) -> Handle {
    let (back, queue) = mpsc::unbounded_channel();
    let (live, watcher) = watch::channel(Live {
        state: row.state,
        vmm: None,
    });
    let handle = Handle {
        inputs: back.clone(),
        live: watcher,
    };
    let driver = Driver {
        context,
        starts,
        row,
        queue,
        back,
        live,
        generation: 0,
        starting: false,
        vmm: None,
        up_since: Instant::now(),
        timer: None,
        quick_resets: 0,
        plugs: Plugs::default(),
    };
    tokio::spawn(driver.run(new));
    handle
}

impl Driver {
    async fn run(mut self, new: bool) {
        if new {
            self.start();
        } else {
            self.take_up().await;
        }
        while self.row.state != InstanceState::Terminated {
            let alarm = self.timer.map(|(when, _)| when);
            let input = tokio::select! {
                input = self.queue.recv() => input,
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => None,
            };
            match input {
                Some(input) => self.handle(input).await,
                None => self.alarm().await,
            }
        }
        // Those who asked while the last change was made get their answer.
        self.queue.close();
        while let Some(input) = self.queue.recv().await {
            if let Input::Asked { what, reply, .. } = input {
                let _ = reply.send(settled(&self.row.id, self.row.state, what));
            }
        }
    }

    /// Goes on where an earlier agent left off.
    async fn take_up(&mut self) {
        if self.row.state == InstanceState::Stopped {
            return;
        }
        let run_dir = self.context.settings.run_dir(&self.row.id);
        let found = loop {
            match adopt(&run_dir, &self.row.id).await {
                Ok(found) => break found,
                Err(error) => {
                    tracing::error!(instance = self.row.id, %error, "cannot tell whether it runs");
                    sleep(Duration::from_secs(5)).await;
                }
            }
        };
        match found {
            Found::Alive(vmm) => {
                tracing::info!(instance = self.row.id, pid = vmm.process.pid, "adopted");
                self.generation += 1;
                self.up(vmm).await;
            }
            Found::Gone(end) => match self.row.state {
                InstanceState::Pending => self.start(),
                _ => self.ended(end).await,
            },
        }
    }

    async fn handle(&mut self, input: Input) {
        match input {
            Input::Asked {
                what,
                patience,
                reply,
            } => {
                let result = self.asked(what, patience).await;
                let changed = result.as_ref().is_ok_and(|(_, work)| *work);
                // The caller may have gone.
                let _ = reply.send(result.map(|(change, _)| change));
                if changed {
                    self.carry_out().await;
                }
            }
            Input::Started { generation, result } if generation == self.generation => {
                self.starting = false;
                self.started(result).await;
            }
            Input::Ended { generation, end } if generation == self.generation => {
                self.ended(end).await;
            }
            Input::Plug(input) => self.plug(input).await,
            Input::PressFailed { generation } if generation == self.generation => self.kill(),
            Input::DiskError { serial, message } => {
                tracing::warn!(instance = self.row.id, serial, message, "disk error");
                let event =
                    NewEvent::state("instance.disk-error", &self.row.owner, &self.row.id, "", "")
                        .because("Server.DiskError", &format!("{serial}: {message}"));
                tokio::spawn(events::store_when_possible(self.context.clone(), event));
            }
            Input::Started { .. } | Input::Ended { .. } | Input::PressFailed { .. } => {}
        }
    }

    /// Commits what a caller asks for; true when there is work to do now.
    async fn asked(&mut self, what: Asked, patience: Duration) -> ApiResult<(Change, bool)> {
        let previous = self.row.state;
        let mut after = self.row.clone();
        match answer(previous, what) {
            Answer::Refused => return Err(refused(&self.row.id, previous, what)),
            Answer::Nothing => {
                return Ok((
                    Change {
                        previous,
                        current: previous,
                    },
                    false,
                ));
            }
            Answer::Reboots => {
                if self.vmm.is_none() || self.row.operation != Operation::None {
                    // It is about to boot anyhow.
                    return Ok((
                        Change {
                            previous,
                            current: previous,
                        },
                        false,
                    ));
                }
                let deadline = Millis::now().after(REBOOT_PATIENCE).0;
                after.operation = Operation::Reboot { deadline };
            }
            Answer::Hurries => {
                after.operation = Operation::Stop {
                    deadline: Millis::now().0,
                }
            }
            Answer::Goes(InstanceState::Pending) => {
                self.context.host.check()?;
                after.launch_time = Millis::now();
                after.reason = StateReason::none();
                after.operation = Operation::None;
                self.quick_resets = 0;
            }
            Answer::Goes(InstanceState::Stopping) => {
                let patience = match what {
                    Asked::Stop { force: true } => Duration::ZERO,
                    _ => patience,
                };
                after.operation = Operation::Stop {
                    deadline: Millis::now().after(patience).0,
                };
                after.reason = StateReason::user("stop was asked for");
            }
            Answer::Goes(_) => {
                after.operation = Operation::None;
                after.reason = StateReason::user("terminate was asked for");
            }
        }
        if let Answer::Goes(state) = answer(previous, what) {
            after.state = state;
        }
        let (before, row) = (self.row.clone(), after.clone());
        self.context
            .db
            .write(move |tx| {
                if row.state == InstanceState::Pending {
                    launch::check_may_start(tx, &row)?;
                }
                Ok::<_, ApiError>(db::instances::update(tx, &before, &row)?)
            })
            .await?;
        self.adopt_row(after);
        Ok((
            Change {
                previous,
                current: self.row.state,
            },
            true,
        ))
    }

    /// Does what the committed row says.
    async fn carry_out(&mut self) {
        match (self.row.state, self.row.operation) {
            (InstanceState::Pending, _) => self.start(),
            // Whatever it is, it goes on when the start comes to its end.
            _ if self.starting => {}
            (InstanceState::Stopping, Operation::Stop { deadline })
            | (InstanceState::Running, Operation::Reboot { deadline }) => {
                if self.vmm.is_some() {
                    self.press_until(Millis(deadline));
                } else {
                    self.ended(End::Unexplained).await;
                }
            }
            (InstanceState::ShuttingDown, _) => {
                if self.vmm.is_some() {
                    self.kill();
                } else {
                    self.terminate().await;
                }
            }
            _ => {}
        }
    }

    fn start(&mut self) {
        self.timer = None;
        self.starting = true;
        self.up_since = Instant::now();
        self.generation += 1;
        let (generation, back) = (self.generation, self.back.clone());
        let (context, starts, row) = (self.context.clone(), self.starts.clone(), self.row.clone());
        tokio::spawn(async move {
            // Never closed, so never an error.
            let _turn = starts.acquire_owned().await;
            let result = start::start(context, row).await;
            let _ = back.send(Input::Started { generation, result });
        });
    }

    async fn started(&mut self, result: Result<Started, String>) {
        match result {
            Ok(Started::Up(vmm)) => self.up(vmm).await,
            Ok(Started::Ended(report)) => {
                self.runs(None).await;
                let end = End::Reported {
                    reason: report.reason,
                    message: report.message,
                };
                self.ended(end).await;
            }
            Err(message) => {
                tracing::warn!(instance = self.row.id, message, "the guest did not start");
                self.did_not_start(message).await;
            }
        }
    }

    /// A VMM is there: started just now, or adopted.
    async fn up(&mut self, vmm: Vmm) {
        let process = vmm.process.clone();
        self.vmm = Some(process.clone());
        self.up_since = Instant::now();
        let (generation, back) = (self.generation, self.back.clone());
        let disk_errors = self.back.clone();
        tokio::spawn(async move {
            let end = monitor::watch(vmm, move |serial, message| {
                let _ = disk_errors.send(Input::DiskError { serial, message });
            })
            .await;
            let _ = back.send(Input::Ended { generation, end });
        });
        self.runs(Some(process.pid)).await;
        self.carry_out().await;
        self.plug_all().await;
    }

    /// Commits that the guest runs, as far as its state says that it should.
    async fn runs(&mut self, pid: Option<u32>) {
        let mut after = self.row.clone();
        after.vmm_pid = pid;
        after.launched = true;
        match after.state {
            InstanceState::Pending => {
                after.state = InstanceState::Running;
                after.reason = StateReason::none();
                after.operation = Operation::None;
            }
            InstanceState::Running if after.operation == Operation::Restart => {
                after.operation = Operation::None;
            }
            // Asked to end while it started.
            _ => {}
        }
        self.commit_surely(after, None, true).await;
    }

    async fn did_not_start(&mut self, message: String) {
        networks::plug::down(&self.context, &self.row.id).await;
        let mut after = self.row.clone();
        after.vmm_pid = None;
        match after.state {
            InstanceState::Pending if !after.launched => {
                after.state = InstanceState::ShuttingDown;
                after.reason = StateReason::broken(message);
            }
            InstanceState::Pending | InstanceState::Running => {
                after.state = InstanceState::Stopped;
                after.operation = Operation::None;
                after.reason = StateReason::broken(message);
            }
            InstanceState::Stopping => {
                after.state = InstanceState::Stopped;
                after.operation = Operation::None;
            }
            InstanceState::Stopped | InstanceState::ShuttingDown | InstanceState::Terminated => {}
        }
        self.commit_surely(after, None, false).await;
        if self.row.state == InstanceState::ShuttingDown {
            self.terminate().await;
        }
    }

    /// The VMM is gone.
    async fn ended(&mut self, end: End) {
        crash_point("instance.vmm-ended");
        self.vmm = None;
        self.timer = None;
        let run_dir = self.context.settings.run_dir(&self.row.id);
        credits::keep_reported(&self.context, &self.row.id, &run_dir).await;
        self.forget_plugs();
        tracing::info!(
            instance = self.row.id,
            ?end,
            state = self.row.state.word(),
            "VMM ended"
        );
        let mut after = self.row.clone();
        after.vmm_pid = None;
        match after_end(self.row.state, self.row.operation, &end) {
            Next::Again { by_itself } => {
                let quick = by_itself && self.up_since.elapsed() < QUICK;
                self.quick_resets = if quick { self.quick_resets + 1 } else { 0 };
                let pause = backoff(self.quick_resets);
                let words = match (by_itself, pause.as_secs()) {
                    (false, _) => "the guest boots again".to_owned(),
                    (true, 0) => "the guest reset itself and boots again".to_owned(),
                    (true, secs) => {
                        format!("the guest resets itself again and again; it boots in {secs} s")
                    }
                };
                after.operation = Operation::Restart;
                let event = NewEvent::state(
                    "instance.reboot",
                    &after.owner,
                    &after.id,
                    "",
                    after.state.word(),
                )
                .because("", &words);
                self.commit_surely(after, Some(event), false).await;
                if pause.is_zero() {
                    self.start();
                } else {
                    self.timer = Some((Instant::now() + pause, Timer::StartAgain));
                }
            }
            Next::Stopped(reason) => {
                networks::plug::down(&self.context, &self.row.id).await;
                after.state = InstanceState::Stopped;
                after.operation = Operation::None;
                after.reason = reason;
                self.commit_surely(after, None, false).await;
            }
            Next::Terminate => self.terminate().await,
        }
    }

    async fn terminate(&mut self) {
        self.timer = None;
        let row = cleanup::terminate(&self.context, self.row.clone()).await;
        self.adopt_row(row);
    }

    async fn alarm(&mut self) {
        match self.timer.take() {
            Some((_, Timer::Press { deadline })) => self.press_until(deadline),
            Some((_, Timer::StartAgain)) => self.start(),
            None => {}
        }
    }

    /// Presses the power button now and again until the deadline; ends the guest then.
    fn press_until(&mut self, deadline: Millis) {
        let Some(process) = self.vmm.clone() else {
            return;
        };
        let left = deadline.remaining();
        if left.is_zero() {
            return self.kill();
        }
        self.timer = Some((
            Instant::now() + left.min(PRESS_AGAIN),
            Timer::Press { deadline },
        ));
        let (generation, back) = (self.generation, self.back.clone());
        tokio::spawn(async move {
            if let Err(error) = monitor::press_power_button(&process).await
                && !monitor::has_ended(&process)
            {
                tracing::warn!(instance = process.instance_id, %error, "power button");
                let _ = back.send(Input::PressFailed { generation });
            }
        });
    }

    /// Ends the guest; [`Input::Ended`] follows.
    fn kill(&mut self) {
        self.timer = None;
        if let Some(process) = self.vmm.clone() {
            tokio::spawn(async move { monitor::kill(&process).await });
        }
    }

    /// Commits what has happened already: there is no way back, so it is tried until it works.
    /// `volumes` also settles the volumes that were made for the instance.
    async fn commit_surely(&mut self, after: Instance, event: Option<NewEvent>, volumes: bool) {
        let (before, row) = (self.row.clone(), after.clone());
        self.surely(move |tx| {
            db::instances::update(tx, &before, &row)?;
            if volumes {
                settle_volumes(tx, &row.id)?;
            }
            if row.vmm_pid.is_none() {
                plug::settle(tx, &row.id)?;
            }
            if let Some(event) = event.clone() {
                tx.event(event);
            }
            Ok(())
        })
        .await;
        self.adopt_row(after);
    }

    /// A transaction that is tried until it works.
    async fn surely(
        &self,
        transaction: impl Fn(&mut Tx<'_>) -> Result<(), DbError> + Clone + Send + 'static,
    ) {
        while let Err(error) = self.context.db.write(transaction.clone()).await {
            tracing::error!(instance = self.row.id, %error, "tried again in a second");
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// `row` has been committed.
    fn adopt_row(&mut self, row: Instance) {
        self.row = row;
        crash_point(match self.row.state {
            InstanceState::Pending => "instance.row-pending",
            InstanceState::Running => "instance.row-running",
            InstanceState::Stopping => "instance.row-stopping",
            InstanceState::Stopped => "instance.row-stopped",
            InstanceState::ShuttingDown => "instance.row-shutting-down",
            InstanceState::Terminated => "instance.row-terminated",
        });
        self.publish();
    }

    fn publish(&self) {
        let vmm = self.vmm.is_some().then_some(self.generation);
        self.live.send_replace(Live {
            state: self.row.state,
            vmm,
        });
    }
}

/// The volumes that were made for the instance are now in use.
fn settle_volumes(tx: &mut Tx<'_>, instance_id: &str) -> Result<(), DbError> {
    for volume in db::volumes::of_instance(tx, instance_id)? {
        if volume.state == VolumeState::Creating {
            let settled = Volume {
                state: VolumeState::InUse,
                ..volume.clone()
            };
            db::volumes::update(tx, &volume, &settled)?;
        }
    }
    Ok(())
}

/// The answer when there is nothing more to change.
pub fn settled(id: &str, state: InstanceState, what: Asked) -> ApiResult<Change> {
    match answer(state, what) {
        Answer::Nothing => Ok(Change {
            previous: state,
            current: state,
        }),
        _ => Err(refused(id, state, what)),
    }
}

/// The error for what is not legal in a state.
pub fn refused(id: &str, state: InstanceState, what: Asked) -> ApiError {
    let verb = match what {
        Asked::Start => "started",
        Asked::Stop { .. } => "stopped",
        Asked::Reboot => "rebooted",
        Asked::Terminate => "terminated",
    };
    ApiError::new(
        Reason::IncorrectInstanceState,
        format!("{id} is {}; it cannot be {verb} now", state.word()),
    )
    .with("resource_id", id)
    .with("state", state.word())
}
