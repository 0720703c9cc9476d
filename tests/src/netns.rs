//! A network namespace of the test's own: the agent and its VMMs run in there, the test makes
//! taps in it, and peers of the guests open their sockets in it. Nothing outside sees any of it,
//! and it is gone with the last process and socket in it.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::UdpSocket,
    num::NonZeroU32,
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{
    net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::programs::output_of;

/// For [`Netns::capture`]: frames of all types that come in or go out (`ETH_P_ALL`).
pub const EVERY_FRAME: u16 = 3;

/// A network namespace.
pub struct Netns {
    /// A process that does nothing else than to be in there. It ends also when the test is
    /// killed: its standard input ends then.
    holder: Child,
    namespace: File,
}

impl Netns {
    /// Makes one, with its loopback interface up.
    pub fn new() -> Result<Self> {
        let mut unshare = Command::new("unshare");
        let netns = Self::held_by(unshare.arg("--net"))?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The same one, for somebody else to hold.
    pub fn share(&self) -> Result<Self> {
        let mut nsenter = Command::new("nsenter");
        Self::held_by(nsenter.arg(format!("--net=/proc/{}/ns/net", self.holder.id())))
    }

    fn held_by(enter: &mut Command) -> Result<Self> {
        let mut holder = enter
            .args(["sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the holder of a network namespace")?;
        let made = (|| {
            let stdout = holder.stdout.take().context("no pipe")?;
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line)?;
            ensure!(line == "\n", "there is no network namespace to be had here");
            Ok(File::open(format!("/proc/{}/ns/net", holder.id()))?)
        })();
        let namespace = match made {
            Ok(namespace) => namespace,
            Err(error) => {
                let _ = holder.kill();
                let _ = holder.wait();
                return Err(error);
            }
        };
        Ok(Self { holder, namespace })
    }

    /// A command that runs in there.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg(program);
        command
    }

    /// Runs `ip` with these words in there; gives what it prints.
    pub fn ip(&self, words: &str) -> Result<String> {
        output_of(self.command("ip").args(words.split(' ')))
    }

    /// A process in there, by its id.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Sets a switch below `net` in there, such as `ipv4.ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/net/{}", name.replace('.', "/"));
        output_of(self.command("sh").args(["-c", &script]))?;
        Ok(())
    }

    /// Makes a tap that is up, with this address (such as `10.9.0.1/24`) on the host's side.
    pub fn tap(&self, name: &str, address: &str) -> Result<()> {
        self.tap_with("", name, address)
    }

    /// [`Self::tap`], to which several queues can be attached.
    pub fn tap_of_queues(&self, name: &str, address: &str) -> Result<()> {
        self.tap_with(" multi_queue", name, address)
    }

    fn tap_with(&self, flags: &str, name: &str, address: &str) -> Result<()> {
        self.ip(&format!("tuntap add {name} mode tap{flags}"))?;
        self.ip(&format!("addr add {address} dev {name}"))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Makes a link to another namespace: an interface here and one there, both up.
    pub fn connect(&self, here: &LinkEnd<'_>, other: &Netns, there: &LinkEnd<'_>) -> Result<()> {
        let mac = |end: &LinkEnd<'_>| end.mac.map_or(String::new(), |it| format!(" address {it}"));
        self.ip(&format!(
            "link add {}{} type veth peer name {}{} netns {}",
            here.name,
            mac(here),
            there.name,
            mac(there),
            other.holder.id()
        ))?;
        for (netns, end) in [(self, here), (other, there)] {
            netns.ip(&format!("addr add {} dev {}", end.address, end.name))?;
            netns.ip(&format!("link set {} up", end.name))?;
        }
        Ok(())
    }

    /// Does something in there, on a thread of its own: sockets opened so stay in there.
    pub fn enter<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.namespace.as_fd(), network).context("setns")?;
                what()
            });
            inside.join().map_err(|_| anyhow!("it panicked"))?
        })
    }

    /// A thread in there.
    pub fn spawn<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.namespace.try_clone()?;
        Ok(thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network).context("setns")?;
            what()
        }))
    }

    /// A packet socket for all frames of one type that come in on an interface in there, or for
    /// [`EVERY_FRAME`], in both directions: `recv` gives a frame from its first byte (the type of
    /// the socket has no other meaning).
    pub fn capture(&self, ethertype: u16) -> Result<UdpSocket> {
        let protocol = NonZeroU32::new(u32::from(ethertype.to_be())).context("ethertype 0")?;
        self.enter(|| {
            let socket = socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(Protocol::from_raw(protocol)),
            )?;
            Ok(UdpSocket::from(socket))
        })
    }
}

/// One end of a link between namespaces.
#[derive(Clone, Copy, Debug)]
pub struct LinkEnd<'a> {
    /// The interface's name.
    pub name: &'a str,
    /// With its prefix, such as `203.0.113.1/24`.
    pub address: &'a str,
    /// Its hardware address; the kernel picks one if none is given.
    pub mac: Option<&'a str>,
}

impl<'a> LinkEnd<'a> {
    /// With a hardware address at random.
    pub fn new(name: &'a str, address: &'a str) -> Self {
        Self {
            name,
            address,
            mac: None,
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Why network tests can't run here, if they can't.
pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    if tun.is_err() {
        return Some("no /dev/net/tun");
    }
    Netns::new().err().map(|_| "no network namespaces")
}

/// Ends a test with success where it can't have a network of its own, and says so.
#[macro_export]
macro_rules! needs_network {
    () => {
        if let Some(missing) = $crate::netns::missing() {
            eprintln!("skipped: {missing}");
            return Ok(());
        }
    };
}
