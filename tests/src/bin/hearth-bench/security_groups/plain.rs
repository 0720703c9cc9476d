//! The peer: the same policy as a plain list of rules, one for each interface, group, rule and
//! member of a group that it names, in one chain that is run through from the top. It has nothing
//! else: no check of who sends, no translation, and of the policy only what may come in.

use std::{
    cell::Cell,
    fs::{self, File, OpenOptions},
    io::Write,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::NetworkInterface;
use hearth_tests::{Netns, netns::LinkEnd};
use rustix::ioctl::{Setter, ioctl};

use super::{
    frames::{FAR_MAC, Frame, NEAR_MAC},
    packets::{Rates, Way},
    policy::{self, GROUPS, OPEN_PORT, Rule},
    world::{DOWNLINK, HOST, PEER, Target, UDP_PORT, UPLINK},
};
use crate::launch::ms;

/// A host without Hearth, with a tap of the same name for the same guest.
pub struct Plain {
    host: Netns,
    outside: Netns,
    tap_name: String,
    guest: Ipv4Addr,
    tap: File,
    /// Of the rule that is added next.
    next_handle: Cell<usize>,
}

impl Plain {
    /// Without any rule.
    pub fn new(target: &Target) -> Result<Self> {
        let (host, outside) = (Netns::new()?, Netns::new()?);
        let peer = format!("{PEER}/24");
        host.connect(
            &LinkEnd {
                mac: Some(NEAR_MAC),
                ..LinkEnd::new(UPLINK, HOST)
            },
            &outside,
            &LinkEnd {
                mac: Some(FAR_MAC),
                ..LinkEnd::new(DOWNLINK, &peer)
            },
        )?;
        host.enter(|| Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        let Target { tap, mac, ipv4, .. } = target;
        host.ip(&format!("tuntap add {tap} mode tap"))?;
        let file = host.enter(|| attach(tap))?;
        host.ip(&format!("link set {tap} up"))?;
        host.ip(&format!("route add {ipv4}/32 dev {tap}"))?;
        host.ip(&format!(
            "neigh add {ipv4} lladdr {mac} dev {tap} nud permanent"
        ))?;
        Ok(Self {
            host,
            outside,
            tap_name: tap.clone(),
            guest: *ipv4,
            tap: file,
            next_handle: Cell::new(0),
        })
    }

    /// Takes the place of the rules that are there; gives the ms that `nft` takes, and how many
    /// rules there are.
    pub fn load(&self, rules: &[String]) -> Result<(f64, usize)> {
        let mut text = "table inet plain\ndelete table inet plain\ntable inet plain {\n\
            chain forward {\ntype filter hook forward priority filter; policy accept;\n\
            ct state established,related accept\nct state invalid drop\n"
            .to_owned();
        for rule in rules {
            text.push_str(rule);
            text.push('\n');
        }
        text.push_str("oifname \"hth*\" counter drop\n}\n}\n");
        let start = Instant::now();
        self.nft(&text)?;
        let took = ms(start);
        let count = rules.len() + 3;
        // The kernel numbers what is in a table from 1; the chain is the first.
        self.next_handle.set(count + 2);
        Ok((took, count))
    }

    /// Adds a rule and deletes it again, with `nft` as one would; gives the ms of both.
    pub fn change(&self) -> Result<(f64, f64)> {
        let rule = policy::udp(UDP_PORT);
        let line = rule.lines(&self.tap_name, &[]);
        let line = line.first().context("a rule is a line")?;
        let start = Instant::now();
        self.nft(&format!("insert rule inet plain forward {line}\n"))?;
        let added = ms(start);
        // To have `nft` say it (`--echo`) takes minutes with a long list.
        let handle = self.next_handle.get();
        self.next_handle.set(handle + 1);
        let start = Instant::now();
        self.nft(&format!("delete rule inet plain forward handle {handle}\n"))?;
        Ok((added, ms(start)))
    }

    /// See [`Way::rates`].
    pub fn rates(&self, refuses: bool) -> Result<Rates> {
        let way = Way::new(&self.host, &self.outside, &self.tap_name, self.guest)?;
        way.rates(refuses, |way, port| {
            way.sender.send(&[way.frame((PEER, port), OPEN_PORT, 0)])?;
            // The guest, that is we, answers.
            let answer = Frame::udp(
                ["02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff"],
                (self.guest, OPEN_PORT),
                (PEER, port),
                0,
            );
            (&self.tap).write_all(answer.bytes())?;
            Ok(())
        })
    }

    fn nft(&self, input: &str) -> Result<()> {
        let output = self.host.enter(|| {
            let mut child = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("nft")?;
            let mut stdin = child.stdin.take().context("no pipe")?;
            stdin.write_all(input.as_bytes())?;
            drop(stdin);
            Ok(child.wait_with_output()?)
        })?;
        let error = String::from_utf8_lossy(&output.stderr);
        let shown: String = error.chars().take(1000).collect();
        ensure!(output.status.success(), "nft: {shown}");
        Ok(())
    }
}

/// The full policy, for these interfaces.
pub fn list(interfaces: &[NetworkInterface]) -> Result<Vec<String>> {
    let mut members: Vec<Vec<IpAddr>> = vec![Vec::new(); GROUPS];
    for (number, interface) in interfaces.iter().enumerate() {
        for group in policy::groups_of(number) {
            members[group].push(interface.private_ipv4.parse()?);
            members[group].push(interface.private_ipv6.parse()?);
        }
    }
    let mut list = Vec::new();
    for (number, interface) in interfaces.iter().enumerate() {
        for group in policy::groups_of(number) {
            let mut rules: Vec<Rule> = policy::rules(group);
            if group == policy::CHANGED {
                rules.push(policy::first_rule());
            }
            for rule in rules {
                list.extend(rule.lines(&interface.tap_name, &members));
            }
        }
    }
    Ok(list)
}

/// `struct ifreq` as far as TUNSETIFF looks at it.
#[repr(C)]
struct TapRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

fn attach(name: &str) -> Result<File> {
    const TUNSETIFF: u32 = 0x4004_54ca;
    const IFF_TAP: u16 = 2;
    const IFF_NO_PI: u16 = 0x1000;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = TapRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the call reads one ifreq, which the request is.
    unsafe { ioctl(&tun, Setter::<TUNSETIFF, TapRequest>::new(request)) }?;
    Ok(tun)
}
