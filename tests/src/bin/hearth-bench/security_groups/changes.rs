//! How soon a change is in force: an attempt, or a stream, goes on all the time while a rule is
//! added or taken away.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt},
};

use super::{
    frames::Link,
    packets::Way,
    policy::{self, CHANGED},
    world::{Halted, PEER, UDP_PORT, World},
};

/// Of each kind; the guest has room for a few more connections.
pub const ROUNDS: usize = 50;

/// Before and after a change; longer until something was sent, if nobody lets us.
const WHILE: Duration = Duration::from_millis(10);

/// So many datagrams are sent before and after a change at least.
const SOME: usize = 20;

/// Between datagrams, and between looks at what has come.
const OFTEN: Duration = Duration::from_micros(20);

/// Between attempts of TCP, and between pieces of a stream: the guest's own speed allows no more.
const SOMETIMES: Duration = Duration::from_micros(300);

/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Attempts at the same time.
const ATTEMPTS: usize = 256;

/// Of one kind of change.
#[derive(Default)]
pub struct Times {
    /// The call, in ms.
    pub call: Vec<f64>,
    /// From the call's return to its effect, in microseconds; less than 0 is before the return.
    pub effect: Vec<f64>,
}

/// A port is opened and closed.
#[derive(Default)]
pub struct Changes {
    pub udp_opened: Times,
    pub udp_closed: Times,
    pub tcp_opened: Times,
    pub tcp_closed: Times,
}

impl Times {
    fn add(&mut self, call: f64, returned: Instant, effect: Instant) {
        let after = match effect.checked_duration_since(returned) {
            Some(after) => after.as_secs_f64(),
            None => -(returned - effect).as_secs_f64(),
        };
        self.call.push(call);
        self.effect.push(after * 1e6);
    }
}

/// Of UDP and TCP in turns.
pub async fn measure(world: &World, way: &Way<'_>) -> Result<Changes> {
    let mut changes = Changes::default();
    let watcher = Arc::new(Link::watcher(way.host, &way.tap)?);
    for round in 0..ROUNDS {
        let port = 41_000 + u16::try_from(round)?;
        udp(world, way, &watcher, port, &mut changes)
            .await
            .context("UDP")?;
        tcp(world, &watcher, &mut changes).await.context("TCP")?;
    }
    Ok(changes)
}

async fn udp(
    world: &World,
    way: &Way<'_>,
    watcher: &Link,
    port: u16,
    changes: &mut Changes,
) -> Result<()> {
    let rule = policy::udp(UDP_PORT);
    let halted = Halted::new(&world.target)?;
    let numbers = watcher.numbers(UDP_PORT)?;
    ensure!(numbers.is_empty(), "what nobody sent went through");
    let knocking = Knocking::start(way, port);
    knocking.go_on().await?;
    let call = world.allow(CHANGED, &[rule]).await?;
    let returned = Instant::now();
    knocking.go_on().await?;
    let sent = knocking.end()?;
    let first = watcher.numbers(UDP_PORT)?.into_iter().min();
    let first = first.with_context(|| format!("of {} packets none came through", sent.len()))?;
    let first = sent.get(usize::try_from(first)?);
    changes
        .udp_opened
        .add(call, returned, *first.context("never sent")?);
    drop(halted);

    // A connection is one once it was answered.
    answered(world, port, UDP_PORT)?;
    let halted = Halted::new(&world.target)?;
    watcher.numbers(UDP_PORT)?;
    let knocking = Knocking::start(way, port);
    knocking.go_on().await?;
    let (call, cut) = world.revoke(CHANGED, &policy::udp(UDP_PORT)).await?;
    let returned = Instant::now();
    knocking.go_on().await?;
    let sent = knocking.end()?;
    let last = watcher.numbers(UDP_PORT)?.into_iter().max();
    let last = usize::try_from(last.context("the stream never came through")?)?;
    ensure!(cut > 0 && last + 1 < sent.len(), "the stream was not cut");
    changes.udp_closed.add(call, returned, sent[last]);
    drop(halted);
    Ok(())
}

/// A datagram from this port of the outside to one of the guest's, and its answer.
pub fn answered(world: &World, from: u16, to: u16) -> Result<()> {
    world.outside.enter(|| {
        let socket = UdpSocket::bind((PEER, from))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 64];
        loop {
            socket.send_to(b"answer", (world.target.ipv4, to))?;
            // What it did not answer before comes, too.
            match socket.recv(&mut buffer) {
                Ok(_) if buffer.starts_with(b"answer") => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => ensure!(Instant::now() < deadline, "the guest does not answer"),
            }
        }
    })
}

/// Sends numbered datagrams without an end.
struct Knocking {
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Result<Vec<Instant>>>,
}

impl Knocking {
    fn start(way: &Way<'_>, port: u16) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (told, sender, guest) = (over.clone(), way.sender.clone(), way.guest);
        let counting = count.clone();
        let thread = thread::spawn(move || {
            let mut sent = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let frame = Way::frame_to(guest, (PEER, port), UDP_PORT, sent.len() as u64);
                sender.send(&[frame])?;
                // It is through by now, or never will be.
                sent.push(Instant::now());
                counting.store(sent.len(), Ordering::Relaxed);
                thread::sleep(OFTEN);
            }
            Ok(sent)
        });
        Self {
            over,
            count,
            thread,
        }
    }

    /// Lets it knock for a while.
    async fn go_on(&self) -> Result<()> {
        let before = self.count.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        tokio::time::sleep(WHILE).await;
        while self.count.load(Ordering::Relaxed) < before + SOME {
            ensure!(Instant::now() < deadline, "nothing is sent");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// When each was sent.
    fn end(self) -> Result<Vec<Instant>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

async fn tcp(world: &World, watcher: &Arc<Link>, changes: &mut Changes) -> Result<()> {
    let to = SocketAddr::from((world.target.ipv4, world.tcp_port));
    let over = Arc::new(AtomicBool::new(false));
    let attempts = world.outside.spawn(move || connect_at_last(to))?;
    tokio::time::sleep(WHILE).await;
    let call = world.allow(CHANGED, &[policy::tcp(world.tcp_port)]).await?;
    let returned = Instant::now();
    let (stream, connected) = attempts.join().map_err(|_| anyhow!("it panicked"))??;
    changes.tcp_opened.add(call, returned, connected);

    let from = stream.local_addr()?.port();
    let told = over.clone();
    let writing = thread::spawn(move || write(&stream, &told));
    let (told, seen) = (over.clone(), watcher.clone());
    let watching = thread::spawn(move || last_segment(&seen, from, &told));
    tokio::time::sleep(2 * WHILE).await;
    let (call, cut) = world.revoke(CHANGED, &policy::tcp(world.tcp_port)).await?;
    let returned = Instant::now();
    tokio::time::sleep(2 * WHILE).await;
    over.store(true, Ordering::Relaxed);
    writing.join().map_err(|_| anyhow!("it panicked"))??;
    let last = watching.join().map_err(|_| anyhow!("it panicked"))??;
    ensure!(cut > 0, "the stream was not cut");
    changes.tcp_closed.add(
        call,
        returned,
        last.context("the stream never came through")?,
    );
    Ok(())
}

/// Tries to connect again and again without waiting for one attempt's end; gives the first
/// connection, and when it was there.
fn connect_at_last(to: SocketAddr) -> Result<(TcpStream, Instant)> {
    let started = Instant::now();
    let mut attempts: Vec<OwnedFd> = Vec::new();
    let mut last = None;
    loop {
        ensure!(started.elapsed() < PATIENCE, "no connection");
        if last.is_none_or(|last: Instant| last.elapsed() > SOMETIMES) {
            if attempts.len() == ATTEMPTS {
                attempts.remove(0);
            }
            attempts.push(attempt(to)?);
            last = Some(Instant::now());
        }
        let mut waiting: Vec<PollFd<'_>> = attempts
            .iter()
            .map(|it| PollFd::new(it, PollFlags::OUT))
            .collect();
        poll(&mut waiting, Some(&Timespec::default()))?;
        let good = waiting.iter().position(|it| {
            let events = it.revents();
            events.contains(PollFlags::OUT) && !events.intersects(PollFlags::ERR | PollFlags::HUP)
        });
        if let Some(good) = good {
            let connected = Instant::now();
            return Ok((TcpStream::from(attempts.swap_remove(good)), connected));
        }
        thread::sleep(OFTEN);
    }
}

/// A connection that may come about; closing it resets it, so that the guest keeps no half of it.
fn attempt(to: SocketAddr) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Small pieces, and what comes back.
fn write(stream: &TcpStream, over: &AtomicBool) -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = stream;
    let mut echo = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        for done in [stream.write(&[7; 16]), stream.read(&mut echo)] {
            match done {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(SOMETIMES);
    }
    Ok(())
}

/// When the last segment from this port was seen.
fn last_segment(watcher: &Link, from: u16, over: &AtomicBool) -> Result<Option<Instant>> {
    let mut buffer = [0; 2048];
    let mut last = None;
    while !over.load(Ordering::Relaxed) {
        while let Some(frame) = watcher.next(&mut buffer)? {
            let segment = frame.get(12..14) == Some(&[0x08, 0]) && frame.get(23) == Some(&6);
            if segment && frame.get(34..36) == Some(&from.to_be_bytes()) {
                last = Some(Instant::now());
            }
        }
        thread::sleep(OFTEN);
    }
    Ok(last)
}
